"""Gemma 2: norms on both ends of each block, whose weights count from 1; scaled embeddings, soft caps, and a window in
every other layer."""

from __future__ import annotations

import math
from dataclasses import replace

from mwork_jax.config import FULL_ATTENTION, ModelConfig
from mwork_jax.families.base import (
    LAYER_TENSORS,
    Family,
    Windows,
    full_attention_every,
    hf_layer_types,
    hf_window,
    layer_types,
    windows_of,
)
from mwork_jax.families.gemma import NORMS
from mwork_jax.families.gguf import GGUF_LAYER, GGUFForm, Restore, less_one
from mwork_jax.families.gguf_metadata import SLIDING_WINDOW, GGUFMetadata
from mwork_jax.families.reader import Reader


def special(config: ModelConfig, read: Reader) -> ModelConfig:
    """What Gemma 2 and 3 share."""
    return replace(
        config,
        norm_offset=1.0,
        post_norms=True,
        attn_softcap=read.number_or_none("attn_logit_softcapping"),
        final_softcap=read.number_or_none("final_logit_softcapping"),
        embed_scale=math.sqrt(config.hidden_size),
        attn_scale=read.number("query_pre_attn_scalar") ** -0.5,
    )


def _windows(read: Reader, layers: int) -> Windows:
    window = read.count("sliding_window", if_null=FULL_ATTENTION)
    return windows_of(layer_types(read, layers, lambda: full_attention_every(2, layers)), window)


def _hf_attributes(config: ModelConfig) -> dict[str, object]:
    return {
        "attention_bias": config.qkv_bias,
        "query_pre_attn_scalar": _whole(config.attn_scale**-2),
        "sliding_window": hf_window(config) or 4096,
        "layer_types": hf_layer_types(config),
        "attn_logit_softcapping": config.attn_softcap,
        "final_logit_softcapping": config.final_softcap,
    }


def _whole(value: float) -> int | float:
    """A number as a whole one where it is one but for rounding."""
    return round(value) if abs(value - round(value)) < 1e-6 * value else value


# Gemma norms both ends of each block, and a checkpoint has another name for the norm before the feed-forward in them.
GEMMA_LAYER = {
    **GGUF_LAYER,
    "post_attention_norm": "post_attention_layernorm",
    "ffn_norm": "pre_feedforward_layernorm",
    "post_ffw_norm": "post_feedforward_layernorm",
}
LESS_ONE: dict[str, Restore] = dict.fromkeys(
    (*NORMS, "pre_feedforward_layernorm", "post_feedforward_layernorm"), less_one
)
SOFT_CAPS = ("attn_logit_softcapping", "final_logit_softcapping")


def query_scale(m: GGUFMetadata, layers_of_27b: int) -> int:
    """`query_pre_attn_scalar`, which no metadata says: hidden size / heads in the model of 27B, else the head size
    (llama.cpp's hparams.f_attention_scale)."""
    return m.hidden_per_head() if m.layers() == layers_of_27b else m.head_dim()


def _gguf_attributes(m: GGUFMetadata) -> dict[str, object]:
    """The first Gemma 2 files lack window and soft caps; all models of the family share them."""
    attention, final = SOFT_CAPS
    return {
        "query_pre_attn_scalar": query_scale(m, 46),
        "sliding_window": m.window() or 4096,
        attention: m.get(attention, 50.0) or None,
        final: m.get(final, 30.0) or None,
    }


GEMMA2 = Family(
    model_type="gemma2",
    hf_class="Gemma2ForCausalLM",
    about="Gemma 2: soft caps, norms on both ends, a window in every other layer",
    checkpoints=("google/gemma-2-2b-it", "google/gemma-2-2b", "google/gemma-2-9b", "cjvt/GaMS-9B-Instruct"),
    attributes=frozenset({
        "hidden_activation", "query_pre_attn_scalar", "sliding_window", "layer_types", "attention_bias",
        "attn_logit_softcapping", "final_logit_softcapping",
    }),
    defaults={
        "num_key_value_heads": 4, "head_dim": 256, "hidden_activation": "gelu_pytorch_tanh",
        "query_pre_attn_scalar": 256, "bos_token_id": 2, "eos_token_id": 1, "tie_word_embeddings": True,
        "sliding_window": 4096, "max_position_embeddings": 8192, "attn_logit_softcapping": 50.0,
        "final_logit_softcapping": 30.0,
    },
    hf_attributes=_hf_attributes,
    inert={"sliding_window_size": None},  # beside sliding_window in Gemma 2 9B; transformers does not read it
    windows=_windows,
    head_dim_may_be_null=False,
    kv_heads_may_be_null=False,
    activation="hidden_activation",
    special=special,
    # Four norms per layer. What other families call post_attention_layernorm comes before the feed-forward.
    layer_tensors={
        **LAYER_TENSORS,
        "attn_post_norm": "post_attention_layernorm.weight",
        "ffn_norm": "pre_feedforward_layernorm.weight",
        "ffn_post_norm": "post_feedforward_layernorm.weight",
    },
    gguf=(
        GGUFForm(
            "gemma2", attributes=_gguf_attributes, keys=frozenset({SLIDING_WINDOW, *SOFT_CAPS}), layer=GEMMA_LAYER,
            restored=LESS_ONE,
        ),
    ),
)  # fmt: skip
