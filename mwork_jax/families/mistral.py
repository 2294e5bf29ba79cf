"""Mistral: Llama with one sliding window for all layers."""

from __future__ import annotations

from mwork_jax.config import FULL_ATTENTION
from mwork_jax.families.base import Family, Windows
from mwork_jax.families.reader import Reader


def _windows(read: Reader, layers: int) -> Windows:
    return (read.count("sliding_window", if_null=FULL_ATTENTION),) * layers


MISTRAL = Family(
    model_type="mistral",
    hf_class="MistralForCausalLM",
    attributes=frozenset({"sliding_window"}),
    defaults={
        "max_position_embeddings": 131072, "bos_token_id": 1, "eos_token_id": 2,
        "num_key_value_heads": 8, "sliding_window": 4096,
    },
    hf_attributes=lambda c: {"sliding_window": max(c.windows) or None},
    windows=_windows,
    head_dim_may_be_null=True,
)  # fmt: skip
