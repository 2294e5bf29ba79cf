"""Mixtral: Mistral with experts, two to a token, whose shares add up to 1."""

from __future__ import annotations

from dataclasses import replace

from mwork_jax.config import ModelConfig
from mwork_jax.families.base import EXPERTS, LAYER_TENSORS, Family, hf_window, one_window
from mwork_jax.families.gguf import GGUF_EXPERTS, GGUF_LAYER, IN_HALVES, SOFTMAX_ROUTER, GGUFForm
from mwork_jax.families.gguf_metadata import SLIDING_WINDOW, GGUFMetadata
from mwork_jax.families.reader import Reader


def _special(config: ModelConfig, read: Reader) -> ModelConfig:
    number = read.count("num_local_experts")
    return replace(
        config, num_experts=number, experts_per_token=read.count("num_experts_per_tok", most=number), mlp_bias=False
    )


def _gguf_attributes(m: GGUFMetadata) -> dict[str, object]:
    return {
        "sliding_window": m.window(),
        "num_local_experts": m.count("expert_count"),
        "num_experts_per_tok": m.count("expert_used_count"),
    }


MIXTRAL = Family(
    model_type="mixtral",
    hf_class="MixtralForCausalLM",
    about="Mixtral 8x7B, 8x22B: Mistral with experts",
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
    gguf=(
        GGUFForm(
            "llama", when=lambda m: bool(m.get("expert_count")), attributes=_gguf_attributes,
            keys=frozenset({"expert_count", SLIDING_WINDOW}), only_at=SOFTMAX_ROUTER, restored=IN_HALVES,
            # Until April 2024 each expert had tensors of its own.
            layer={
                **GGUF_LAYER, **GGUF_EXPERTS, "ffn_gate.{}": "block_sparse_moe.experts.{}.w1",
                "ffn_up.{}": "block_sparse_moe.experts.{}.w3", "ffn_down.{}": "block_sparse_moe.experts.{}.w2",
            },
        ),
    ),
)  # fmt: skip
