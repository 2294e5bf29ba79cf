"""Finding the strongest contexts of neurons against the plain forward pass over the same batches.

Gemma 3 270M, the project's own German documents over and over, 20 and 1,000 feed-forward neurons, 5 contexts each. Both
sides read tokens; the plain pass goes up to the last layer's output, without the head. The ratio is plain / ours, so
that 1 / ratio is what the contexts cost.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from functools import partial
from typing import Any

import jax
import numpy as np

import mwork_jax as mw
from benchmarks.pairing import paired
from mwork_jax.corpus import Batching, Encoded, encoded, own_corpus, stream_batches
from mwork_jax.detect.contexts import strongest_tokens
from mwork_jax.model.decoder import Decoder, hidden_states
from mwork_jax.neurons import NeuronMask, NeuronSet, group_widths

DOCUMENTS, KEPT, NEURONS = 64, 5, (20, 1000)
_BATCHING = Batching(max_tokens=32)


def rows(rounds: int) -> Iterator[dict[str, Any]]:
    model = mw.load_model("gemma3-270m", dtype="float32")
    texts = itertools.islice(itertools.cycle(own_corpus("de").detection), DOCUMENTS)
    documents = list(encoded(model, texts, _BATCHING.max_tokens))
    about = {"benchmark": "contexts", "model": "Gemma 3 270M", "documents": DOCUMENTS, "contexts": KEPT}
    about["tokens"] = sum(document.tokens.size for document in documents)
    for count in NEURONS:
        ours = partial(strongest_tokens, model, documents, _some(model, count), KEPT, batching=_BATCHING)
        yield about | {"neurons": count} | paired(ours, partial(_plain, model, documents), rounds)


def line(row: dict[str, Any]) -> str:
    cost = f"{1 / row['ratio']:.2f} times the forward pass ({1 / row['ratio_max']:.2f} to {1 / row['ratio_min']:.2f})"
    return (
        f"{row['model']}, {row['documents']} documents of {row['tokens']} tokens, {row['neurons']} neurons: "
        f"{row['ours_seconds']:.2f} s, plain {row['theirs_seconds']:.2f} s, {cost}"
    )


def _some(model: mw.Model, count: int) -> NeuronSet:
    """So many feed-forward neurons, drawn from all layers."""
    widths = group_widths(model.config)
    groups = {group: np.zeros((model.config.num_layers, width), bool) for group, width in widths.items()}
    drawn = np.random.default_rng(0).choice(groups["ffn_up"].size, count, replace=False)
    groups["ffn_up"].flat[drawn] = True
    return NeuronSet(groups)


def _plain(model: mw.Model, documents: Sequence[Encoded]) -> None:
    keep = NeuronMask.keep_all(model.config)
    for batch in stream_batches(documents, _BATCHING):
        _forward(model.decoder, batch.tokens, keep).block_until_ready()


@jax.jit
def _forward(decoder: Decoder, tokens: jax.Array, mask: NeuronMask) -> jax.Array:
    return hidden_states(decoder, tokens, mask)[0]
