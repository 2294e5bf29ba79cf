"""OLMo 2: norms after attention and feed-forward instead of before, and a norm over the whole width of queries and of
keys, so that a neuron switched off rescales every head."""

from __future__ import annotations

from dataclasses import replace

from mwork_jax.config import ModelConfig
from mwork_jax.families.base import LAYER_TENSORS, Family
from mwork_jax.families.gguf import GGUF_LAYER, GGUFForm
from mwork_jax.families.gguf_metadata import SLIDING_WINDOW
from mwork_jax.families.reader import Reader


def special(config: ModelConfig, read: Reader) -> ModelConfig:
    """What OLMo 2 and 3 share."""
    return replace(config, pre_norms=False, post_norms=True, qk_norm="width")


GGUF_OLMO_LAYER = {
    **{name: tensor for name, tensor in GGUF_LAYER.items() if name not in ("attn_norm", "ffn_norm")},
    "post_attention_norm": "post_attention_layernorm",
    "post_ffw_norm": "post_feedforward_layernorm",
}

OLMO2 = Family(
    model_type="olmo2",
    hf_class="Olmo2ForCausalLM",
    about="OLMo 2: norms after the blocks, and over the whole width of queries and keys",
    limits="a query or key neuron rescales every head, so scoring one takes longer",
    checkpoints=("allenai/OLMo-2-1124-7B-Instruct",),
    attributes=frozenset({"attention_bias"}),
    defaults={"rms_norm_eps": 1e-5, "max_position_embeddings": 2048, "eos_token_id": 50279},
    hf_attributes=lambda c: {"attention_bias": c.qkv_bias},
    special=special,
    layer_tensors={
        **{name: tensor for name, tensor in LAYER_TENSORS.items() if name not in ("attn_norm", "ffn_norm")},
        "attn_post_norm": "post_attention_layernorm.weight",
        "ffn_post_norm": "post_feedforward_layernorm.weight",
    },
    gguf=(
        GGUFForm(
            "olmo2",
            when=lambda m: m.window() is None,  # with one it is OLMo 3
            attributes=lambda m: {"attention_bias": m.has("blk.0.attn_q.bias")},
            keys=frozenset({SLIDING_WINDOW}),
            layer=GGUF_OLMO_LAYER,
        ),
    ),
)
