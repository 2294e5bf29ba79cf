"""Gemma 3 (text): Gemma 2 with a norm on queries and keys instead of soft caps, and two rotary embeddings, one for the
layers with a window and one for those without."""

from __future__ import annotations

from dataclasses import replace

from mwork_jax.config import FULL_ATTENTION
from mwork_jax.families.base import (
    LayerRopes,
    Windows,
    full_attention_every,
    hf_ropes_by_layer_type,
    layer_types,
    ropes_by_layer_type,
    windows_of,
)
from mwork_jax.families.gemma2 import GEMMA2, GEMMA_LAYER, LESS_ONE, SOFT_CAPS, query_scale, special
from mwork_jax.families.gguf import GGUFForm, less_one
from mwork_jax.families.gguf_metadata import SLIDING_PATTERN, SLIDING_WINDOW, GGUFMetadata
from mwork_jax.families.reader import Reader


def _windows(read: Reader, layers: int) -> Windows:
    window = read.count("sliding_window", if_null=FULL_ATTENTION)
    kinds = layer_types(read, layers, lambda: full_attention_every(read.count("sliding_window_pattern"), layers))
    if window == FULL_ATTENTION and "sliding_attention" in kinds:
        raise read.refusal("sliding_window", "the window of its sliding layers, whose rotary embedding is their own,")
    return windows_of(kinds, window)


def _ropes(read: Reader, windows: Windows) -> LayerRopes:
    return ropes_by_layer_type(read, windows, read.number("rope_local_base_freq"))


def _gguf_attributes(m: GGUFMetadata) -> dict[str, object]:
    return {
        "query_pre_attn_scalar": query_scale(m, 62),
        "sliding_window": m.count(SLIDING_WINDOW),
        "layer_types": m.layer_types(6),
        "rope_local_base_freq": m.get("rope.freq_base_swa", 10000.0),
        **{name: m.get(name) or None for name in SOFT_CAPS},
    }


_OWN_DEFAULTS = {
    "max_position_embeddings": 131072, "rope_theta": 1_000_000.0, "rope_local_base_freq": 10000.0,
    "sliding_window_pattern": 6, "attn_logit_softcapping": None, "final_logit_softcapping": None,
}  # fmt: skip
GEMMA3 = replace(
    GEMMA2,
    model_type="gemma3_text",
    hf_class="Gemma3ForCausalLM",
    about="Gemma 3: a norm on queries and keys, a rotary embedding for each kind of layer",
    checkpoints=(
        "google/gemma-3-4b-it", "google/gemma-3-1b-it", "google/gemma-3-27b-it", "google/gemma-3-270m",
    ),
    attributes=GEMMA2.attributes | {"rope_local_base_freq", "sliding_window_pattern", "_sliding_window_pattern"},
    defaults={**GEMMA2.defaults, **_OWN_DEFAULTS},
    windows=_windows,
    ropes=_ropes,
    hf_ropes=hf_ropes_by_layer_type,
    special=lambda c, read: replace(special(c, read), qk_norm="head"),
    text_defaults={
        "vocab_size": 262208, "hidden_size": 2304, "intermediate_size": 9216, "num_hidden_layers": 26,
        "num_attention_heads": 8,
    },
    gguf=(
        GGUFForm(
            "gemma3", attributes=_gguf_attributes,
            keys=frozenset({SLIDING_WINDOW, SLIDING_PATTERN, "rope.freq_base_swa", *SOFT_CAPS}), layer=GEMMA_LAYER,
            restored={**LESS_ONE, "self_attn.q_norm": less_one, "self_attn.k_norm": less_one},
        ),
    ),
)  # fmt: skip
