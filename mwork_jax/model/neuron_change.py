"""Changes to a few rows or columns of a weight matrix, as small products beside the unchanged one: what tuning adds."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from mwork_jax.model.operations import product
from mwork_jax.sharding import constrain


class NeuronChange(NamedTuple):
    """What is added to some rows or some columns of a weight matrix [out, in]; the matrix itself stays as it is.

    An index just past the matrix is padding: every layer has as many.
    """

    indices: jax.Array  # int32 [w]
    values: jax.Array  # float32 [w, in] for rows, [w, out] for columns


# What is added to the weights: {parameter name without `layers.`: NeuronChange stacked along layers}; rows of q, k, v,
# gate and up, columns of down.
Changes = Mapping[str, NeuronChange]


def add_rows(out: jax.Array, x: jax.Array, change: NeuronChange | None, dtype: Any) -> jax.Array:
    """`out` [b, t, f], a product of x [b, t, m] with a matrix, as if `change` had been added to the matrix's rows."""
    if change is None:
        return out
    return out.at[:, :, change.indices].add(changed_rows(x, change, dtype), mode="drop")


def changed_rows(x: jax.Array, change: NeuronChange, dtype: Any) -> jax.Array:
    """What changed rows of a matrix add: x [b, t, m] -> [b, t, w]."""
    return constrain(product("btm,wm->btw", x, change.values.astype(dtype)), "batch", "time", "tuned")


def add_columns(out: jax.Array, x: jax.Array, change: NeuronChange | None, dtype: Any) -> jax.Array:
    """`out` [b, t, m], a product of x [b, t, f] with a matrix, as if `change` had been added to the matrix's
    columns."""
    if change is None:
        return out
    changed = constrain(jnp.take(x, change.indices, axis=2, mode="fill", fill_value=0), "batch", "time", "tuned")
    return out + product("btw,wm->btm", changed, change.values.astype(dtype))


def add_expert_rows(out: jax.Array, experts: jax.Array, indices: jax.Array, added: jax.Array) -> jax.Array:
    """`add_rows` where `out` [b, t, e, f] is of each token's experts [b, t, e]; indices [w] count through all experts,
    added [b, t, w] is what `changed_rows` gave."""
    own = indices // out.shape[-1] == experts[..., None]  # [b, t, e, w]
    return out.at[..., indices % out.shape[-1]].add(jnp.where(own, added[:, :, None], 0.0))


def changed_columns(x: jax.Array, experts: jax.Array, shares: jax.Array, indices: jax.Array) -> jax.Array:
    """What changed columns of `down` are multiplied with: x [b, t, e, f] of each token's experts, times their shares,
    at the indices, which count through all experts -> [b, t, w]."""
    own = indices // x.shape[-1] == experts[..., None]
    return (jnp.where(own, x[..., indices % x.shape[-1]], 0.0) * shares[..., None]).sum(axis=2)
