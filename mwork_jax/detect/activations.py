"""How often and how strongly feed-forward neurons act: what LAPE (Tang et al., ACL 2024) counts, and means."""

from __future__ import annotations

import jax
import jax.numpy as jnp

from mwork_jax.model.decoder import LayerRecord


def layer_activity(record: LayerRecord, token_mask: jax.Array, shards: int) -> tuple[jax.Array, jax.Array]:
    """Of one layer's feed-forward neurons, over the tokens that count in each shard of the documents: how often
    act(gate) > 0, int32 [shards, f], and the sum of act(gate) * up (of act(up) without gate), float32 [shards, f].

    token_mask: float32 [batch, time], 1 for the tokens that count; the batch is a multiple of the shards, and the
    documents of a shard are side by side.
    """

    def by_shard(x: jax.Array) -> jax.Array:
        return x.reshape(shards, -1, *x.shape[1:])

    positive = (record.activated > 0) & (token_mask[:, :, None] > 0)
    active = by_shard(positive).sum(axis=(1, 2), dtype=jnp.int32)
    precision = jax.lax.Precision.HIGHEST
    activation = jnp.einsum("zbt,zbtf->zf", by_shard(token_mask), by_shard(record.product), precision=precision)
    return active, activation
