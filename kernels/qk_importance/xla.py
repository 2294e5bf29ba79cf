"""Exact importance in plain XLA, for CPUs: nothing of size heads x k x t x s is ever stored.

With P the attention weights and u = expm1(S' - S - c), a row of the change is P (u - z) / (1 + z), z = sum_s P u, and
one pass over the keys sums what its square needs, multiplied out as in `tiles`. Softmax does not see the shift c: it is
the change at the row's top key, the one with the largest weight P', where u is therefore 0. The square is then at least
(P' z)^2, and what cancels at most z^2 sum P^2 <= z^2 P': no more is lost than float32's step times 1 / P', which is at
most the number of keys. 1 + z is at least P', and an attention sink, whose P' is nearly 1, loses nothing. (A mean key,
as `tiles` has it, takes a product, which costs more here than to pick out one.)

XLA's expm1 would be most of the work: a polynomial and a power of two put together from its bits take its place, right
to 2e-7 of u however small that is. A bound on |change| for every query of a block, key and neuron (Cauchy-Schwarz on
the two outer products) shows where that could overflow, and there the softmax of the changed scores is taken outright.
Scores and changes are in units of log 2, because a power of two is what is computed. Causality and sliding windows
bound the keys that a block of queries visits.
"""

# Gains, scores and soft cap are None together, which pyright cannot follow.
# pyright: reportArgumentType=false, reportOperatorIssue=false
# pyright: reportOptionalOperand=false, reportOptionalSubscript=false

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from .outer_products import Changes, norms_of, score_changes
from .tiles import expm1_ratio

_QUERIES = 32  # queries in a block, at most; every bucket of lengths is a multiple
_KEYS = 8  # keys in a step, unrolled: sums stay in registers meanwhile; LLVM unrolls no more, and then uses no vectors
_NEURONS = 128  # neurons in a chunk: the columns of a step lie together and fit the nearest cache
_ACCUMULATOR = 1 << 17  # elements of a sum: few enough for the cache, enough to occupy several cores
_LARGEST = 57.0  # changes of a score up to here stay in float32's range when exponentiated and squared
_LOG2_E = float(np.log2(np.e))
_LOG_2 = float(np.log(2.0))
_RATIO = expm1_ratio(_LOG_2, 0.5, 5)  # right to 1e-7


def _expm1(change: jax.Array) -> jax.Array:
    """2^change - 1 of |change| <= 57: with change = n + f, n whole, 2^n (2^f - 1) + (2^n - 1), so that small ones keep
    their digits."""
    fraction = change - jnp.round(change)
    # Added to 1.5 2^23, a number is rounded in the same way, and n stands in the lowest bits: they become an exponent.
    bits = jax.lax.bitcast_convert_type(change + 1.5 * 2.0**23, jnp.int32)
    power = jax.lax.bitcast_convert_type((bits << 23) + (127 << 23), jnp.float32)
    ratio = jnp.full_like(change, _RATIO[-1])
    for coefficient in _RATIO[-2::-1]:
        ratio = ratio * fraction + coefficient
    return power * (fraction * ratio) + (power - 1.0)


def qk_importance_xla(
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
) -> tuple[jax.Array, jax.Array]:
    """See `api.qk_importance`."""
    batch, time, heads, size = q.shape
    changes = score_changes(q, k, cos, sin, scale=scale * _LOG2_E, q_gain=q_gain, k_gain=k_gain)
    counted = jnp.repeat(token_mask.astype(jnp.float32), heads, axis=0)
    # What does not count must not be large either: it stays at 0, and the bound holds for it too.
    seen = counted[:, :, None] > 0
    gain = None if changes.row_gain is None else changes.row_gain * seen
    changes = changes._replace(rows=changes.rows * seen, rows2=changes.rows2 * seen, row_gain=gain)
    block = min(time, _QUERIES, max(8, _ACCUMULATOR // (2 * size)))
    room = max(1, _ACCUMULATOR // (block * 2 * size))
    together = max(n for n in range(1, min(room, batch * heads) + 1) if batch * heads % n == 0)

    def of_heads(xs: tuple[Changes, jax.Array]) -> jax.Array:
        return _squares_of_heads(*xs, window, None if softcap is None else softcap * _LOG2_E, block)

    split = jax.tree.map(lambda x: x.reshape(-1, together, *x.shape[1:]), (_in_chunks(changes), counted))
    return norms_of(jax.lax.map(of_heads, split).reshape(batch * heads, -1), batch, k.shape[2])


def _in_chunks(x: Changes) -> Changes:
    """Rows, columns and gains [n, t, c] as [n, m, t, c / m], m chunks of neurons."""
    width = x.rows.shape[-1]
    chunks = width // _NEURONS if width % _NEURONS == 0 else 1

    def split(y: jax.Array) -> jax.Array:
        return jnp.swapaxes(y.reshape(*y.shape[:2], chunks, -1), 1, 2)

    return Changes(x.queries, x.keys, *jax.tree.map(split, tuple(x[2:])))


class _Queries(NamedTuple):
    """What stays the same for all keys, [n, m, t, c]. shift is minus the change at each query's top key."""

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
    """All that the passes read, in steps of K keys, so that a step is one contiguous piece, and within it a head's."""

    keys: _Keys  # [steps, n, m, K, 1, c], scores [steps, n, 1, K, t, 1]
    weight: jax.Array  # P, [steps, n, 1, K, t, 1]
    capped: jax.Array  # the scores as softmax sees them, -1e30 where unseen; [steps, n, 1, K, t, 1]


class _Sizes(NamedTuple):
    """How large the columns of each step are, counted from a middle that they share, [n, m, 1, c]."""

    middle: jax.Array
    middle2: jax.Array
    columns: jax.Array  # [steps, n, m, c], the longest
    gain: jax.Array | None  # [steps, n, m, c], the largest


def _squares_of_heads(
    x: Changes, counted: jax.Array, window: jax.Array, softcap: float | None, block: int
) -> jax.Array:
    """Squared importances [n, m, c] of the neurons of n heads; counted [n, t]."""
    time = x.queries.shape[1]
    columns = _Keys(x.columns, x.columns2, x.column_gain, None)
    keys = jax.tree.map(lambda y: _in_steps(y)[..., None, :], columns)
    sizes = _sizes(columns, softcap)

    def one_block(first: jax.Array) -> jax.Array:
        # The last block may reach back over queries already counted: those get weight 0.
        begin = jnp.minimum(first, time - block)
        counts = jnp.where(begin + jnp.arange(block) >= first, _cut(counted, begin, block), 0.0)
        return counts[:, None, :, None] * _block(x, keys, sizes, begin, block, window, softcap)

    # The blocks are added up as they are, and their queries at the end: one slow reduction instead of one per block. A
    # plain sum, not a product: matrix units would round the squares.
    nothing = jnp.zeros((*x.rows.shape[:2], block, x.rows.shape[3]), jnp.float32)
    starts = block * jnp.arange(-(-time // block))
    total, _ = jax.lax.scan(lambda total, first: (total + one_block(first), None), nothing, starts)
    return total.sum(axis=2)


def _cut(x: jax.Array, begin: jax.Array, size: int, axis: int = 1) -> jax.Array:
    return jax.lax.dynamic_slice_in_dim(x, begin, size, axis)


def _in_steps(x: jax.Array, unseen: float | None = None) -> jax.Array:
    """[n, m, s, ...] -> [steps, n, m, K, ...], with as many more unseen keys as make whole steps: the last key again,
    for which the bound holds too, unless a value is given."""
    more = [(0, -x.shape[2] % _KEYS if axis == 2 else 0) for axis in range(x.ndim)]
    x = jnp.pad(x, more, mode="edge") if unseen is None else jnp.pad(x, more, constant_values=unseen)
    return jnp.moveaxis(x.reshape(*x.shape[:2], -1, _KEYS, *x.shape[3:]), 2, 0)


def _block(
    x: Changes, keys: _Keys, sizes: _Sizes, begin: jax.Array, block: int, window: jax.Array, softcap: float | None
) -> jax.Array:
    """Squared norm of the change of each query's attention weights by each neuron, [n, m, t, c]."""
    scores = _exact("ntk,nsk->nts", _cut(x.queries, begin, block), x.keys)
    positions = jnp.arange(x.keys.shape[1])
    ago = (begin + jnp.arange(block))[:, None] - positions[None, :]
    capped = scores if softcap is None else softcap * jnp.tanh(scores / softcap)
    capped = jnp.where((ago >= 0) & (ago < window), capped, -1e30)
    weight = jax.nn.softmax(_LOG_2 * capped, axis=-1)
    weight_squares = jnp.sum(jnp.square(weight), axis=-1, keepdims=True)

    columns = _Keys(x.columns, x.columns2, x.column_gain, None)

    def in_steps(of_keys: jax.Array, unseen: float | None = None) -> jax.Array:
        return _in_steps(of_keys.mT[:, None], unseen)[..., None]

    largest = jnp.max(weight, axis=-1, keepdims=True)
    at = jnp.max(jnp.where(weight == largest, positions, 0), axis=-1)  # argmax would go one number at a time
    top = _keys_at(columns, at)
    top = top._replace(scores=jnp.sum(jnp.where(positions == at[..., None], scores, 0.0), -1, keepdims=True)[:, None])
    queries = jax.tree.map(lambda y: _cut(y, begin, block, axis=2), _Queries(x.rows, x.rows2, x.row_gain, None))
    queries = queries._replace(shift=-_change(queries._replace(shift=0.0), top, softcap))
    if x.row_gain is not None or softcap is not None:
        keys = keys._replace(scores=in_steps(scores))
    step = _Step(keys, in_steps(weight, 0.0), in_steps(capped, -1e30))
    reach = jnp.maximum(begin - window + 1, 0) // _KEYS, (begin + block - 1) // _KEYS + 1
    visited = (positions >= reach[0] * _KEYS) & (positions < reach[1] * _KEYS)
    at_most = _bound(queries, top, sizes, jnp.where(visited, scores, top.scores[:, 0]), reach, softcap)
    return _changed(queries, step, weight_squares[:, None], reach, at_most, softcap)


def _keys_at(columns: _Keys, at: jax.Array) -> _Keys:
    """The columns [n, m, s, c] of one key for each query, [n, m, t, c]; at [n, t] are the keys' indices."""

    def rows(y: jax.Array) -> jax.Array:
        return jax.vmap(lambda y, at: y[:, at])(y, at)

    # XLA picks out number by number, so two in one are half the work.
    both = rows(jax.lax.complex(columns.columns, columns.columns2))
    return _Keys(both.real, both.imag, None if columns.gain is None else rows(columns.gain), None)


def _sizes(columns: _Keys, softcap: float | None) -> _Sizes:
    """What the columns [n, m, s, c] have in common falls out of the changes; not so under a soft cap, which is not
    linear."""

    def middle(y: jax.Array) -> jax.Array:
        whole = (y.max(axis=2, keepdims=True) + y.min(axis=2, keepdims=True)) / 2
        return whole if softcap is None else jnp.zeros_like(whole)

    of, of2 = middle(columns.columns), middle(columns.columns2)
    gain = None if columns.gain is None else _in_steps(jnp.abs(columns.gain)).max(axis=3)
    length = jnp.sqrt(jnp.square(columns.columns - of) + jnp.square(columns.columns2 - of2))
    return _Sizes(of, of2, _in_steps(length).max(axis=3), gain)


def _bound(
    queries: _Queries,
    top: _Keys,
    sizes: _Sizes,
    scores: jax.Array,
    reach: tuple[jax.Array, jax.Array],
    softcap: float | None,
) -> jax.Array:
    """What no |change| of a block exceeds, a scalar: `_change` term by term, the two outer products by Cauchy-Schwarz.
    scores [n, t, s]; those of keys that are not visited are the top key's."""

    def longest(*parts: jax.Array) -> jax.Array:
        return jnp.sqrt(sum(jnp.square(y) for y in parts)).max(axis=2)

    def visited(of_steps: jax.Array) -> jax.Array:
        step = jnp.arange(len(of_steps))[:, None, None, None]
        return jnp.where((step >= reach[0]) & (step < reach[1]), of_steps, 0.0).max(axis=0)

    of_top = longest(top.columns - sizes.middle, top.columns2 - sizes.middle2)
    bound = longest(queries.rows, queries.rows2) * (visited(sizes.columns) + of_top)
    if queries.gain is not None:
        moved = jnp.abs(scores - top.scores[:, 0]).max(axis=(1, 2))[:, None, None]
        size = jnp.abs(scores).max(axis=(1, 2))[:, None, None]
        bound += longest(queries.gain) * (moved if softcap is None else 2.0 * size)
        bound += visited(sizes.gain) * size + longest(top.gain * top.scores)
    return bound.max()


def _exact(letters: str, a: jax.Array, b: jax.Array) -> jax.Array:
    return jnp.einsum(letters, a, b, precision=jax.lax.Precision.HIGHEST)


def _change(queries: _Queries, keys: _Keys, softcap: float | None) -> jax.Array:
    """S' - S without cancellation, less what it is at the query's top key."""
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
    queries: _Queries,
    step: _Step,
    weight_squares: jax.Array,
    reach: tuple[jax.Array, jax.Array],
    at_most: jax.Array,
    softcap: float | None,
) -> jax.Array:
    """`_block`'s result; weight_squares is sum P^2, [n, 1, t, 1]; at_most is what no |change| exceeds, a scalar."""

    def over_steps(start: Any, fold: Callable[[Any, _Step], Any]) -> Any:
        """Folds fold(total, piece) over the steps of keys."""

        def piece_at(at: jax.Array) -> _Step:
            return jax.tree.map(lambda y: jax.lax.dynamic_index_in_dim(y, at, keepdims=False), step)

        # The next step's keys are carried: cut within the step, they would be cut anew for every element.
        def body(at: jax.Array, carried: tuple[Any, _Step]) -> tuple[Any, _Step]:
            total, piece = carried
            return fold(total, piece), piece_at(at + 1)

        return jax.lax.fori_loop(*reach, body, (start, piece_at(reach[0])))[0]

    def one_pass() -> jax.Array:
        """As one reduction the three sums share each u; XLA for CPUs would compute it anew for each of three."""
        across = jax.tree.map(lambda y: y[:, :, None], queries)

        def sums(piece: _Step) -> tuple[jax.Array, ...]:
            weighted = piece.weight * _expm1(_change(across, piece.keys, softcap))
            terms = weighted, jnp.square(weighted), piece.weight * weighted
            return jax.lax.reduce(terms, (0.0, 0.0, 0.0), lambda a, b: tuple(map(jnp.add, a, b)), (2,))

        nothing = (jnp.zeros(queries.rows.shape, jnp.float32),) * 3
        z, squares, products = over_steps(nothing, lambda total, piece: tuple(map(jnp.add, total, sums(piece))))
        return jnp.maximum(squares + z * (z * weight_squares - 2.0 * products), 0.0) / jnp.square(1.0 + z)

    def over_keys(start: float, fold: Callable[[jax.Array, jax.Array, _Step], jax.Array]) -> jax.Array:
        """Folds fold(accumulator, change, piece) over the keys, one at a time."""

        def over_piece(total: jax.Array, piece: _Step) -> jax.Array:
            for i in range(_KEYS):
                one = jax.tree.map(lambda y, i=i: y[:, :, i], piece)
                total = fold(total, _change(queries, one.keys, softcap), one)
            return total

        return over_steps(jnp.full(queries.rows.shape, start, jnp.float32), over_piece)

    def outright() -> jax.Array:
        """The softmax of the changed scores, less the weights: exact however much changes."""
        top = over_keys(-jnp.inf, lambda total, change, one: jnp.maximum(total, one.capped + change))
        z = over_keys(0.0, lambda total, change, one: total + jnp.exp2(one.capped + change - top))
        return over_keys(
            0.0, lambda total, change, one: total + jnp.square(jnp.exp2(one.capped + change - top) / z - one.weight)
        )

    return jax.lax.cond(at_most <= _LARGEST, one_pass, outright)
