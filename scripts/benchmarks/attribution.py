"""What `mw.attribution` costs, in forward passes: Gemma 3 270M in float32, the held-out loss of the same documents."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np

import mwork_jax as mw
from benchmarks.pairing import paired
from mwork_jax.corpus import Batching

BATCHING = Batching(max_tokens=256, tokens_per_batch=1024)


def rows(rounds: int) -> Iterator[dict[str, Any]]:
    model = mw.load_model("gemma3-270m", dtype="float32")
    drawn = np.random.default_rng(0).integers(3, model.config.vocab_size, (4, 256))
    documents, keep = list(drawn.astype(np.int32)), mw.NeuronMask.keep_all(model.config)
    times = paired(
        lambda: mw.held_out_loss(model, documents, keep, batching=BATCHING),
        lambda: mw.attribution(model, documents, batching=BATCHING),
        rounds,
    )
    yield {
        "model": "Gemma 3 270M", "dtype": "float32", "tokens": drawn.size, "passes": times["ratio"],
        "passes_min": times["ratio_min"], "passes_max": times["ratio_max"], "forward_seconds": times["ours_seconds"],
        "attribution_seconds": times["theirs_seconds"],
    }  # fmt: skip


def line(row: dict[str, Any]) -> str:
    sides = f"forward {row['forward_seconds']:.2f} s, attribution {row['attribution_seconds']:.2f} s"
    passes = f"{row['passes']:.2f} forward passes ({row['passes_min']:.2f} to {row['passes_max']:.2f})"
    return f"{row['model']} in {row['dtype']}, {row['tokens']} tokens: {sides}, {passes}"
