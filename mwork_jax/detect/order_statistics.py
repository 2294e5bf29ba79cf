"""Order statistics of a stream of documents, kept on the device, so that memory does not grow with their number.

Of every neuron the smallest importances and the worst ranks over the documents are kept, sorted, the sum of its
importances, and what it did. Any threshold is answered from them afterwards.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import jax
import jax.numpy as jnp
from jax.sharding import Mesh

from mwork_jax.config import ModelConfig
from mwork_jax.detect.activations import Activity
from mwork_jax.neurons import GROUPS, group_widths
from mwork_jax.sharding import constrain, parts_of

MEASURED_GROUPS = GROUPS[:-1]  # ffn_up and ffn_down share their importance: what is kept of one is kept of both


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class OrderStatistics:
    """The order statistics so far, on the device. Every leaf has a leading axis over shards of the documents: each
    group of devices keeps those of its own, so that nothing is exchanged until the end."""

    lowest: dict[str, jax.Array]  # [shards, kept, layers, width]
    worst_rank: dict[str, jax.Array]  # [shards, kept, layers, width]
    total: dict[str, jax.Array]  # [shards, layers, width]
    activity: Activity

    @classmethod
    def empty(cls, config: ModelConfig, kept: int, shards: int = 1) -> OrderStatistics:
        shapes = {g: (config.num_layers, group_widths(config)[g]) for g in MEASURED_GROUPS}
        return cls(
            {g: jnp.full((shards, kept, *s), jnp.inf, jnp.float32) for g, s in shapes.items()},
            {g: jnp.full((shards, kept, *s), -1, jnp.int32) for g, s in shapes.items()},
            {g: jnp.zeros((shards, *s), jnp.float32) for g, s in shapes.items()},
            Activity.empty(config, shards),
        )

    @classmethod
    def placed(cls, config: ModelConfig, kept: int, mesh: Mesh | None) -> OrderStatistics:
        """`empty`, each shard on its own devices from the beginning."""
        if mesh is None:
            return cls.empty(config, kept)
        with jax.set_mesh(mesh):
            return jax.jit(lambda: cls.empty(config, kept, parts_of(mesh, "shards")).constrained())()

    def constrained(self) -> OrderStatistics:
        """Laid out on the mesh by `order_statistics_axes`."""
        return jax.tree.map(lambda x: constrain(x, *order_statistics_axes(x.ndim)), self)


def order_statistics_axes(ndim: int) -> tuple[str, ...]:
    """The logical axes of a leaf of `OrderStatistics` with so many dimensions."""
    return ("shards", *("kept",) * (ndim - 3), "score_layers", "width")


def with_batch(
    state: OrderStatistics,
    importance: Mapping[str, jax.Array],
    activity: Activity,
    is_document: jax.Array,
) -> OrderStatistics:
    """The statistics with one more batch.

    importance: {group: float32 [batch, layers, width]}, the batch a multiple of the shards, those of a shard side by
    side; activity: of this batch alone; is_document: bool [batch], False for the rows that only fill the batch up: they
    change nothing.
    """
    shards = state.activity.active.shape[0]
    counts = is_document.reshape(shards, -1)[:, :, None, None]
    lowest, worst, total = {}, {}, {}
    for group in MEASURED_GROUPS:
        score = constrain(importance[group], "batch", "score_layers", "width")
        ranks = jnp.argsort(jnp.argsort(-score, axis=-1), axis=-1).astype(jnp.int32)
        score, ranks = (x.reshape(shards, -1, *x.shape[1:]) for x in (score, ranks))
        lowest[group] = _insert(state.lowest[group], jnp.where(counts, score, jnp.inf), jnp.minimum, jnp.maximum)
        worst[group] = _insert(state.worst_rank[group], jnp.where(counts, ranks, -1), jnp.maximum, jnp.minimum)
        total[group] = state.total[group] + jnp.sum(jnp.where(counts, score, 0.0), axis=1)
    return OrderStatistics(lowest, worst, total, state.activity.plus(activity)).constrained()


@jax.jit
def merged(state: OrderStatistics) -> OrderStatistics:
    """The order statistics of all shards together, without the leading axis. Layer by layer, so that no device holds
    all shards of more than one."""

    def extreme(x: jax.Array, sign: int) -> jax.Array:
        shards, kept, _, width = x.shape
        if shards == 1:
            return x[0]
        layers = jnp.moveaxis(x, 2, 0).reshape(-1, shards * kept, width)
        return jnp.moveaxis(jax.lax.map(lambda one: sign * jnp.sort(sign * one, axis=0)[:kept], layers), 0, 1)

    lowest = {g: extreme(x, 1) for g, x in state.lowest.items()}
    worst = {g: extreme(x, -1) for g, x in state.worst_rank.items()}
    total = {g: x.sum(axis=0) for g, x in state.total.items()}
    return OrderStatistics(lowest, worst, total, state.activity.merged())


def _insert(sorted_: jax.Array, new: jax.Array, keep: Callable, push: Callable) -> jax.Array:
    """Inserts each of new [shards, b, ...] into the shard's sorted list [shards, kept, ...]; what no longer fits falls
    out at its end."""

    def insert(entries: jax.Array, value: jax.Array) -> tuple[jax.Array, None]:
        placed = []
        for entry in jnp.moveaxis(entries, 1, 0):
            placed.append(keep(entry, value))
            value = push(entry, value)
        return jnp.stack(placed, axis=1), None

    return jax.lax.scan(insert, sorted_, jnp.moveaxis(new, 1, 0))[0]
