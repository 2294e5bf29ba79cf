"""Qwen 2 and 2.5: biases on queries, keys and values, and windows that only later layers may have."""

from __future__ import annotations

from dataclasses import replace

from mwork_jax.config import FULL_ATTENTION, ModelConfig
from mwork_jax.families.base import Family, Windows, full_attention, hf_layer_types, hf_window, layer_types, windows_of
from mwork_jax.families.gguf import GGUFForm
from mwork_jax.families.reader import Reader


def _windows(read: Reader, layers: int) -> Windows:
    if not read.flag("use_sliding_window"):
        return full_attention(read, layers)
    window = read.count("sliding_window", if_null=FULL_ATTENTION)

    def default() -> list[str]:
        first = read.count("max_window_layers", minimum=0)
        return ["sliding_attention" if i >= first else "full_attention" for i in range(layers)]

    return windows_of(layer_types(read, layers, default), window)


def sliding_attributes(config: ModelConfig) -> dict[str, object]:
    """The attributes that describe which layers have a window."""
    return {
        "use_sliding_window": any(window != FULL_ATTENTION for window in config.windows),
        "sliding_window": hf_window(config),
        "layer_types": hf_layer_types(config),
    }


QWEN2 = Family(
    model_type="qwen2",
    hf_class="Qwen2ForCausalLM",
    about="Qwen 2 and 2.5, Sailor2: biases on queries, keys and values",
    checkpoints=(
        "Qwen/Qwen2.5-7B-Instruct",
        "Qwen/Qwen2.5-7B",
        "Qwen/Qwen2.5-0.5B",
        "Qwen/Qwen2.5-3B",
        "Qwen/Qwen2.5-14B",
        "Qwen/Qwen2.5-32B-Instruct",
        "Qwen/Qwen2.5-32B",
        "Qwen/Qwen2-7B",
        "Qwen/Qwen2-72B",
        "Qwen/Qwen1.5-110B",
    ),
    attributes=frozenset({"use_sliding_window", "sliding_window", "max_window_layers", "layer_types"}),
    defaults={"num_key_value_heads": 32, "max_position_embeddings": 32768, "sliding_window": 4096},
    hf_attributes=sliding_attributes,
    windows=_windows,
    special=lambda c, read: replace(c, qkv_bias=True),
    gguf=(GGUFForm("qwen2"),),
)
