"""Documents to neuron importance (PLND, section 2 of the paper): all five groups from one forward pass.

Imp(N | c) = || T(h; N zeroed) - T(h) ||_2 over document c's real tokens. Feed-forward and value neurons have it in
closed form on the block's output; query and key neurons are measured on the attention weights
(`mwork_kernels.qk_importance`).
"""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from mwork_jax.config import ModelConfig
from mwork_jax.corpus import Batching, encoded, list_batches, measured_token_mask
from mwork_jax.detect.activations import layer_activity
from mwork_jax.model.decoder import Decoder, LayerRecord, hidden_states
from mwork_jax.model.model import Model
from mwork_jax.model.tokens import Document
from mwork_jax.neurons import NeuronMask
from mwork_jax.sharding import fetch, num_shards, on_mesh_of, per_device
from mwork_kernels.qk_importance import qk_importance  # pyright: ignore[reportMissingImports]


def importance(model: Model, document: Document, *, include_bos: bool = False) -> dict[str, np.ndarray]:
    """Imp(N | document) of every neuron: {group: float32 [layers, width]}. The document is str or int32 [time]; what is
    beyond the model's context is left out."""
    (ready,) = encoded(model, [document], max_tokens=model.config.max_length, where="importance")
    (batch,) = list_batches([ready], Batching(max_tokens=model.config.max_length))
    token_mask = measured_token_mask(model, batch.tokens, batch.lengths, include_bos)
    with on_mesh_of(model.decoder):
        scores = fetch(importance_batch(model.decoder, batch.tokens, token_mask))
    return {g: s[0] for g, s in scores.items()}


def importance_and_activity(
    decoder: Decoder, tokens: jax.Array, token_mask: jax.Array, shards: int = 1
) -> tuple[dict[str, jax.Array], jax.Array, jax.Array]:
    """One forward pass over int32 [batch, time] tokens: Imp of every neuron for each document, {group: float32 [batch,
    layers, width]}, and per layer what `layer_activity` counts, [shards, layers, f] each."""

    def observe(record: LayerRecord) -> tuple[dict[str, jax.Array], jax.Array, jax.Array]:
        return _layer_importance(decoder.config, token_mask, record), *layer_activity(record, token_mask, shards)

    keep = NeuronMask.keep_all(decoder.config)
    _, (scores, active, activation) = hidden_states(decoder, tokens, keep, observe=observe)
    by_document = {group: jnp.swapaxes(score, 0, 1) for group, score in scores.items()}
    return by_document, jnp.swapaxes(active, 0, 1), jnp.swapaxes(activation, 0, 1)


@jax.jit
def importance_batch(decoder: Decoder, tokens: jax.Array, token_mask: jax.Array) -> dict[str, jax.Array]:
    """Imp of every neuron for each document of a batch: {group: float32 [batch, layers, width]}."""
    return importance_and_activity(decoder, tokens, token_mask)[0]


def _layer_importance(config: ModelConfig, token_mask: jax.Array, record: LayerRecord) -> dict[str, jax.Array]:
    """One layer's importances, {group: float32 [batch, width]}."""
    batch = token_mask.shape[0]
    gains = (None, None)
    if config.qk_norm:
        gains = (_norm_gain(record.q_raw, config), _norm_gain(record.k_raw, config))
    of_q, of_k = _query_key_importance(config, token_mask, record, gains)
    ffn = _ffn_importance(token_mask, record)
    flat = {"attn_q": of_q, "attn_k": of_k, "attn_v": _value_importance(config, token_mask, record)}
    return {g: s.reshape(batch, -1) for g, s in flat.items()} | {"ffn_up": ffn, "ffn_down": ffn}


def _query_key_importance(
    config: ModelConfig, token_mask: jax.Array, record: LayerRecord, gains: tuple[jax.Array | None, jax.Array | None]
) -> tuple[jax.Array, jax.Array]:
    """Of every query [b, h, k] and key neuron [b, g, k]; each device works on its own documents and heads."""
    k, (q_gain, k_gain), groups = record.k, gains, config.num_kv_heads
    if num_shards("heads", config.num_heads) != num_shards("kv_heads", groups):
        # More devices than key heads: every query head gets keys of its own, whose squares are summed afterwards.
        k = jnp.repeat(k, config.queries_per_group, axis=2)
        k_gain = None if k_gain is None else jnp.repeat(k_gain, config.queries_per_group, axis=2)

    def on_one_device(q: jax.Array, k: jax.Array, *rest: Any) -> tuple[jax.Array, jax.Array]:
        *others, q_gain, k_gain = rest
        options = {"scale": config.attn_scale, "softcap": config.attn_softcap, "q_gain": q_gain, "k_gain": k_gain}
        return qk_importance(q, k, *others, **options)

    of_heads, table = ("batch", "time", "heads", "head_dim"), ("batch", "time", "head_dim")
    of_q, of_k = per_device(
        on_one_device,
        (record.q, k, record.cos, record.sin, token_mask, record.window, q_gain, k_gain),
        (of_heads, of_heads, table, table, ("batch", "time"), (), of_heads, of_heads),
        (("batch", "heads", "head_dim"), ("batch", "heads", "head_dim")),
        tuple((x.shape[0], *x.shape[2:]) for x in (record.q, k)),
    )
    if of_k.shape[1] != groups:
        of_k = jnp.sqrt(jnp.square(of_k).reshape(of_k.shape[0], groups, -1, of_k.shape[2]).sum(axis=2))
    return of_q, of_k


def _ffn_importance(token_mask: jax.Array, record: LayerRecord) -> jax.Array:
    """Imp[k] = ||h[:, k]|| ||W_down[:, k]||: zeroing one neuron removes a rank-one term, whose norm separates. [b,
    f]."""
    weights = jnp.square(record.weights["down"].astype(jnp.float32)).sum(axis=0)
    return jnp.sqrt(jnp.sum(token_mask[:, :, None] * jnp.square(record.product), axis=1) * weights)


def _value_importance(config: ModelConfig, token_mask: jax.Array, record: LayerRecord) -> jax.Array:
    """Zeroing v[:, (g, j)] removes sum_r a_r w_r^T over the query heads r of group g; two Gram matrices give its norm.
    [b, g, k]."""
    groups, shared, size = config.num_kv_heads, config.queries_per_group, config.head_dim
    heads = record.heads.reshape(*record.heads.shape[:2], groups, shared, size)
    out = record.weights["o"].astype(jnp.float32).reshape(-1, groups, shared, size)
    precision = jax.lax.Precision.HIGHEST
    of_heads = jnp.einsum("bt,btgrk,btgqk->bgkrq", token_mask, heads, heads, precision=precision)
    of_out = jnp.einsum("mgrk,mgqk->gkrq", out, out, precision=precision)
    return jnp.sqrt(jnp.maximum(jnp.sum(of_heads * of_out, axis=(-2, -1)), 0.0))


def _norm_gain(raw: jax.Array, config: ModelConfig) -> jax.Array:
    """By how much a q/k-norm rescales a head's vector [b, t, heads, k] when one of its entries becomes zero: r' / r -
    1."""
    squares = jnp.square(raw)
    share = squares / raw.shape[-1] / (squares.mean(axis=-1, keepdims=True) + config.norm_eps)
    return jnp.expm1(-0.5 * jnp.log1p(-jnp.minimum(share, 1 - 1e-6)))
