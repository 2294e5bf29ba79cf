"""Llama 1 to 3, and the many models that share its architecture: the decoder as it is, with optional biases."""

from __future__ import annotations

from mwork_jax.families.base import Family

LLAMA = Family(
    model_type="llama",
    hf_class="LlamaForCausalLM",
    about="Llama 1 to 3, Vicuna, EuroLLM, Salamandra, Tower, SmolLM2",
    attributes=frozenset({"attention_bias", "mlp_bias"}),
    defaults={"max_position_embeddings": 2048, "bos_token_id": 1, "eos_token_id": 2},
    hf_attributes=lambda c: {"attention_bias": c.qkv_bias, "mlp_bias": c.mlp_bias},
)
