"""Exact importance for GPUs: XLA makes the attention weights, a Pallas kernel (Triton) the sums over the keys.

A program takes a block of queries and a block of neurons of one head, a tile [t, c] whose sums stay in registers, and
goes over the keys a few at a time, as a matrix product on plain cores does: a key brings its weights, a column along t,
and its side of the changes, two rows along c (both outer products of a RoPE pair). Keys that nobody in the block sees
are not visited, nor any where no query counts. Query heads of a group lie beside each other and read the same keys.
The weights of a few heads at a time, [h, s, t], are the largest array.
"""

from __future__ import annotations

from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import triton as plt

from .tiles import (
    UNSEEN,
    Columns,
    Factors,
    MultiplyAdd,
    Weights,
    bounds,
    change_of_score,
    columns_of,
    plain_multiply_add,
    rows_of,
    squared_changes,
    turned,
)

_QUERIES = 32  # queries in a block
_NEURONS = 32  # neurons in a block, at most: a power of two that divides the head size
_KEYS = 4  # keys in a step, which the loop is unrolled by; a block of queries is a multiple
_WARPS = 2
_WEIGHTS = 1 << 26  # elements of the weights of the heads that are worked on together, at most, where heads allow


class _Inputs(NamedTuple):
    """What the kernel reads; n heads of m groups, kinds 0 (query neurons) and 1 (key neurons)."""

    window: jax.Array  # int32 [1]
    bound: jax.Array  # [n, t blocks, 2, c blocks]
    log_weight: jax.Array  # [n, s, t]
    weight_squares: jax.Array  # [n, t], sums over s
    score: jax.Array | None  # [n, s, t]
    rows: Factors  # [n, 2, t, k]
    columns: Factors  # [m, 2, s, k]


def qk_importance_gpu(
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
    groups = k.shape[2]
    shared, padded = heads // groups, -(-time // _QUERIES) * _QUERIES

    def by_group(x: jax.Array, mode: str) -> jax.Array:
        """[b, t, h or g, k] -> [b g, h / g or 1, t, k]."""
        x = jnp.swapaxes(x.astype(jnp.float32), 1, 2)
        x = jnp.pad(x, [(0, 0), (0, 0), (0, padded - time), (0, 0)], mode=mode)
        return x.reshape(batch * groups, -1, padded, size)

    def of_tables(x: jax.Array) -> jax.Array:
        wide = jnp.broadcast_to(x[:, :, None], (batch, time, groups, size))
        return by_group(wide, "edge")

    # A query that does not count is 0: so are its scores and their changes.
    counted = token_mask[:, :, None, None]
    inputs = {"q": by_group(q * counted, "constant"), "k": by_group(k, "edge")}
    inputs |= {"cos": of_tables(cos), "sin": of_tables(sin)}
    if q_gain is not None and k_gain is not None:
        inputs |= {"q_gain": by_group(q_gain * counted, "constant"), "k_gain": by_group(k_gain, "edge")}
    room = max(1, _WEIGHTS // (shared * padded * padded))
    together = max(m for m in range(1, min(room, batch * groups) + 1) if batch * groups % m == 0)

    def of_some_groups(x: dict[str, jax.Array]) -> jax.Array:
        return _sums(_prepared(x, window, scale, softcap), softcap, interpret)

    split = jax.tree.map(lambda x: x.reshape(-1, together, *x.shape[1:]), inputs)
    squares = jax.lax.map(of_some_groups, split).reshape(batch, heads, 2, size)
    of_q, of_k = squares[:, :, 0], squares[:, :, 1].reshape(batch, groups, -1, size).sum(axis=2)
    return jnp.sqrt(of_q), jnp.sqrt(of_k)


def _prepared(x: dict[str, jax.Array], window: jax.Array, scale: float, softcap: float | None) -> _Inputs:
    """Rows, columns, weights and bounds of some groups; x: [m, h / m or 1, t, k]."""
    gains = (x["q_gain"], x["k_gain"]) if "q_gain" in x else None
    sides = rows_of(x["q"], x["cos"], x["sin"], gains and gains[0], scale)
    columns = columns_of(x["k"], x["cos"], x["sin"], gains and gains[1])
    exact = partial(jnp.einsum, precision=jax.lax.Precision.HIGHEST)
    score = exact("mrtk,mosk->mrst", sides[0], columns.keys)
    capped = score if softcap is None else softcap * jnp.tanh(score / softcap)
    at = jnp.arange(score.shape[-1])
    ago = at[None, :] - at[:, None]
    log_weight = jax.nn.log_softmax(jnp.where((ago >= 0) & (ago < window), capped, UNSEEN), axis=2)
    squares = jnp.exp(2.0 * log_weight)
    weight_squares = squares.sum(axis=2)
    share = squares / weight_squares[:, :, None]
    mean = partial(exact, "mrst,mosk->mrtk", share)
    needs_score = gains is not None or softcap is not None
    mean_score = jnp.sum(share * score, axis=2)[..., None] if needs_score else None
    keys = mean(columns.keys)
    means = [Factors(keys, turned(keys)), Factors(mean(columns.cos), mean(columns.sin))]
    of_columns = [Factors(columns.keys, turned(columns.keys)), Factors(columns.cos, columns.sin)]
    of_rows = list(sides[1:])
    if gains is not None:
        of_rows = [f._replace(gain=g) for f, g in zip(of_rows, (gains[0], jnp.zeros_like(gains[0])), strict=True)]
        zero = jnp.zeros_like(gains[1])
        of_columns = [f._replace(gain=g) for f, g in zip(of_columns, (zero, gains[1]), strict=True)]
        means[1] = means[1]._replace(gain=mean(gains[1]))
    shifts = [-change_of_score(r, c, mean_score, softcap) for r, c in zip(of_rows, means, strict=True)]
    of_rows = [r._replace(shift=s) for r, s in zip(of_rows, shifts, strict=True)]
    return _Inputs(
        jnp.asarray(window, jnp.int32).reshape(1),
        _heads_first(_block_bounds(sides, columns, gains, softcap)),
        _heads_first(log_weight),
        _heads_first(weight_squares),
        _heads_first(score) if needs_score else None,
        jax.tree.map(lambda *kinds: _heads_first(jnp.stack(kinds, axis=2)), *of_rows),
        jax.tree.map(lambda *kinds: jnp.stack([y[:, 0] for y in kinds], axis=1), *of_columns),
    )


def _heads_first(x: jax.Array) -> jax.Array:
    return x.reshape(-1, *x.shape[2:])


def _neurons(size: int) -> int:
    """Neurons in a block."""
    return min(_NEURONS, size & -size)


def _block_bounds(sides: Any, columns: Columns, gains: Any, softcap: float | None) -> jax.Array:
    bound = bounds(sides, columns, gains, _QUERIES, softcap)
    return bound.reshape(*bound.shape[:-1], -1, _neurons(bound.shape[-1])).max(axis=-1)


def _sums(x: _Inputs, softcap: float | None, interpret: bool) -> jax.Array:
    """Squared norms [n, 2, k] of the neurons of n heads."""
    heads, kinds, time, size = x.rows.first.shape
    shared, neurons = heads // x.columns.first.shape[0], _neurons(size)
    leaves, tree = jax.tree.flatten(x)

    def kernel(*refs: Any) -> None:
        *inputs, squares = refs
        multiply_add = plain_multiply_add if interpret else _multiply_add
        _kernel(jax.tree.unflatten(tree, inputs), squares, shared, softcap, multiply_add)

    whole = pl.BlockSpec(memory_space=pl.ANY)
    squares = pl.pallas_call(
        kernel,
        grid=(heads, time // _QUERIES, kinds * size // neurons),
        in_specs=[whole] * len(leaves),
        out_specs=whole,
        out_shape=jax.ShapeDtypeStruct((heads, time // _QUERIES, kinds, size), jnp.float32),
        compiler_params=plt.CompilerParams(num_warps=_WARPS, num_stages=2),
        interpret=interpret,
        name="qk_importance",
    )(*leaves)
    return squares.sum(axis=1)


def _multiply_add(a: jax.Array | float, b: jax.Array, c: jax.Array | float) -> jax.Array:
    """a b + c as one instruction, float32. XLA has Triton keep products and sums apart: on an H100 that took 1.2 times
    as long with four warps and 1.4 times with two."""
    shape = jnp.broadcast_shapes(*(jnp.shape(x) for x in (a, b, c)))
    operands = [jnp.broadcast_to(jnp.asarray(x, jnp.float32), shape) for x in (a, b, c)]
    (joined,) = plt.elementwise_inline_asm(
        "fma.rn.f32 $0, $1, $2, $3;",
        args=operands,
        constraints="=f,f,f,f",
        pack=1,
        result_shape_dtypes=[jax.ShapeDtypeStruct(shape, jnp.float32)],
    )
    return joined


def _kernel(x: _Inputs, squares: Any, shared: int, softcap: float | None, multiply_add: MultiplyAdd) -> None:
    """The squared norms of a block of neurons over a block of queries of one head."""
    head, block, part = (pl.program_id(axis) for axis in range(3))
    size = x.rows.first.shape[3]
    neurons = _neurons(size)
    kind, group = jax.lax.div(part, size // neurons), jax.lax.div(head, shared)
    neuron_block = jax.lax.rem(part, size // neurons)
    at, where = pl.ds(block * _QUERIES, _QUERIES), pl.ds(neuron_block * neurons, neurons)
    bound = x.bound[head, block, kind, neuron_block]
    begin = jax.lax.div(jnp.maximum(block * _QUERIES - x.window[0] + 1, 0), _KEYS)
    end = jnp.where(bound > 0, (block + 1) * (_QUERIES // _KEYS), begin)  # without a bound over 0 nothing changes
    rows = jax.tree.map(lambda y: y[head, kind, at, where], x.rows)

    def over_keys(start: Any, fold: Any) -> Any:
        def body(step: jax.Array, total: Any) -> Any:
            for key in (step * _KEYS + i for i in range(_KEYS)):
                columns = jax.tree.map(lambda y, key=key: y[group, kind, key, where][None, :], x.columns)
                score = None if x.score is None else x.score[head, key, at][:, None]
                log_weight = x.log_weight[head, key, at][:, None]
                v = change_of_score(rows, columns, score, softcap, multiply_add)
                total = fold(total, v, Weights(jnp.exp(log_weight), log_weight, score))
            return total

        return jax.lax.fori_loop(begin, end, body, start)

    zero = jnp.zeros((_QUERIES, neurons), jnp.float32)

    def itself(total: jax.Array) -> jax.Array:
        return total

    weight_squares = x.weight_squares[head, at][:, None]
    changes = squared_changes(over_keys, itself, itself, zero, weight_squares, bound, multiply_add)
    squares[head, block, kind, where] = jnp.sum(changes, axis=0)
