"""Exact importance in plain XLA, for CPUs: nothing of size heads x k x t x s is ever stored.

With P the attention weights and u = expm1(S' - S - c), a row of the change is P (u - z) / (1 + z), z = sum_s P u: two
passes over the keys, each of which computes u anew, which is cheaper than to store it. Every term is of second order
in u, so small importances keep their digits. Softmax does not see the shift c; taking the change at the row's mean key
(weighted by P) makes u small where P is large, so that a row which attends to almost one key only (an attention sink)
loses no digits.

XLA's expm1 would be most of the work. A bound on |change| that holds for every query, key and neuron of some heads
(Cauchy-Schwarz on the two outer products) says what may take its place: for |change| <= 1 a polynomial, right to 4e-7
of u however small that is; up to 40 an exp without range checks, right to 1e-7 of e^change. Over that, expm1 itself
and, where even that would overflow, the softmax of the changed scores. Causality and sliding windows bound the keys
that a block of queries visits.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from .outer_products import Changes, norms_of, score_changes

_QUERIES = 64  # queries in a block, at most
_KEYS = 16  # keys in a step, unrolled: the accumulator stays in registers meanwhile
_ACCUMULATOR = 1 << 14  # elements of the accumulator [n, t, c], so that it stays in the cache
_SMALL = 1.0
_LARGEST = 40.0  # changes of a score up to here stay in float32's range when exponentiated and squared


def _fitted(function: Callable[[np.ndarray], np.ndarray], reach: float, degree: int) -> tuple[float, ...]:
    """A polynomial for `function` on [-reach, reach], from its values at the Chebyshev points; lowest power first."""
    points = reach * np.cos(np.pi * (np.arange(degree + 1) + 0.5) / (degree + 1))
    return tuple(np.polynomial.Polynomial.fit(points, function(points), degree, domain=[-1, 1]).coef.tolist())


_EXPM1_RATIO = _fitted(lambda v: np.expm1(v) / v, _SMALL, 6)
_EXP2 = _fitted(np.exp2, 0.5, 5)


def _horner(coefficients: tuple[float, ...], v: jax.Array) -> jax.Array:
    total = jnp.full_like(v, coefficients[-1])
    for coefficient in coefficients[-2::-1]:
        total = total * v + coefficient
    return total


def _small_expm1(change: jax.Array) -> jax.Array:
    """expm1 of |change| <= 1."""
    return change * _horner(_EXPM1_RATIO, change)


def _plain_exp(change: jax.Array) -> jax.Array:
    """exp of |change| <= 40: a power of two, put together from its bits, times a polynomial."""
    power = change * np.float32(np.log2(np.e))
    whole = jnp.round(power)
    fraction = jax.lax.bitcast_convert_type(_horner(_EXP2, power - whole), jnp.int32)
    return jax.lax.bitcast_convert_type(fraction + (whole.astype(jnp.int32) << 23), jnp.float32)


def qk_importance_xla(
    q: jax.Array,
    k: jax.Array,
    cos: jax.Array,
    sin: jax.Array,
    rows: jax.Array,
    window: jax.Array,
    *,
    scale: float,
    softcap: float | None,
    q_gain: jax.Array | None,
    k_gain: jax.Array | None,
) -> tuple[jax.Array, jax.Array]:
    """See `api.qk_importance`."""
    batch, time, heads, size = q.shape
    changes = score_changes(q, k, cos, sin, scale=scale, q_gain=q_gain, k_gain=k_gain)
    counted = jnp.repeat(rows.astype(jnp.float32), heads, axis=0)
    # What does not count must not be large either: it stays at 0, and the bound holds for it too.
    seen = counted[:, :, None] > 0
    gain = None if changes.row_gain is None else changes.row_gain * seen
    changes = changes._replace(rows=changes.rows * seen, rows2=changes.rows2 * seen, row_gain=gain)
    block = min(time, _QUERIES, max(8, _ACCUMULATOR // (2 * size)))
    room = max(1, _ACCUMULATOR // (block * 2 * size))
    together = max(n for n in range(1, min(room, batch * heads) + 1) if batch * heads % n == 0)

    def some_heads(xs: tuple[Changes, jax.Array]) -> jax.Array:
        return _some_heads(*xs, window, softcap, block)

    split = jax.tree.map(lambda x: x.reshape(-1, together, *x.shape[1:]), (changes, counted))
    return norms_of(jax.lax.map(some_heads, split), batch, k.shape[2])


class _Queries(NamedTuple):
    """What stays the same for all keys, [n, t, c]. shift is minus the change at each query's mean key."""

    rows: jax.Array
    rows2: jax.Array
    gain: jax.Array | None
    shift: jax.Array | float | None


class _Keys(NamedTuple):
    """Columns of the changes, [..., c], and the scores they change, [..., 1] (None where no change depends on them)."""

    columns: jax.Array
    columns2: jax.Array
    gain: jax.Array | None
    scores: jax.Array | None


class _Step(NamedTuple):
    """All that the passes read, the keys first, so that a step over some of them is one contiguous piece."""

    keys: _Keys  # [s, n, 1, c], scores [s, n, t, 1]
    weight: jax.Array  # P, [s, n, t, 1]
    capped: jax.Array  # the scores as softmax sees them, -1e30 where unseen; [s, n, t, 1]


def _some_heads(x: Changes, counted: jax.Array, window: jax.Array, softcap: float | None, block: int) -> jax.Array:
    """Squared importances [n, c] of the neurons of n heads; counted [n, t]."""
    time = x.queries.shape[1]
    columns = _Keys(x.columns, x.columns2, x.column_gain, None)
    keys = jax.tree.map(lambda y: _keys_first(y)[:, :, None], columns)
    form = jnp.sum(_bound(x, softcap) > np.asarray([_SMALL, _LARGEST], np.float32))

    def one_block(first: jax.Array) -> jax.Array:
        # The last block may reach back over queries already counted: those get weight 0.
        begin = jnp.minimum(first, time - block)
        counts = jnp.where(begin + jnp.arange(block) >= first, _cut(counted, begin, block), 0.0)
        # A plain sum, not a product: matrix units would round the squares.
        return jnp.sum(counts[:, :, None] * _block(x, keys, begin, block, window, form, softcap), axis=1)

    return jax.lax.map(one_block, block * jnp.arange(-(-time // block))).sum(axis=0)


def _bound(x: Changes, softcap: float | None) -> jax.Array:
    """What no |change|, less the change at a mean key, exceeds: a scalar, by Cauchy-Schwarz on the two outer products.

    A part of the columns that is the same for every key falls out, so they count from their middle; not so under a
    soft cap, which is not linear.
    """
    columns = jnp.stack([x.columns, x.columns2])
    if softcap is None:
        columns = columns - (columns.max(axis=2, keepdims=True) + columns.min(axis=2, keepdims=True)) / 2

    def longest(*parts: jax.Array) -> jax.Array:
        return jnp.sqrt(sum(jnp.square(y) for y in parts).max(axis=1))

    bound = 2.0 * longest(x.rows, x.rows2) * longest(*columns)
    if x.row_gain is not None:
        score = jnp.linalg.norm(x.queries, axis=-1).max(axis=1) * jnp.linalg.norm(x.keys, axis=-1).max(axis=1)
        bound = bound + 2.0 * (longest(x.row_gain) + longest(x.column_gain)) * score[:, None]
    return bound.max()


def _cut(x: jax.Array, begin: jax.Array, size: int) -> jax.Array:
    return jax.lax.dynamic_slice_in_dim(x, begin, size, axis=1)


def _keys_first(x: jax.Array, unseen: float = 0.0) -> jax.Array:
    """[n, s, ...] -> [s, n, ...], with as many more unseen keys as make whole steps."""
    x = jnp.swapaxes(x, 0, 1)
    return jnp.pad(x, [(0, -len(x) % _KEYS)] + [(0, 0)] * (x.ndim - 1), constant_values=unseen)


def _block(
    x: Changes,
    keys: _Keys,
    begin: jax.Array,
    block: int,
    window: jax.Array,
    form: jax.Array,
    softcap: float | None,
) -> jax.Array:
    """Squared norm of the change of each query's attention weights by each neuron, [n, t, c]."""
    scores = _exact("ntk,nsk->nts", _cut(x.queries, begin, block), x.keys)
    ago = (begin + jnp.arange(block))[:, None] - jnp.arange(x.keys.shape[1])[None, :]
    capped = scores if softcap is None else softcap * jnp.tanh(scores / softcap)
    capped = jnp.where((ago >= 0) & (ago < window), capped, -1e30)
    weight = jax.nn.softmax(capped, axis=-1)

    columns = _Keys(x.columns, x.columns2, x.column_gain, None)
    mean = jax.tree.map(lambda y: _exact("nts,nsc->ntc", weight, y), columns)
    mean = mean._replace(scores=jnp.sum(weight * scores, axis=-1, keepdims=True))
    queries = jax.tree.map(lambda y: _cut(y, begin, block), _Queries(x.rows, x.rows2, x.row_gain, None))
    queries = queries._replace(shift=-_change(queries._replace(shift=0.0), mean, softcap))
    if x.row_gain is not None or softcap is not None:
        keys = keys._replace(scores=_keys_first(scores.mT)[..., None])
    step = _Step(keys, _keys_first(weight.mT)[..., None], _keys_first(capped.mT, -1e30)[..., None])
    reach = jnp.maximum(begin - window + 1, 0) // _KEYS, (begin + block - 1) // _KEYS + 1
    return _changed(queries, step, reach, form, softcap)


def _exact(letters: str, a: jax.Array, b: jax.Array) -> jax.Array:
    return jnp.einsum(letters, a, b, precision=jax.lax.Precision.HIGHEST)


def _change(queries: _Queries, keys: _Keys, softcap: float | None) -> jax.Array:
    """S' - S without cancellation, less what it is at the query's mean key."""
    change = queries.rows * keys.columns + (queries.rows2 * keys.columns2 + (0.0 if softcap else queries.shift))
    if queries.gain is not None:
        change = change + (queries.gain + keys.gain) * keys.scores
    if softcap is None:
        return change
    # tanh a - tanh b = tanh(a - b) (1 - tanh a tanh b)
    before = keys.scores / softcap
    moved = jnp.tanh(change / softcap) * (1.0 - jnp.tanh(before) * jnp.tanh(before + change / softcap))
    return softcap * moved + queries.shift


def _changed(
    queries: _Queries, step: _Step, reach: tuple[jax.Array, jax.Array], form: jax.Array, softcap: float | None
) -> jax.Array:
    """`_block`'s result; `form` counts the limits (_SMALL, _LARGEST) that some |change| may exceed."""

    def over_keys(start: float, fold: Callable[[jax.Array, jax.Array, _Step], jax.Array]) -> jax.Array:
        """Folds fold(accumulator, change, piece) over the keys, one at a time."""

        def body(at: jax.Array, carried: tuple[jax.Array, _Step]) -> tuple[jax.Array, _Step]:
            total, piece = carried
            for i in range(_KEYS):
                one = jax.tree.map(lambda y, i=i: y[i], piece)
                total = fold(total, _change(queries, one.keys, softcap), one)
            return total, piece_at(at + 1)

        def piece_at(at: jax.Array) -> _Step:
            return jax.tree.map(lambda y: jax.lax.dynamic_slice_in_dim(y, at * _KEYS, _KEYS), step)

        # The next step's keys are carried: cut within the step, they would be cut anew for every element.
        total = jnp.full(queries.rows.shape, start, jnp.float32)
        return jax.lax.fori_loop(*reach, body, (total, piece_at(reach[0])))[0]

    def from_u(u_of: Callable[[jax.Array], jax.Array], one_more: float) -> jax.Array:
        """one_more: what is missing from u to e^change."""
        z = over_keys(0.0, lambda total, change, one: total + one.weight * u_of(change))
        squares = over_keys(0.0, lambda total, change, one: total + jnp.square(one.weight * (u_of(change) - z)))
        return squares / jnp.square(one_more + z)

    def outright() -> jax.Array:
        """The softmax of the changed scores, less the weights: exact where so much changes that exp overflows."""
        top = over_keys(-jnp.inf, lambda total, change, one: jnp.maximum(total, one.capped + change))
        z = over_keys(0.0, lambda total, change, one: total + jnp.exp(one.capped + change - top))
        return over_keys(
            0.0, lambda total, change, one: total + jnp.square(jnp.exp(one.capped + change - top) / z - one.weight)
        )

    def any_size() -> jax.Array:
        most = over_keys(
            -jnp.inf,
            lambda total, change, one: jnp.maximum(total, jnp.where(one.capped > -1e29, change, -jnp.inf)),
        )
        fits = from_u(lambda change: jnp.expm1(jnp.minimum(change, _LARGEST)), 1.0)
        return jax.lax.cond(
            jnp.max(most) < _LARGEST, lambda: fits, lambda: jnp.where(most < _LARGEST, fits, outright())
        )

    return jax.lax.switch(form, [lambda: from_u(_small_expm1, 1.0), lambda: from_u(_plain_exp, 0.0), any_size])
