"""Cohere's second generation (Command R7B, Tiny Aya): three layers with a window and rotary embeddings to one that sees
everything and rotates nothing."""

from __future__ import annotations

from dataclasses import replace

from mwork_jax.config import FULL_ATTENTION, Rope
from mwork_jax.families.base import (
    LayerRopes,
    Windows,
    full_attention_every,
    hf_layer_types,
    hf_window,
    layer_types,
    the_rope,
    windows_of,
)
from mwork_jax.families.cohere import COHERE, LAYER_NORM_EPS, gguf_attributes, special
from mwork_jax.families.gguf import GGUFForm
from mwork_jax.families.gguf_metadata import SLIDING_PATTERN, SLIDING_WINDOW, GGUFMetadata
from mwork_jax.families.reader import Reader


def _windows(read: Reader, layers: int) -> Windows:
    window = read.count("sliding_window", if_null=FULL_ATTENTION)
    kinds = layer_types(read, layers, lambda: full_attention_every(read.count("sliding_window_pattern"), layers))
    return windows_of(kinds, window)


def _ropes(read: Reader, windows: Windows) -> LayerRopes:
    """Layers without a window rotate nothing."""
    rope = the_rope(read)
    return (rope, Rope(rope.theta, "none")), tuple(1 if window == FULL_ATTENTION else 0 for window in windows)


def _gguf_attributes(m: GGUFMetadata) -> dict[str, object]:
    """Every fourth layer sees all where the file does not say which (llama.cpp's cohere2.cpp)."""
    return gguf_attributes(m) | {"sliding_window": m.count(SLIDING_WINDOW), "layer_types": m.layer_types(4)}


COHERE2 = replace(
    COHERE,
    model_type="cohere2",
    hf_class="Cohere2ForCausalLM",
    about="Command R7B, Tiny Aya: Cohere with windows, and full layers that rotate nothing",
    limits="",
    checkpoints=("CohereLabs/tiny-aya-global",),
    attributes=frozenset({"attention_bias", "logit_scale", "sliding_window", "layer_types", "sliding_window_pattern"}),
    defaults={
        **{name: value for name, value in COHERE.defaults.items() if name != "use_qk_norm"},
        "rope_theta": 10000.0, "sliding_window": 4096, "sliding_window_pattern": 4,
    },
    hf_attributes=lambda c: {
        "attention_bias": c.qkv_bias, "logit_scale": c.logit_scale, "sliding_window": hf_window(c),
        "layer_types": hf_layer_types(c),
    },
    inert={
        "cache_implementation": None, "rotary_pct": (1.0,), "position_embedding_type": ("rope_gptj",),
        "order_of_interleaved_layers": ("local_attn_first",), "use_embedding_sharing": (True,),
        "use_gated_activation": (True,), "use_parallel_block": (True,), "use_parallel_embedding": (False,),
        "use_qk_norm": (False,), "head_dim": None,
        # Tiny Aya: the pattern under two more names, beside layer_types, which transformers goes by
        "layer_switch": (4,), "_sliding_window_pattern": None,
    },
    derived=lambda read: {"head_dim": None},  # transformers computes it, whatever is written
    windows=_windows,
    ropes=_ropes,
    special=special,
    gguf=(
        GGUFForm(
            "cohere2", attributes=_gguf_attributes, keys=frozenset({"logit_scale", SLIDING_WINDOW, SLIDING_PATTERN}),
            norm_eps=LAYER_NORM_EPS,
        ),
    ),
)  # fmt: skip
