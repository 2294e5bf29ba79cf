"""How often and how strongly neurons act on a language's text: what LAPE (Tang et al., ACL 2024) counts, the values
that interventions put in their place, and the mean residual stream that steering vectors are made of."""

from __future__ import annotations

from dataclasses import dataclass

import jax
import jax.numpy as jnp

from mwork_jax.config import ModelConfig
from mwork_jax.model.decoder import LayerRecord
from mwork_jax.model.experts import sum_by_neuron
from mwork_jax.neurons import ATTENTION_GROUPS, group_widths

RESIDUAL = "residual"  # the name, among the means, of the residual stream that leaves a layer
MEASURED_SITES = (*ATTENTION_GROUPS, "gate", "neuron", RESIDUAL)  # as in `mwork_jax.intervention.Sites`


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Activity:
    """What neurons did at the tokens that count, of one layer [shards, width] or of all [shards, layers, width], each
    shard's documents apart. An expert's neurons act at the tokens that go to it alone."""

    active: jax.Array  # int32 [..., f], how often act(gate) > 0
    sums: dict[str, jax.Array]  # {site: float32 [..., width]}, of what each of MEASURED_SITES computed
    largest: jax.Array  # float32 [..., f], the largest act(gate) * up
    sent: jax.Array  # int32 [..., experts], how many tokens went to each; [..., 0] without experts

    @classmethod
    def empty(cls, config: ModelConfig, shards: int) -> Activity:
        """Of all layers, before the first token."""
        shape, widths = (shards, config.num_layers), group_widths(config)
        ffn = widths["ffn_up"]
        sizes = [widths[group] for group in ATTENTION_GROUPS] + [ffn, ffn, config.hidden_size]
        return cls(
            jnp.zeros((*shape, ffn), jnp.int32),
            {s: jnp.zeros((*shape, w), jnp.float32) for s, w in zip(MEASURED_SITES, sizes, strict=True)},
            jnp.full((*shape, ffn), -jnp.inf, jnp.float32),
            jnp.zeros((*shape, config.num_experts), jnp.int32),
        )

    def plus(self, other: Activity) -> Activity:
        """Of the tokens of both."""
        return Activity(
            self.active + other.active,
            {site: total + other.sums[site] for site, total in self.sums.items()},
            jnp.maximum(self.largest, other.largest),
            self.sent + other.sent,
        )

    def merged(self) -> Activity:
        """Of all shards together, without the leading axis."""
        return Activity(
            self.active.sum(axis=0),
            {site: total.sum(axis=0) for site, total in self.sums.items()},
            self.largest.max(axis=0),
            self.sent.sum(axis=0),
        )


def layer_activity(config: ModelConfig, record: LayerRecord, token_mask: jax.Array, shards: int) -> Activity:
    """What one layer's neurons did over the tokens that count in each shard of the documents.

    token_mask: float32 [batch, time], 1 for the tokens that count; the batch is a multiple of the shards, and the
    documents of a shard are side by side.
    """

    def by_shard(of_documents: jax.Array) -> jax.Array:
        split = of_documents.reshape(shards, of_documents.shape[0] // shards, of_documents.shape[-1])
        return split.sum(axis=1, dtype=of_documents.dtype)

    def of_tokens(x: jax.Array) -> jax.Array:
        return by_shard(_token_sums(x.reshape(*token_mask.shape, -1), token_mask))

    def of_neurons(x: jax.Array) -> jax.Array:
        return by_shard(neuron_sums(config, record, x, token_mask))

    attention = dict(zip(ATTENTION_GROUPS, (record.q_raw, record.k_raw, record.v), strict=True))
    sums = {site: of_tokens(x) for site, x in attention.items()}
    sums |= {"gate": of_neurons(record.activated), "neuron": of_neurons(record.product)}
    sums[RESIDUAL] = of_tokens(record.hidden)
    largest = _largest(config, record, token_mask).reshape(shards, -1, config.ffn_width).max(axis=1)
    positive = (record.activated > 0).astype(jnp.int32)
    return Activity(of_neurons(positive), sums, largest, by_shard(_sent(config, record, token_mask)))


def neuron_sums(config: ModelConfig, record: LayerRecord, x: jax.Array, token_mask: jax.Array) -> jax.Array:
    """Sums over the tokens of each document that count, of what has one value per feed-forward neuron (x like
    `record.product`): [b, f], f the neurons of all experts where there are any."""
    if record.experts is not None:
        return sum_by_neuron(x, record.experts, token_mask, config.num_experts)
    return _token_sums(x, token_mask)


def _token_sums(x: jax.Array, token_mask: jax.Array) -> jax.Array:
    """x [b, t, w], summed over the tokens of each document that count: [b, w]."""
    if jnp.issubdtype(x.dtype, jnp.integer):
        return jnp.sum(jnp.where(token_mask[:, :, None] > 0, x, 0), axis=1, dtype=x.dtype)
    return jnp.einsum("bt,btf->bf", token_mask, x, precision=jax.lax.Precision.HIGHEST)


def _largest(config: ModelConfig, record: LayerRecord, token_mask: jax.Array) -> jax.Array:
    """The largest product of each neuron in each document: [b, f], minus infinity where it never acted."""
    if record.experts is None:
        return jnp.where(token_mask[:, :, None] > 0, record.product, -jnp.inf).max(axis=1)
    batch, width = record.product.shape[0], record.product.shape[-1]
    values = jnp.where(token_mask[:, :, None, None] > 0, record.product, -jnp.inf).reshape(-1, width)
    segments = record.experts + config.num_experts * jnp.arange(batch)[:, None, None]
    largest = jax.ops.segment_max(values, segments.reshape(-1), num_segments=batch * config.num_experts)
    return largest.reshape(batch, -1)


def _sent(config: ModelConfig, record: LayerRecord, token_mask: jax.Array) -> jax.Array:
    """How many of each document's tokens went to each expert: int32 [b, experts]."""
    if record.experts is None:
        return jnp.zeros((token_mask.shape[0], 0), jnp.int32)
    chosen = jax.nn.one_hot(record.experts, config.num_experts, dtype=jnp.int32).sum(axis=2)
    return _token_sums(chosen, token_mask)
