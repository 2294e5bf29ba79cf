"""OLMo 3: OLMo 2 with a window in three of four layers, which keep their rotary embedding where the others' is
stretched."""

from __future__ import annotations

from dataclasses import replace

from mwork_jax.config import FULL_ATTENTION
from mwork_jax.errors import InputError
from mwork_jax.families.base import (
    LayerRopes,
    Windows,
    full_attention_every,
    hf_layer_types,
    hf_ropes_by_layer_type,
    hf_window,
    layer_types,
    ropes_by_layer_type,
    windows_of,
)
from mwork_jax.families.gguf import GGUFForm
from mwork_jax.families.gguf_metadata import SLIDING_PATTERN, SLIDING_WINDOW, GGUFMetadata
from mwork_jax.families.gguf_rope import never_plain
from mwork_jax.families.olmo2 import GGUF_OLMO_LAYER, OLMO2
from mwork_jax.families.reader import Reader

_THETA = 500000.0


def _windows(read: Reader, layers: int) -> Windows:
    window = read.count("sliding_window", if_null=FULL_ATTENTION)
    kinds = layer_types(read, layers, lambda: full_attention_every(4, layers))
    if window == FULL_ATTENTION and "sliding_attention" in kinds:
        raise read.refusal("sliding_window", "the window of its sliding layers, whose rotary embedding is their own,")
    return windows_of(kinds, window)


def _ropes(read: Reader, windows: Windows) -> LayerRopes:
    theta, local = read.number("rope_theta"), read.table("rope_parameters").get("sliding_attention")
    if theta != _THETA and not (isinstance(local, dict) and local.get("rope_theta")):
        raise InputError(
            f"{read.where}: rope_theta is {theta:g}, which transformers 4 takes for all layers of olmo3 and "
            "transformers 5 for those without a window; give rope_parameters with a rope_theta for each kind"
        )
    return ropes_by_layer_type(read, windows, theta)


def _gguf_attributes(m: GGUFMetadata) -> dict[str, object]:
    """Layers with a window are not stretched, and every fourth has none where the file does not say which
    (llama.cpp's olmo2.cpp)."""
    theta = m.rope_theta()
    return {
        "attention_bias": m.has("blk.0.attn_q.bias"),
        "sliding_window": m.window(),
        "layer_types": m.layer_types(4),
        "rope_scaling": None,
        "rope_parameters": {
            "full_attention": never_plain(m) | {"rope_theta": theta},
            "sliding_attention": {"rope_type": "default", "rope_theta": m.get("rope.freq_base_swa", theta)},
        },
    }


OLMO3 = replace(
    OLMO2,
    model_type="olmo3",
    hf_class="Olmo3ForCausalLM",
    about="OLMo 3: OLMo 2 with a window in three of four layers",
    limits="as OLMo 2",
    checkpoints=("allenai/Olmo-3.1-32B-Instruct",),
    attributes=OLMO2.attributes | {"sliding_window", "layer_types"},
    defaults={**OLMO2.defaults, "rope_theta": _THETA, "sliding_window": 4096},
    hf_attributes=lambda c: {
        "attention_bias": c.qkv_bias, "sliding_window": hf_window(c) or 4096, "layer_types": hf_layer_types(c),
    },
    windows=_windows,
    ropes=_ropes,
    hf_ropes=hf_ropes_by_layer_type,
    gguf=(
        GGUFForm(
            "olmo2",
            when=lambda m: m.window() is not None,
            attributes=_gguf_attributes,
            keys=frozenset({SLIDING_WINDOW, SLIDING_PATTERN, "rope.freq_base_swa"}),
            layer=GGUF_OLMO_LAYER,
        ),
    ),
)  # fmt: skip
