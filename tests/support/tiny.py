"""Tiny random models of every family, in HF PyTorch and here with the same weights. The oracle of most tests."""

from __future__ import annotations

from copy import deepcopy
from functools import cache
from inspect import signature
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np
import pytest

from mwork_jax.config import ModelConfig
from mwork_jax.families import config_from_hf
from mwork_jax.load.assemble import assemble
from mwork_jax.model.decoder import Decoder
from mwork_jax.model.model import Model

torch = pytest.importorskip("torch", reason="the oracle of these tests is HF PyTorch")
transformers = pytest.importorskip("transformers")

HEADS = 4
BASE = {
    "vocab_size": 97, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 3, "num_attention_heads": HEADS,
    "max_position_embeddings": 64, "bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0,
}  # fmt: skip
_LLAMA3 = {
    "rope_type": "llama3", "rope_theta": 1000.0, "factor": 4.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
    "original_max_position_embeddings": 16,
}  # fmt: skip
_YARN = {"rope_type": "yarn", "rope_theta": 1000.0, "factor": 4.0, "original_max_position_embeddings": 16}
_LONG = {
    "rope_type": "longrope", "rope_theta": 1000.0, "partial_rotary_factor": 0.75, "factor": 4.0,
    "short_factor": [1.0, 1.1, 1.2, 1.3, 1.4, 1.5], "long_factor": [1.0, 2.0, 3.0, 4.0, 5.0, 6.0],
}  # fmt: skip
_GEMMA = {"head_dim": 16, "sliding_window": 5, "query_pre_attn_scalar": 12, "tie_word_embeddings": True}
FAMILIES = {
    "llama": ("Llama", {}),
    "llama-tied": ("Llama", {"tie_word_embeddings": True}),
    "llama-biases": ("Llama", {"attention_bias": True, "mlp_bias": True}),
    "llama3": ("Llama", {"rope_parameters": _LLAMA3}),
    "llama-linear": ("Llama", {"rope_parameters": {"rope_type": "linear", "rope_theta": 1000.0, "factor": 4.0}}),
    "llama-yarn": ("Llama", {"rope_parameters": _YARN}),
    "mistral": ("Mistral", {"sliding_window": 5, "head_dim": 16}),
    "qwen2": ("Qwen2", {}),
    "qwen3": ("Qwen3", {"head_dim": 16}),
    "gemma2": ("Gemma2", {**_GEMMA, "attn_logit_softcapping": 2.0, "final_logit_softcapping": 5.0}),
    "gemma": ("Gemma", {"head_dim": 16}),
    "cohere": ("Cohere", {"logit_scale": 0.3}),
    "cohere-norm": ("Cohere", {"logit_scale": 0.3, "use_qk_norm": True}),
    "cohere2": (
        "Cohere2",
        {
            "logit_scale": 0.3,
            "sliding_window": 5,
            "layer_types": ["sliding_attention", "full_attention", "sliding_attention"],
        },
    ),
    "smollm3": ("SmolLM3", {"no_rope_layers": [1, 0, 1]}),
    "olmo2": ("Olmo2", {}),
    "olmo3": (
        "Olmo3",
        {
            "sliding_window": 5,
            "layer_types": ["sliding_attention", "full_attention", "sliding_attention"],
            "rope_parameters": {
                "sliding_attention": {"rope_type": "default", "rope_theta": 1000.0},
                "full_attention": _YARN,
            },
        },
    ),
    "phi3": ("Phi3", {"sliding_window": 5}),
    "phi3-partial": ("Phi3", {"hidden_size": 64, "rope_parameters": _LONG, "original_max_position_embeddings": 48}),
    "granite": (
        "Granite",
        {"embedding_multiplier": 3.0, "attention_multiplier": 0.2, "residual_multiplier": 0.5, "logits_scaling": 4.0},
    ),
    "ministral3": (
        "Ministral3",
        {
            "head_dim": 16,
            "rope_parameters": _YARN | {"llama_4_scaling_beta": 0.3, "original_max_position_embeddings": 6},
        },
    ),
    "apertus": ("Apertus", {"hidden_act": "xielu"}),
    # Tied, a tiny one repeats its last token.
    "bloom": ("Bloom", {"tie_word_embeddings": False}),
    "gpt-oss": (
        "GptOss",
        {
            "head_dim": 16,
            "num_local_experts": 4,
            "num_experts_per_tok": 2,
            "sliding_window": 5,
            "rope_parameters": _YARN | {"truncate": False},
        },
    ),
    "mixtral": ("Mixtral", {"num_local_experts": 4, "num_experts_per_tok": 2}),
    "qwen3-moe": (
        "Qwen3Moe",
        {"head_dim": 16, "num_experts": 5, "num_experts_per_tok": 2, "moe_intermediate_size": 8},
    ),
    "gemma3": ("Gemma3", {**_GEMMA, "layer_types": ["sliding_attention", "full_attention", "sliding_attention"]}),
}
# Families that differ in how a neuron acts; the others differ only in RoPE's numbers or in the head.
DISTINCT = [
    "llama", "llama-biases", "mistral", "qwen2", "qwen3", "gemma2", "gemma3", "cohere", "cohere-norm", "cohere2",
    "smollm3", "olmo2", "olmo3", "phi3-partial", "ministral3", "apertus", "bloom", "mixtral", "qwen3-moe", "gpt-oss",
]  # fmt: skip
# Families that differ in what a cache holds, and in what positions mean.
POSITIONS = ["llama", "mistral", "qwen3", "gemma3", "cohere2", "olmo2", "phi3-partial", "ministral3", "bloom"]
KV_HEADS = {"multi-head": HEADS, "grouped": 2, "multi-query": 1}


class TorchSource:
    """A PyTorch model's state dict as a WeightSource."""

    where = "torch"

    def __init__(self, hf):
        self.tensors = {name: tensor.detach().numpy() for name, tensor in hf.state_dict().items()}

    def names(self):
        return set(self.tensors)

    def read(self, name, dtype=None):
        return self.tensors[name]


class Pair(NamedTuple):
    hf: Any  # torch.nn.Module
    decoder: Decoder

    @property
    def config(self) -> ModelConfig:
        return self.decoder.config

    @property
    def model(self) -> Model:
        return Model(self.decoder, None, "tiny")


def _skip_where_hf_is_older(name: str) -> None:
    """Skips where the installed transformers is no oracle yet: 5.0 turns all layers of OLMo 3 alike, takes places in a
    padded batch of Ministral 3 for positions, and forgets Phi 3's partial_rotary_factor. Asks for what it has, as its
    versions in between are not known."""
    if name == "Olmo3":
        from transformers.models.olmo3.modeling_olmo3 import Olmo3RotaryEmbedding

        known = "layer_type" in signature(Olmo3RotaryEmbedding.compute_default_rope_parameters).parameters
    elif name == "Ministral3":
        from transformers.models.ministral3 import modeling_ministral3

        known = hasattr(modeling_ministral3, "get_llama_4_attn_scale")
    elif name == "Phi3":
        config = transformers.Phi3Config(hidden_size=64, num_attention_heads=HEADS, rope_parameters=deepcopy(_LONG))
        config.standardize_rope_params()
        known = config.rope_parameters["partial_rotary_factor"] == _LONG["partial_rotary_factor"]
    else:
        return
    if not known:
        pytest.skip(f"transformers {transformers.__version__} computes {name} in another way than later ones")


def hf_model(family: str, kv_heads: int, **overrides):
    """A random HF model whose every parameter matters (no zero biases, no unit norms)."""
    name, extra = FAMILIES[family]
    _skip_where_hf_is_older(name)
    config_name = "Gemma3TextConfig" if name == "Gemma3" else f"{name}Config"
    settings = {**BASE, **deepcopy(extra), "num_key_value_heads": kv_heads, **overrides}  # a config changes them
    config = getattr(transformers, config_name)(**settings, attn_implementation="eager")
    config._experts_implementation = "eager"  # the others have no float64
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)  # the sinks of gpt-oss begin as random numbers, others as 0 or 1
        before = torch.get_default_dtype()
        torch.set_default_dtype(torch.float32)  # some tests change it
        hf = getattr(transformers, f"{name}ForCausalLM")(config).eval()
        torch.set_default_dtype(before)
    generator = torch.Generator().manual_seed(0)
    for parameter in hf.parameters():
        noise = torch.randn(parameter.shape, generator=generator, dtype=torch.float32)
        parameter.data = 0.15 * noise if parameter.ndim > 1 else parameter.data + 0.1 * noise
    return hf


def decoder_of(hf) -> Decoder:
    config = config_from_hf(hf.config.to_dict(), where="tiny")
    return assemble(config, TorchSource(hf), jnp.float32, lambda name, array: jnp.asarray(array))


@cache
def pair(family: str, kv_heads: int) -> Pair:
    """Shared between tests: never change it."""
    hf = hf_model(family, kv_heads)
    return Pair(hf, decoder_of(hf))


def tokens(batch: int, time: int, seed: int = 0, first: int | None = 1) -> np.ndarray:
    """Random tokens, BOS (1) first unless `first` is None."""
    drawn = np.random.default_rng(seed).integers(3, BASE["vocab_size"], (batch, time)).astype(np.int32)
    if first is not None:
        drawn[:, 0] = first
    return drawn
