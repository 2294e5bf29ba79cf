"""Causal language-modelling loss over a wide vocabulary, without logits of [batch, time, vocab].

The gradient of cross entropy is attention over the vocabulary: the mean of the head's rows, weighted by the softmax of
the logits, minus the target's row. So loss and gradient come out of one sweep over blocks of the vocabulary with a
running maximum, as attention does without its scores (Milakov and Gimelshein 2018, Rabe and Staats 2021): the head,
which may be more than half of a small model, is read once for all positions.
"""

from __future__ import annotations

from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from mwork_jax.config import ModelConfig
from mwork_jax.model.bfloat16_bits import block_of_rows, rows_of
from mwork_jax.model.operations import product, soft_cap
from mwork_jax.sharding import constrain, num_shards

_LOGITS = 1 << 24  # that exist at once: 64 MiB
_NARROW, _WIDE = 1024, 4096  # products with narrower or wider blocks are slower on CPUs


def vocab_block(positions: int) -> int:
    """Entries of the vocabulary whose logits exist at once, for so many positions of all runs on a device."""
    fitting = max(1, _LOGITS // positions)
    return min(max(_NARROW, 1 << (fitting.bit_length() - 1)), _WIDE)


@partial(jax.custom_vjp, nondiff_argnums=(0, 1))
def summed_nats(
    config: ModelConfig, block: int, x: jax.Array, table: jax.Array, targets: jax.Array, counts: jax.Array
) -> jax.Array:
    """Nats of the targets, summed over the positions that count.

    x: float32 [n, hidden] after the final norm; table: [vocab, hidden], the LM head; targets int32 [n]; counts float32
    [n], 1 where a position's target counts. Logits exist for `block` entries of the vocabulary at a time. The gradient
    of x is computed in the same sweep, so that the backward pass need not compute the logits again; the head itself is
    frozen and gets none.
    """
    return _loss(config, block, x, table, targets, counts, gradient=False)[0]


def _forward(config: ModelConfig, block: int, x: jax.Array, table: jax.Array, *rest: jax.Array) -> tuple[Any, Any]:
    return _loss(config, block, x, table, *rest, gradient=True)


def _backward(config: ModelConfig, block: int, gradient: jax.Array, above: jax.Array) -> tuple[Any, ...]:
    return (above * gradient, None, None, None)


summed_nats.defvjp(_forward, _backward)


class _Sums(NamedTuple):
    """Over the entries of the vocabulary so far, of each device's share s of them and each position n."""

    top: jax.Array  # float32 [s, n], the largest logit
    total: jax.Array  # float32 [s, n], of exp(logit - top)
    rows: jax.Array | None  # float32 [s, n, hidden], of exp(logit - top) * row; None without the gradient


def _loss(
    config: ModelConfig,
    block: int,
    x: jax.Array,
    table: jax.Array,
    targets: jax.Array,
    counts: jax.Array,
    *,
    gradient: bool,
) -> tuple[jax.Array, jax.Array | None]:
    """The loss and, with `gradient`, its gradient with respect to x."""
    cap = config.final_softcap
    row = rows_of(table, targets)
    right = soft_cap(product("nm,nm->n", x, row), cap)
    top, total, rows = _over_vocabulary(cap, block, x, table, gradient)
    nats = jnp.sum((top + jnp.log(total) - right) * counts)
    if rows is None:
        return nats, None
    mean = rows / total[:, None]
    return nats, (mean - row.astype(jnp.float32) * _slope(right, cap)[:, None]) * counts[:, None]


def _slope(capped: jax.Array, cap: float | None) -> jax.Array:
    """The derivative of `soft_cap`, from its value."""
    return jnp.ones_like(capped) if cap is None else 1 - jnp.square(capped / cap)


def _over_vocabulary(
    cap: float | None, block: int, x: jax.Array, table: jax.Array, gradient: bool
) -> tuple[jax.Array, jax.Array, jax.Array | None]:
    """`_Sums` over the whole vocabulary, without their axis s. Each device goes through its own entries, and what it
    found is put together once, at the end."""
    shards = num_shards("vocab", table.shape[0])
    table = constrain(table.reshape(shards, -1, table.shape[-1]), "vocab", None, None)
    own, n = table.shape[1], x.shape[0]
    block = min(block, own)

    def laid_out(a: jax.Array) -> jax.Array:
        return constrain(a, "vocab", "batch", *(None,) * (a.ndim - 2))

    def add(sums: _Sums, entries: jax.Array) -> _Sums:
        logits = laid_out(soft_cap(product("nm,svm->snv", x, entries), cap))
        top = jnp.maximum(sums.top, logits.max(axis=-1))
        before, weights = jnp.exp(sums.top - top), jnp.exp(logits - top[..., None])
        total = sums.total * before + weights.sum(axis=-1)
        if sums.rows is None:
            return _Sums(top, total, None)
        more = product("snv,svm->snm", weights * _slope(logits, cap), entries)
        return _Sums(top, total, laid_out(sums.rows * before[..., None] + more))

    empty = jnp.zeros((shards, n), jnp.float32)
    sums = _Sums(empty - jnp.inf, empty, jnp.zeros((shards, *x.shape), jnp.float32) if gradient else None)
    sums = jax.tree.map(laid_out, sums)
    sums = jax.lax.fori_loop(0, own // block, lambda i, s: add(s, block_of_rows(table, i * block, block)), sums)
    if own % block:
        sums = add(sums, table[:, own - own % block :])
    top = sums.top.max(axis=0)
    share = jnp.exp(sums.top - top)
    rows = None if sums.rows is None else jnp.sum(sums.rows * share[..., None], axis=0)
    return top, jnp.sum(sums.total * share, axis=0), rows
