"""Drawing the next token at random: temperature, then top-p, as `transformers` has them, from a random key.

What is drawn for a prompt depends on the key, on the prompt's place in the list and on how many tokens it has got: not
on what it shares a batch with. Under every mask the same numbers are drawn, so that what differs between two masks is
what they do.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from mwork_jax.errors import InputError
from mwork_jax.sharding import known_values

Array = Any  # jax.Array; made on the host, by NumPy, and traced in a program
_TILE = 128  # entries of the vocabulary that are searched together for the likeliest one
_ONE_MORE_THAN_ONE = 0x3F800001  # the bits of the first float32 above 1


class Sampling(NamedTuple):
    """How tokens are drawn, traced: key uint32 [2]; prompts int32 [rows], which prompt each row is; temperature and
    top_p float32 []."""

    key: Array
    prompts: Array
    temperature: Array
    top_p: Array


def sampling_of(temperature: Any, top_p: Any, key: Any) -> Sampling | None:
    """Sampling of one row, the first prompt; None for a temperature of 0, the likeliest tokens. Raises InputError for
    rates out of range, and for no key or what is none."""
    temperature = _rate("temperature", temperature, "0 or more", lambda value: 0 <= value < math.inf)
    top_p = _rate("top_p", top_p, "above 0, up to 1", lambda value: 0 < value <= 1)
    if temperature == 0:
        return None
    if key is None:
        raise InputError(f"temperature is {temperature:g}, but there is no key to draw with; give jax.random.key(seed)")
    return Sampling(_key_data(key), np.zeros(1, np.int32), np.float32(temperature), np.float32(top_p))


def _rate(name: str, value: Any, needed: str, is_right: Callable[[float], bool]) -> float:
    known = known_values(value)
    if known is None or known.shape or known.dtype.kind not in "fiu" or not is_right(float(known)):
        raise InputError(f"{name} is {value!r:.40}; one number is needed, {needed}")
    return float(known)


def _key_data(key: Any) -> np.ndarray:
    """uint32 [2] of a key of any kind, new or old, and of any generator."""
    try:
        return np.asarray(jax.random.bits(key, (2,), jnp.uint32))
    except (TypeError, ValueError):
        shape = f" {list(key.shape)}" if hasattr(key, "shape") else ""
        raise InputError(
            f"key is {type(key).__name__}{shape}; one random key is needed, jax.random.key(seed)"
        ) from None


def drawn(logits: jax.Array, sampling: Sampling, step: jax.Array, likeliest: jax.Array) -> jax.Array:
    """A token for each row: logits float32 [rows, vocabulary] -> int32 [rows]. step: int32 [] or [rows], the new
    token's number; likeliest: int32 [rows], what a temperature of 0 gives."""
    is_random = sampling.temperature > 0
    scaled = (logits - logits.max(axis=-1, keepdims=True)) / jnp.where(is_random, sampling.temperature, jnp.float32(1))
    kept = jnp.where(nucleus(jax.nn.softmax(scaled, axis=-1), sampling.top_p), scaled, -jnp.inf)

    key = jax.random.wrap_key_data(sampling.key, impl="threefry2x32")

    def draw(prompt: jax.Array, step: jax.Array, row: jax.Array) -> jax.Array:
        own = jax.random.fold_in(jax.random.fold_in(key, prompt), step)
        return jax.random.categorical(own, row).astype(jnp.int32)

    return jnp.where(
        is_random, jax.vmap(draw)(sampling.prompts, jnp.broadcast_to(step, sampling.prompts.shape), kept), likeliest
    )


def likeliest(logits: jax.Array) -> jax.Array:
    """The first token of the highest logit: float32 [batch, vocabulary] -> int32 [batch].

    XLA for CPUs computes a maximum with vector instructions, but an argmax one number after the other: 10 ms for 16
    rows of Gemma's vocabulary, whose product takes 36. There, first the tile and then the token within it, 0.7 ms.
    Elsewhere tiles would only be in the way of a vocabulary that is shared out over devices.
    """
    token = jax.lax.platform_dependent(logits, cpu=_likeliest_by_tiles, default=partial(jnp.argmax, axis=-1))
    return token.astype(jnp.int32)


def _likeliest_by_tiles(logits: jax.Array) -> jax.Array:
    batch, vocabulary = logits.shape
    padded = jnp.pad(logits, ((0, 0), (0, -vocabulary % _TILE)), constant_values=-jnp.inf)
    tiles = padded.reshape(batch, -1, _TILE)
    tile = jnp.argmax(tiles.max(axis=-1), axis=-1)
    within = jnp.argmax(tiles[jnp.arange(batch), tile], axis=-1)
    return tile * _TILE + within


def nucleus(probabilities: jax.Array, top_p: jax.Array) -> jax.Array:
    """The fewest likeliest tokens that make up `top_p`: float32 [rows, vocabulary] -> bool. Tokens as likely as the
    last of them are in too.

    Nothing is sorted, which takes longer than the whole forward pass of a small model where the vocabulary is large:
    floats from 0 to 1 are in the order of their bits, so 30 halvings find the least probability that is kept.
    """
    bits = jax.lax.bitcast_convert_type(probabilities, jnp.int32)

    def halve(_: int, bounds: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, jax.Array]:
        low, high = bounds  # what is at or above `low` makes up top_p, what is at or above `high` does not
        middle = low + (high - low) // jnp.int32(2)
        mass = jnp.where(bits >= middle[:, None], probabilities, jnp.float32(0)).sum(axis=-1)
        return jnp.where(mass >= top_p, middle, low), jnp.where(mass >= top_p, high, middle)

    rows = probabilities.shape[0]
    most = jnp.full(rows, _ONE_MORE_THAN_ONE, jnp.int32)
    low, _ = jax.lax.fori_loop(0, 30, halve, (jnp.zeros(rows, jnp.int32), most))
    return (bits >= low[:, None]) | (top_p >= 1)
