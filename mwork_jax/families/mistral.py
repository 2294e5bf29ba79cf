"""Mistral: Llama with one sliding window for all layers."""

from __future__ import annotations

from mwork_jax.families.base import Family, hf_window, one_window
from mwork_jax.families.gguf import IN_HALVES, GGUFForm
from mwork_jax.families.gguf_metadata import SLIDING_WINDOW, GGUFMetadata


def _with_window(m: GGUFMetadata) -> bool:
    """Only a window tells Mistral's files from Llama's, and only then does it matter."""
    return not m.get("expert_count") and m.window() is not None


MISTRAL = Family(
    model_type="mistral",
    hf_class="MistralForCausalLM",
    about="Mistral 7B, Nemo, Small 3: one sliding window for all layers",
    checkpoints=(
        "mistralai/Mistral-7B-Instruct-v0.3", "mistralai/Mistral-7B-Instruct-v0.1",
        "mistralai/Mistral-Nemo-Base-2407", "dicta-il/dictalm2.0-instruct",
    ),
    attributes=frozenset({"sliding_window"}),
    defaults={
        "max_position_embeddings": 131072, "bos_token_id": 1, "eos_token_id": 2,
        "num_key_value_heads": 8, "sliding_window": 4096,
    },
    hf_attributes=lambda c: {"sliding_window": hf_window(c)},
    inert={"document_attention": None},  # how DictaLM 2 was trained; transformers does not read it
    windows=one_window,
    gguf=(
        GGUFForm(
            "llama", when=_with_window, attributes=lambda m: {"sliding_window": m.window()},
            keys=frozenset({SLIDING_WINDOW}), restored=IN_HALVES,
        ),
        # Mistral Small 3.1 and later, without what is in it for images: as Ministral 3 (`ministral3`), but for a scale
        # of queries. Their config.json has no window.
        GGUFForm(
            "mistral3", when=lambda m: not m.get("attention.temperature_scale"),
            attributes=lambda m: {"sliding_window": None}, restored=IN_HALVES,
        ),
    ),
)  # fmt: skip
