"""What the Pallas kernels share: the sums over the keys in a form that keeps its digits, and the bounds that choose it.

With P the attention weights and v the change of the scores less its value at the query's mean key (weighted by P), a
row of the change is P (u - z) / (1 + z), u = expm1(v), z = sum_s P u: every term is of second order in u, so small
importances keep their digits, and the shift keeps u small where P is large. A bound on |v| chooses between three forms:

up to 1      one pass over the keys, expm1 a polynomial. The square is multiplied out, sum P^2 u^2 - 2 z sum P^2 u +
             z^2 sum P^2; with |v| <= 1 around its mean nothing cancels in it.
up to 20     two passes: z, and then the squares of P expm1(v - log(1 + z)).
over that    a pass more, for the largest log P + v: a row where it is far from 0 is shifted by it before z is summed,
             so that nothing overflows.

Tiles may have any layout: the sums are given as a fold over the keys and a function that ends it.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

SMALL = 1.0
FAR = 20.0
UNSEEN = -1e30

# expm1(v) / v for |v| <= SMALL from its values at the Chebyshev points, lowest power first; right to 6e-7.
_RATIO = np.polynomial.chebyshev.cheb2poly(
    np.polynomial.chebyshev.chebinterpolate(lambda v: np.expm1(v) / np.where(v == 0, 1.0, v) + (v == 0), 6)
).tolist()


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


# over_keys(start, fold) folds fold(total, v, weights) over the tiles of keys.
OverKeys = Callable[[Any, Callable[[Any, jax.Array, Weights], Any]], Any]


def expm1_small(v: jax.Array) -> jax.Array:
    """expm1 of |v| <= SMALL."""
    ratio = jnp.full_like(v, _RATIO[-1])
    for coefficient in _RATIO[-2::-1]:
        ratio = ratio * v + coefficient
    return v * ratio


def change_of_weight(v: jax.Array, weights: Weights) -> jax.Array:
    """P expm1(v) of any v, as exact where it is small; overflows only where P e^v does."""
    moved = jnp.exp(weights.log_weight + v) - weights.weight
    return jnp.where(jnp.abs(v) <= SMALL, weights.weight * expm1_small(v), moved)


def change_of_score(rows: Factors, columns: Factors, score: jax.Array | None, softcap: float | None) -> jax.Array:
    """v without cancellation, for shapes that broadcast; a shift of None is 0."""
    change = rows.first * columns.first + rows.second * columns.second
    for factors in (rows, columns):
        if factors.gain is not None:
            change = change + factors.gain * score
    if softcap is not None:
        # tanh a - tanh b = tanh(a - b) (1 - tanh a tanh b)
        before, moved = score / softcap, change / softcap
        change = softcap * jnp.tanh(moved) * (1.0 - jnp.tanh(before) * jnp.tanh(before + moved))
    return change if rows.shift is None else change + rows.shift


def small_squares(
    over_keys: OverKeys, total: Callable[[jax.Array], jax.Array], zero: jax.Array, weight_squares: jax.Array
) -> jax.Array:
    """Squared norm of each row's change of its weights, for |v| <= SMALL; zero: an accumulator, total: what ends it;
    weight_squares: sum P^2 of each row."""

    def fold(sums: tuple[jax.Array, ...], v: jax.Array, weights: Weights) -> tuple[jax.Array, ...]:
        change = weights.weight * expm1_small(v)
        z, squares, products = sums
        return z + change, squares + change * change, products + weights.weight * change

    z, squares, products = (total(x) for x in over_keys((zero,) * 3, fold))
    return jnp.maximum(squares + z * (z * weight_squares - 2.0 * products), 0.0) / ((1.0 + z) * (1.0 + z))


def any_squares(
    over_keys: OverKeys,
    total: Callable[[jax.Array], jax.Array],
    largest: Callable[[jax.Array], jax.Array] | None,
    zero: jax.Array,
) -> jax.Array:
    """As `small_squares`, for any v; largest ends a maximum as total ends a sum, None where |v| <= FAR."""
    base = jnp.zeros_like(total(zero))
    if largest is not None:
        top = largest(over_keys(zero + UNSEEN, lambda most, v, weights: jnp.maximum(most, weights.log_weight + v)))
        base = jnp.where(jnp.abs(top) > FAR, top, base)
    z = total(over_keys(zero, lambda z, v, weights: z + change_of_weight(v - base, weights)))
    middle = base + jnp.log1p(z)

    def fold(squares: jax.Array, v: jax.Array, weights: Weights) -> jax.Array:
        change = change_of_weight(v - middle, weights)
        return squares + change * change

    return total(over_keys(zero, fold))


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
    partner's place, a key neuron's those of `cos` and `sin`."""

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
    soft cap, which is not linear.
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
