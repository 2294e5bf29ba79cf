"""Causal attention with grouped keys and values, sliding windows and soft caps; rotary position embeddings (RoPE).

Letters in shape comments: b batch, t query time, s key time, h query head, g key/value head, k head size.
"""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from mwork_jax.config import ModelConfig, Rope
from mwork_jax.model.operations import product, soft_cap

_QUERY_BLOCK = 64  # attention works through at least so many queries at a time,
_QUERY_BLOCKS = 8  # in at most so many blocks: each is compiled on its own


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
) -> jax.Array:
    """Causal attention over rotated q [b, t, h, k] at times now + t, k and v [b, g, s, k] at times s -> [b, t, h, k],
    float32. queries_at [b or 1, t] and keys_at [b or 1, s] are their positions, as in `visible`; documents [b, t], for
    t and s that are the same times, are numbers that a query and a key must share.

    Works through blocks of queries, each, where `now` is a Python number, against the keys up to its end: half the
    work of the square, and bounded memory. Heads come first within a block, so that every product is a plain batched
    matrix product.
    """
    batch, time, _, size = q.shape
    groups, shared = config.num_kv_heads, config.queries_per_group
    q = q.astype(dtype).reshape(batch, time, groups, shared, size).transpose(0, 2, 3, 1, 4)
    k, v = k.astype(dtype), v.astype(dtype)
    step = max(_QUERY_BLOCK, -(-time // _QUERY_BLOCKS))
    blocks = []
    for begin in range(0, time, step):
        end = min(begin + step, time)
        keys = now + end if isinstance(now, int) else k.shape[2]
        queries = q[:, :, :, begin:end].reshape(batch, groups, -1, size)
        scores = product("bgqk,bgsk->bgqs", queries, k[:, :, :keys]) * config.attn_scale
        scores = soft_cap(scores, config.attn_softcap).reshape(batch, groups, shared, end - begin, keys)
        seen = visible(queries_at[:, begin:end], keys_at[:, :keys], window)
        if documents is not None:
            seen &= documents[:, begin:end, None] == documents[:, None, :keys]
        seen = seen[:, None, None]
        weights = jax.nn.softmax(jnp.where(seen, scores, -1e30), axis=-1)
        weights = weights.astype(dtype).reshape(batch, groups, -1, keys)
        out = product("bgqs,bgsk->bgqk", weights, v[:, :, :keys])
        blocks.append(out.reshape(batch, groups, shared, end - begin, size))
    heads = blocks[0] if len(blocks) == 1 else jnp.concatenate(blocks, axis=3)
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
    """RoPE in the half-split layout of HF: x [b, t, heads, k], cos and sin [b or 1, t, k]."""
    first, second = jnp.split(x, 2, axis=-1)
    turned = jnp.concatenate([-second, first], axis=-1)
    return x * cos[:, :, None] + turned * sin[:, :, None]


def rope_tables(ropes: tuple[Rope, ...], head_dim: int, positions: jax.Array) -> tuple[jax.Array, jax.Array]:
    """cos and sin, float32 [ropes, b, t, k], for integer positions [b, t]."""
    cos, sin = [], []
    for rope in ropes:
        angles = positions[..., None].astype(jnp.float32) * jnp.asarray(rope_frequencies(rope, head_dim))
        angles = jnp.concatenate([angles, angles], axis=-1)
        cos.append(jnp.cos(angles) * rope.attention_factor)
        sin.append(jnp.sin(angles) * rope.attention_factor)
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
