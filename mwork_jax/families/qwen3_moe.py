"""Qwen 3 with experts: eight of 128 to a token in the published ones."""

from __future__ import annotations

from dataclasses import replace

from mwork_jax.config import ModelConfig
from mwork_jax.families.base import EXPERTS
from mwork_jax.families.gguf import GGUF_EXPERTS, GGUF_LAYER, SOFTMAX_ROUTER, GGUFForm
from mwork_jax.families.gguf_metadata import GGUFMetadata
from mwork_jax.families.qwen2 import sliding_attributes
from mwork_jax.families.qwen3 import QWEN3
from mwork_jax.families.reader import Reader


def _special(config: ModelConfig, read: Reader) -> ModelConfig:
    number = read.count("num_experts")
    if read.values["mlp_only_layers"] not in (None, []) or read.count("decoder_sparse_step") != 1:
        name = "mlp_only_layers" if read.values["mlp_only_layers"] else "decoder_sparse_step"
        raise read.refusal(name, "experts in every layer ([] and 1)")
    return replace(
        config,
        qk_norm="head",
        intermediate_size=read.count("moe_intermediate_size"),
        num_experts=number,
        experts_per_token=read.count("num_experts_per_tok", most=number),
        shares_add_up=read.flag("norm_topk_prob"),
    )


def _hf_attributes(config: ModelConfig) -> dict[str, object]:
    return sliding_attributes(config) | {
        "attention_bias": config.qkv_bias,
        "moe_intermediate_size": config.intermediate_size,
        "num_experts": config.num_experts,
        "num_experts_per_tok": config.experts_per_token,
        "norm_topk_prob": config.shares_add_up,
    }


def _gguf_attributes(m: GGUFMetadata) -> dict[str, object]:
    return m.biases() | {
        "moe_intermediate_size": m.count("expert_feed_forward_length"),
        "num_experts": m.count("expert_count"),
        "num_experts_per_tok": m.count("expert_used_count"),
        "norm_topk_prob": True,  # llama.cpp's graph of this architecture does it (qwen3moe.cpp); no metadata says it
    }


QWEN3_MOE = replace(
    QWEN3,
    model_type="qwen3_moe",
    hf_class="Qwen3MoeForCausalLM",
    about="Qwen 3 30B-A3B, 235B-A22B: Qwen 3 with experts",
    limits="layers without experts among those with (no published model has them)",
    checkpoints=("Qwen/Qwen3-30B-A3B",),
    attributes=QWEN3.attributes | {
        "moe_intermediate_size", "num_experts", "num_experts_per_tok", "norm_topk_prob", "mlp_only_layers",
        "decoder_sparse_step",
    },
    defaults={
        **QWEN3.defaults, "head_dim": None, "num_key_value_heads": 4, "moe_intermediate_size": 768, "num_experts": 128,
        "num_experts_per_tok": 8, "norm_topk_prob": False, "mlp_only_layers": None, "decoder_sparse_step": 1,
    },
    hf_attributes=_hf_attributes,
    renamed={"num_local_experts": "num_experts"},
    inert={"router_aux_loss_coef": None, "output_router_logits": None},
    head_dim_may_be_null=True,
    special=_special,
    layer_tensors={**QWEN3.layer_tensors, **EXPERTS},
    expert_tensors={
        EXPERTS[name]: f"mlp.experts.{{}}.{name}_proj.weight" for name in ("gate", "up", "down")
    },
    gguf=(
        GGUFForm(
            "qwen3moe", attributes=_gguf_attributes, keys=frozenset({"expert_count", "expert_feed_forward_length"}),
            only_at=SOFTMAX_ROUTER, layer={**GGUF_LAYER, **GGUF_EXPERTS},
        ),
    ),
)  # fmt: skip
