"""BLOOM and BLOOMZ: norms that subtract the mean and have biases, one of them on the embeddings; distance subtracted
from the scores (ALiBi, Press et al. 2022) instead of rotary embeddings; a feed-forward without gate."""

from __future__ import annotations

from dataclasses import replace

from mwork_jax.config import ModelConfig, Rope
from mwork_jax.families.base import Family, Fused, FusedRows, LayerRopes, Windows
from mwork_jax.families.reader import Reader

_TENSORS = {
    "attn_norm": "input_layernorm", "ffn_norm": "post_attention_layernorm", "o": "self_attention.dense",
    "up": "mlp.dense_h_to_4h", "down": "mlp.dense_4h_to_h",
    **{name: f"self_attention.{name}" for name in "qkv"},  # apart; in a checkpoint they are one
}  # fmt: skip


def _derived(read: Reader) -> dict[str, object]:
    hidden = read.count("hidden_size")
    return {"intermediate_size": 4 * hidden, "head_dim": None, "num_key_value_heads": None}


def _no_ropes(read: Reader, windows: Windows) -> LayerRopes:
    return (Rope(10000.0, "none"),), (0,) * len(windows)


def _special(config: ModelConfig, read: Reader) -> ModelConfig:
    return replace(
        config, norm="layer", norm_biases=True, embed_norm=True, gated=False, alibi=True, activation="gelu_tanh",
        qkv_bias=True, attn_out_bias=True, mlp_bias=True,
    )  # fmt: skip


def _fused(config: ModelConfig) -> Fused:
    """Queries, keys and values of a head lie side by side."""
    size = config.head_dim
    rows = {name: FusedRows(config.num_heads, 3 * size, i * size, (i + 1) * size) for i, name in enumerate("qkv")}
    return {
        f"self_attention.query_key_value.{kind}": {f"{_TENSORS[name]}.{kind}": at for name, at in rows.items()}
        for kind in ("weight", "bias")
    }


BLOOM = Family(
    model_type="bloom",
    hf_class="BloomForCausalLM",
    about="BLOOM and BLOOMZ: ALiBi, norms with biases, no gate",
    limits="GGUF files",
    checkpoints=("bigscience/bloom-560m", "bigscience/bloom-3b"),
    attributes=frozenset(),
    # Its context is not in the class; every published model was trained on 2,048 tokens.
    defaults={
        "rms_norm_eps": 1e-5, "max_position_embeddings": 2048, "hidden_act": "gelu_pytorch_tanh", "bos_token_id": 1,
        "eos_token_id": 2, "tie_word_embeddings": True,
    },
    hf_attributes=lambda c: {},
    renamed={
        "n_layer": "num_hidden_layers", "n_head": "num_attention_heads", "n_embed": "hidden_size",
        "layer_norm_epsilon": "rms_norm_eps", "seq_length": "max_position_embeddings",
    },
    derived=_derived,
    inert={
        "apply_residual_connection_post_layernorm": (False,), "slow_but_exact": (False,), "offset_alibi": (100,),
        "attention_softmax_in_fp32": (True,), "bias_dropout_fusion": (True,), "skip_bias_add": (True,),
        "skip_bias_add_qkv": (False,), "masked_softmax_fusion": (True,), "use_alibi": (True,), "unk_token_id": None,
    },
    ropes=_no_ropes,
    hf_ropes=None,
    special=_special,
    layers="transformer.h.",
    whole_tensors={
        "embed": "transformer.word_embeddings.weight",
        "embed_norm": "transformer.word_embeddings_layernorm.weight",
        "embed_norm_bias": "transformer.word_embeddings_layernorm.bias",
        "final_norm": "transformer.ln_f.weight",
        "final_norm_bias": "transformer.ln_f.bias",
        "head": "lm_head.weight",
    },
    layer_tensors={
        **{name: f"{tensor}.weight" for name, tensor in _TENSORS.items()},
        **{f"{name}_bias": f"{tensor}.bias" for name, tensor in _TENSORS.items()},
    },
    fused=_fused,
)  # fmt: skip
