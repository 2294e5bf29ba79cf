"""Mixtral: Mistral with experts, two to a token, whose shares add up to 1."""

from __future__ import annotations

from dataclasses import replace

from mwork_jax.config import ModelConfig
from mwork_jax.families.base import EXPERTS, LAYER_TENSORS, Family, hf_window, one_window
from mwork_jax.families.reader import Reader


def _special(config: ModelConfig, read: Reader) -> ModelConfig:
    number = read.count("num_local_experts")
    return replace(
        config, num_experts=number, experts_per_token=read.count("num_experts_per_tok", most=number), mlp_bias=False
    )


MIXTRAL = Family(
    model_type="mixtral",
    hf_class="MixtralForCausalLM",
    about="Mixtral 8x7B, 8x22B: Mistral with experts",
    limits="GGUF files",
    checkpoints=("mistralai/Mixtral-8x7B-v0.1",),
    attributes=frozenset({"sliding_window", "num_local_experts", "num_experts_per_tok"}),
    defaults={
        "max_position_embeddings": 131072, "rope_theta": 1_000_000.0, "rms_norm_eps": 1e-5, "bos_token_id": 1,
        "eos_token_id": 2, "num_key_value_heads": 8, "num_local_experts": 8, "num_experts_per_tok": 2,
    },
    hf_attributes=lambda c: {
        "sliding_window": hf_window(c), "num_local_experts": c.num_experts, "num_experts_per_tok": c.experts_per_token,
    },
    inert={"router_aux_loss_coef": None, "router_jitter_noise": None, "output_router_logits": None},
    windows=one_window,
    special=_special,
    layer_tensors={**LAYER_TENSORS, **EXPERTS},
    expert_tensors={
        EXPERTS["gate"]: "block_sparse_moe.experts.{}.w1.weight",
        EXPERTS["up"]: "block_sparse_moe.experts.{}.w3.weight",
        EXPERTS["down"]: "block_sparse_moe.experts.{}.w2.weight",
        EXPERTS["router"]: "block_sparse_moe.gate.weight",
    },
)  # fmt: skip
