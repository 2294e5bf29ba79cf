"""Rows of a table, read on CPUs as bits where the table is bfloat16.

XLA's compiler for CPUs has no gather or slice of bfloat16: it would widen the whole table to float32 at every call, as
large as an embedding or the weights of all layers are. The same bits as uint16 are read without that.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp


@jax.custom_jvp
def rows_of(table: jax.Array, index: jax.Array) -> jax.Array:
    """table[index]: [n, ...], int32 [...] -> [..., ...]."""
    return _read(_plain_rows_of, table, index)


@rows_of.defjvp
def _rows_of_jvp(primals: tuple[jax.Array, jax.Array], tangents: tuple[jax.Array, Any]) -> tuple[jax.Array, jax.Array]:
    # Bits have no derivative; the rows of a table have the same rows of its tangent.
    return rows_of(*primals), _plain_rows_of(tangents[0], primals[1])


def _plain_rows_of(table: jax.Array, index: jax.Array) -> jax.Array:
    return jax.lax.dynamic_index_in_dim(table, index, keepdims=False) if index.ndim == 0 else table[index]


def block_of_rows(tables: jax.Array, begin: jax.Array, size: int) -> jax.Array:
    """tables[:, begin : begin + size]: [s, n, ...] -> [s, size, ...]. Not for what has a gradient."""
    return _read(partial(jax.lax.dynamic_slice_in_dim, slice_size=size, axis=1), tables, begin)


def _read(pick: Callable[[jax.Array, jax.Array], jax.Array], table: jax.Array, at: jax.Array) -> jax.Array:
    """pick(table, at); on CPUs, of a bfloat16 table, by way of its bits."""
    if table.dtype != jnp.bfloat16:
        return pick(table, at)

    def as_bits(table: jax.Array, at: jax.Array) -> jax.Array:
        # Within a loop over `at`, the barrier keeps the compiler from copying the whole table's bits in front of it.
        table, at = jax.lax.optimization_barrier((table, at))
        return from_bits(pick(to_bits(table), at))

    return jax.lax.platform_dependent(table, at, cpu=as_bits, default=pick)


def to_bits(x: jax.Array) -> jax.Array:
    """bfloat16 -> uint16, the same bits."""
    return jax.lax.bitcast_convert_type(x, jnp.uint16)


def from_bits(x: jax.Array) -> jax.Array:
    """uint16 -> bfloat16, the same bits."""
    return jax.lax.bitcast_convert_type(x, jnp.bfloat16)
