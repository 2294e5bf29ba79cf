"""What rows that went through the slots say of the tokens that come next: how likely each is, and whether the model
itself would say it."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
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
    owners: list[list[tuple[Pair, int, int]]]


class _Part(NamedTuple):
    """What one block says of a target."""

    pair: Pair
    target: int
    nats: np.float64
    greedy: np.bool_


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
    while runner.queue:
        seats, runs = runner.admit()
        counts = {seat.pair: len(readings[seat.pair.prompt].targets) for seat in seats}
        found = {pair: Prediction(np.zeros(count), np.ones(count, bool)) for pair, count in counts.items()}
        for pair, target, nats, greedy in _parts(runner, runs, readings):
            found[pair].nats[target] += nats
            found[pair].greedy[target] &= greedy
        runner.admission.leave(seats)
        yield from found.items()


def _parts(runner: SlotRunner, runs: Iterable[BlockRun], readings: Sequence[Reading]) -> Iterator[_Part]:
    """What a call gave is fetched while the next one computes."""
    waiting: list[tuple[_Asked, tuple[jax.Array, jax.Array]]] = []
    for run in runs:
        if run.is_last and any((asked := _asked(run, readings)).owners):
            waiting.append((asked, _computed(runner, run, asked)))
        if len(waiting) > 1:
            yield from _fetched(*waiting.pop(0))
    for each in waiting:
        yield from _fetched(*each)


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
                owners.append((job.pair, index, end - first))
        asked.places.append(np.concatenate(places))
        asked.tokens.append(np.concatenate(tokens))
        asked.owners.append(owners)
    return asked


def _computed(runner: SlotRunner, run: BlockRun, asked: _Asked) -> tuple[jax.Array, jax.Array]:
    most = max(column.size for column in asked.places)
    size = places_of(run.x.shape[1])
    while size < most:  # several targets may be asked for at one place
        size *= 2
    places, tokens = (
        np.stack([np.pad(own, (0, size - own.size)) for own in column]).astype(np.int32) for column in asked[:2]
    )
    with on_mesh_of(runner.decoder):
        placed = in_slots((places, tokens), runner.mesh)
        return predicted(runner.decoder, run.x, *placed, put(np.int32(most), runner.mesh))


def places_of(blocks: int) -> int:
    """How many places `predicted` takes for so many blocks: a multiple of LOGIT_ROWS."""
    return -(-blocks * BLOCK // LOGIT_ROWS) * LOGIT_ROWS


def _fetched(asked: _Asked, computed: tuple[jax.Array, jax.Array]) -> Iterator[_Part]:
    for owners, nats, likeliest in zip(asked.owners, *fetch(computed), strict=True):
        end = 0
        for pair, target, count in owners:
            begin, end = end, end + count
            own = nats[begin:end].astype(np.float64)
            yield _Part(pair, target, own.sum(), likeliest[begin:end].all())


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
