"""What rows that went through the slots say of the tokens that come next: how likely each is, and whether the model
itself would say it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from mwork_jax.intervention import Edit
from mwork_jax.model.admission import Pair, Prompt, ordered_pairs
from mwork_jax.model.decoder import Decoder, logits_of
from mwork_jax.model.model import Model
from mwork_jax.model.slot_runner import BlockRun, SlotRunner, in_slots
from mwork_jax.model.slot_sizes import Sizes, groups_of, sizes_for, worked_off
from mwork_jax.model.slots import BLOCK
from mwork_jax.sharding import constrain, fetch, on_mesh_of, put

LOGIT_ROWS = 128  # positions whose logits exist at once: a vocabulary is too wide for a whole batch
ROWS_GATHERED = 2048  # positions that wait for their logits: more than a call of the blocks has


class Reading(NamedTuple):
    """A sequence that goes through, and one or several targets int32 [predicted] of one length, each of which may
    follow what is read before the last `predicted` tokens but one."""

    prompt: Prompt
    targets: Sequence[np.ndarray]


class Prediction(NamedTuple):
    """nats: the summed natural log-probability of each target, float64 [targets]. greedy: whether each of its tokens is
    the likeliest, bool [targets]."""

    nats: np.ndarray
    greedy: np.ndarray


class _Asked(NamedTuple):
    """Of each group of devices: the flat places in its blocks whose next token is asked for, those tokens, both int
    [n], and whose they are, one after the other: pair, target, how many."""

    places: list[np.ndarray]
    tokens: list[np.ndarray]
    owners: list[list[_Owner]]


class _Owner(NamedTuple):
    """Whose tokens some are, one after the other."""

    pair: Pair
    target: int
    size: int


def predictions(
    model: Model, readings: Sequence[Reading], masks: Sequence[Edit], tokens_per_batch: int
) -> Iterator[tuple[Pair, Prediction]]:
    """Every reading under every mask, as they are done."""
    lengths = [reading.prompt.tokens.size for reading in readings]
    for places, sizes in sizes_for(model, lengths, len(masks), tokens_per_batch):
        own = [readings[place] for place in places]
        pairs = ordered_pairs([one.prompt for one in own], len(masks), sizes.slots * groups_of(model.decoder))
        for pair, prediction in worked_off(sizes, pairs, partial(_predictions, model.decoder, own, masks)):
            yield Pair(places[pair.prompt], pair.mask), prediction


def _predictions(
    decoder: Decoder, readings: Sequence[Reading], masks: Sequence[Edit], sizes: Sizes, pairs: Sequence[Pair]
) -> Iterator[tuple[Pair, Prediction]]:
    prompts = [reading.prompt for reading in readings]
    generated = any(prompt.generated_from < prompt.through for prompt in prompts)
    runner = SlotRunner(decoder, prompts, masks, pairs, sizes, generated, with_outputs=True)
    asked = _AskedFor(runner, readings)
    while runner.queue:
        seats, runs = runner.admit()
        yield from asked.expect([seat.pair for seat in seats])
        for run in runs:
            if run.is_last:
                yield from asked.add(run)
        runner.admission.leave(seats)
    yield from asked.finish()


@dataclass
class _AskedFor:
    """Gathers what leaves the last layer where a next token is asked for, over many calls, as few places of a prompt
    are: logits are made for many at once. What one call of the head gives is fetched when the next one computes."""

    runner: SlotRunner
    readings: Sequence[Reading]

    def __post_init__(self) -> None:
        shape = (self.runner.groups, ROWS_GATHERED, self.runner.decoder.config.hidden_size)
        with on_mesh_of(self.runner.decoder):
            self._rows = in_slots(np.zeros(shape, np.float32), self.runner.mesh)
        self._begin_anew()
        self._found: dict[Pair, Prediction] = {}
        self._left: dict[Pair, int] = {}  # tokens of each pair that nothing is known of yet
        self._computed: tuple[list[list[tuple[int, _Owner]]], tuple[jax.Array, jax.Array]] | None = None

    def expect(self, pairs: Sequence[Pair]) -> Iterator[tuple[Pair, Prediction]]:
        """Announces pairs; those that ask for nothing are done."""
        for pair in pairs:
            targets = self.readings[pair.prompt].targets
            self._found[pair] = Prediction(np.zeros(len(targets)), np.ones(len(targets), bool))
            self._left[pair] = sum(target.size for target in targets)
            if not self._left[pair]:
                yield self._done(pair)

    def add(self, run: BlockRun) -> Iterator[tuple[Pair, Prediction]]:
        """What a call left for its pairs; yields those that are done."""
        asked = _asked(run, self.readings)
        size = run.x.shape[1] * BLOCK
        for begin in range(0, max(column.size for column in asked.places), size):
            if self._filled + size > ROWS_GATHERED:
                yield from self._compute()
            part = [column[begin : begin + size] for column in asked.places]
            places = np.stack([np.pad(own, (0, size - own.size)) for own in part]).astype(np.int32)
            with on_mesh_of(self.runner.decoder):
                at = put(np.int32(self._filled), self.runner.mesh)
                self._rows = gathered(self._rows, run.x, in_slots(places, self.runner.mesh), at)
            for group, tokens in enumerate(asked.tokens):
                own = tokens[begin : begin + size]
                self._tokens[group, self._filled : self._filled + own.size] = own
                self._owners[group] += _of_part(asked.owners[group], begin, begin + size, self._filled - begin)
            self._filled += max(own.size for own in part)

    def finish(self) -> Iterator[tuple[Pair, Prediction]]:
        """The rest."""
        if self._filled:
            yield from self._compute()
        yield from self._fetched()

    def _begin_anew(self) -> None:
        self._filled = 0
        self._tokens = np.zeros((self.runner.groups, ROWS_GATHERED), np.int32)
        self._owners: list[list[tuple[int, _Owner]]] = [[] for _ in range(self.runner.groups)]

    def _compute(self) -> Iterator[tuple[Pair, Prediction]]:
        before = self._computed
        with on_mesh_of(self.runner.decoder):
            tokens, count = in_slots(self._tokens, self.runner.mesh), put(np.int32(self._filled), self.runner.mesh)
            computed = predicted(self.runner.decoder, self._rows, tokens, count)
        if before is not None:
            yield from self._fetched()
        self._computed = self._owners, computed
        self._begin_anew()

    def _fetched(self) -> Iterator[tuple[Pair, Prediction]]:
        """What was computed last, pair by pair; yields those that are done."""
        if self._computed is None:
            return
        each, computed = self._computed
        self._computed = None
        for owners, nats, likeliest in zip(each, *fetch(computed), strict=True):
            for begin, (pair, target, count) in owners:
                self._found[pair].nats[target] += nats[begin : begin + count].astype(np.float64).sum()
                self._found[pair].greedy[target] &= likeliest[begin : begin + count].all()
                self._left[pair] -= count
                if not self._left[pair]:
                    yield self._done(pair)

    def _done(self, pair: Pair) -> tuple[Pair, Prediction]:
        del self._left[pair]
        return pair, self._found.pop(pair)


def _asked(run: BlockRun, readings: Sequence[Reading]) -> _Asked:
    asked = _Asked([], [], [])
    for blocks in run.blocks:
        places, tokens, owners = [np.zeros(0, int)], [np.zeros(0, int)], []
        for number, (job, begin) in enumerate(blocks):
            prompt, targets = readings[job.pair.prompt]
            start = prompt.through - targets[0].size  # the first token whose next one is asked for
            first, end = max(begin, start), min(begin + BLOCK, job.end)
            if first >= end:
                continue
            for index, target in enumerate(targets):
                places.append(number * BLOCK + np.arange(first - begin, end - begin))
                tokens.append(target[first - start : end - start])
                owners.append(_Owner(job.pair, index, end - first))
        asked.places.append(np.concatenate(places))
        asked.tokens.append(np.concatenate(tokens))
        asked.owners.append(owners)
    return asked


def _of_part(owners: Sequence[_Owner], begin: int, end: int, shift: int) -> Iterator[tuple[int, _Owner]]:
    """(where its tokens begin, owner) of the tokens from begin to end of those that the owners have one after the
    other, shifted."""
    at = 0
    for pair, target, count in owners:
        first, last = max(begin, at), min(end, at + count)
        if first < last:
            yield first + shift, _Owner(pair, target, last - first)
        at += count


@partial(jax.jit, donate_argnames="rows")
def gathered(rows: jax.Array, x: jax.Array, places: jax.Array, at: jax.Array) -> jax.Array:
    """rows float32 [groups, ROWS_GATHERED, hidden] with those of x [groups, blocks, BLOCK, hidden] at the flat `places`
    int32 [groups, n] of a group's blocks from `at` on."""
    flat = x.reshape(x.shape[0], -1, x.shape[-1])
    new = jnp.take_along_axis(flat, places[..., None], axis=1)
    return constrain(jax.lax.dynamic_update_slice_in_dim(rows, new, at, axis=1), "slots", None, "hidden")


@jax.jit
def predicted(decoder: Decoder, rows: jax.Array, tokens: jax.Array, count: jax.Array) -> tuple[jax.Array, jax.Array]:
    """How likely `tokens` int32 [groups, n] are right after what leaves the last layer, rows float32 [groups, n,
    hidden]: nats float32 [groups, n], and bool [groups, n] where no other token is likelier. Of n, a multiple of
    LOGIT_ROWS, the first `count` are computed, with logits for LOGIT_ROWS rows of every group at a time."""

    def add_chunk(chunk: jax.Array, state: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, jax.Array]:
        def part(column: jax.Array) -> jax.Array:
            return jax.lax.dynamic_slice_in_dim(column, chunk * LOGIT_ROWS, LOGIT_ROWS, axis=1)

        logits = logits_of(decoder, constrain(part(rows), "slots", None, "hidden"))  # [groups, LOGIT_ROWS, vocab]
        right = jnp.take_along_axis(logits, part(tokens)[..., None], axis=-1)[..., 0]
        found = right - jax.nn.logsumexp(logits, axis=-1), right >= logits.max(axis=-1)
        nats, likeliest = (
            jax.lax.dynamic_update_slice_in_dim(whole, new, chunk * LOGIT_ROWS, axis=1)
            for whole, new in zip(state, found, strict=True)
        )
        return nats, likeliest

    nothing = jnp.zeros(tokens.shape, jnp.float32), jnp.zeros(tokens.shape, bool)
    return jax.lax.fori_loop(0, (count + LOGIT_ROWS - 1) // LOGIT_ROWS, add_chunk, nothing)
