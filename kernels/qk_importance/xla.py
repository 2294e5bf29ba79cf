"""Exact importance in plain XLA, in blocks: nothing of size heads x k x t x s is ever stored.

Zeroing query neuron j removes D[t, s] = q_j[t] (R_t^T R_s k_s)_j scale from the scores. RoPE couples j only with its
partner j', so D is two outer products, a[t] b[s] + a2[t] b2[s]; for keys the same with the roles exchanged. With P the
attention weights, u = expm1(S' - S - c) and z = sum_s P u, a row of the change is P (u - z) / (1 + z), whose squared
norm is (sum P^2 u^2 - 2 z sum P^2 u + z^2 sum P^2) / (1 + z)^2: every term is of second order in u, so small
importances keep their digits. Softmax does not see the shift c; taking S' - S at the row's largest weight makes u
vanish there, so that a row which attends to almost one key only (an attention sink) loses no digits in the sum, and 1
+ z never vanishes.
"""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp

_TILE = 1 << 19  # elements of [t, s, k] worked on at once: a few MiB, so it stays in the cache
_EXTENTS = 4  # the causal triangle is cut into this many strips, each against its own number of keys
_LARGEST = 40.0  # changes of a score up to here stay in float32's range when exponentiated and squared


class _Side(NamedTuple):
    """One head's two outer products, for the query or for the key neurons: rows [t, 1, k] times columns [1, s, k]."""

    rows: jax.Array
    rows2: jax.Array
    columns: jax.Array
    columns2: jax.Array


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
    groups = k.shape[2]
    cos, sin = (jnp.broadcast_to(x, (batch, time, size))[:, :, None] for x in (cos, sin))
    turned = {"q": (q * cos + _turn(q) * sin) * scale, "k": k * cos + _turn(k) * sin}
    sign = jnp.where(jnp.arange(size) < size // 2, 1.0, -1.0)
    parts = {
        "q_rot": turned["q"], "q_cos": q * cos * scale, "q_sin": q * sin * sign * scale,
        "k_rot": turned["k"], "k_cos": k * cos, "k_sin": k * sin * sign,
    }  # fmt: skip
    if q_gain is not None and k_gain is not None:
        parts |= {"q_gain": q_gain, "k_gain": k_gain}
    heads_of = {n: _per_head(x, heads).reshape(batch * heads, time, size) for n, x in parts.items()}
    counted = jnp.repeat(rows.astype(jnp.float32), heads, axis=0)

    def one_head(xs: tuple[dict[str, jax.Array], jax.Array]) -> tuple[jax.Array, jax.Array]:
        return _one_head(xs[0], xs[1], window, softcap)

    of_q, of_k = jax.lax.map(one_head, (heads_of, counted))
    of_q = of_q.reshape(batch, heads, size)
    of_k = of_k.reshape(batch, groups, heads // groups, size).sum(axis=2)
    return jnp.sqrt(of_q), jnp.sqrt(of_k)


def _turn(x: jax.Array) -> jax.Array:
    first, second = jnp.split(x, 2, axis=-1)
    return jnp.concatenate([-second, first], axis=-1)


def _per_head(x: jax.Array, heads: int) -> jax.Array:
    """[b, t, h or g, k] -> [b, h, t, k], keys repeated for the query heads that share them."""
    x = jnp.swapaxes(x, 1, 2)
    return jnp.repeat(x, heads // x.shape[1], axis=1)


def _one_head(
    x: dict[str, jax.Array], counted: jax.Array, window: jax.Array, softcap: float | None
) -> tuple[jax.Array, jax.Array]:
    """Squared importances [k] of one head's query and key neurons."""
    time, size = x["q_rot"].shape
    half = size // 2
    queries = x["q_cos"], x["q_sin"], x["k_rot"], jnp.roll(x["k_rot"], half, axis=-1)
    keys = x["q_rot"], jnp.roll(x["q_rot"], half, axis=-1), x["k_cos"], x["k_sin"]
    totals = jnp.zeros((2, size), jnp.float32)
    for begin, end in _strips(time):
        block = max(1, min(end - begin, _TILE // (end * size)))
        pieces = -(-(end - begin) // block)
        starts = begin + block * jnp.arange(pieces)

        def one_block(first: jax.Array, block: int = block, end: int = end) -> jax.Array:
            # The last block may reach back over rows already counted: those get weight 0.
            t = jnp.minimum(first, end - block) + jnp.arange(block)
            weight = jnp.where(t >= first, counted[t], 0.0)
            scores = jnp.einsum("tk,sk->ts", x["q_rot"][t], x["k_rot"][:end], precision=jax.lax.Precision.HIGHEST)
            ago = t[:, None] - jnp.arange(end)[None, :]
            seen = (ago >= 0) & (ago < window)
            capped = scores if softcap is None else softcap * jnp.tanh(scores / softcap)
            probability = jax.nn.softmax(jnp.where(seen, capped, -1e30), axis=-1)
            gains = (x["q_gain"][t][:, None], x["k_gain"][None, :end]) if "q_gain" in x else (None, None)
            sides = zip((queries, keys), gains, strict=True)
            changed = [
                _rows_changed(_cut(whole, t, end), scores, capped, probability, seen, gain, softcap)
                for whole, gain in sides
            ]
            # A plain sum, not a product: matrix units would round the squares.
            return jnp.sum(weight[:, None] * jnp.stack(changed), axis=1)

        totals = totals + jax.lax.map(one_block, starts).sum(axis=0)
    return totals[0], totals[1]


def _strips(time: int) -> list[tuple[int, int]]:
    """Cuts the rows into strips, each to be held against the keys up to its end."""
    step = max(32, -(-time // _EXTENTS))
    return [(begin, min(begin + step, time)) for begin in range(0, time, step)]


def _cut(whole: tuple[jax.Array, ...], t: jax.Array, end: int) -> _Side:
    rows, rows2, columns, columns2 = whole
    return _Side(rows[t][:, None], rows2[t][:, None], columns[None, :end], columns2[None, :end])


def _rows_changed(
    side: _Side,
    scores: jax.Array,
    capped: jax.Array,
    probability: jax.Array,
    seen: jax.Array,
    gain: jax.Array | None,
    softcap: float | None,
) -> jax.Array:
    """Squared norm of each row's change, [t, k]; scores, their soft-capped form and the softmax of that are [t, s]."""
    change = _score_change(side, scores[:, :, None], gain, softcap)
    change = change - _change_at_largest(side, scores, probability, gain, softcap)
    change = jnp.where(seen[:, :, None], change, 0.0)
    return jax.lax.cond(
        jnp.max(change) < _LARGEST,
        lambda: _one_pass(change, probability),
        lambda: _two_pass(change, capped, probability, seen),
    )


def _score_change(side: _Side, scores: jax.Array, gain: jax.Array | None, softcap: float | None) -> jax.Array:
    """S' - S without cancellation, [t, s, k], for scores [t, s, 1]."""
    removed = side.rows * side.columns + side.rows2 * side.columns2
    change = -removed if gain is None else gain * scores - (1.0 + gain) * removed
    if softcap is None:
        return change
    # tanh a - tanh b = tanh(a - b) (1 - tanh a tanh b)
    before = scores / softcap
    return softcap * jnp.tanh(change / softcap) * (1.0 - jnp.tanh(before) * jnp.tanh(before + change / softcap))


def _change_at_largest(
    side: _Side, scores: jax.Array, probability: jax.Array, gain: jax.Array | None, softcap: float | None
) -> jax.Array:
    """S' - S at the key that holds each row's largest weight, [t, 1, k]."""
    key = jnp.argmax(probability, axis=1)
    at_key = side._replace(columns=side.columns[0, key][:, None], columns2=side.columns2[0, key][:, None])
    if gain is not None and gain.shape[0] == 1:
        gain = gain[0, key][:, None]
    return _score_change(at_key, jnp.take_along_axis(scores, key[:, None], axis=1)[:, :, None], gain, softcap)


def _one_pass(change: jax.Array, probability: jax.Array) -> jax.Array:
    p = probability[:, :, None]
    u = jnp.expm1(change)
    pu = p * u
    ppu = p * pu
    z, first, second = pu.sum(axis=1), ppu.sum(axis=1), (ppu * u).sum(axis=1)
    squares = jnp.square(probability).sum(axis=1)[:, None]
    # the sums round each on their own; a norm is never negative
    return jnp.maximum(second - 2 * z * first + z * z * squares, 0.0) / jnp.square(1 + z)


def _two_pass(change: jax.Array, capped: jax.Array, probability: jax.Array, seen: jax.Array) -> jax.Array:
    """Where exp would overflow: rows with such a change are normalised anew and subtracted outright, exact as so much
    changes."""
    after = jax.nn.softmax(jnp.where(seen[:, :, None], capped[:, :, None] + change, -1e30), axis=1)
    outright = jnp.square(after - probability[:, :, None]).sum(axis=1)
    usual = _one_pass(jnp.minimum(change, _LARGEST), probability)
    return jnp.where(change.max(axis=1) < _LARGEST, usual, outright)
