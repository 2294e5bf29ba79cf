"""How likely tokens are after others under many masks, and whether they are what the model itself would say: what
lm-evaluation-harness asks of a model besides text.

Unlike `likelihood.log_likelihoods`, which reads text and sums, pairs come as tokens that somebody else has cut, the
last token is only predicted and never read, and pairs that read the same tokens (choices of one token each) are one
row.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from mwork_jax.errors import InputError
from mwork_jax.intervention import Edit
from mwork_jax.model.admission import Prompt
from mwork_jax.model.model import Model
from mwork_jax.model.predictions import Reading, predictions


class TokenPair(NamedTuple):
    """What is read and what is to come after it, both int32 [time] with at least one token."""

    context: np.ndarray
    continuation: np.ndarray


@dataclass(frozen=True, eq=False)
class Continuations:
    """nats: how likely each continuation is, natural log-probability, float64 [masks, pairs]. greedy: whether each of
    its tokens is the likeliest, bool [masks, pairs]."""

    nats: np.ndarray
    greedy: np.ndarray


class _Row(NamedTuple):
    """Tokens that are read once, int32 [time], and the pairs that they are read for, each with `predicted` tokens after
    the context."""

    tokens: np.ndarray
    predicted: int
    pairs: list[int]


def continuations(
    model: Model,
    pairs: Sequence[TokenPair],
    masks: Sequence[Edit],
    *,
    tokens_per_batch: int = 2048,
    progress: Callable[[int], None] | None = None,
) -> Continuations:
    """Every pair under every mask. progress is called with the number of pairs done, those of all masks together.

    Raises InputError, naming the pair, for tokens outside the vocabulary, an empty context or continuation, and a pair
    of which more has to be read than the model's context holds.
    """
    rows, done = _rows(model, pairs), 0
    nats, greedy = np.zeros((len(masks), len(pairs))), np.ones((len(masks), len(pairs)), bool)
    readings = [_reading(row, pairs) for row in rows]
    for (place, mask), found in predictions(model, readings, masks, tokens_per_batch):
        own = rows[place].pairs
        nats[mask, own], greedy[mask, own] = found
        done += len(own)
        if progress is not None:
            progress(done)
    return Continuations(nats, greedy)


def _rows(model: Model, pairs: Sequence[TokenPair]) -> list[_Row]:
    """What has to be read. Choices of one token each after one context read the same."""
    rows: dict[tuple[bytes, int], _Row] = {}
    longest = model.config.max_length
    for index, (context, continuation) in enumerate(pairs):
        name = f"request {index + 1}"
        tokens = model.encode(np.concatenate([context, continuation]).astype(np.int32), where=name)
        if not (len(context) and len(continuation)):
            raise InputError(f"{name}: its {'continuation' if len(context) else 'context'} has no token; one is needed")
        read = tokens[:-1]
        if read.size > longest:
            raise InputError(f"{name} has {read.size} tokens to read; the model's context is {longest}")
        predicted = len(continuation)
        rows.setdefault((read.tobytes(), predicted), _Row(read, predicted, [])).pairs.append(index)
    return list(rows.values())


def _reading(row: _Row, pairs: Sequence[TokenPair]) -> Reading:
    """All tokens go through; those before the last of the context may come from another row."""
    size = row.tokens.size
    prompt = Prompt(row.tokens, size, size - row.predicted, size + 1 - row.predicted)
    return Reading(prompt, [pairs[pair].continuation for pair in row.pairs])
