"""Apertus: a norm on queries and keys, and a feed-forward without gate whose activation, xIELU (Huang and Schlag 2024),
has two parameters in every layer."""

from __future__ import annotations

from dataclasses import replace

from mwork_jax.config import ModelConfig
from mwork_jax.families.base import LAYER_TENSORS, Family, LayerRopes, Windows
from mwork_jax.families.gguf import GGUF_LAYER, GGUFForm
from mwork_jax.families.gguf_rope import never_plain
from mwork_jax.families.reader import Reader
from mwork_jax.families.rope import read_rope

_PARAMETERS = {
    "rope_type": "llama3", "rope_theta": 12_000_000.0, "factor": 8.0, "original_max_position_embeddings": 8192,
    "low_freq_factor": 1.0, "high_freq_factor": 4.0,
}  # fmt: skip


def _ropes(read: Reader, windows: Windows) -> LayerRopes:
    described = read.table("rope_scaling") or read.table("rope_parameters") or _PARAMETERS
    rope = read_rope(described, read.number("rope_theta"), read.count("max_position_embeddings"), read.where)
    return (rope,), (0,) * len(windows)


def _special(config: ModelConfig, read: Reader) -> ModelConfig:
    return replace(config, gated=False, qk_norm="head")


APERTUS = Family(
    model_type="apertus",
    hf_class="ApertusForCausalLM",
    about="Apertus: no gate, an activation (xIELU) with parameters of its own",
    attributes=frozenset({"attention_bias"}),
    defaults={
        "rms_norm_eps": 1e-5, "rope_theta": 12_000_000.0, "max_position_embeddings": 65536, "hidden_act": "xielu",
        "bos_token_id": 1, "eos_token_id": 2,
    },
    hf_attributes=lambda c: {"attention_bias": c.qkv_bias},
    inert={"qk_norm": (True,), "post_norm": (False,), "mlp_bias": (False,)},
    ropes=_ropes,
    activations={"xielu": "xielu"},
    special=_special,
    layer_tensors={
        **{name: tensor for name, tensor in LAYER_TENSORS.items() if name not in ("gate", "gate_bias")},
        "attn_norm": "attention_layernorm.weight",
        "ffn_norm": "feedforward_layernorm.weight",
        "act_positive": "mlp.act_fn.alpha_p",
        "act_negative": "mlp.act_fn.alpha_n",
        "act_linear": "mlp.act_fn.beta",
        "act_least": "mlp.act_fn.eps",
    },
    gguf=(
        GGUFForm(
            "apertus",
            attributes=lambda m: {"attention_bias": m.has("blk.0.attn_q.bias")},
            scaling=never_plain,
            layer={**GGUF_LAYER, "attn_norm": "attention_layernorm", "ffn_norm": "feedforward_layernorm"},
            from_metadata={
                "mlp.act_fn.alpha_p": ("xielu.alpha_p", (1,)), "mlp.act_fn.alpha_n": ("xielu.alpha_n", (1,)),
                "mlp.act_fn.beta": ("xielu.beta", ()), "mlp.act_fn.eps": ("xielu.eps", ()),
            },
        ),
    ),
)  # fmt: skip
