"""The arithmetic that every part of the decoder shares: matrix products, norms, soft caps."""

from __future__ import annotations

import jax
import jax.numpy as jnp

from mwork_jax.config import ModelConfig


def product(letters: str, a: jax.Array, b: jax.Array) -> jax.Array:
    """An einsum in the dtype of `b` (the weights) with a float32 result: bfloat16 in, float32 accumulated and out."""
    precision = jax.lax.Precision.HIGHEST if b.dtype == jnp.float32 else jax.lax.Precision.DEFAULT
    return jnp.einsum(letters, a.astype(b.dtype), b, precision=precision, preferred_element_type=jnp.float32)


def rms_norm(x: jax.Array, weight: jax.Array, config: ModelConfig) -> jax.Array:
    """Root-mean-square norm over the last axis, float32; Gemma's weight is an offset from 1."""
    scale = jax.lax.rsqrt(jnp.mean(jnp.square(x), axis=-1, keepdims=True) + config.norm_eps)
    return x * scale * (weight + config.norm_offset)


def normed(x: jax.Array, weight: jax.Array, bias: jax.Array | None, config: ModelConfig) -> jax.Array:
    """The model's norm over the last axis, float32: `rms_norm`, or the same of x less its mean. bias: added."""
    if config.norm == "layer":
        x = x - jnp.mean(x, axis=-1, keepdims=True)
    x = rms_norm(x, weight, config)
    return x if bias is None else x + bias


def soft_cap(x: jax.Array, cap: float | None) -> jax.Array:
    """cap * tanh(x / cap): keeps Gemma 2's scores within +-cap; the identity where there is no cap."""
    return x if cap is None else cap * jnp.tanh(x / cap)
