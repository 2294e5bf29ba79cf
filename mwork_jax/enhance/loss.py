"""Causal language-modelling loss over a wide vocabulary, without logits of [batch, time, vocab]."""

from __future__ import annotations

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp

from mwork_jax.config import ModelConfig
from mwork_jax.model import product, soft_cap
from mwork_jax.sharding import constrain, shares


@partial(jax.custom_vjp, nondiff_argnums=(0, 1))
def summed_nats(
    config: ModelConfig, rows: int, x: jax.Array, table: jax.Array, targets: jax.Array, counts: jax.Array
) -> jax.Array:
    """Nats of the targets, summed over the positions that count.

    x: float32 [n, hidden] after the final norm, n a multiple of `rows`; table: [vocab, hidden], the LM head; targets
    int32 [n]; counts float32 [n], 1 where a position's target counts. Logits exist for `rows` positions at a time. The
    gradient of x is made in the same sweep, so that the backward pass need not make the logits again; the head itself
    is frozen and gets none.
    """
    return _sweep(config, rows, x, table, targets, counts, gradient=False)[0]


def _forward(config: ModelConfig, rows: int, x: jax.Array, table: jax.Array, *rest: jax.Array) -> tuple[Any, Any]:
    return _sweep(config, rows, x, table, *rest, gradient=True)


def _backward(config: ModelConfig, rows: int, gradient: jax.Array, above: jax.Array) -> tuple[Any, ...]:
    return (above * gradient, None, None, None)


summed_nats.defvjp(_forward, _backward)


def _sweep(
    config: ModelConfig,
    rows: int,
    x: jax.Array,
    table: jax.Array,
    targets: jax.Array,
    counts: jax.Array,
    *,
    gradient: bool,
) -> tuple[jax.Array, jax.Array | None]:
    """The loss, and its gradient with respect to x where it is asked for."""

    def chunk(total: jax.Array, part: tuple[jax.Array, ...]) -> tuple[jax.Array, jax.Array | None]:
        x, targets, counts = part
        logits = soft_cap(product("znm,vm->znv", x, table), config.final_softcap)
        norm = jax.nn.logsumexp(logits, axis=-1)
        right = jnp.take_along_axis(logits, targets[..., None], axis=-1)[..., 0]
        total = total + jnp.sum((norm - right) * counts)
        if not gradient:
            return total, None
        chosen = jnp.arange(logits.shape[-1]) == targets[..., None]
        slope = (jnp.exp(logits - norm[..., None]) - chosen) * counts[..., None]
        if config.final_softcap is not None:
            slope = slope * (1 - jnp.square(logits / config.final_softcap))
        return total, product("znv,vm->znm", slope, table)

    # Every group of devices goes through its own positions: a chunk has `rows` of each.
    shards = shares("batch", x.shape[0] // rows)

    def split(a: jax.Array) -> jax.Array:
        own = constrain(a.reshape(shards, -1, *a.shape[1:]), "shards", *(None,) * a.ndim)
        return jnp.swapaxes(own.reshape(shards, -1, rows, *a.shape[1:]), 0, 1)

    parts = jax.tree.map(split, (x, targets, counts))
    total, slopes = jax.lax.scan(chunk, jnp.zeros((), jnp.float32), parts)
    return total, jnp.swapaxes(slopes, 0, 1).reshape(x.shape) if slopes is not None else None
