"""Exact importance as one Pallas kernel for TPUs: attention weights stay on the chip, inputs are read once.

The grid goes over documents, query heads and blocks of queries; the keys of a group stay in VMEM while its query heads
and their blocks pass. A step makes its attention weights [t, s] from the queries and keys (a window's empty blocks of
keys are skipped, and blocks of queries that do not count), then takes the neurons one by one: queries lie along
sublanes and keys along lanes, so that a neuron's side of the queries is a column, spread over lanes once for all keys,
and its side of the keys a row. Bounds in SMEM decide which form of the sums (see `tiles`) a neuron needs.
"""

from __future__ import annotations

from functools import partial
from types import SimpleNamespace
from typing import Any

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu

from .tiles import (
    UNSEEN,
    Factors,
    Weights,
    bounds,
    change_of_score,
    columns_of,
    rows_of,
    squared_changes,
    turned,
)

QUERIES = 64
KEYS = 128  # keys in a tile, one register wide
_KINDS = 2  # query neurons, key neurons

Reach = tuple[jax.Array, jax.Array]  # the first tile of keys that is visited, and the one after the last


def qk_importance_tpu(
    q: jax.Array,
    k: jax.Array,
    cos: jax.Array,
    sin: jax.Array,
    token_mask: jax.Array,
    window: jax.Array,
    *,
    scale: float,
    softcap: float | None,
    q_gain: jax.Array | None,
    k_gain: jax.Array | None,
    interpret: bool = False,
) -> tuple[jax.Array, jax.Array]:
    """See `api.qk_importance`. interpret: run it on any platform, slowly, for tests."""
    batch, time, heads, size = q.shape
    groups, padded = k.shape[2], -(-time // KEYS) * KEYS

    def heads_first(x: jax.Array, mode: str) -> jax.Array:
        x = jnp.swapaxes(x.astype(jnp.float32), 1, 2)
        return jnp.pad(x, [(0, 0), (0, 0), (0, padded - time), (0, 0)], mode=mode)

    # A query that does not count is 0: so are its scores and their changes. Padding keys repeat the last one, which
    # widens no bound; nobody sees them.
    q = heads_first(q * token_mask[:, :, None, None], "constant")
    k, cos, sin = heads_first(k, "edge"), *(heads_first(x[:, :, None], "edge") for x in (cos, sin))
    gains = None
    if q_gain is not None and k_gain is not None:
        gains = heads_first(q_gain * token_mask[:, :, None, None], "constant"), heads_first(k_gain, "edge")
    columns = columns_of(k, cos, sin, gains and gains[1])
    sides = rows_of(q, cos, sin, gains and gains[0], scale)
    bound = bounds(sides, columns, gains, QUERIES, softcap)
    call = _call(batch, heads, groups, padded, size, len(cos) > 1, scale, softcap, gains is not None, interpret)
    squares = call(
        jnp.asarray(window, jnp.int32).reshape(1),
        *(bound, q, cos[:, 0], sin[:, 0]),
        *(_in_tiles(x) for x in columns),
        *(() if gains is None else (gains[0], _in_tiles(gains[1]))),
    )
    of_q, of_k = squares[:, :, 0], squares[:, :, 1].reshape(batch, groups, -1, size).sum(axis=2)
    return jnp.sqrt(of_q), jnp.sqrt(of_k)


def _in_tiles(x: jax.Array) -> jax.Array:
    """[b, g, s, k] -> [b, g, tiles, k, keys of a tile]: a neuron's row can start anywhere in a tile, but not beside
    other tiles."""
    return jnp.swapaxes(x.reshape(*x.shape[:2], -1, KEYS, x.shape[-1]), 3, 4)


def _call(
    batch: int,
    heads: int,
    groups: int,
    time: int,
    size: int,
    own_tables: bool,
    scale: float,
    softcap: float | None,
    gained: bool,
    interpret: bool,
) -> Any:
    """The kernel as a function of its arguments in the order of `names`, returning squares [b, h, 2, k]."""
    shared, blocks, tiles = heads // groups, time // QUERIES, time // KEYS
    of_queries = pl.BlockSpec((1, 1, QUERIES, size), lambda b, h, i, _: (b, h, i, 0))
    of_tables = pl.BlockSpec((1, QUERIES, size), lambda b, h, i, _: (b if own_tables else 0, i, 0))
    of_keys = pl.BlockSpec((1, 1, tiles, size, KEYS), lambda b, h, i, _: (b, jax.lax.div(h, shared), 0, 0, 0))
    of_bound = pl.BlockSpec(
        (1, 1, 1, _KINDS, size), lambda b, h, i, _: (b, h, i, 0, 0), memory_space=pltpu.MemorySpace.SMEM
    )
    specs = {"bound": of_bound, "q": of_queries, "cos": of_tables, "sin": of_tables}
    specs |= {"keys": of_keys, "keys_cos": of_keys, "keys_sin": of_keys}
    tile, per_neuron = (tiles, QUERIES, KEYS), (_KINDS, QUERIES, size)
    scratch = {
        "weight": tile,
        "log_weight": tile,
        "weight_squares": (QUERIES, 1),
        "first": per_neuron,
        "second": per_neuron,
        "shift": per_neuron,
    }
    if gained:
        specs |= {"q_gain": of_queries, "k_gain": of_keys}
    if gained or softcap is not None:
        scratch["score"] = tile
    names = ["window", *specs, "squares", *scratch]
    in_vmem = 2 * (3 + gained) * size * time + (2 + ("score" in scratch)) * QUERIES * time  # keys are double-buffered

    def kernel(*refs: Any) -> None:
        absent = {"q_gain": None, "k_gain": None, "score": None}
        _kernel(SimpleNamespace(**absent | dict(zip(names, refs, strict=True))), scale, softcap)

    return pl.pallas_call(
        kernel,
        grid_spec=pltpu.PrefetchScalarGridSpec(
            num_scalar_prefetch=1,
            grid=(batch, heads, blocks),
            in_specs=list(specs.values()),
            out_specs=pl.BlockSpec((1, 1, _KINDS, size), lambda b, h, i, _: (b, h, 0, 0)),
            scratch_shapes=[pltpu.VMEM(shape, jnp.float32) for shape in scratch.values()],
        ),
        out_shape=jax.ShapeDtypeStruct((batch, heads, _KINDS, size), jnp.float32),
        compiler_params=pltpu.CompilerParams(
            dimension_semantics=("parallel", "parallel", "arbitrary"),
            vmem_limit_bytes=max(16 << 20, 4 * in_vmem + (4 << 20)),
        ),
        interpret=interpret,
        name="qk_importance",
    )


def _kernel(refs: SimpleNamespace, scale: float, softcap: float | None) -> None:
    """One block of queries of one head: adds to the squared norms of all neurons."""

    block = pl.program_id(2)

    @pl.when(block == 0)
    def _() -> None:
        refs.squares[...] = jnp.zeros_like(refs.squares)

    @pl.when(jnp.max(jnp.abs(refs.q[...])) > 0)
    def _() -> None:
        first = block * QUERIES
        # Not `//`, whose rounding towards minus infinity asks which chip this is.
        from_tile = jax.lax.div(jnp.maximum(first - refs.window[0] + 1, 0), KEYS)
        reach = from_tile, jax.lax.div(first + QUERIES - 1, KEYS) + 1
        gain = None if refs.q_gain is None else refs.q_gain[0, 0]
        queries, *kinds = rows_of(refs.q[0, 0], refs.cos[0], refs.sin[0], gain, scale)
        _attend(refs, queries, first, reach, softcap)
        _store_rows(refs, kinds, gain, reach, softcap)
        size = queries.shape[1]
        lane = jax.lax.broadcasted_iota(jnp.int32, (1, size), 1)

        def one_neuron(j: jax.Array, _: None) -> None:
            for kind in range(_KINDS):
                squares = _squares(refs, kind, j, reach, softcap)
                total = jnp.sum(squares, axis=0, keepdims=True)
                refs.squares[0, 0, kind : kind + 1, :] += jnp.where(lane == j, total, 0.0)

        jax.lax.fori_loop(0, size, one_neuron, None)


def _product(x: jax.Array, y: jax.Array, axis: int) -> jax.Array:
    """x [t, n] and the axis of y that is n, in float32."""
    return jax.lax.dot_general(
        x, y, (((1,), (axis,)), ((), ())), precision=jax.lax.Precision.HIGHEST, preferred_element_type=jnp.float32
    )


def _attend(refs: SimpleNamespace, queries: jax.Array, first: jax.Array, reach: Reach, softcap: float | None) -> None:
    """Stores this block's attention weights, their logarithms, and the scores where a soft cap or a q/k-norm needs
    them."""
    row = first + jax.lax.broadcasted_iota(jnp.int32, (QUERIES, KEYS), 0)
    lane = jax.lax.broadcasted_iota(jnp.int32, (QUERIES, KEYS), 1)

    def score(at: jax.Array, top: jax.Array) -> jax.Array:
        scores = _product(queries, refs.keys[0, 0, at], 0)
        if refs.score is not None:
            refs.score[at] = scores
        capped = scores if softcap is None else softcap * jnp.tanh(scores / softcap)
        ago = row - (at * KEYS + lane)
        capped = jnp.where((ago >= 0) & (ago < refs.window[0]), capped, UNSEEN)
        refs.log_weight[at] = capped
        return jnp.maximum(top, jnp.max(capped, axis=1, keepdims=True))

    top = jax.lax.fori_loop(*reach, score, jnp.full((QUERIES, 1), UNSEEN, jnp.float32))

    def exponentials(at: jax.Array, total: jax.Array) -> jax.Array:
        return total + jnp.sum(jnp.exp(refs.log_weight[at] - top), axis=1, keepdims=True)

    log_total = jnp.log(jax.lax.fori_loop(*reach, exponentials, jnp.zeros((QUERIES, 1), jnp.float32)))

    def normalise(at: jax.Array, squares: jax.Array) -> jax.Array:
        log_weight = (refs.log_weight[at] - top) - log_total
        weight = jnp.exp(log_weight)
        refs.log_weight[at] = log_weight
        refs.weight[at] = weight
        return squares + weight * weight

    squares = jax.lax.fori_loop(*reach, normalise, jnp.zeros((QUERIES, KEYS), jnp.float32))
    refs.weight_squares[...] = jnp.sum(squares, axis=1, keepdims=True)


def _store_rows(
    refs: SimpleNamespace, kinds: list[Factors], gain: jax.Array | None, reach: Reach, softcap: float | None
) -> None:
    """Stores the queries' side of all neurons, with minus the change at the query's mean key (see `tiles`) as its
    shift."""

    def share(at: jax.Array) -> jax.Array:
        return jnp.square(refs.weight[at]) / refs.weight_squares[...]

    def mean(columns: Any) -> jax.Array:
        def add(at: jax.Array, total: jax.Array) -> jax.Array:
            return total + _product(share(at), columns[0, 0, at], 1)

        return jax.lax.fori_loop(*reach, add, jnp.zeros(kinds[0].first.shape, jnp.float32))

    def mean_score(at: jax.Array, total: jax.Array) -> jax.Array:
        return total + jnp.sum(share(at) * refs.score[at], axis=1, keepdims=True)

    score = None
    if refs.score is not None:
        score = jax.lax.fori_loop(*reach, mean_score, jnp.zeros((QUERIES, 1), jnp.float32))
    keys = mean(refs.keys)
    columns = [Factors(keys, turned(keys)), Factors(mean(refs.keys_cos), mean(refs.keys_sin))]
    if gain is not None:
        kinds[0] = kinds[0]._replace(gain=gain)
        columns[1] = columns[1]._replace(gain=mean(refs.k_gain))
    for kind in range(_KINDS):
        refs.first[kind] = kinds[kind].first
        refs.second[kind] = kinds[kind].second
        refs.shift[kind] = -change_of_score(kinds[kind], columns[kind], score, softcap)


def _squares(refs: SimpleNamespace, kind: int, j: jax.Array, reach: Reach, softcap: float | None) -> jax.Array:
    """The squared change of each query's weights by neuron j of a kind, [t, 1]."""
    size = refs.first.shape[2]
    lane = jax.lax.broadcasted_iota(jnp.int32, (QUERIES, size), 1)

    def column(x: jax.Array) -> jax.Array:
        return jnp.sum(jnp.where(lane == j, x, 0.0), axis=1, keepdims=True)

    gain = column(refs.q_gain[0, 0]) if refs.q_gain is not None and kind == 0 else None
    rows = Factors(column(refs.first[kind]), column(refs.second[kind]), gain, column(refs.shift[kind]))
    partner = jnp.where(j < size // 2, j + size // 2, j - size // 2)

    def columns(at: jax.Array) -> Factors:
        if kind == 0:
            return Factors(refs.keys[0, 0, at, pl.ds(j, 1), :], refs.keys[0, 0, at, pl.ds(partner, 1), :])
        gain = None if refs.k_gain is None else refs.k_gain[0, 0, at, pl.ds(j, 1), :]
        return Factors(refs.keys_cos[0, 0, at, pl.ds(j, 1), :], refs.keys_sin[0, 0, at, pl.ds(j, 1), :], gain)

    def over_keys(start: Any, fold: Any) -> Any:
        def body(at: jax.Array, total: Any) -> Any:
            score = None if refs.score is None else refs.score[at]
            v = change_of_score(rows, columns(at), score, softcap)
            return fold(total, v, Weights(refs.weight[at], refs.log_weight[at], score))

        return jax.lax.fori_loop(*reach, body, start)

    total = partial(jnp.sum, axis=1, keepdims=True)
    largest = partial(jnp.max, axis=1, keepdims=True)
    zero = jnp.zeros((QUERIES, KEYS), jnp.float32)
    bound = refs.bound[0, 0, 0, kind, j]
    return squared_changes(over_keys, total, largest, zero, refs.weight_squares[...], bound)
