"""Importance of query and key neurons: by how much a layer's attention weights change without one.

A norm on queries and keys ties their entries together, so that a neuron switched off moves others: in its own head
(Qwen 3, Gemma 3: by one factor, which the kernel takes; Command R+: its norm subtracts the mean too) or, where the norm
is over the whole width (OLMo 2), in every head. What the kernel has no form for is computed neuron by neuron from the
attention weights themselves.
"""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from mwork_jax.config import ModelConfig
from mwork_jax.model.attention import alibi_slopes, heads_first, in_halves, order_in_halves, rotate
from mwork_jax.model.decoder import LayerRecord
from mwork_jax.model.operations import normed
from mwork_jax.sharding import num_shards, per_device
from mwork_kernels.qk_importance import qk_importance  # pyright: ignore[reportMissingImports]

_NEAR = 40.0  # e^_NEAR is a float32, and its square
_UNSEEN = -1e30


def query_key_importance(
    config: ModelConfig, token_mask: jax.Array, record: LayerRecord
) -> tuple[jax.Array, jax.Array]:
    """Of every query [b, h, k] and key neuron [b, g, k] of one layer, float32. token_mask: float32 [b, t], 1 for the
    queries that count. Positions are the times, as in a batch of documents."""
    if config.qk_norm == "own" or config.sinks:
        return _neuron_by_neuron(config, token_mask, record)
    gains = None
    if config.qk_norm is not None:
        gains = _norm_gain(record.q_raw, config), _norm_gain(record.k_raw, config)
    of_q, of_k = _by_kernel(config, token_mask, record, gains)
    if config.qk_norm != "width":
        return of_q, of_k
    assert gains is not None
    others_of_q, others_of_k = _in_other_heads(config, token_mask, record, gains)
    return jnp.sqrt(jnp.square(of_q) + others_of_q), jnp.sqrt(jnp.square(of_k) + others_of_k)


def _by_kernel(
    config: ModelConfig, token_mask: jax.Array, record: LayerRecord, gains: tuple[jax.Array, jax.Array] | None
) -> tuple[jax.Array, jax.Array]:
    """The change within a neuron's own head; each device works on its own documents and heads."""
    groups, size = config.num_kv_heads, config.head_dim
    q, k, cos, sin = in_halves(config, record.q), in_halves(config, record.k), record.cos, record.sin
    q_gain, k_gain = (None, None) if gains is None else (in_halves(config, gain) for gain in gains)
    if num_shards("heads", config.num_heads) != num_shards("kv_heads", groups):
        # More devices than key heads: every query head gets keys of its own, whose squares are summed afterwards.
        k = jnp.repeat(k, config.queries_per_group, axis=2)
        k_gain = None if k_gain is None else jnp.repeat(k_gain, config.queries_per_group, axis=2)
    if config.alibi:
        q, k, cos, sin = _with_alibi(config, q, k, cos, sin)

    def on_one_device(q: jax.Array, k: jax.Array, *rest: Any) -> tuple[jax.Array, jax.Array]:
        *others, q_gain, k_gain = rest
        options = {"scale": config.attn_scale, "softcap": config.attn_softcap, "q_gain": q_gain, "k_gain": k_gain}
        return qk_importance(q, k, *others, **options)

    of_heads, table = ("batch", "time", "heads", "head_dim"), ("batch", "time", "head_dim")
    of_q, of_k = per_device(
        on_one_device,
        (q, k, cos, sin, token_mask, record.window, q_gain, k_gain),
        (of_heads, of_heads, table, table, ("batch", "time"), (), of_heads, of_heads),
        (("batch", "heads", "head_dim"), ("batch", "heads", "head_dim")),
        tuple((x.shape[0], *x.shape[2:]) for x in (q, k)),
    )
    of_q, of_k = _as_in_checkpoint(config, of_q[..., :size]), _as_in_checkpoint(config, of_k[..., :size])
    if of_k.shape[1] != groups:
        of_k = jnp.sqrt(jnp.square(of_k).reshape(of_k.shape[0], groups, -1, size).sum(axis=2))
    return of_q, of_k


def _as_in_checkpoint(config: ModelConfig, x: jax.Array) -> jax.Array:
    """What has one entry per neuron of a head [..., k], from the order of `in_halves` back to the checkpoint's."""
    order = order_in_halves(config)
    return x if order is None else x[..., np.argsort(order)]


def _with_alibi(
    config: ModelConfig, q: jax.Array, k: jax.Array, cos: jax.Array, sin: jax.Array
) -> tuple[jax.Array, jax.Array, jax.Array, jax.Array]:
    """Queries and keys with two more entries, whose product is what ALiBi adds to the scores up to a number for each
    query, which softmax does not see: slope * key's time / scale. RoPE leaves them as they are."""
    time = k.shape[1]
    slopes = alibi_slopes(config.num_heads) / config.attn_scale
    k = k if k.shape[2] == config.num_heads else jnp.repeat(k, config.queries_per_group, axis=2)
    added_k = jnp.arange(time, dtype=jnp.float32)[:, None, None] * slopes[:, None]  # [s, h, 1]
    added_k = jnp.broadcast_to(jnp.pad(added_k, ((0, 0), (0, 0), (0, 1)))[None], (*k.shape[:3], 2))
    added_q = jnp.broadcast_to(jnp.asarray([1.0, 0.0]), (*q.shape[:3], 2))
    ones, zeros = jnp.ones((*cos.shape[:2], 2)), jnp.zeros((*sin.shape[:2], 2))
    longer = [jnp.concatenate(pair, axis=-1) for pair in ((q, added_q), (k, added_k), (cos, ones), (sin, zeros))]
    return longer[0], longer[1], longer[2], longer[3]


def _norm_gain(raw: jax.Array, config: ModelConfig) -> jax.Array:
    """By how much a q/k-norm rescales the other entries of queries or keys [b, t, heads, k] when one becomes zero: r' /
    r - 1, of its head, or of all heads where the norm is over the width."""
    axes, squares = (-2, -1) if config.qk_norm == "width" else (-1,), jnp.square(raw)
    number = np.prod([raw.shape[axis] for axis in axes])
    share = squares / number / (squares.mean(axis=axes, keepdims=True) + config.norm_eps)
    return jnp.expm1(-0.5 * jnp.log1p(-jnp.minimum(share, 1 - 1e-6)))


def _in_other_heads(
    config: ModelConfig, token_mask: jax.Array, record: LayerRecord, gains: tuple[jax.Array, jax.Array]
) -> tuple[jax.Array, jax.Array]:
    """Squared change of the weights in all heads but a neuron's own, which a norm over the width rescales: of every
    query neuron [b, h, k] and every key neuron [b, g, k]."""
    scores, log_weights, _ = _attention_weights(config, record)  # [b, h, t, s]
    batch, heads, groups = token_mask.shape[0], config.num_heads, config.num_kv_heads
    centred = scores - jnp.sum(jnp.exp(log_weights) * scores, axis=-1, keepdims=True)

    def squares(change: jax.Array) -> jax.Array:
        return _squared_change(log_weights, change, token_mask)  # [b, h]

    def of_query(neuron: tuple[jax.Array, jax.Array]) -> jax.Array:
        gain, own = neuron  # [b, t]
        return jnp.sum(squares(gain[:, None, :, None] * centred) * (jnp.arange(heads) != own), axis=-1)

    def of_key(neuron: tuple[jax.Array, jax.Array]) -> jax.Array:
        gain, own = neuron  # [b, s]
        others = jnp.arange(heads) // config.queries_per_group != own
        return jnp.sum(squares(gain[:, None, None, :] * scores) * others, axis=-1)

    results = []
    for of_one, gain, own_heads in ((of_query, gains[0], heads), (of_key, gains[1], groups)):
        each = jnp.moveaxis(gain, 1, 3).reshape(batch, -1, gain.shape[1]).swapaxes(0, 1)  # [neurons, b, t]
        own = jnp.repeat(jnp.arange(own_heads), config.head_dim)
        results.append(jax.lax.map(of_one, (each, own)).T.reshape(batch, own_heads, config.head_dim))
    return results[0], results[1]


def _neuron_by_neuron(config: ModelConfig, token_mask: jax.Array, record: LayerRecord) -> tuple[jax.Array, jax.Array]:
    """The definition: for every entry of a head, all heads at a time, the norm and the scores without it. As many times
    the scores' work as a head has entries."""
    _, log_weights, sunk = _attention_weights(config, record)
    w, groups = record.weights, config.num_kv_heads
    turned = [_turned(config, record, x) for x in (record.q, record.k)]

    def lost(raw: jax.Array, whole: jax.Array, name: str, entry: jax.Array) -> jax.Array:
        """By how much queries or keys change, rotated."""
        if config.qk_norm is None:
            return _turned(config, record, jnp.where(jnp.arange(config.head_dim) == entry, -whole, 0.0))
        kept = jnp.where(jnp.arange(config.head_dim) == entry, 0.0, raw)
        return _turned(config, record, normed(kept, w[name], None, config) - whole)

    def of_entry(entry: jax.Array) -> tuple[jax.Array, jax.Array]:
        q = lost(record.q_raw, record.q, "q_norm", entry)
        k = lost(record.k_raw, record.k, "k_norm", entry)
        of_q = _squared_change(log_weights, _products(config, q, turned[1]), token_mask, sunk)
        of_k = _squared_change(log_weights, _products(config, turned[0], k), token_mask, sunk)
        return of_q, of_k.reshape(-1, groups, config.queries_per_group).sum(axis=-1)

    of_q, of_k = jax.lax.map(of_entry, jnp.arange(config.head_dim))  # [k, b, h], [k, b, g]
    return jnp.sqrt(jnp.moveaxis(of_q, 0, -1)), jnp.sqrt(jnp.moveaxis(of_k, 0, -1))


def _turned(config: ModelConfig, record: LayerRecord, x: jax.Array) -> jax.Array:
    return rotate(in_halves(config, x), record.cos, record.sin)


def _products(config: ModelConfig, q: jax.Array, k: jax.Array) -> jax.Array:
    """Scaled products of queries [b, t, h, k] and keys [b, s, g, k]: [b, h, t, s]."""
    k = jnp.repeat(heads_first(k), config.queries_per_group, axis=1)
    scores = jnp.einsum("bhtk,bhsk->bhts", heads_first(q), k, precision=jax.lax.Precision.HIGHEST)
    return scores * config.attn_scale


def _attention_weights(config: ModelConfig, record: LayerRecord) -> tuple[jax.Array, jax.Array, jax.Array | None]:
    """The scores and the logarithm of the attention weights, _UNSEEN where a query does not see a key: [b, h, t, s];
    what a sink takes [b, h, t, 1], where heads have one."""
    assert config.attn_softcap is None, "no family has both a soft cap and a norm that is not its heads' own"
    assert not config.alibi, "no family has both ALiBi and a norm on queries and keys"
    scores = _products(config, _turned(config, record, record.q), _turned(config, record, record.k))
    ago = jnp.arange(scores.shape[2])[:, None] - jnp.arange(scores.shape[3])
    seen = (ago >= 0) & (ago < record.window)
    total = jax.nn.logsumexp(jnp.where(seen, scores, _UNSEEN), axis=-1, keepdims=True)
    sunk = None
    if config.sinks:
        sinks = record.weights["sinks"][:, None, None]
        total = jnp.logaddexp(total, sinks)
        sunk = jnp.exp(sinks - total)
    return scores, jnp.where(seen, scores - total, _UNSEEN), sunk


def _squared_change(
    log_weights: jax.Array, change: jax.Array, token_mask: jax.Array, sunk: jax.Array | None = None
) -> jax.Array:
    """Squared norm of the weights' change [b, h] when scores change by `change` [b, h, t, s], over the queries that
    count. sunk [b, h, t, 1]: what a sink takes, whose own score does not change. P
    (u - z) / (1 + z) with u = expm1(change) and z = sum P u keeps the digits of small changes."""
    weights = jnp.exp(log_weights)
    top = jnp.max(log_weights + change, axis=-1, keepdims=True)
    shift = jnp.where(jnp.abs(top) > _NEAR, top, 0.0)
    change = change - shift
    far = jnp.exp(log_weights + change) - weights
    moved = jnp.where(jnp.abs(change) < 0.25, weights * jnp.expm1(change), far)
    total = jnp.sum(moved, axis=-1, keepdims=True)
    if sunk is not None:
        total = total + sunk * jnp.expm1(-shift)
    new = (moved - weights * total) / (1.0 + total)
    return jnp.einsum("bhts,bt->bh", jnp.square(new), token_mask)
