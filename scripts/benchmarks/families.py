"""The masked forward pass of every family against Hugging Face PyTorch: random models of about 100 million parameters,
experts counted as far as a token uses them."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from typing import Any

import jax.numpy as jnp
import numpy as np

from benchmarks.forward import line, measured
from benchmarks.models import HuggingFaceSource
from mwork_jax.families import FAMILIES, config_from_hf
from mwork_jax.load.assemble import assemble

_SIZE = {
    "vocab_size": 32000, "hidden_size": 768, "intermediate_size": 2048, "num_hidden_layers": 12,
    "num_attention_heads": 12, "num_key_value_heads": 4, "head_dim": 64, "max_position_embeddings": 2048,
    "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2,
}  # fmt: skip
_YARN = {"rope_type": "yarn", "rope_theta": 1e6, "factor": 4.0, "original_max_position_embeddings": 512}
_EXPERTS = {"num_local_experts": 16, "num_experts_per_tok": 4, "intermediate_size": 512}
_OWN: dict[str, dict[str, Any]] = {
    "gemma2": {"query_pre_attn_scalar": 64}, "gemma3_text": {"query_pre_attn_scalar": 64},
    "ministral3": {"rope_parameters": _YARN | {"llama_4_scaling_beta": 0.1}},
    "mixtral": _EXPERTS, "gpt_oss": _EXPERTS | {"rope_parameters": _YARN},
    "qwen3_moe": {"num_experts": 16, "num_experts_per_tok": 4, "moe_intermediate_size": 512},
}  # fmt: skip


def rows(rounds: int) -> Iterator[dict[str, Any]]:
    """Each family in turn; of transformers' ways to multiply attention and experts, those that it takes by itself."""
    import torch
    import transformers

    rng = np.random.default_rng(0)
    for name, family in FAMILIES.items():
        class_name = family.hf_class.replace("ForCausalLM", "TextConfig" if name == "gemma3_text" else "Config")
        torch.manual_seed(0)
        settings = getattr(transformers, class_name)(**{**_SIZE, **_OWN.get(name, {})})
        hf = getattr(transformers, family.hf_class)(settings).eval()
        config, source = config_from_hf(hf.config.to_dict(), where=name), HuggingFaceSource(hf)
        decoders = {
            dtype: assemble(config, source, jnp.dtype(dtype), lambda _, array: jnp.asarray(array))
            for dtype in ("float32", "bfloat16")
        }
        theirs = {"float32": hf, "bfloat16": copy.deepcopy(hf).to(torch.bfloat16)}
        ids = rng.integers(3, config.vocab_size, (8, 256)).astype(np.int32)
        yield measured(name, decoders, theirs, ids, rounds)


__all__ = ["line", "rows"]
