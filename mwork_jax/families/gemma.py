"""Gemma 1 (and TxGemma, CodeGemma of that time): Llama with norms whose weights count from 1 and scaled embeddings."""

from __future__ import annotations

import math
from dataclasses import replace

from mwork_jax.config import ModelConfig
from mwork_jax.families.base import Family
from mwork_jax.families.gguf import GGUFForm, less_one
from mwork_jax.families.reader import Reader


def _special(config: ModelConfig, read: Reader) -> ModelConfig:
    # "gelu" is what the first releases say and the tanh approximation what they mean, which transformers documents.
    activation = "gelu_tanh" if config.activation == "gelu" else config.activation
    return replace(config, activation=activation, norm_offset=1.0, embed_scale=math.sqrt(config.hidden_size))


NORMS = ("model.norm", "input_layernorm", "post_attention_layernorm")

GEMMA = Family(
    model_type="gemma",
    hf_class="GemmaForCausalLM",
    about="Gemma 1: scaled embeddings, norms that count from 1",
    checkpoints=("google/gemma-7b-it", "google/gemma-7b"),
    attributes=frozenset({"attention_bias"}),
    defaults={
        "num_key_value_heads": 16, "head_dim": 256, "hidden_act": "gelu_pytorch_tanh", "bos_token_id": 2,
        "eos_token_id": 1, "tie_word_embeddings": True, "max_position_embeddings": 8192,
    },
    hf_attributes=lambda c: {"attention_bias": c.qkv_bias},
    inert={"hidden_activation": (None, "gelu_pytorch_tanh")},
    head_dim_may_be_null=False,
    kv_heads_may_be_null=False,
    special=_special,
    gguf=(GGUFForm("gemma", restored=dict.fromkeys(NORMS, less_one)),),
)  # fmt: skip
