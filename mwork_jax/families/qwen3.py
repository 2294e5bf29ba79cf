"""Qwen 3: Qwen 2 with a norm on queries and keys, a head size of its own, and biases as an option."""

from __future__ import annotations

from dataclasses import replace

from mwork_jax.families.gguf import GGUFForm
from mwork_jax.families.gguf_metadata import GGUFMetadata
from mwork_jax.families.qwen2 import QWEN2, sliding_attributes

QWEN3 = replace(
    QWEN2,
    model_type="qwen3",
    hf_class="Qwen3ForCausalLM",
    about="Qwen 3: a norm on queries and keys",
    checkpoints=("Qwen/Qwen3-8B", "Qwen/Qwen3-32B", "Qwen/Qwen3-14B", "Qwen/Qwen3-Embedding-0.6B"),
    attributes=QWEN2.attributes | {"attention_bias"},
    defaults={**QWEN2.defaults, "head_dim": 128},
    hf_attributes=lambda c: sliding_attributes(c) | {"attention_bias": c.qkv_bias},
    head_dim_may_be_null=False,
    special=lambda c, read: replace(c, qk_norm="head"),
    gguf=(GGUFForm("qwen3", attributes=GGUFMetadata.biases),),
)
