"""Granite 3: Llama whose embeddings, attention, residual stream and logits are multiplied by numbers of their own."""

from __future__ import annotations

from dataclasses import replace

from mwork_jax.config import ModelConfig
from mwork_jax.families.base import Family
from mwork_jax.families.gguf import IN_HALVES, GGUFForm
from mwork_jax.families.gguf_metadata import GGUFMetadata
from mwork_jax.families.reader import Reader


def _special(config: ModelConfig, read: Reader) -> ModelConfig:
    return replace(
        config,
        embed_scale=read.number("embedding_multiplier"),
        attn_scale=read.number("attention_multiplier"),
        residual_scale=read.number("residual_multiplier"),
        logit_scale=1 / read.number("logits_scaling"),
    )


def _hf_attributes(config: ModelConfig) -> dict[str, object]:
    return {
        "attention_bias": config.qkv_bias,
        "mlp_bias": config.mlp_bias,
        "embedding_multiplier": config.embed_scale,
        "attention_multiplier": config.attn_scale,
        "residual_multiplier": config.residual_scale,
        "logits_scaling": 1 / config.logit_scale,
    }


def _gguf_attributes(m: GGUFMetadata) -> dict[str, object]:
    """The numbers as a config.json has them; without one, or with 0, llama.cpp (granite.cpp) scales as others do."""
    return m.biases() | {
        "embedding_multiplier": m.get("embedding_scale") or 1.0,
        "attention_multiplier": m.get("attention.scale") or m.head_dim() ** -0.5,
        "residual_multiplier": m.get("residual_scale") or 1.0,
        "logits_scaling": m.need("logit_scale"),  # a divisor, although Cohere's of the same name is a factor
    }


GRANITE = Family(
    model_type="granite",
    hf_class="GraniteForCausalLM",
    about="Granite 3: multipliers on embeddings, attention, residual stream and logits",
    checkpoints=("ibm-granite/granite-3.3-8b-instruct",),
    attributes=frozenset({
        "attention_bias", "mlp_bias", "embedding_multiplier", "attention_multiplier", "residual_multiplier",
        "logits_scaling",
    }),
    defaults={
        "max_position_embeddings": 2048, "bos_token_id": 1, "eos_token_id": 2, "embedding_multiplier": 1.0,
        "attention_multiplier": 1.0, "residual_multiplier": 1.0, "logits_scaling": 1.0,
    },
    hf_attributes=_hf_attributes,
    special=_special,
    gguf=(
        GGUFForm(
            "granite", attributes=_gguf_attributes,
            keys=frozenset({"embedding_scale", "attention.scale", "residual_scale", "logit_scale"}),
            only_at={"rope.scaling.finetuned": (True,)},  # false: no rotary embeddings
            restored=IN_HALVES,
        ),
    ),
)  # fmt: skip
