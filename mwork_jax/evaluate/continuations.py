"""How likely tokens are after others under many masks, and whether they are what the model itself would say: what
lm-evaluation-harness asks of a model besides text.

Unlike `likelihood.log_likelihoods`, which reads text and sums, pairs come as tokens that somebody else has cut, the
last token is only predicted and never read, and pairs that read the same tokens (choices of one token each) are one
row.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from mwork_jax.errors import InputError
from mwork_jax.evaluate.likelihood import LOGIT_ROWS
from mwork_jax.intervention import Edit
from mwork_jax.model.admission import Prompt, ordered_pairs
from mwork_jax.model.decoder import Decoder, logits_of
from mwork_jax.model.model import Model
from mwork_jax.model.slot_runner import BlockRun, SlotRunner, groups_of, in_slots, sizes_for
from mwork_jax.model.slots import BLOCK
from mwork_jax.sharding import constrain, fetch, on_mesh_of, put


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


class _Asked(NamedTuple):
    """Of each group of devices: the places in its blocks whose next token is asked for, that token, and whose it is, a
    mask and a pair."""

    places: list[list[int]]
    tokens: list[list[int]]
    owners: list[list[tuple[int, int]]]


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
    rows, decoder, done = _rows(model, pairs), model.decoder, 0
    nats, greedy = np.zeros((len(masks), len(pairs))), np.ones((len(masks), len(pairs)), bool)
    for places, sizes in sizes_for(decoder, [row.tokens.size for row in rows], len(masks), tokens_per_batch):
        own = [rows[place] for place in places]
        prompts = [_prompt(row) for row in own]
        waiting = ordered_pairs(prompts, len(masks), sizes.slots * groups_of(decoder))
        generated = any(row.predicted > 1 for row in own)
        runner = SlotRunner(decoder, prompts, masks, waiting, sizes, generated, with_outputs=True)
        while runner.queue:
            seats, runs = runner.admit()
            for owners, found, likeliest in _predicted_in(runner, runs, own, pairs):
                at = tuple(np.asarray(owners).T)
                np.add.at(nats, at, found)
                np.logical_and.at(greedy, at, likeliest)
            runner.admission.leave(seats)
            done += sum(len(own[seat.pair.prompt].pairs) for seat in seats)
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


def _prompt(row: _Row) -> Prompt:
    """All tokens go through; those before the last of the context may come from another row."""
    size = row.tokens.size
    return Prompt(row.tokens, size, size - row.predicted, size + 1 - row.predicted)


def _predicted_in(
    runner: SlotRunner, runs: Iterable[BlockRun], rows: Sequence[_Row], pairs: Sequence[TokenPair]
) -> Iterator[tuple[list[tuple[int, int]], np.ndarray, np.ndarray]]:
    """Of every group in every call: whose tokens are predicted, their nats and whether they are the likeliest. What a
    call gave is fetched while the next one computes."""
    waiting: list[tuple[_Asked, tuple[jax.Array, jax.Array]]] = []
    for run in runs:
        if run.is_last and any((asked := _asked(runner, run, rows, pairs)).owners):
            waiting.append((asked, _computed(runner, run, asked)))
        if len(waiting) > 1:
            yield from _fetched(*waiting.pop(0))
    for each in waiting:
        yield from _fetched(*each)


def _asked(runner: SlotRunner, run: BlockRun, rows: Sequence[_Row], pairs: Sequence[TokenPair]) -> _Asked:
    asked = _Asked([], [], [])
    for blocks in run.blocks:
        places, tokens, owners = [], [], []
        for number, (job, begin) in enumerate(blocks):
            row = rows[job.pair.prompt]
            context = row.tokens.size - row.predicted
            for time in range(max(begin, context), min(begin + BLOCK, job.end)):
                for pair in row.pairs:
                    places.append(number * BLOCK + time - begin)
                    tokens.append(int(pairs[pair].continuation[time - context]))
                    owners.append((job.pair.mask, pair))
        for column, own in zip(asked, (places, tokens, owners), strict=True):
            column.append(own)
    return asked


def _computed(runner: SlotRunner, run: BlockRun, asked: _Asked) -> tuple[jax.Array, jax.Array]:
    most = max(map(len, asked.places))
    size = LOGIT_ROWS << ((most - 1) // LOGIT_ROWS).bit_length()
    places, tokens = (np.zeros((len(column), size), np.int32) for column in asked[:2])
    for group in range(len(places)):
        count = len(asked.places[group])
        places[group, :count], tokens[group, :count] = asked.places[group], asked.tokens[group]
    with on_mesh_of(runner.decoder):
        placed = in_slots((places, tokens), runner.mesh)
        return predicted(runner.decoder, run.x, *placed, put(np.int32(most), runner.mesh))


def _fetched(
    asked: _Asked, computed: tuple[jax.Array, jax.Array]
) -> Iterator[tuple[list[tuple[int, int]], np.ndarray, np.ndarray]]:
    nats, likeliest = fetch(computed)
    for group, owners in enumerate(asked.owners):
        if owners:
            yield owners, nats[group, : len(owners)].astype(np.float64), likeliest[group, : len(owners)]


@jax.jit
def predicted(
    decoder: Decoder, x: jax.Array, places: jax.Array, tokens: jax.Array, count: jax.Array
) -> tuple[jax.Array, jax.Array]:
    """How likely `tokens` int32 [groups, n] are right after x [groups, blocks, BLOCK, hidden] at the flat `places`
    int32 [groups, n] of a group's blocks: nats float32 [groups, n], and bool [groups, n] where no other token is
    likelier. Of n, a multiple of LOGIT_ROWS, the first `count` are computed, with logits for LOGIT_ROWS places of every
    group at a time."""
    flat = x.reshape(x.shape[0], -1, x.shape[-1])

    def add_chunk(chunk: jax.Array, state: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, jax.Array]:
        def part(column: jax.Array) -> jax.Array:
            return jax.lax.dynamic_slice_in_dim(column, chunk * LOGIT_ROWS, LOGIT_ROWS, axis=1)

        own = constrain(jnp.take_along_axis(flat, part(places)[..., None], axis=1), "slots", None, "hidden")
        logits = logits_of(decoder, own)  # [groups, LOGIT_ROWS, vocab]
        right = jnp.take_along_axis(logits, part(tokens)[..., None], axis=-1)[..., 0]
        found = right - jax.nn.logsumexp(logits, axis=-1), right >= logits.max(axis=-1)
        nats, likeliest = (
            jax.lax.dynamic_update_slice_in_dim(whole, new, chunk * LOGIT_ROWS, axis=1)
            for whole, new in zip(state, found, strict=True)
        )
        return nats, likeliest

    nothing = jnp.zeros(places.shape, jnp.float32), jnp.zeros(places.shape, bool)
    return jax.lax.fori_loop(0, (count + LOGIT_ROWS - 1) // LOGIT_ROWS, add_chunk, nothing)
