"""The families of models that are supported, one file each; `registry` has the table of them."""

from mwork_jax.families.base import Family
from mwork_jax.families.registry import (
    FAMILIES,
    checkpoint_names,
    config_from_hf,
    fused_tensors,
    gguf_form,
    hf_config,
    ignored_in_answers,
    with_generation_config,
)

__all__ = [
    "FAMILIES",
    "Family",
    "checkpoint_names",
    "config_from_hf",
    "fused_tensors",
    "gguf_form",
    "hf_config",
    "ignored_in_answers",
    "with_generation_config",
]
