"""The masked forward pass against Hugging Face PyTorch, SmolLM2-135M."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks.models import SMOLLM2, finished, torch_model
from benchmarks.pairing import fastest, paired
from mwork_jax.families import config_from_hf
from mwork_jax.model.decoder import Decoder, forward_decoder
from mwork_jax.neurons import NeuronMask, NeuronSet, group_widths


def rows(rounds: int) -> Iterator[dict[str, Any]]:
    """The masked forward pass against Hugging Face PyTorch without a mask, each side in the dtype that is faster for
    it."""
    config = config_from_hf(SMOLLM2)
    decoders = {d: Decoder.random(config, jax.random.key(0), d) for d in ("float32", "bfloat16")}
    theirs = {d: torch_model(config, decoders["float32"], d) for d in decoders}
    rng = np.random.default_rng(0)
    for batch, length in ((8, 256), (8, 512)):
        ids = rng.integers(0, config.vocab_size, (batch, length)).astype(np.int32)
        yield measured("SmolLM2-135M", decoders, theirs, ids, rounds)


def measured(
    model: str, decoders: dict[str, Decoder], theirs: dict[str, Any], ids: np.ndarray, rounds: int
) -> dict[str, Any]:
    """One line: tokens int32 [batch, time] through the decoder with 2 % of its neurons off and through Hugging Face's
    model, {dtype: each}, each side in the dtype that is faster for it."""
    config, rng = next(iter(decoders.values())).config, np.random.default_rng(0)
    widths = group_widths(config).items()
    dropped = NeuronSet({g: rng.random((config.num_layers, w)) < 0.02 for g, w in widths})
    mask = NeuronMask.keep_all(config).drop(dropped)
    run_ours = {d: _ours(decoder, jnp.asarray(ids), mask) for d, decoder in decoders.items()}
    run_theirs = {d: _theirs(hf, ids) for d, hf in theirs.items()}
    best_ours, best_theirs = fastest(run_ours), fastest(run_theirs)
    row = {
        "benchmark": "forward",
        "model": model,
        "batch": ids.shape[0],
        "length": ids.shape[1],
        "ours_dtype": best_ours,
        "theirs": "Hugging Face PyTorch",
        "theirs_dtype": best_theirs,
    }
    row |= paired(run_ours[best_ours], run_theirs[best_theirs], rounds)
    row["ours_tokens_per_second"] = ids.size / row["ours_seconds"]
    row["theirs_tokens_per_second"] = ids.size / row["theirs_seconds"]
    return row


def _ours(decoder: Decoder, ids: jax.Array, mask: NeuronMask) -> Callable[[], Any]:
    return lambda: forward_decoder(decoder, ids, mask).block_until_ready()


def _theirs(hf: Any, ids: np.ndarray) -> Callable[[], Any]:
    import torch

    tokens = torch.tensor(ids, dtype=torch.long, device=hf.device)

    def call() -> Any:
        with torch.inference_mode():
            return finished(hf(tokens, use_cache=False).logits)

    return call


def line(row: dict[str, Any]) -> str:
    sides = f"ours {row['ours_seconds']:.3f} s ({row['ours_dtype']}), {row['theirs']} {row['theirs_seconds']:.3f} s"
    ratio = f"{row['ratio']:.2f} times as fast ({row['ratio_min']:.2f} to {row['ratio_max']:.2f})"
    return f"{row['model']} {row['batch']} x {row['length']}: {sides} ({row['theirs_dtype']}), {ratio}"
