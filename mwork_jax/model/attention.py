"""Causal attention with grouped keys and values, sliding windows and soft caps; rotary position embeddings (RoPE).

Letters in shape comments: b batch, t query time, s key time, h query head, g key/value head, k head size.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from mwork_jax.config import ModelConfig, Rope
from mwork_jax.model.operations import product, soft_cap

_QUERY_BLOCK = 64  # attention works through at least so many queries at a time,
_QUERY_BLOCKS = 8  # in at most so many blocks: each is compiled on its own,
_LONGEST_BLOCK = 512  # in parts of so many queries
KEY_BLOCK = 128  # keys of a cache that are worked through at a time
KEY_BLOCKS_LOOP = "key_blocks"  # the name of that loop in programs


def attend(
    config: ModelConfig,
    q: jax.Array,
    k: jax.Array,
    v: jax.Array,
    window: jax.Array,
    queries_at: jax.Array,
    keys_at: jax.Array,
    dtype: Any,
    now: int | jax.Array = 0,
    documents: jax.Array | None = None,
    sinks: jax.Array | None = None,
) -> jax.Array:
    """Causal attention over rotated q [b, t, h, k] at times now + t, k and v [b, g, s, k] at times s -> [b, t, h, k],
    float32. queries_at [b or 1, t] and keys_at [b or 1, s] are their positions, as in `visible`; documents [b, t], for
    t and s that are the same times, are numbers that a query and a key must share. sinks [h]: a score of every head
    that takes part in softmax without a value.

    Heads of a model with ALiBi attend less the further back a key is, by position.

    Works through blocks of queries, each, where `now` is a Python number, against the keys up to its end: half the
    work of the square. Long blocks go in parts, one after the other, so memory grows with the time, not its square.
    """
    if config.sinks and sinks is None:
        raise ValueError("this model's heads have sinks: attend needs them")
    batch, time, _, size = q.shape
    groups, shared = config.num_kv_heads, config.queries_per_group
    q = q.astype(dtype).reshape(batch, time, groups, shared, size).transpose(0, 2, 3, 1, 4)
    k, v = k.astype(dtype), v.astype(dtype)
    step = max(_QUERY_BLOCK, -(-time // _QUERY_BLOCKS))
    if step > _LONGEST_BLOCK:
        step = -(-step // _LONGEST_BLOCK) * _LONGEST_BLOCK
    blocks = []
    for begin in range(0, time, step):
        end = min(begin + step, time)
        keys = now + end if isinstance(now, int) else k.shape[2]
        of_keys = _Keys(k[:, :, :keys], v[:, :, :keys], keys_at[:, :keys], _up_to(documents, 0, keys))
        # A block's last part may be shorter than the others, which go through one loop.
        whole = end if end - begin <= _LONGEST_BLOCK else end - (end - begin) % _LONGEST_BLOCK
        for first, last in ((begin, whole), (whole, end)):
            if last > first:
                queries = _Queries(q[:, :, :, first:last], queries_at[:, first:last], _up_to(documents, first, last))
                blocks.append(_attend_in_parts(config, queries, of_keys, window, dtype, sinks))
    heads = blocks[0] if len(blocks) == 1 else jnp.concatenate(blocks, axis=3)
    return heads.transpose(0, 3, 1, 2, 4).reshape(batch, time, -1, size)


class _Queries(NamedTuple):
    q: jax.Array  # [b, g, queries per group, t, k]
    at: jax.Array  # [b or 1, t]
    documents: jax.Array | None  # [b, t]


class _Keys(NamedTuple):
    k: jax.Array  # [b, g, s, k]
    v: jax.Array
    at: jax.Array  # [b or 1, s]
    documents: jax.Array | None  # [b, s]


def _up_to(documents: jax.Array | None, begin: int, end: int) -> jax.Array | None:
    return None if documents is None else documents[:, begin:end]


def _attend_in_parts(
    config: ModelConfig, queries: _Queries, keys: _Keys, window: jax.Array, dtype: Any, sinks: jax.Array | None
) -> jax.Array:
    """`_attend_block`, in a loop where there are more queries than a block has. The loop's backward pass computes each
    part's attention again."""
    time = queries.q.shape[3]
    if time <= _LONGEST_BLOCK:
        return _attend_block(config, queries, keys, window, dtype, sinks)

    def parts(x: jax.Array, axis: int) -> jax.Array:
        split = x.reshape(*x.shape[:axis], -1, _LONGEST_BLOCK, *x.shape[axis + 1 :])
        return jnp.moveaxis(split, axis, 0)

    documents = None if queries.documents is None else parts(queries.documents, 1)
    one = jax.checkpoint(lambda part: _attend_block(config, part, keys, window, dtype, sinks))
    out = jax.lax.map(one, _Queries(parts(queries.q, 3), parts(queries.at, 1), documents))
    return jnp.moveaxis(out, 0, 3).reshape(queries.q.shape)


def _attend_block(
    config: ModelConfig, queries: _Queries, keys: _Keys, window: jax.Array, dtype: Any, sinks: jax.Array | None
) -> jax.Array:
    """[b, g, queries per group, t, k], float32. Heads come first, so that every product is a plain batched matrix
    product."""
    batch, groups, shared, time, size = queries.q.shape
    scores = product("bgqk,bgsk->bgqs", queries.q.reshape(batch, groups, -1, size), keys.k) * config.attn_scale
    scores = soft_cap(scores, config.attn_softcap).reshape(batch, groups, shared, time, -1)
    if config.alibi:
        slopes = alibi_slopes(config.num_heads).reshape(groups, shared, 1, 1)
        scores = scores + slopes * (keys.at[:, None, :] - queries.at[:, :, None])[:, None, None]
    seen = visible(queries.at, keys.at, window)
    if queries.documents is not None and keys.documents is not None:
        seen &= queries.documents[:, :, None] == keys.documents[:, None, :]
    scores = jnp.where(seen[:, None, None], scores, -1e30)
    if sinks is not None:
        beside = jnp.broadcast_to(sinks.reshape(groups, shared, 1, 1), (*scores.shape[:-1], 1))
        scores = jnp.concatenate([scores, beside], axis=-1)
    weights = jax.nn.softmax(scores, axis=-1)
    weights = weights if sinks is None else weights[..., :-1]
    weights = weights.astype(dtype).reshape(batch, groups, shared * time, -1)
    return product("bgqs,bgsk->bgqk", weights, keys.v).reshape(queries.q.shape)


class KeyBlocks(NamedTuple):
    """Keys and values of a cache, in which a token's time is its position.

    read: of a time, a multiple of KEY_BLOCK, k and v [b, KEY_BLOCK, g, k] from there on; time: how many there are.
    """

    read: Callable[[jax.Array], tuple[jax.Array, jax.Array]]
    time: int


class _Seen(NamedTuple):
    """Softmax under way, float32 [b, g, queries per group, t, 1 or k]: the highest score so far, and, relative to it,
    the sum of the weights and the sum of the weighted values."""

    highest: jax.Array
    weight: jax.Array
    values: jax.Array


def attend_by_key_blocks(
    config: ModelConfig,
    q: jax.Array,
    keys: KeyBlocks,
    window: jax.Array,
    queries_at: jax.Array,
    dtype: Any,
    sinks: jax.Array | None = None,
) -> jax.Array:
    """`attend` over a cache, block of keys after block of keys, from the first that a query may see to the last: q [b,
    t, h, k] at positions [b, t] -> [b, t, h, k], float32.

    A block that a row does not see adds exactly 0 to its sums, so how many blocks there are, which depends on the other
    rows, does not change what a row computes.
    """
    batch, time, _, size = q.shape
    groups, shared = config.num_kv_heads, config.queries_per_group
    q = q.astype(dtype).reshape(batch, time, groups, shared, size).transpose(0, 2, 3, 1, 4)
    q = q.reshape(batch, groups, shared * time, size)
    state = (batch, groups, shared, time, 1)
    if sinks is None:
        begin = _Seen(jnp.full(state, -1e30), jnp.zeros(state), jnp.zeros((*state[:-1], size)))
    else:
        of_heads = jnp.broadcast_to(sinks.reshape(groups, shared, 1, 1).astype(jnp.float32), state)
        begin = _Seen(of_heads, jnp.ones(state), jnp.zeros((*state[:-1], size)))

    def step(block: jax.Array, seen: _Seen) -> _Seen:
        k, v = keys.read(block * KEY_BLOCK)
        keys_at = block * KEY_BLOCK + jnp.arange(KEY_BLOCK, dtype=jnp.int32)[None]
        scores = product("bgqk,bsgk->bgqs", q, k.astype(dtype)) * config.attn_scale
        scores = soft_cap(scores, config.attn_softcap).reshape(batch, groups, shared, time, KEY_BLOCK)
        if config.alibi:
            slopes = alibi_slopes(config.num_heads).reshape(groups, shared, 1, 1)
            scores = scores + slopes * (keys_at[:, None, :] - queries_at[:, :, None])[:, None, None]
        is_seen = visible(queries_at, keys_at, window)[:, None, None]
        scores = jnp.where(is_seen, scores, -1e30)
        highest = jnp.maximum(seen.highest, scores.max(axis=-1, keepdims=True))
        before = jnp.exp(seen.highest - highest)
        weights = jnp.where(is_seen, jnp.exp(scores - highest), 0.0)
        flat = weights.astype(dtype).reshape(batch, groups, shared * time, KEY_BLOCK)
        values = product("bgqs,bsgk->bgqk", flat, v.astype(dtype)).reshape(seen.values.shape)
        weight = seen.weight * before + weights.sum(axis=-1, keepdims=True)
        return _Seen(highest, weight, seen.values * before + values)

    first = jnp.maximum(queries_at.min() - (window - 1), 0) // KEY_BLOCK
    last = jnp.minimum(queries_at.max() // KEY_BLOCK + 1, keys.time // KEY_BLOCK)
    with jax.named_scope(KEY_BLOCKS_LOOP):
        seen = jax.lax.fori_loop(first, last, step, begin)
    heads = seen.values / jnp.where(seen.weight > 0, seen.weight, 1.0)
    return heads.transpose(0, 3, 1, 2, 4).reshape(batch, time, -1, size)


def heads_first(x: jax.Array) -> jax.Array:
    """Keys or values [b, t, g, k] as [b, g, t, k]."""
    return x.transpose(0, 2, 1, 3)


def visible(queries_at: jax.Array, keys_at: jax.Array, window: jax.Array) -> jax.Array:
    """Whether a query at position [b or 1, t] sees a key at position [b or 1, s]: bool [b or 1, t, s]. A position of -1
    holds nothing to see."""
    ago = queries_at[:, :, None] - keys_at[:, None, :]
    return (ago >= 0) & (ago < window) & (keys_at >= 0)[:, None, :]


def rotate(x: jax.Array, cos: jax.Array, sin: jax.Array) -> jax.Array:
    """RoPE in the half-split layout: x [b, t, heads, k] as `in_halves` lays it out, cos and sin [b or 1, t, k]."""
    first, second = jnp.split(x, 2, axis=-1)
    turned = jnp.concatenate([-second, first], axis=-1)
    return x * cos[:, :, None] + turned * sin[:, :, None]


def order_in_halves(config: ModelConfig) -> np.ndarray | None:
    """The order of a head's entries in which each turns with the one half a head further on; None where that is the
    order that they have. Entries that do not turn come last in each half."""
    size, turned = config.head_dim, config.rotary_dim or config.head_dim
    if not config.interleaved and turned == size:
        return None
    pairs = np.arange(turned).reshape(-1, 2) if config.interleaved else np.arange(turned).reshape(2, -1).T
    pairs = np.concatenate([pairs, np.arange(turned, size).reshape(2, -1).T])
    return pairs.T.reshape(-1)


def in_halves(config: ModelConfig, x: jax.Array) -> jax.Array:
    """Queries or keys [..., k] in `order_in_halves`. Scores do not change where both are."""
    if config.interleaved and config.rotary_dim is None:  # a transposition is quicker than a gather
        return jnp.swapaxes(x.reshape(*x.shape[:-1], -1, 2), -1, -2).reshape(x.shape)
    order = order_in_halves(config)
    return x if order is None else x[..., order]


def alibi_slopes(heads: int) -> np.ndarray:
    """By how much each head's scores fall with every position, float32 [heads] (Press et al. 2022): a geometric
    sequence; where the heads are no power of 2, every other term of the next finer one follows."""
    whole = 1 << (heads.bit_length() - 1)
    finer = 2.0 ** (-8.0 / (2 * whole) * np.arange(1, 2 * (heads - whole), 2))
    return np.concatenate([2.0 ** (-8.0 / whole * np.arange(1, whole + 1)), finer]).astype(np.float32)


class PositionTables(NamedTuple):
    """What the positions [b, t] of some tokens mean for each of a model's rotary embeddings, float32.

    cos, sin: [ropes, b, t, k], in the half-split layout. query_scale: [ropes, b, t], multiplies the queries; None where
    no embedding scales them.
    """

    cos: jax.Array
    sin: jax.Array
    query_scale: jax.Array | None

    def of(self, rope: jax.Array) -> PositionTables:
        """Those of one embedding, without the leading axis."""
        return jax.tree.map(lambda table: table[rope], self)


def position_tables(config: ModelConfig, positions: jax.Array) -> PositionTables:
    """The tables for integer positions [b, t]."""
    cos, sin = rope_tables(config.ropes, config.head_dim, positions, config.rotary_dim)
    if not any(rope.query_scaling for rope in config.ropes):
        return PositionTables(cos, sin, None)
    scales = [
        1.0 + rope.query_scaling * jnp.log1p(jnp.floor(jnp.maximum(positions, 0) / max(rope.original_length, 1)))
        for rope in config.ropes
    ]
    return PositionTables(cos, sin, jnp.stack(scales).astype(jnp.float32))


def rope_tables(
    ropes: tuple[Rope, ...], head_dim: int, positions: jax.Array, rotary_dim: int | None = None
) -> tuple[jax.Array, jax.Array]:
    """cos and sin, float32 [ropes, b, t, k], for integer positions [b, t]: of the first `rotary_dim` entries of a head
    (None: of all), 1 and 0 for the others."""
    cos, sin, turned = [], [], rotary_dim or head_dim
    for rope in ropes:
        frequencies, factor = np.zeros(head_dim // 2, np.float32), np.ones(head_dim // 2, np.float32)
        if rope.kind != "none":
            frequencies[: turned // 2], factor[: turned // 2] = rope_frequencies(rope, turned), rope.attention_factor
        angles = positions[..., None].astype(jnp.float32) * jnp.asarray(np.tile(frequencies, 2))
        cos.append(jnp.cos(angles) * np.tile(factor, 2))
        sin.append(jnp.sin(angles) * np.tile(factor, 2))
    return jnp.stack(cos), jnp.stack(sin)


def rope_frequencies(rope: Rope, head_dim: int) -> np.ndarray:
    """Radians per position of each pair, float32 [head_dim / 2]."""
    plain = rope.theta ** -(np.arange(0, head_dim, 2, dtype=np.float64) / head_dim)
    if rope.kind == "linear":
        plain = plain / rope.factor
    elif rope.kind == "llama3":
        plain = _llama3_frequencies(rope, plain)
    elif rope.kind == "yarn":
        plain = _yarn_frequencies(rope, plain, head_dim)
    elif rope.kind == "longrope":
        plain = plain / np.asarray(rope.pair_factors)
    return plain.astype(np.float32)


def _llama3_frequencies(rope: Rope, plain: np.ndarray) -> np.ndarray:
    """Llama 3.1: long waves are slowed by `factor`, short ones kept, those between blended."""
    turns = rope.original_length * plain / (2 * np.pi)  # how often a pair turns within the original context
    blend = (turns - rope.low_freq_factor) / (rope.high_freq_factor - rope.low_freq_factor)
    blend = np.clip(blend, 0.0, 1.0)
    return (1 - blend) * plain / rope.factor + blend * plain


def _yarn_frequencies(rope: Rope, plain: np.ndarray, head_dim: int) -> np.ndarray:
    """YaRN (Peng et al. 2023): pairs that turn often are kept, pairs that turn rarely are interpolated, a ramp
    between."""

    def pair_that_turns(times: float) -> float:
        return head_dim * np.log(rope.original_length / (times * 2 * np.pi)) / (2 * np.log(rope.theta))

    low, high = pair_that_turns(rope.beta_fast), pair_that_turns(rope.beta_slow)
    if rope.truncate:
        low, high = np.floor(low), np.ceil(high)
    low, high = max(low, 0), min(high, head_dim - 1)
    ramp = np.clip((np.arange(head_dim // 2) - low) / max(high - low, 0.001), 0, 1)
    return plain / rope.factor * ramp + plain * (1 - ramp)
