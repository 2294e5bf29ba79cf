"""How zeroing one neuron changes the scores, as outer products: what every implementation starts from.

Zeroing query neuron j removes D[t, s] = q_j[t] (R_t^T R_s k_s)_j scale from the scores. RoPE couples j only with its
partner j', so D is two outer products, a[t] b[s] + a2[t] b2[s]; for keys the same with the roles exchanged. A q/k-norm
rescales what is left by 1 + gain: the change is then -(1 + gain) D + gain S, S being the scores.
"""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp


class Changes(NamedTuple):
    """The changes of the scores of n heads by their neurons, the k query neurons first, then the k key neurons.

    With c = 2 k neurons, change[t, s, c] = rows[t, c] columns[s, c] + rows2[t, c] columns2[s, c], and, where there is
    a q/k-norm, + (row_gain[t, c] + column_gain[s, c]) scores[t, s].
    """

    queries: jax.Array  # [n, t, k], rotated and scaled: scores = queries @ keys
    keys: jax.Array  # [n, s, k]
    rows: jax.Array  # [n, t, c]
    rows2: jax.Array  # [n, t, c]
    columns: jax.Array  # [n, s, c]
    columns2: jax.Array  # [n, s, c]
    row_gain: jax.Array | None  # [n, t, c], 0 for the key neurons
    column_gain: jax.Array | None  # [n, s, c], 0 for the query neurons


def score_changes(
    q: jax.Array,
    k: jax.Array,
    cos: jax.Array,
    sin: jax.Array,
    *,
    scale: float,
    q_gain: jax.Array | None,
    k_gain: jax.Array | None,
) -> Changes:
    """See `api.qk_importance` for the arguments; n = b h, a batch's heads one after the other."""
    batch, time, heads, size = q.shape
    cos, sin = (jnp.broadcast_to(x, (batch, time, size))[:, :, None] for x in (cos, sin))
    sign = jnp.where(jnp.arange(size) < size // 2, -1.0, 1.0)
    queries, keys = (q * cos + _turn(q) * sin) * scale, k * cos + _turn(k) * sin
    q_kept, k_kept = (1.0 if g is None else 1.0 + g for g in (q_gain, k_gain))

    def both(of_queries: jax.Array, of_keys: jax.Array) -> jax.Array:
        return jnp.concatenate([_per_head(of_queries, heads), _per_head(of_keys, heads)], axis=-1)

    gains = (None, None)
    if q_gain is not None and k_gain is not None:
        gains = both(q_gain, jnp.zeros_like(k)), both(jnp.zeros_like(q), k_gain)
    return Changes(
        queries=_per_head(queries, heads),
        keys=_per_head(keys, heads),
        rows=both(-q * q_kept * cos * scale, queries),
        rows2=both(q * q_kept * sin * sign * scale, _partner(queries)),
        columns=both(keys, -k * k_kept * cos),
        columns2=both(_partner(keys), k * k_kept * sin * sign),
        row_gain=gains[0],
        column_gain=gains[1],
    )


def _turn(x: jax.Array) -> jax.Array:
    first, second = jnp.split(x, 2, axis=-1)
    return jnp.concatenate([-second, first], axis=-1)


def _partner(x: jax.Array) -> jax.Array:
    return jnp.roll(x, x.shape[-1] // 2, axis=-1)


def _per_head(x: jax.Array, heads: int) -> jax.Array:
    """[b, t, h or g, k] -> [b h, t, k], keys repeated for the query heads that share them."""
    x = jnp.swapaxes(x, 1, 2)
    x = jnp.repeat(x, heads // x.shape[1], axis=1)
    return x.reshape(-1, *x.shape[2:])


def norms_of(squares: jax.Array, batch: int, groups: int) -> tuple[jax.Array, jax.Array]:
    """Squared norms [b h, c] of each head's neurons -> (norms of query neurons [b, h, k], of key neurons [b, g, k])."""
    of_q, of_k = jnp.split(squares.reshape(batch, -1, squares.shape[-1]), 2, axis=-1)
    return jnp.sqrt(of_q), jnp.sqrt(of_k.reshape(batch, groups, -1, of_k.shape[-1]).sum(axis=2))
