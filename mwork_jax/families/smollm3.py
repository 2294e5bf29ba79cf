"""SmolLM3: Llama whose every fourth layer rotates nothing."""

from __future__ import annotations

from mwork_jax.config import FULL_ATTENTION, ModelConfig, Rope
from mwork_jax.families.base import Family, LayerRopes, Windows, full_attention, layer_types, the_rope, windows_of
from mwork_jax.families.gguf import IN_HALVES, GGUFForm
from mwork_jax.families.gguf_metadata import GGUFMetadata
from mwork_jax.families.qwen2 import sliding_attributes
from mwork_jax.families.reader import Reader


def _rotates(read: Reader, layers: int) -> list[bool]:
    """Per layer, whether queries and keys are rotated: 1 in `no_rope_layers` means that they are."""
    flags, period = read.values["no_rope_layers"], read.count("no_rope_layer_interval")
    if flags is None:
        return [(i + 1) % period != 0 for i in range(layers)]
    if not isinstance(flags, list) or len(flags) < layers or not all(flag in (0, 1) for flag in flags):
        raise read.refusal("no_rope_layers", f"a 1 (rotates) or 0 for each of {layers} layers")
    return [bool(flag) for flag in flags[:layers]]


def _windows(read: Reader, layers: int) -> Windows:
    if not read.flag("use_sliding_window"):
        return full_attention(read, layers)
    window = read.count("sliding_window", if_null=FULL_ATTENTION)

    def default() -> list[str]:
        return ["full_attention" if rotates else "sliding_attention" for rotates in _rotates(read, layers)]

    return windows_of(layer_types(read, layers, default), window)


def _ropes(read: Reader, windows: Windows) -> LayerRopes:
    rope = the_rope(read)
    return (rope, Rope(rope.theta, "none")), tuple(0 if r else 1 for r in _rotates(read, len(windows)))


def _hf_attributes(config: ModelConfig) -> dict[str, object]:
    rotates = [int(config.ropes[rope].kind != "none") for rope in config.layer_rope]
    biases = {"attention_bias": config.qkv_bias, "mlp_bias": config.mlp_bias}
    return sliding_attributes(config) | biases | {"no_rope_layers": rotates}


SMOLLM3 = Family(
    model_type="smollm3",
    hf_class="SmolLM3ForCausalLM",
    about="SmolLM3: every fourth layer rotates nothing",
    attributes=frozenset({
        "attention_bias", "mlp_bias", "use_sliding_window", "sliding_window", "layer_types", "no_rope_layers",
        "no_rope_layer_interval",
    }),
    defaults={
        "num_key_value_heads": 4, "max_position_embeddings": 32768, "rope_theta": 2_000_000.0, "bos_token_id": 128000,
        "eos_token_id": 128001, "tie_word_embeddings": True, "no_rope_layers": None, "no_rope_layer_interval": 4,
    },
    hf_attributes=_hf_attributes,
    inert={"max_window_layers": None},
    windows=_windows,
    ropes=_ropes,
    # No metadata says which layers rotate nothing: every fourth, in llama.cpp (smollm3.cpp) as by default here.
    gguf=(GGUFForm("smollm3", attributes=GGUFMetadata.biases, restored=IN_HALVES),),
)  # fmt: skip
