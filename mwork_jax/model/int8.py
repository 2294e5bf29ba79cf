"""Matrices of the layers as 8-bit whole numbers: half the bytes of bfloat16, so that a larger model fits and a step
that waits for its weights reads half of them.

Each output channel of a matrix has one factor: weight = factor * whole number, from -127 to 127. A layer's matrices are
multiplied out where the layer is computed, so everything that reads a layer's weights (masks, detection, interventions)
is about the model that is computed with. Embeddings, head, norms, biases and routers stay as they are.
"""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp

# The matrices, and how many of their last axes are what they read.
INPUT_AXES = {"q": 1, "k": 1, "v": 1, "o": 2, "gate": 1, "up": 1, "down": 1}
FACTOR = "_factor"  # behind the name of a matrix


def quantised(matrix: jax.Array, inputs: int) -> tuple[jax.Array, jax.Array]:
    """(int8 [..., in], float32 [..., 1]): the nearest whole numbers and the factor of each output channel. inputs: how
    many of the last axes are what the matrix reads."""
    axes = tuple(range(-inputs, 0))
    exact = matrix.astype(jnp.float32)
    factor = jnp.max(jnp.abs(exact), axis=axes, keepdims=True) / 127.0
    whole = jnp.round(exact / jnp.where(factor > 0, factor, 1.0))
    return whole.astype(jnp.int8), factor


def multiplied_out(weights: dict[str, jax.Array], dtype: Any) -> dict[str, jax.Array]:
    """The parameters of a layer, or of all, with every matrix as it is computed with, in `dtype`; as they are where no
    matrix is quantised."""
    factors = {name.removesuffix(FACTOR): array for name, array in weights.items() if name.endswith(FACTOR)}
    if not factors:
        return weights
    plain = {name: array for name, array in weights.items() if not name.endswith(FACTOR)}
    return plain | {name: (plain[name].astype(jnp.float32) * own).astype(dtype) for name, own in factors.items()}
