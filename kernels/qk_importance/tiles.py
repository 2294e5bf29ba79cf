"""What the Pallas kernels share: the sums over the keys in a form that keeps its digits, and the bound that chooses it.

With P the attention weights and v the change of the scores less a shift of its row, a row of the change is
P (u - z) / (1 + z), u = expm1(v), z = sum_s P u. One pass over the keys sums what the multiplied-out square needs,

    sum P^2 (u - z)^2 = sum P^2 u^2 - 2 z sum P^2 u + z^2 sum P^2,

and that loses no digits to cancellation because of the shift: softmax does not see it, and it is v at the row's mean
key *weighted by P^2*, so that the middle sum is of second order in v. (Weighted by P it need not be: where one key has
nearly all the weight and the others lose theirs, u and z of that key could agree in as many digits as |v| has.) What is
left is a loss in proportion to |v| where |v| is large, 40 times float32's step at most.

u is a polynomial for small v, so that small importances keep their digits, and exp(v) - 1 beyond. A bound on |v| shows
where neither u nor its square can overflow, which is nearly everywhere (see `bounds`); elsewhere a pass before that one
finds the largest log P + v of a row, which is shifted by it if it is far from 0.

Tiles may have any layout: the sums are given as a fold over the keys and a function that ends it. Products that are
added to something go through `multiply_add`, which a platform whose compiler does not join the two can give.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

NEAR = 40.0  # e^NEAR squared is a float32
UNSEEN = -1e30
_SMALL = 0.25


def expm1_ratio(unit: float, reach: float, degree: int) -> list[float]:
    """A polynomial for expm1(unit v) / v on |v| <= reach, from its values at the Chebyshev points; lowest power
    first."""

    def at(x: np.ndarray) -> np.ndarray:
        v = reach * x
        return np.where(v == 0, unit, np.expm1(unit * v) / np.where(v == 0, 1.0, v))

    polynomial = np.polynomial.chebyshev.cheb2poly(np.polynomial.chebyshev.chebinterpolate(at, degree))  # pyright: ignore[reportCallIssue, reportArgumentType]
    return (polynomial / reach ** np.arange(degree + 1)).tolist()


_RATIO = expm1_ratio(1.0, _SMALL, 4)  # right to 1e-7


class Factors(NamedTuple):
    """The outer products of some neurons: v = first first' + second second' + (gain + gain') score + shift.

    Rows are the queries' side, columns (primed) the keys'; a part that is None is 0.
    """

    first: jax.Array
    second: jax.Array
    gain: jax.Array | None = None
    shift: jax.Array | None = None


class Weights(NamedTuple):
    """Attention weights of a tile: P, log P (UNSEEN where a query does not see the key) and the scores before a soft
    cap, which only a soft cap or a q/k-norm asks for."""

    weight: jax.Array
    log_weight: jax.Array
    score: jax.Array | None


MultiplyAdd = Callable[..., jax.Array]

# over_keys(start, fold) folds fold(total, v, weights) over the tiles of keys.
OverKeys = Callable[[Any, Callable[[Any, jax.Array, Weights], Any]], Any]


def plain_multiply_add(a: jax.Array | float, b: jax.Array, c: jax.Array | float) -> jax.Array:
    """a b + c, for shapes that broadcast, left to the compiler."""
    return a * b + c


def _expm1_small(v: jax.Array, multiply_add: MultiplyAdd) -> jax.Array:
    """expm1 of |v| <= _SMALL."""
    ratio = multiply_add(_RATIO[-1], v, _RATIO[-2])
    for coefficient in _RATIO[-3::-1]:
        ratio = multiply_add(ratio, v, coefficient)
    return v * ratio


def _change_near(v: jax.Array, weights: Weights, multiply_add: MultiplyAdd) -> jax.Array:
    """P expm1(v) of |v| <= NEAR."""
    return weights.weight * jnp.where(jnp.abs(v) <= _SMALL, _expm1_small(v, multiply_add), jnp.exp(v) - 1.0)


def _change_far(v: jax.Array, weights: Weights, multiply_add: MultiplyAdd) -> jax.Array:
    """P expm1(v) of any v; overflows only where P e^v does."""
    moved = jnp.exp(weights.log_weight + v) - weights.weight
    return jnp.where(jnp.abs(v) <= _SMALL, weights.weight * _expm1_small(v, multiply_add), moved)


def change_of_score(
    rows: Factors,
    columns: Factors,
    score: jax.Array | None,
    softcap: float | None,
    multiply_add: MultiplyAdd = plain_multiply_add,
) -> jax.Array:
    """v without cancellation, for shapes that broadcast; a shift of None is 0."""
    shift = 0.0 if rows.shift is None or softcap is not None else rows.shift
    change = multiply_add(rows.first, columns.first, multiply_add(rows.second, columns.second, shift))
    for factors in (rows, columns):
        if factors.gain is not None:
            change = multiply_add(factors.gain, score, change)
    if softcap is None:
        return change
    assert score is not None, "the soft cap acts on the scores"
    # tanh a - tanh b = tanh(a - b) (1 - tanh a tanh b)
    before, moved = score / softcap, change / softcap
    change = softcap * jnp.tanh(moved) * (1.0 - jnp.tanh(before) * jnp.tanh(before + moved))
    return change if rows.shift is None else change + rows.shift


def squared_changes(
    over_keys: OverKeys,
    total: Callable[[jax.Array], jax.Array],
    largest: Callable[[jax.Array], jax.Array],
    zero: jax.Array,
    weight_squares: jax.Array,
    bound: jax.Array,
    multiply_add: MultiplyAdd = plain_multiply_add,
) -> jax.Array:
    """Squared norm of each row's change of its weights.

    zero: an accumulator; total and largest end a sum and a maximum that are one; weight_squares: sum P^2 of each row;
    bound: what no |v| exceeds, a scalar.
    """

    def one_pass(change: Callable[..., jax.Array], base: jax.Array | None) -> jax.Array:
        def fold(sums: tuple[jax.Array, ...], v: jax.Array, weights: Weights) -> tuple[jax.Array, ...]:
            changed = change(v if base is None else v - base, weights, multiply_add)
            z, squares, products = sums
            squares, products = multiply_add(changed, changed, squares), multiply_add(weights.weight, changed, products)
            return z + changed, squares, products

        z, squares, products = (total(x) for x in over_keys((zero,) * 3, fold))
        return jnp.maximum(squares + z * (z * weight_squares - 2.0 * products), 0.0) / ((1.0 + z) * (1.0 + z))

    def far() -> jax.Array:
        top = largest(over_keys(zero + UNSEEN, lambda most, v, weights: jnp.maximum(most, weights.log_weight + v)))
        return one_pass(_change_far, jnp.where(jnp.abs(top) > NEAR, top, 0.0))

    return jax.lax.cond(bound <= NEAR, lambda: one_pass(_change_near, None), far)


def turned(x: jax.Array) -> jax.Array:
    """The halves of the last axis exchanged: each neuron's RoPE partner."""
    first, second = jnp.split(x, 2, axis=-1)
    return jnp.concatenate([second, first], axis=-1)


def rotated(x: jax.Array, cos: jax.Array, sin: jax.Array) -> jax.Array:
    """RoPE on the last axis, half-split layout."""
    return x * cos + turned(x) * signed(sin)


def signed(sin: jax.Array) -> jax.Array:
    """sin with the first half negative, as RoPE takes it."""
    lane = jax.lax.broadcasted_iota(jnp.int32, sin.shape, sin.ndim - 1)
    return jnp.where(lane < sin.shape[-1] // 2, -sin, sin)


class Columns(NamedTuple):
    """The keys' side of all neurons, [b, g, s, k]: a query neuron's columns are those of `keys` at its own and at its
    partner's index, a key neuron's those of `cos` and `sin`."""

    keys: jax.Array  # rotated
    cos: jax.Array
    sin: jax.Array


def columns_of(k: jax.Array, cos: jax.Array, sin: jax.Array, gain: jax.Array | None) -> Columns:
    """k and gain [b, g, s, k], cos and sin [b or 1, 1, s, k]."""
    kept = k if gain is None else k * (1.0 + gain)
    return Columns(rotated(k, cos, sin), -kept * cos, kept * signed(sin))


def rows_of(
    q: jax.Array, cos: jax.Array, sin: jax.Array, gain: jax.Array | None, scale: float
) -> tuple[jax.Array, Factors, Factors]:
    """The rotated and scaled queries, and the queries' side of the query neurons and of the key neurons, without gain
    or shift: all [..., t, k], as q and gain; cos and sin broadcast."""
    queries = rotated(q, cos, sin) * scale
    kept = (q if gain is None else q * (1.0 + gain)) * scale
    return queries, Factors(-kept * cos, kept * signed(sin)), Factors(queries, turned(queries))


def bounds(
    rows: tuple[jax.Array, Factors, Factors],
    columns: Columns,
    gains: tuple[jax.Array, jax.Array] | None,
    block: int,
    softcap: float | None,
) -> jax.Array:
    """What no |v| exceeds for a neuron and a block of queries, float32 [b, h, t / block, 2, k], the query neurons
    first: Cauchy-Schwarz on the two outer products. rows: `rows_of`, [b, h, t, k], t a multiple of block; gains: of
    query neurons like q, of key neurons like k.

    A part of the columns that is the same for every key falls out, so they count from their middle; not so under a
    soft cap, which is not linear. On Gemma 3 270M and SmolLM2-135M with real text, blocks of 32 by 32: over 1 in all
    but 0.5 %, over 20 in 27 %, over NEAR in 12 % and 1 % of the query neurons' and in 5 % and 1 % of the key neurons'.
    """
    batch, heads, time, _ = rows[0].shape
    shared = heads // columns.keys.shape[1]

    def over_queries(x: jax.Array) -> jax.Array:
        return x.reshape(batch, heads, time // block, block, -1).max(axis=3)

    def over_keys(x: jax.Array) -> jax.Array:
        return jnp.repeat(x.max(axis=2), shared, axis=1)[:, :, None]

    def centred(x: jax.Array) -> jax.Array:
        middle = (x.max(axis=2, keepdims=True) + x.min(axis=2, keepdims=True)) / 2
        return x if softcap is not None else x - middle

    keys = centred(columns.keys)
    sides = (keys, turned(keys)), (centred(columns.cos), centred(columns.sin))
    parts = []
    for factors, (first, second) in zip(rows[1:], sides, strict=True):
        of_rows = over_queries(_length(factors.first, factors.second))
        parts.append(2.0 * of_rows * over_keys(_length(first, second)))
    if gains is not None:
        length = over_queries(jnp.linalg.norm(rows[0], axis=-1, keepdims=True))
        score = 2.0 * length * over_keys(jnp.linalg.norm(columns.keys, axis=-1, keepdims=True))
        parts[0] = parts[0] + score * over_queries(jnp.abs(gains[0]))
        parts[1] = parts[1] + score * over_keys(jnp.abs(gains[1]))
    return jnp.stack(parts, axis=3)


def _length(x: jax.Array, y: jax.Array) -> jax.Array:
    return jnp.sqrt(x * x + y * y)
