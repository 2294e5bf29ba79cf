"""Gemma 3 (text): Gemma 2 with a norm on queries and keys instead of soft caps, and two rotary embeddings, one for the
layers with a window and one for those without."""

from __future__ import annotations

from dataclasses import replace

from mwork_jax.config import FULL_ATTENTION, ModelConfig
from mwork_jax.errors import InputError
from mwork_jax.families.base import LayerRopes, Windows, layer_types, windows_of
from mwork_jax.families.gemma2 import GEMMA2, full_attention_every
from mwork_jax.families.reader import Reader
from mwork_jax.families.rope import hf_rope, read_rope


def _windows(read: Reader, layers: int) -> Windows:
    window = read.count("sliding_window", if_null=FULL_ATTENTION)
    kinds = layer_types(read, layers, lambda: full_attention_every(read.count("sliding_window_pattern"), layers))
    if window == FULL_ATTENTION and "sliding_attention" in kinds:
        raise read.refusal("sliding_window", "the window of its sliding layers, whose rotary embedding is their own,")
    return windows_of(kinds, window)


def _ropes(read: Reader, windows: Windows) -> LayerRopes:
    theta, scaling, parameters = read.number("rope_theta"), read.table("rope_scaling"), read.table("rope_parameters")
    length, where = read.count("max_position_embeddings"), read.where
    for name in parameters.keys() - {"sliding_attention", "full_attention"}:
        raise InputError(
            f"{where}: rope_parameters has {name!r}; for gemma3_text it has 'sliding_attention' and 'full_attention'"
        )
    nested = Reader(parameters, f"{where}: rope_parameters")
    local, whole = nested.table("sliding_attention"), {**nested.table("full_attention"), **scaling}
    ropes = (
        read_rope(local, read.number("rope_local_base_freq"), length, where),
        read_rope(whole, theta, length, where),
    )
    return ropes, tuple(0 if window else 1 for window in windows)


def _hf_ropes(config: ModelConfig) -> dict[str, object]:
    return {"sliding_attention": hf_rope(config.ropes[0]), "full_attention": hf_rope(config.ropes[1])}


_OWN_DEFAULTS = {
    "max_position_embeddings": 131072, "rope_theta": 1_000_000.0, "rope_local_base_freq": 10000.0,
    "sliding_window_pattern": 6, "attn_logit_softcapping": None, "final_logit_softcapping": None,
}  # fmt: skip
GEMMA3 = replace(
    GEMMA2,
    model_type="gemma3_text",
    hf_class="Gemma3ForCausalLM",
    attributes=GEMMA2.attributes | {"rope_local_base_freq", "sliding_window_pattern", "_sliding_window_pattern"},
    defaults={**GEMMA2.defaults, **_OWN_DEFAULTS},
    windows=_windows,
    ropes=_ropes,
    hf_ropes=_hf_ropes,
    qk_norm=True,
)
