"""Documents to neuron importance (PLND, section 2 of the paper): all five groups from one forward pass.

Imp(N | c) = || T(h; N zeroed) - T(h) ||_2 over document c's real tokens. Feed-forward and value neurons have it in
closed form on the block's output; query and key neurons are measured on the attention weights
(`query_key`).
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np

from mwork_jax.config import ModelConfig
from mwork_jax.corpus import Batching, encoded, list_batches, measured_token_mask
from mwork_jax.detect.activations import Activity, layer_activity, neuron_sums
from mwork_jax.detect.query_key import query_key_importance
from mwork_jax.model.decoder import Decoder, LayerRecord, hidden_states
from mwork_jax.model.model import Model
from mwork_jax.model.tokens import Document
from mwork_jax.neurons import NeuronMask
from mwork_jax.sharding import fetch, on_mesh_of


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
) -> tuple[dict[str, jax.Array], Activity]:
    """One forward pass over int32 [batch, time] tokens: Imp of every neuron for each document, {group: float32 [batch,
    layers, width]}, and what the neurons of all layers did."""

    def observe(record: LayerRecord) -> tuple[dict[str, jax.Array], Activity]:
        of_layer = _layer_importance(decoder.config, token_mask, record)
        return of_layer, layer_activity(decoder.config, record, token_mask, shards)

    keep = NeuronMask.keep_all(decoder.config)
    _, by_layer = hidden_states(decoder, tokens, keep, observe=observe)
    return jax.tree.map(lambda x: jnp.swapaxes(x, 0, 1), by_layer)


@jax.jit
def importance_batch(decoder: Decoder, tokens: jax.Array, token_mask: jax.Array) -> dict[str, jax.Array]:
    """Imp of every neuron for each document of a batch: {group: float32 [batch, layers, width]}."""
    return importance_and_activity(decoder, tokens, token_mask)[0]


def _layer_importance(config: ModelConfig, token_mask: jax.Array, record: LayerRecord) -> dict[str, jax.Array]:
    """One layer's importances, {group: float32 [batch, width]}."""
    batch = token_mask.shape[0]
    of_q, of_k = query_key_importance(config, token_mask, record)
    ffn = _ffn_importance(config, token_mask, record)
    flat = {"attn_q": of_q, "attn_k": of_k, "attn_v": _value_importance(config, token_mask, record)}
    return {g: s.reshape(batch, -1) for g, s in flat.items()} | {"ffn_up": ffn, "ffn_down": ffn}


def _ffn_importance(config: ModelConfig, token_mask: jax.Array, record: LayerRecord) -> jax.Array:
    """Imp[k] = ||h[:, k]|| ||W_down[:, k]||: zeroing one neuron removes a rank-one term, whose norm separates. [b, f].
    Of an expert, h is 0 for the tokens that do not go there and else times the expert's share. The router reads what
    enters the block, so that it is the same with the neuron and without."""
    axis = 0 if record.experts is None else 1
    weights = jnp.square(record.weights["down"].astype(jnp.float32)).sum(axis=axis).reshape(-1)
    squares = jnp.square(record.product)
    if record.shares is not None:
        squares = squares * jnp.square(record.shares)[..., None]
    return jnp.sqrt(neuron_sums(config, record, squares, token_mask) * weights)


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
