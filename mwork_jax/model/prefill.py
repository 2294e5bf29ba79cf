"""Many token sequences under many masks, with everything that they share computed once.

Sequences share their beginnings: an instruction and worked examples are the same for all of them, a passage for all its
questions, a question for all its choices. So a batch is a tree of three levels at most, prefix, stem and rest, and the
keys and values of a level are computed once for all rows that go on from it.

Masks share layers: below the first layer that a mask touches, the model computes what the original model does. So the
original model's residual stream runs once per batch, and each mask starts from it at its own first layer. The mask and
the layers are traced: one program per shape and number of masks (8, 4, 2 or 1 at once).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from itertools import pairwise
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from mwork_jax.model.buckets import bucket_length
from mwork_jax.model.checks import check_mask
from mwork_jax.model.decoder import Decoder, embedded
from mwork_jax.model.kv_cache import KeyValueCache, extend
from mwork_jax.model.tokens import shared_prefix_length
from mwork_jax.neurons import GROUPS, NeuronMask
from mwork_jax.sharding import DATA, MASK, constrain, mesh_of, on_mesh_of, put, size_of

MASKS_AT_ONCE = 8  # masks that run side by side through one program
_WORTH_SHARING = 32  # tokens that a level of its own must save to pay
_SHARE_SAVED = 0.25  # of all tokens, that a level of stems must save to pay
_LEAST = 4  # the smallest bucket


class PrefillRequest(NamedTuple):
    """A sequence: tokens int32 [time], of which the last `needed` (at least one) have their outputs wanted."""

    tokens: np.ndarray
    needed: int

    @property
    def shareable(self) -> int:
        """How many tokens from its beginning another row may share."""
        return self.tokens.size - self.needed


class Level(NamedTuple):
    """One level of a tree of sequences."""

    tokens: np.ndarray  # int32 [rows, time], padded on the right with 0
    parents: np.ndarray  # int32 [rows], the row of the level above that each row continues
    positions: np.ndarray  # int32 [rows, times of the levels above and this one], -1 for padding


class Tree(NamedTuple):
    """A batch of sequences: levels from the prefix down, the last with one row per sequence."""

    levels: tuple[Level, ...]
    indices: np.ndarray  # int32 [rows], each row's index in the list of sequences
    lengths: np.ndarray  # int32 [rows of the last level], its tokens; 0 for rows that only fill it up

    def positions(self, room: int) -> np.ndarray:
        """Of every time of the last level's rows and of `room` more: int32 [rows, times]."""
        own_positions = self.levels[-1].positions
        new = own_positions.max(axis=1, keepdims=True) + 1 + np.arange(room, dtype=np.int32)
        return np.concatenate([own_positions, new], axis=1, dtype=np.int32)


class Prefilled(NamedTuple):
    """A batch of sequences after all layers, under a few masks."""

    masks: np.ndarray  # int32 [masks], indices in the list of masks
    stacked: NeuronMask  # those masks and, to fill the devices up, the last of them again; with a leading axis
    tree: Tree
    x: jax.Array  # float32 [masks, rows, time of the last level, hidden], before the final norm
    cache: KeyValueCache  # each [masks, layers, rows, g, times, k], with room for new tokens if `room` was given


def prefill(
    decoder: Decoder,
    requests: Sequence[PrefillRequest],
    masks: Sequence[NeuronMask],
    *,
    tokens_per_batch: int,
    room: int = 0,
) -> Iterator[Prefilled]:
    """Runs every request under every mask. tokens_per_batch bounds the rows times the time of a batch, `room` for new
    tokens included; MASKS_AT_ONCE such batches are in memory together. On a mesh, that is for each group of devices,
    and rows and masks are filled up so that they split evenly.

    Which rows and masks run together depends on the lists alone, so the same lists give the same results to the bit.
    Raises InputError for what is no mask of this model.
    """
    for mask in masks:
        check_mask(decoder.config, mask)
    mesh = mesh_of(decoder)
    at_once, shards = size_of(mesh, MASK), size_of(mesh, DATA)
    firsts = [first_layer(mask) for mask in masks]
    chunks = list(_chunks(firsts, at_once))
    stops = sorted({first for _, first in chunks})
    for tree in trees(requests, tokens_per_batch * shards, room, shards):
        with on_mesh_of(decoder):
            streams, original = _original(decoder, tree, stops, room)
        for indices, first in chunks:
            filled = [*indices, *indices[-1:] * (-len(indices) % at_once)]
            with on_mesh_of(decoder):
                together = NeuronMask.stack([masks[index] for index in filled])
                stacked = put(together, mesh, "masks", "layers", "neurons")
                entering = [stream[first] for stream in streams]
                x, cache = _from_layer(decoder, tree, entering, stacked, first, room)
                if room and first:
                    cache = _with_lower_layers(cache, original, first)
            yield Prefilled(np.asarray(indices, np.int32), stacked, tree, x, cache)


def first_layer(mask: NeuronMask) -> int:
    """The first layer in which a mask [layers, width] switches anything off; the number of layers where in none."""
    touched = np.any([(np.asarray(getattr(mask, group)) != 1).any(axis=-1) for group in GROUPS], axis=0)
    return int(touched.argmax()) if touched.any() else touched.size


def _chunks(firsts: Sequence[int], multiple: int = 1) -> Iterator[tuple[list[int], int]]:
    """(indices of masks, their first layer): masks that start at the same layer, in chunks of MASKS_AT_ONCE and then of
    the powers of two below it, times `multiple`, so that few numbers of masks need a program."""
    for first in sorted(set(firsts)):
        left = [index for index, other in enumerate(firsts) if other == first]
        size = MASKS_AT_ONCE * multiple
        while left:
            if len(left) >= size or size == multiple:
                yield left[:size], first
                left = left[size:]
            else:
                size //= 2


def _original(
    decoder: Decoder, tree: Tree, stops: Sequence[int], room: int
) -> tuple[list[dict[int, jax.Array]], KeyValueCache]:
    """The original model: per level {layer: the residual stream that enters it}, for the layers `stops`, and its cache
    of the layers below the last of them."""
    keep = put(NeuronMask.stack([NeuronMask.keep_all(decoder.config)]), mesh_of(decoder), "masks", "layers", "neurons")
    cache, streams = _empty(decoder, masks=1), []
    for depth, level in enumerate(tree.levels):
        cache = _grown(cache, level.parents, time=_times(tree, depth, room))
        x, below, entering = _embedded(decoder, level.tokens), 0, {}
        for stop in stops:
            if stop > below:
                x, cache = advance(decoder, cache, x, keep, level.positions, below, stop)
                x, below = _only(x), stop
            entering[stop] = x
        streams.append(entering)
    return streams, cache


def _from_layer(
    decoder: Decoder, tree: Tree, entering: Sequence[jax.Array], masks: NeuronMask, first: int, room: int
) -> tuple[jax.Array, KeyValueCache]:
    """Each level from the stream that enters layer `first` to the end, under each mask: (the last level's x [masks,
    rows, time, hidden], the cache of the layers from `first` on)."""
    cache, x = _empty(decoder, masks=masks.attn_q.shape[0]), entering[-1][None]
    for depth, level in enumerate(tree.levels):
        cache = _grown(cache, level.parents, time=_times(tree, depth, room))
        x, cache = advance(decoder, cache, entering[depth], masks, level.positions, first, decoder.config.num_layers)
    return x, cache


def _times(tree: Tree, depth: int, room: int) -> int:
    """How many times the cache has at a level; the last level's rows also have room for new tokens."""
    last = depth == len(tree.levels) - 1
    return tree.levels[depth].positions.shape[1] + (room if last else 0)


_embedded = jax.jit(embedded)
_only = jax.jit(lambda x: x[0])  # a program, since several processes hold x together


@partial(jax.jit, static_argnames="masks")
def _empty(decoder: Decoder, *, masks: int) -> KeyValueCache:
    """A cache of one row without a time for each mask."""
    return jax.tree.map(lambda x: jnp.zeros((masks, *x.shape), x.dtype), KeyValueCache.empty(decoder, 1, 0))


def _laid_out(x: jax.Array) -> jax.Array:
    """One array of a cache under several masks, laid out on the mesh."""
    return constrain(x, "masks", "layers", "batch", "kv_heads", "time", "head_dim")


@partial(jax.jit, static_argnames="time")
def _grown(cache: KeyValueCache, parents: jax.Array, *, time: int) -> KeyValueCache:
    """The cache of the rows that continue `parents`, with room up to `time`."""

    def grow(x: jax.Array) -> jax.Array:
        x = jnp.take(x, parents, axis=2)
        return _laid_out(jnp.pad(x, [(0, time - x.shape[4]) if axis == 4 else (0, 0) for axis in range(x.ndim)]))

    return jax.tree.map(grow, cache)


@partial(jax.jit, donate_argnames="cache")
def advance(
    decoder: Decoder,
    cache: KeyValueCache,
    x: jax.Array,
    masks: NeuronMask,
    positions: jax.Array,
    first: int | jax.Array,
    last: int | jax.Array,
) -> tuple[jax.Array, KeyValueCache]:
    """Takes one level x [rows, time, hidden] through the layers first <= layer < last, under each mask:
    (x [masks, rows, time, hidden], the cache)."""
    now = positions.shape[1] - x.shape[1]

    def one(cache: KeyValueCache, mask: NeuronMask) -> tuple[jax.Array, KeyValueCache]:
        later = jnp.full((positions.shape[0], cache.time - positions.shape[1]), -1, jnp.int32)
        seen = jnp.concatenate([positions, later], axis=1)
        return extend(decoder, cache, x, mask, positions=seen, now=now, first=first, last=last)

    x = constrain(x, "batch", "time", "hidden")
    x, cache = jax.vmap(one)(jax.tree.map(_laid_out, cache), masks)
    return constrain(x, "masks", "batch", "time", "hidden"), jax.tree.map(_laid_out, cache)


@jax.jit
def _with_lower_layers(cache: KeyValueCache, original: KeyValueCache, first: int | jax.Array) -> KeyValueCache:
    """The cache with the original model's keys and values below layer `first`."""
    below = (jnp.arange(cache.k.shape[1]) < first)[:, None, None, None, None]
    return jax.tree.map(lambda own, whole: jnp.where(below, whole, own), cache, original)


def trees(
    requests: Sequence[PrefillRequest], tokens_per_batch: int, room: int = 0, multiple: int = 1
) -> Iterator[Tree]:
    """The sequences as batches, those of like length together; what shares a stem stays together where it fits. Levels
    below the prefix are filled up to a multiple of `multiple` rows."""
    prefix = _prefix_length(requests)
    groups = _groups(requests, prefix)
    stems = {index: stem for members, stem in groups for index in members}
    rests = [row.tokens.size - prefix - stems[index] for index, row in enumerate(requests)]
    groups.sort(key=lambda group: (-group[1], -max(rests[index] for index in group[0]), group[0]))
    indices = [index for members, _ in groups for index in members]
    group_of = {index: number for number, (members, _) in enumerate(groups) for index in members}
    while indices:
        lengths = [stems[index] for index in indices], [rests[index] for index in indices]
        size = _rows_that_fit(*lengths, _bucket(prefix) + room, tokens_per_batch)
        yield _tree(requests, indices[:size], prefix, stems, group_of, multiple)
        indices = indices[size:]


def _rows_that_fit(stems: Sequence[int], rests: Sequence[int], besides: int, tokens_per_batch: int) -> int:
    """How many of the first rows make a batch, each with `besides` times more: at least one."""
    longest_stem = longest_rest = 0
    for count, (stem, rest) in enumerate(zip(stems, rests, strict=True), 1):
        longest_stem, longest_rest = max(longest_stem, stem), max(longest_rest, rest)
        times = _bucket(longest_stem) + _bucket(longest_rest) + besides
        if count > 1 and count * times > tokens_per_batch:
            return count - 1
    return len(stems)


def _tree(
    requests: Sequence[PrefillRequest],
    indices: list[int],
    prefix: int,
    stems: Mapping[int, int],
    group_of: Mapping[int, int],
    multiple: int,
) -> Tree:
    levels: list[Level] = []
    above, begins = np.zeros(len(indices), np.int32), np.zeros(len(indices), np.int32)
    if prefix:
        levels.append(_level([requests[indices[0]].tokens[:prefix]], [0], None))
        begins = begins + prefix
    if any(stems[index] for index in indices):
        own: dict[int, int] = {}  # a group's row among the stems
        above = np.asarray([own.setdefault(group_of[index], len(own)) for index in indices], np.int32)
        first = [int(np.flatnonzero(above == stem)[0]) for stem in range(len(own))]
        spans = [requests[indices[i]].tokens[begins[i] : begins[i] + stems[indices[i]]] for i in first]
        levels.append(_level(spans, [0] * len(spans), levels[-1] if levels else None, multiple))
        begins = begins + np.asarray([stems[index] for index in indices], np.int32)
    rests = [requests[index].tokens[begin:] for index, begin in zip(indices, begins, strict=True)]
    levels.append(_level(rests, above, levels[-1] if levels else None, multiple))
    lengths = np.zeros(len(levels[-1].tokens), np.int32)
    lengths[: len(rests)] = [len(r) for r in rests]
    return Tree(tuple(levels), np.asarray(indices, np.int32), lengths)


def _level(
    spans: Sequence[np.ndarray], parents: Sequence[int] | np.ndarray, above: Level | None, multiple: int = 1
) -> Level:
    time, count = _bucket(max(map(len, spans))), -(-len(spans) // multiple) * multiple
    tokens = np.zeros((count, time), np.int32)
    positions = np.full((count, time), -1, np.int32)
    before = np.zeros((1, 0), np.int32) if above is None else above.positions
    parents = np.pad(np.asarray(parents, np.int32), (0, count - len(spans)))
    for row, (span, parent) in enumerate(zip(spans, parents[: len(spans)], strict=True)):
        tokens[row, : len(span)] = span
        positions[row, : len(span)] = before[parent].max(initial=-1) + 1 + np.arange(len(span))
    return Level(tokens, parents, np.concatenate([before[parents], positions], axis=1))


def _bucket(length: int) -> int:
    return bucket_length(length, 1 << 30, least=_LEAST) if length else 0


def _prefix_length(requests: Sequence[PrefillRequest]) -> int:
    """Tokens that all rows begin with, or 0 where sharing them does not pay."""
    shared = _shared_beginning(requests) if len(requests) > 1 else 0
    return shared if shared >= _WORTH_SHARING else 0


def _groups(requests: Sequence[PrefillRequest], prefix: int) -> list[tuple[list[int], int]]:
    """(indices of rows, how many tokens after the prefix they share): the groups that save most tokens, or every row
    on its own where that does not pay.

    In the order of their tokens, rows that begin alike lie beside each other, so groups are stretches of that order:
    the best ones up to a row follow from the best ones up to each row before it. What a group shares is at least as
    long as what it does not, so that rests stay short: the longest one decides how far all are padded.
    """
    order = sorted(range(len(requests)), key=lambda index: (requests[index].tokens.astype(">u4").tobytes(), index))
    alike = [0, *(shared_prefix_length(requests[a].tokens, requests[b].tokens) - prefix for a, b in pairwise(order))]
    saved, begins = [0], []  # by the groups of the first so many rows; where the last of them begins
    for last, index in enumerate(order):
        best, begin = saved[last], last
        shared, longest = requests[index].shareable - prefix, requests[index].tokens.size - prefix
        for first in range(last - 1, -1, -1):
            request = requests[order[first]]
            shared = min(shared, alike[first + 1], request.shareable - prefix)
            longest = max(longest, request.tokens.size - prefix)
            if 2 * shared < longest:
                break
            if (gain := saved[first] + (last - first) * shared) > best:
                best, begin = gain, first
        saved.append(best)
        begins.append(begin)
    whole = sum(request.tokens.size - prefix for request in requests)
    if saved[-1] < max(_WORTH_SHARING, _SHARE_SAVED * whole):
        return [([index], 0) for index in range(len(requests))]
    groups, end = [], len(requests)
    while end:
        members = sorted(order[begins[end - 1] : end])
        groups.append((members, _shared_beginning([requests[index] for index in members]) - prefix))
        end = begins[end - 1]
    return groups


def _shared_beginning(requests: Sequence[PrefillRequest]) -> int:
    """How many tokens the rows begin with alike, leaving each what it needs of its own."""
    return min(
        [request.shareable for request in requests]
        + [shared_prefix_length(requests[0].tokens, request.tokens) for request in requests[1:]]
    )
