"""How often and how strongly feed-forward neurons act: what LAPE (Tang et al., ACL 2024) counts, and means."""

from __future__ import annotations

import jax
import jax.numpy as jnp

from mwork_jax.config import ModelConfig
from mwork_jax.model.decoder import LayerRecord
from mwork_jax.model.experts import sum_by_neuron


def layer_activity(
    config: ModelConfig, record: LayerRecord, token_mask: jax.Array, shards: int
) -> tuple[jax.Array, jax.Array]:
    """Of one layer's feed-forward neurons, over the tokens that count in each shard of the documents: how often
    act(gate) > 0, int32 [shards, f], and the sum of act(gate) * up (of act(up) without gate), float32 [shards, f]. An
    expert's neurons act for the tokens that go there alone.

    token_mask: float32 [batch, time], 1 for the tokens that count; the batch is a multiple of the shards, and the
    documents of a shard are side by side.
    """
    positive = (record.activated > 0).astype(jnp.int32)

    def by_shard(x: jax.Array) -> jax.Array:
        of_documents = neuron_sums(config, record, x, token_mask)
        return of_documents.reshape(shards, -1, of_documents.shape[-1]).sum(axis=1, dtype=x.dtype)

    return by_shard(positive), by_shard(record.product)


def neuron_sums(config: ModelConfig, record: LayerRecord, x: jax.Array, token_mask: jax.Array) -> jax.Array:
    """Sums over the tokens of each document that count, of what has one value per feed-forward neuron (x like
    `record.product`): [b, f], f the neurons of all experts where there are any."""
    if record.experts is not None:
        return sum_by_neuron(x, record.experts, token_mask, config.num_experts)
    if jnp.issubdtype(x.dtype, jnp.integer):
        return jnp.sum(jnp.where(token_mask[:, :, None] > 0, x, 0), axis=1, dtype=x.dtype)
    return jnp.einsum("bt,btf->bf", token_mask, x, precision=jax.lax.Precision.HIGHEST)
