"""gpt-oss: experts with a feed-forward of their own kind, heads that can attend to nothing (sinks), and a window in
every other layer. Published in MXFP4, which is read."""

from __future__ import annotations

from dataclasses import replace
from functools import partial

import numpy as np

from mwork_jax.config import FULL_ATTENTION, ModelConfig
from mwork_jax.families.base import (
    EXPERTS,
    LAYER_TENSORS,
    Derived,
    Family,
    LayerRopes,
    Windows,
    hf_layer_types,
    hf_window,
    layer_types,
    windows_of,
)
from mwork_jax.families.gguf import GGUF_EXPERTS, GGUF_LAYER, GGUFForm
from mwork_jax.families.gguf_metadata import SLIDING_PATTERN, SLIDING_WINDOW, GGUFMetadata
from mwork_jax.families.gguf_rope import never_plain
from mwork_jax.families.mxfp4 import from_mxfp4
from mwork_jax.families.reader import Reader
from mwork_jax.families.rope import read_rope

_PARAMETERS = {
    "rope_type": "yarn", "factor": 32.0, "beta_fast": 32.0, "beta_slow": 1.0, "truncate": False,
    "original_max_position_embeddings": 4096,
}  # fmt: skip
_GATE_UP, _DOWN = "mlp.experts.gate_up_proj", "mlp.experts.down_proj"
_BIASES = {f"{name}_bias": f"mlp.experts.{name}_proj.bias" for name in ("gate", "up", "down")}


def _windows(read: Reader, layers: int) -> Windows:
    window = read.count("sliding_window", if_null=FULL_ATTENTION)
    turns = [("full_attention" if i % 2 else "sliding_attention") for i in range(layers)]
    return windows_of(layer_types(read, layers, lambda: turns), window)


def _ropes(read: Reader, windows: Windows) -> LayerRopes:
    described = read.table("rope_scaling") or read.table("rope_parameters") or _PARAMETERS
    rope = read_rope(described, read.number("rope_theta"), read.count("max_position_embeddings"), read.where)
    return (rope,), (0,) * len(windows)


def _special(config: ModelConfig, read: Reader) -> ModelConfig:
    number = read.count("num_local_experts")
    return replace(
        config,
        num_experts=number,
        experts_per_token=read.count("num_experts_per_tok", most=number),
        router_bias=True,
        mlp_bias=True,
        sinks=True,
        act_limit=read.number("swiglu_limit"),
        act_slope=read.number("swiglu_alpha"),
    )


def _hf_attributes(config: ModelConfig) -> dict[str, object]:
    return {
        "attention_bias": config.qkv_bias,
        "sliding_window": hf_window(config) or 128,
        "layer_types": hf_layer_types(config),
        "num_local_experts": config.num_experts,
        "num_experts_per_tok": config.experts_per_token,
        "swiglu_limit": config.act_limit,
        "swiglu_alpha": config.act_slope,
    }


def _rows(first: int, both: np.ndarray) -> np.ndarray:
    """Gate (0) or up (1) [e, f, m] of both, [e, m, 2 f] by turns."""
    return np.swapaxes(both[:, :, first::2], 1, 2)


def _quantised_rows(first: int, blocks: np.ndarray, scales: np.ndarray) -> np.ndarray:
    return from_mxfp4(blocks[:, first::2], scales[:, first::2])


def _derived() -> dict[str, tuple[Derived, ...]]:
    quantised = tuple(f"{_GATE_UP}_{kind}" for kind in ("blocks", "scales"))
    down = tuple(f"{_DOWN}_{kind}" for kind in ("blocks", "scales"))
    tensors = {
        EXPERTS["down"]: (Derived((_DOWN,), lambda x: np.swapaxes(x, 1, 2)), Derived(down, from_mxfp4)),
        _BIASES["down_bias"]: (Derived((f"{_DOWN}_bias",), lambda x: x),),
    }
    for first, name in enumerate(("gate", "up")):
        whole = Derived((_GATE_UP,), partial(_rows, first))
        tensors[EXPERTS[name]] = (whole, Derived(quantised, partial(_quantised_rows, first)))
        tensors[_BIASES[f"{name}_bias"]] = (Derived((f"{_GATE_UP}_bias",), partial(_every_other, first)),)
    return tensors


def _every_other(first: int, both: np.ndarray) -> np.ndarray:
    return both[:, first::2]


def _rejoined(tensors: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    kept = {name: x for name, x in tensors.items() if name not in (*EXPERTS.values(), *_BIASES.values())}
    gate, up = (np.swapaxes(tensors[EXPERTS[name]], 1, 2) for name in ("gate", "up"))
    both = np.stack([gate, up], axis=-1)
    biases = np.stack([tensors[_BIASES[f"{name}_bias"]] for name in ("gate", "up")], axis=-1)
    return kept | {
        _GATE_UP: both.reshape(*both.shape[:2], -1),
        f"{_GATE_UP}_bias": biases.reshape(biases.shape[0], -1),
        _DOWN: np.ascontiguousarray(np.swapaxes(tensors[EXPERTS["down"]], 1, 2)),
        f"{_DOWN}_bias": tensors[_BIASES["down_bias"]],
        "mlp.router.weight": tensors[EXPERTS["router"]],
    }


def _gguf_scaling(m: GGUFMetadata) -> dict[str, object]:
    """Nothing in the file says that the ends of YaRN's ramp stay as they are, which they do in every published one."""
    scaling = never_plain(m)
    return scaling | ({"truncate": False} if scaling["rope_type"] == "yarn" else {})


def _gguf_attributes(m: GGUFMetadata) -> dict[str, object]:
    """Every other layer has a window where the file does not say which (llama.cpp's openai-moe.cpp); limit and slope
    of the activation are the family's there."""
    return {
        "attention_bias": m.has("blk.0.attn_q.bias"),
        "num_local_experts": m.count("expert_count"),
        "num_experts_per_tok": m.count("expert_used_count"),
        "sliding_window": m.count(SLIDING_WINDOW),
        "layer_types": m.layer_types(2),
    }


_GGUF_LAYER = {
    **{name: tensor for name, tensor in GGUF_LAYER.items() if name != "ffn_norm"}, **GGUF_EXPERTS,
    "post_attention_norm": "post_attention_layernorm",
    "attn_sinks.weight": "self_attn.sinks",
    "ffn_gate_inp.bias": "mlp.router.bias",
}  # fmt: skip

GPT_OSS = Family(
    model_type="gpt_oss",
    hf_class="GptOssForCausalLM",
    about="gpt-oss 20B and 120B, in bfloat16 and MXFP4: experts, attention sinks, windows",
    limits="queries and keys are scored neuron by neuron, slowly, because of the sinks",
    checkpoints=("openai/gpt-oss-20b",),
    attributes=frozenset({
        "attention_bias", "sliding_window", "layer_types", "num_local_experts", "num_experts_per_tok", "swiglu_limit",
        "swiglu_alpha",
    }),
    defaults={
        "rms_norm_eps": 1e-5, "rope_theta": 150000.0, "max_position_embeddings": 131072, "head_dim": 64,
        "num_key_value_heads": 8, "sliding_window": 128, "attention_bias": True, "num_local_experts": 128,
        "num_experts_per_tok": 4, "swiglu_limit": 7.0, "swiglu_alpha": 1.702,
    },
    hf_attributes=_hf_attributes,
    renamed={"num_experts": "num_local_experts"},
    inert={
        "experts_per_token": None, "router_aux_loss_coef": None, "output_router_logits": None,
        "initial_context_length": (4096,),
    },
    windows=_windows,
    ropes=_ropes,
    special=_special,
    layer_tensors={
        **LAYER_TENSORS, **EXPERTS, **_BIASES, "router_bias": "mlp.router.bias", "sinks": "self_attn.sinks",
    },
    derived_tensors=_derived() | {EXPERTS["router"]: (Derived(("mlp.router.weight",), lambda x: x),)},
    rejoined=_rejoined,
    quantised=frozenset({"mxfp4"}),
    gguf=(
        GGUFForm(
            "gpt-oss", attributes=_gguf_attributes,
            keys=frozenset({"expert_count", "expert_feed_forward_length", SLIDING_WINDOW, SLIDING_PATTERN}),
            only_at={"expert_gating_func": (3,)},  # softmax over the experts that a token goes to
            scaling=_gguf_scaling, layer=_GGUF_LAYER,
        ),
    ),
)  # fmt: skip
