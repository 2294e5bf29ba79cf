"""The programs of a queue of (prompt, mask) pairs: rows of a fixed number of slots, each with its own mask.

A slot holds the keys and values of one row, each token's at the time that is its position, and goes on under its own
mask: which one is an index into a table of masks, so the number of masks is no shape. Prompts go through in blocks of
`BLOCK` tokens, any blocks of any rows together; decoding takes one token of every row at a time, of as many rows as
pay.

What a row computes does not depend on what runs beside it. Its blocks begin at multiples of `BLOCK`, attention works
through keys in parts of one size and in order, parts that a row does not see change nothing, and products have the
same shape whichever rows are in them. So its tokens are the same to the bit alone and in company, as far as a
backend's products of one shape treat all rows alike (CPUs do, and any number of rows from 2).

Letters in shape comments: n groups of devices, each with its own slots; s slots and b blocks of a group; g key/value
heads; k head size; t time.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.custom_batching import custom_vmap
from jax.lax import GatherScatterMode

from mwork_jax.config import ModelConfig
from mwork_jax.intervention import Edit
from mwork_jax.model.attention import (
    KEY_BLOCK,
    KeyBlocks,
    PositionTables,
    attend_by_key_blocks,
    position_tables,
)
from mwork_jax.model.bfloat16_bits import from_bits, to_bits
from mwork_jax.model.decoder import Decoder, decoder_layer, embedded, inputs_of_layer, stacked_inputs
from mwork_jax.sharding import constrain, per_device_over, vmap_axis

Array = Any  # jax.Array; made on the host, by NumPy, and traced in a program
LAYERS_LOOP = "layers"  # the name of the loop over layers in programs
BLOCK = 32  # tokens of a prompt that go through together; rows share beginnings in whole blocks


class SlotCache(NamedTuple):
    """Rotated keys and values, both [t, layers, n, s, g, k] in the weights' dtype; bfloat16 as its bits, uint16 (see
    `bfloat16_bits`). The time of a token is its position in its row. Times come first, because rows are at
    different ones: TPUs would otherwise turn the whole cache around at every step."""

    k: jax.Array
    v: jax.Array

    @classmethod
    def empty(cls, decoder: Decoder, groups: int, slots: int, time: int) -> SlotCache:
        """Room for `time` tokens, a multiple of KEY_BLOCK, in each slot of each group."""
        c = decoder.config
        shape = (time, c.num_layers, groups, slots, c.num_kv_heads, c.head_dim)
        dtype = jnp.uint16 if decoder.dtype == jnp.bfloat16 else decoder.dtype
        return cls(*(_laid_out(jnp.zeros(shape, dtype)) for _ in range(2)))

    def write(self, layer: jax.Array, at: Places, k: jax.Array, v: jax.Array) -> SlotCache:
        """With k and v [n, b, t, g, k] of one layer at these places."""

        def written(whole: jax.Array, new: jax.Array) -> jax.Array:
            new = to_bits(new.astype(jnp.bfloat16)) if whole.dtype == jnp.uint16 else new.astype(whole.dtype)
            return _laid_out(_write(whole, layer, at, new))

        return SlotCache(written(self.k, k), written(self.v, v))

    def read(self, layer: jax.Array, slots: jax.Array, begin: jax.Array) -> tuple[jax.Array, jax.Array]:
        """KEY_BLOCK keys and values of one layer from time `begin` on, of slots int32 [n, b]: [n, b, KEY_BLOCK, g, k]
        each."""
        at = Places(slots, jnp.broadcast_to(begin, slots.shape))
        k, v = (_read(whole, layer, at, KEY_BLOCK) for whole in self)
        return (k, v) if k.dtype != jnp.uint16 else (from_bits(k), from_bits(v))


class Places(NamedTuple):
    """Where something lies: int32 [n, b] each, the slot within its group, and the time at which it begins."""

    slots: Array
    starts: Array


class Blocks(NamedTuple):
    """Tokens that go through together, int32 with axes [n, b] first.

    tokens [n, b, BLOCK], padded on the right; at: where their keys and values go; masks: each block's, in the table;
    generated_from: the position in its row from which tokens count as generated; sources: the slot of `Streams` that a
    block's residual stream is read from, where it enters above the first layer, and written to.
    """

    tokens: Array
    at: Places
    masks: Array
    generated_from: Array
    sources: Array


class Span(NamedTuple):
    """Which layers blocks go through, int32 [] each: first <= layer < last; entering and leaving: which of the streams
    is read, where `first` is not 0, and which is written."""

    first: Array
    last: Array
    entering: Array
    leaving: Array


@partial(jax.jit, static_argnames=("groups", "slots", "time"))
def empty_cache(decoder: Decoder, *, groups: int, slots: int, time: int) -> SlotCache:
    """`SlotCache.empty` as a program, so that no device holds more than its part."""
    return SlotCache.empty(decoder, groups, slots, time)


@partial(jax.jit, static_argnames=("stops", "groups", "slots", "time"))
def empty_streams(decoder: Decoder, *, stops: int, groups: int, slots: int, time: int) -> jax.Array:
    """Room for the original model's residual stream where it enters each of `stops` layers: float32 [t, stops, n, s,
    hidden]."""
    return _streams_laid_out(jnp.zeros((time, stops, groups, slots, decoder.config.hidden_size), jnp.float32))


@partial(jax.jit, donate_argnames=("cache", "streams"))
def advance_blocks(
    decoder: Decoder, cache: SlotCache, streams: jax.Array, table: Edit, blocks: Blocks, span: Span
) -> tuple[SlotCache, jax.Array, jax.Array]:
    """Takes blocks through some layers, each under its own mask of the table [masks, layers, ...]: (the cache, the
    streams, the residual stream float32 [n, b, BLOCK, hidden] that leaves the last of these layers)."""
    entering = _read(streams, span.entering, Places(blocks.sources, blocks.at.starts), BLOCK)
    x = jnp.where(span.first == 0, embedded_rows(decoder, blocks.tokens), entering)
    positions = blocks.at.starts[..., None] + jnp.arange(BLOCK, dtype=jnp.int32)
    generated = positions >= blocks.generated_from[..., None]
    x, cache = through_layers(decoder, cache, x, table, blocks.masks, positions, generated, blocks.at, span)
    to = Places(blocks.sources, blocks.at.starts)
    streams = _write(streams, span.leaving, to, x)
    return cache, _streams_laid_out(streams), constrain(x, "slots", None, "time", "hidden")


@partial(jax.jit, donate_argnames="cache")
def copy_slots(
    cache: SlotCache, sources: jax.Array, targets: jax.Array, below: jax.Array, until: jax.Array
) -> SlotCache:
    """The cache with the layers < `below` and the times < `until` of slots `sources` copied to `targets`, int32 [n, c]
    each; a slot is read before it is written. What lies behind, up to a multiple of KEY_BLOCK, may be copied too."""
    return SlotCache(*(_laid_out(_copied(whole, sources, targets, below, until)) for whole in cache))


@partial(jax.jit, donate_argnames="streams")
def copy_streams(streams: jax.Array, sources: jax.Array, targets: jax.Array, until: jax.Array) -> jax.Array:
    """The streams with those of slots `sources` copied to `targets`, as `copy_slots` does it."""
    return _streams_laid_out(_copied(streams, sources, targets, jnp.int32(streams.shape[1]), until))


def _copied(whole: jax.Array, sources: jax.Array, targets: jax.Array, below: jax.Array, until: jax.Array) -> jax.Array:
    parts = (until + KEY_BLOCK - 1) // KEY_BLOCK

    def copy_part(number: jax.Array, whole: jax.Array) -> jax.Array:
        of_first, begin = number // parts, number % parts * KEY_BLOCK
        starts = jnp.broadcast_to(begin, sources.shape)
        part = _read(whole, of_first, Places(sources, starts), KEY_BLOCK)
        return _write(whole, of_first, Places(targets, starts), part)

    return jax.lax.fori_loop(0, below * parts, copy_part, whole)


def embedded_rows(decoder: Decoder, tokens: jax.Array) -> jax.Array:
    """int32 [n, b, t] -> float32 [n, b, t, hidden]."""
    return embedded(decoder, tokens.reshape(-1, tokens.shape[-1])).reshape(*tokens.shape, -1)


def through_layers(
    decoder: Decoder,
    cache: SlotCache,
    x: jax.Array,
    table: Edit,
    masks: jax.Array,
    positions: jax.Array,
    generated: jax.Array,
    at: Places,
    span: Span,
) -> tuple[jax.Array, SlotCache]:
    """x [n, b, t, hidden] of tokens at positions [n, b, t] through the layers of `span`: (x, the cache)."""
    config, whole_shape = decoder.config, x.shape
    every_layer = stacked_inputs(decoder, table)._replace(edit=None)  # pyright: ignore[reportArgumentType]
    rows = masks.size
    tables = _of_rows(position_tables(config, positions.reshape(rows, -1)))
    flat_masks, is_generated = masks.reshape(rows), generated.reshape(rows, 1, -1)
    over_rows = vmap_axis("slots", rows)

    def step(layer: jax.Array, carry: tuple[jax.Array, SlotCache]) -> tuple[jax.Array, SlotCache]:
        x, cache = carry
        inputs = inputs_of_layer(decoder, every_layer, layer)
        edits = jax.tree.map(lambda leaf: leaf[flat_masks, layer], table)
        sinks = inputs.weights.get("sinks")
        attention = _attention_of_rows(config, decoder.dtype)

        def one(x: jax.Array, edit: Edit, generated: jax.Array, tables: PositionTables) -> tuple[jax.Array, SlotCache]:
            def attend(q: jax.Array, k: jax.Array, v: jax.Array) -> tuple[jax.Array, SlotCache]:
                return attention(q, k, v, _Shared(cache, layer, at, positions, inputs.window, sinks))

            own = inputs._replace(edit=edit, generated=generated)
            x, written, _ = decoder_layer(config, x, own, tables, attend, per_device=partial(per_device_over, "slots"))
            return x, written

        over = jax.vmap(one, out_axes=(0, None), spmd_axis_name=over_rows)
        return over(x, edits, is_generated, tables)

    x = x.reshape(rows, 1, *whole_shape[2:])
    with jax.named_scope(LAYERS_LOOP):
        x, cache = jax.lax.fori_loop(span.first, span.last, step, (x, cache))
    return x.reshape(whole_shape), cache


def _of_rows(tables: PositionTables) -> PositionTables:
    """Position tables [ropes, b, t, ...] with an axis for rows in front: [b, ropes, 1, t, ...]."""
    return jax.tree.map(lambda table: jnp.moveaxis(table, 1, 0)[:, :, None], tables)


class _Shared(NamedTuple):
    """What the rows of one layer's attention have in common."""

    cache: SlotCache
    layer: jax.Array
    at: Places
    positions: jax.Array  # int32 [n, b, t]
    window: jax.Array
    sinks: jax.Array | None


def _attention_of_rows(config: ModelConfig, dtype: Any) -> Callable[..., tuple[jax.Array, SlotCache]]:
    """Attention within a `vmap` over rows, each with its own queries, in one cache that all of them write to: (heads
    of a row [1, t, h, k], the cache, which no row has of its own)."""

    @custom_vmap
    def attention(q: jax.Array, k: jax.Array, v: jax.Array, shared: _Shared) -> tuple[jax.Array, SlotCache]:
        return q.astype(jnp.float32), shared.cache  # what JAX asks for one row: the shapes alone

    @attention.def_vmap
    def of_all_rows(
        _: int, __: Any, q: jax.Array, k: jax.Array, v: jax.Array, shared: _Shared
    ) -> tuple[tuple[jax.Array, SlotCache], tuple[bool, SlotCache]]:
        groups, rows, time = shared.positions.shape
        new = (each[:, 0].reshape(groups, rows, *each.shape[2:]) for each in (k, v))
        cache = shared.cache.write(shared.layer, shared.at, *new)
        blocks = KeyBlocks(lambda begin: _flat(cache.read(shared.layer, shared.at.slots, begin)), cache.k.shape[0])
        positions = shared.positions.reshape(-1, time)
        heads = attend_by_key_blocks(config, q[:, 0], blocks, shared.window, positions, dtype, shared.sinks)
        return (heads[:, None], cache), (True, jax.tree.map(lambda _: False, cache))

    return attention


def _flat(pair: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, jax.Array]:
    k, v = pair
    return k.reshape(-1, *k.shape[2:]), v.reshape(-1, *v.shape[2:])


def _laid_out(whole: jax.Array) -> jax.Array:
    return constrain(whole, "time", "layers", "slots", None, "kv_heads", "head_dim")


def _streams_laid_out(streams: jax.Array) -> jax.Array:
    return constrain(streams, "time", None, "slots", None, "hidden")


# Reads and writes of whole [t, a, n, s, ...] at (one of a, a slot of s, a time of t), group by group: each group of
# devices holds its own slots, and needs no other's.


def _indices(of_first: jax.Array, at: Places) -> jax.Array:
    first = jnp.broadcast_to(jnp.asarray(of_first, jnp.int32), at.slots.shape)
    return jnp.stack([first, at.slots, at.starts], axis=-1)


def _read(whole: jax.Array, of_first: jax.Array, at: Places, time: int) -> jax.Array:
    """[n, b, time, ...]"""
    numbers = jax.lax.GatherDimensionNumbers(
        offset_dims=tuple(range(2, whole.ndim - 1)),
        collapsed_slice_dims=(1, 3),
        start_index_map=(1, 3, 0),
        operand_batching_dims=(2,),
        start_indices_batching_dims=(0,),
    )
    sizes = (time, 1, 1, 1, *whole.shape[4:])
    indices = _indices(of_first, at)
    return jax.lax.gather(whole, indices, numbers, sizes, mode=GatherScatterMode.PROMISE_IN_BOUNDS)


def _write(whole: jax.Array, of_first: jax.Array, at: Places, new: jax.Array) -> jax.Array:
    """whole with new [n, b, time, ...]"""
    numbers = jax.lax.ScatterDimensionNumbers(
        update_window_dims=tuple(range(2, whole.ndim - 1)),
        inserted_window_dims=(1, 3),
        scatter_dims_to_operand_dims=(1, 3, 0),
        operand_batching_dims=(2,),
        scatter_indices_batching_dims=(0,),
    )
    indices = _indices(of_first, at)
    return jax.lax.scatter(whole, indices, new, numbers, mode=GatherScatterMode.PROMISE_IN_BOUNDS)
