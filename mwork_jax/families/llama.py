"""Llama 1 to 3, and the many models that share its architecture: the decoder as it is, with optional biases."""

from __future__ import annotations

from mwork_jax.families.base import Family
from mwork_jax.families.gguf import IN_HALVES, GGUFForm
from mwork_jax.families.gguf_metadata import GGUFMetadata


def _is_llama(m: GGUFMetadata) -> bool:
    return not m.get("expert_count") and not m.get("attention.sliding_window")


LLAMA = Family(
    model_type="llama",
    hf_class="LlamaForCausalLM",
    about="Llama 1 to 3, Vicuna, EuroLLM, Salamandra, Tower, SmolLM2",
    checkpoints=(
        "meta-llama/Llama-3.1-8B-Instruct",
        "meta-llama/Llama-3.1-8B",
        "meta-llama/Llama-3.2-1B-Instruct",
        "meta-llama/Llama-3.2-3B-Instruct",
        "meta-llama/Llama-3.2-3B",
        "meta-llama/Meta-Llama-3-8B",
        "meta-llama/Llama-2-7b-hf",
        "meta-llama/Llama-2-13b-hf",
        "meta-llama/Llama-3.3-70B-Instruct",
        "meta-llama/Llama-3.1-70B-Instruct",
        "meta-llama/Llama-2-70b-hf",
        "HuggingFaceTB/SmolLM2-1.7B-Instruct",
        "tiiuae/Falcon3-7B-Instruct",
        "01-ai/Yi-1.5-6B",
        "01-ai/Yi-1.5-34B",
        "deepseek-ai/deepseek-llm-7b-base",
        "HuggingFaceTB/SmolLM-1.7B",
        "ALLaM-AI/ALLaM-7B-Instruct-preview",
    ),
    attributes=frozenset({"attention_bias", "mlp_bias"}),
    defaults={"max_position_embeddings": 2048, "bos_token_id": 1, "eos_token_id": 2},
    hf_attributes=lambda c: {"attention_bias": c.qkv_bias, "mlp_bias": c.mlp_bias},
    inert={"internal_version": None},  # of ALLaM: its name among its authors
    # Mistral's and Mixtral's files say "llama" too (`mistral`, `mixtral`).
    gguf=(GGUFForm("llama", when=_is_llama, attributes=GGUFMetadata.biases, restored=IN_HALVES),),
)
