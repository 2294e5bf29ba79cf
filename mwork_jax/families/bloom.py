"""BLOOM and BLOOMZ: norms that subtract the mean and have biases, one of them on the embeddings; distance subtracted
from the scores (ALiBi, Press et al. 2022) instead of rotary embeddings; a feed-forward without gate."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

import numpy as np

from mwork_jax.config import ModelConfig, Rope
from mwork_jax.errors import InputError
from mwork_jax.families.base import Family, Fused, FusedRows, LayerRopes, Windows
from mwork_jax.families.gguf import GGUFForm
from mwork_jax.families.gguf_metadata import GGUFMetadata
from mwork_jax.families.reader import Reader

_TENSORS = {
    "attn_norm": "input_layernorm", "ffn_norm": "post_attention_layernorm", "o": "self_attention.dense",
    "up": "mlp.dense_h_to_4h", "down": "mlp.dense_4h_to_h",
    **{name: f"self_attention.{name}" for name in "qkv"},  # apart; in a checkpoint they are one
}  # fmt: skip


# Its context is not in the class; every published model was trained on so many tokens.
_LENGTH = 2048


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


def _by_heads(rows: np.ndarray, m: GGUFMetadata) -> np.ndarray:
    """Queries, keys and values side by side in every head, from all queries, all keys and all values."""
    heads = m.heads()
    if rows.shape[0] % (3 * heads):
        raise InputError(f"{m.where}: attn_qkv has {rows.shape[0]} rows, not a multiple of 3 x {heads} heads")
    return rows.reshape(3, heads, -1, *rows.shape[1:]).swapaxes(0, 1).reshape(rows.shape)


def _gguf_attributes(m: GGUFMetadata) -> dict[str, object]:
    hidden, inner, length = m.count("embedding_length"), m.count("feed_forward_length"), m.count("context_length")
    if inner != 4 * hidden or m.kv_heads() != m.heads():
        raise InputError(f"{m.where}: a feed-forward of 4 x {hidden} and as many keys as queries are needed for bloom")
    # The converter writes the hidden size where a config.json does not say how long the context is.
    return {"max_position_embeddings": _LENGTH if length == hidden else length}


_GGUF_WHOLE = {
    "token_embd": "transformer.word_embeddings", "token_embd_norm": "transformer.word_embeddings_layernorm",
    "output_norm": "transformer.ln_f", "output": "lm_head",
}  # fmt: skip
_GGUF_LAYER: Mapping[str, str] = {
    "attn_norm": _TENSORS["attn_norm"], "ffn_norm": _TENSORS["ffn_norm"], "attn_output": _TENSORS["o"],
    "ffn_up": _TENSORS["up"], "ffn_down": _TENSORS["down"], "attn_qkv": "self_attention.query_key_value",
}  # fmt: skip

BLOOM = Family(
    model_type="bloom",
    hf_class="BloomForCausalLM",
    about="BLOOM and BLOOMZ: ALiBi, norms with biases, no gate",
    checkpoints=("bigscience/bloom-560m", "bigscience/bloom-3b"),
    attributes=frozenset(),
    defaults={
        "rms_norm_eps": 1e-5, "max_position_embeddings": _LENGTH, "hidden_act": "gelu_pytorch_tanh", "bos_token_id": 1,
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
    gguf=(
        GGUFForm(
            "bloom", attributes=_gguf_attributes, only_at={"attention.max_alibi_bias": (8.0,)},
            norm_eps="attention.layer_norm_epsilon", scaling=lambda m: None, read_tensors=frozenset(),
            whole=_GGUF_WHOLE, layer=_GGUF_LAYER, restored={"self_attention.query_key_value": _by_heads},
        ),
    ),
)  # fmt: skip
