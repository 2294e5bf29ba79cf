"""The definition: zero one neuron, compute the attention weights again, take the norm of the change. NumPy, float64."""

from __future__ import annotations

import numpy as np

Array = np.ndarray


def qk_importance_reference(
    q: Array,
    k: Array,
    cos: Array,
    sin: Array,
    token_mask: Array,
    window: int,
    *,
    scale: float,
    softcap: float | None = None,
    q_gain: Array | None = None,
    k_gain: Array | None = None,
) -> tuple[Array, Array]:
    """See `api.qk_importance` for shapes and meaning."""
    q, k, cos, sin, token_mask = (np.asarray(x, np.float64) for x in (q, k, cos, sin, token_mask))
    batch, time, heads, size = q.shape
    shared = heads // k.shape[2]
    ago = np.arange(time)[:, None] - np.arange(time)[None, :]
    seen = (ago >= 0) & (ago < window)
    of_q, of_k = np.zeros((batch, heads, size)), np.zeros((batch, k.shape[2], size))
    for b in range(batch):
        c, s = cos[b % len(cos)], sin[b % len(sin)]
        for h in range(heads):
            g = h // shared
            whole = _weights(q[b, :, h], k[b, :, g], c, s, seen, scale, softcap)
            for j in range(size):
                query = _without(q[b, :, h], j, None if q_gain is None else q_gain[b, :, h, j])
                change = _weights(query, k[b, :, g], c, s, seen, scale, softcap) - whole
                of_q[b, h, j] += np.sum(token_mask[b, :, None] * change**2)
                key = _without(k[b, :, g], j, None if k_gain is None else k_gain[b, :, g, j])
                change = _weights(q[b, :, h], key, c, s, seen, scale, softcap) - whole
                of_k[b, g, j] += np.sum(token_mask[b, :, None] * change**2)
    return np.sqrt(of_q), np.sqrt(of_k)


def _without(x: Array, j: int, gain: Array | None) -> Array:
    """x [t, k] with column j zero, and the rest rescaled where a q/k-norm would rescale it."""
    x = x.copy()
    x[:, j] = 0.0
    return x if gain is None else x * (1.0 + np.asarray(gain, np.float64))[:, None]


def _weights(q: Array, k: Array, cos: Array, sin: Array, seen: Array, scale: float, softcap: float | None) -> Array:
    """Attention weights [t, s] of one head."""

    def rotate(x: Array) -> Array:
        first, second = np.split(x, 2, axis=-1)
        return x * cos + np.concatenate([-second, first], axis=-1) * sin

    scores = rotate(q) @ rotate(k).T * scale
    if softcap is not None:
        scores = softcap * np.tanh(scores / softcap)
    scores = np.where(seen, scores, -np.inf)
    exponentials = np.exp(scores - scores.max(axis=-1, keepdims=True))
    return exponentials / exponentials.sum(axis=-1, keepdims=True)
