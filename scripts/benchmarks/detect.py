"""Detection of all five groups against a plain forward pass, and against the published algorithm in PyTorch, on
SmolLM2-135M's shape."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks.models import SMOLLM2, torch_model
from benchmarks.pairing import paired, seconds
from mwork_jax.config import ModelConfig
from mwork_jax.detect import importance_batch
from mwork_jax.model import Decoder, forward_decoder
from mwork_jax.neurons import NeuronMask

_BATCH = 8
_LENGTHS = (64, 256)


def rows(rounds: int) -> list[dict[str, Any]]:
    """Per length and dtype: seconds of our scores and of our forward pass on one batch, and, once per length, of the
    published algorithm on one document."""
    config = ModelConfig.from_hf(SMOLLM2)
    decoders = {d: Decoder.random(config, jax.random.key(0), d) for d in ("float32", "bfloat16")}
    hf = torch_model(config, decoders["float32"], "float32")
    mask = NeuronMask.keep_all(config)
    rng = np.random.default_rng(0)
    measured = []
    for length in _LENGTHS:
        ids = rng.integers(0, config.vocab_size, (_BATCH, length)).astype(np.int32)
        published = seconds(lambda ids=ids: _published(hf, ids[:1]))
        for dtype, decoder in decoders.items():
            row = {"benchmark": "detect", "model": "SmolLM2-135M", "batch": _BATCH, "length": length, "dtype": dtype}
            row |= paired(*_ours(decoder, jnp.asarray(ids), mask), rounds)
            row |= {"theirs": "our forward pass", "published_seconds_per_document": published}
            row["times_published"] = published * _BATCH / row["ours_seconds"]
            row["times_forward"] = 1.0 / row["ratio"]
            row["ours_tokens_per_second"] = _BATCH * length / row["ours_seconds"]
            measured.append(row)
    return measured


def _ours(decoder: Decoder, ids: jax.Array, mask: NeuronMask) -> tuple[Callable[[], Any], Callable[[], Any]]:
    counted = jnp.ones(ids.shape, jnp.float32)
    return (
        lambda: jax.block_until_ready(importance_batch(decoder, ids, counted)),
        lambda: forward_decoder(decoder, ids, mask).block_until_ready(),
    )


def _published(hf: Any, ids: np.ndarray) -> None:
    """One document by the published formulas: per layer, the attention weights without each query neuron and without
    each key neuron, [heads, size, time, time] in memory; value and feed-forward neurons by the size of their output."""
    import torch

    config = hf.config
    heads, groups, size = config.num_attention_heads, config.num_key_value_heads, config.head_dim
    time = ids.shape[1]
    future = torch.full((time, time), float("-inf")).triu(1)

    def score(module: Any, _: Any, kwargs: dict[str, Any]) -> None:
        x = kwargs["hidden_states"][0]
        q, k, v = (p(x).view(time, -1, size).transpose(0, 1) for p in (module.q_proj, module.k_proj, module.v_proj))
        k = k.repeat_interleave(heads // groups, dim=0)
        whole = q @ k.transpose(1, 2) / size**0.5 + future
        before = torch.softmax(whole, dim=-1)
        for _ in ("query neurons", "key neurons"):  # each with its own pass, as published
            removed = q.permute(0, 2, 1)[..., None] * k.permute(0, 2, 1)[:, :, None] / size**0.5
            changed = torch.softmax(whole[:, None] - removed, dim=-1) - before[:, None]
            torch.linalg.vector_norm(changed, dim=(2, 3))
        torch.linalg.vector_norm(v, dim=1)

    hooks = [layer.self_attn.register_forward_pre_hook(score, with_kwargs=True) for layer in hf.model.layers]
    hooks += [layer.mlp.up_proj.register_forward_hook(lambda m, i, o: o.abs().sum(dim=1)) for layer in hf.model.layers]
    with torch.inference_mode():
        hf(torch.tensor(ids, dtype=torch.long), use_cache=False)
    for hook in hooks:
        hook.remove()


def line(row: dict[str, Any]) -> str:
    return (
        f"{row['model']} {row['batch']} x {row['length']} {row['dtype']}: {row['ours_seconds']:.2f} s, "
        f"{row['times_forward']:.2f} times the forward pass; {row['times_published']:.1f} times as many documents per "
        "second as the published algorithm"
    )
