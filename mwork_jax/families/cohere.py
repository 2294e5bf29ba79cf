"""Cohere (Aya 23, Aya Expanse, Command R): attention and feed-forward side by side after one norm that subtracts the
mean, rotary embeddings of neighbouring entries, scaled logits."""

from __future__ import annotations

from dataclasses import replace

from mwork_jax.config import ModelConfig
from mwork_jax.families.base import LAYER_TENSORS, Family
from mwork_jax.families.gguf import GGUFForm
from mwork_jax.families.gguf_metadata import GGUFMetadata
from mwork_jax.families.reader import Reader


def special(config: ModelConfig, read: Reader) -> ModelConfig:
    """What Cohere's first and second generation share."""
    return replace(config, norm="layer", parallel=True, interleaved=True, logit_scale=read.number("logit_scale"))


def _special(config: ModelConfig, read: Reader) -> ModelConfig:
    return replace(special(config, read), qk_norm="own" if read.flag("use_qk_norm") else None)


LAYER_NORM_EPS = "attention.layer_norm_epsilon"


def gguf_attributes(m: GGUFMetadata) -> dict[str, object]:
    """What Cohere's first and second generation share. As the checkpoint, the file has rows for a rotary embedding of
    neighbours."""
    return {"attention_bias": m.has("blk.0.attn_q.bias"), "logit_scale": m.need("logit_scale")}


COHERE = Family(
    model_type="cohere",
    hf_class="CohereForCausalLM",
    about="Aya 23, Aya Expanse, Command R: parallel blocks, norms that subtract the mean",
    limits="with use_qk_norm (Command R+), queries and keys are scored neuron by neuron, slowly",
    attributes=frozenset({"attention_bias", "logit_scale", "use_qk_norm"}),
    defaults={
        "rms_norm_eps": 1e-5, "rope_theta": 500000.0, "max_position_embeddings": 8192, "logit_scale": 0.0625,
        "bos_token_id": 5, "eos_token_id": 255001, "tie_word_embeddings": True, "use_qk_norm": False,
    },
    hf_attributes=lambda c: {
        "attention_bias": c.qkv_bias, "logit_scale": c.logit_scale, "use_qk_norm": c.qk_norm is not None,
    },
    renamed={"layer_norm_eps": "rms_norm_eps"},
    special=_special,
    layer_tensors={name: tensor for name, tensor in LAYER_TENSORS.items() if name != "ffn_norm"},
    gguf=(
        GGUFForm(
            "command-r", attributes=lambda m: gguf_attributes(m) | {"use_qk_norm": m.has("blk.0.attn_q_norm.weight")},
            keys=frozenset({"logit_scale"}), norm_eps=LAYER_NORM_EPS,
        ),
    ),
)  # fmt: skip
