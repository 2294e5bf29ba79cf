"""Keys and values of earlier tokens, and the forward pass of the tokens that follow them."""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp

from mwork_jax.intervention import Edit
from mwork_jax.model.attention import attend, heads_first, position_tables
from mwork_jax.model.bfloat16_bits import from_bits, to_bits
from mwork_jax.model.decoder import Decoder, decoder_layer, inputs_of_layer, stacked_inputs


class KeyValueCache(NamedTuple):
    """Rotated keys and values of the times so far, in the weights' dtype; both [layers, b, g, s, k], as attention reads
    them. bfloat16 is kept as its bits, uint16 (see `bfloat16_bits`)."""

    k: jax.Array
    v: jax.Array

    @classmethod
    def empty(cls, decoder: Decoder, batch: int, time: int) -> KeyValueCache:
        """Room for `time` tokens of each of `batch` rows."""
        c = decoder.config
        shape = (c.num_layers, batch, c.num_kv_heads, time, c.head_dim)
        dtype = jnp.uint16 if decoder.dtype == jnp.bfloat16 else decoder.dtype
        return cls(jnp.zeros(shape, dtype), jnp.zeros(shape, dtype))

    @property
    def time(self) -> int:
        """How many times there is room for."""
        return self.k.shape[3]

    def write(self, layer: jax.Array, now: int | jax.Array, k: jax.Array, v: jax.Array) -> KeyValueCache:
        """With k and v [b, g, t, k] of one layer at times now, now + 1 ..."""
        at = tuple(jnp.asarray(place, jnp.int32) for place in (layer, 0, 0, now, 0))

        def written(old: jax.Array, new: jax.Array) -> jax.Array:
            new = to_bits(new.astype(jnp.bfloat16)) if old.dtype == jnp.uint16 else new.astype(old.dtype)
            return jax.lax.dynamic_update_slice(old, new[None], at)

        return KeyValueCache(written(self.k, k), written(self.v, v))

    def read(self, layer: jax.Array) -> tuple[jax.Array, jax.Array]:
        """k and v [b, g, s, k] of one layer."""
        k, v = (jax.lax.dynamic_index_in_dim(whole, layer, keepdims=False) for whole in self)
        return (k, v) if k.dtype != jnp.uint16 else (from_bits(k), from_bits(v))


def extend(
    decoder: Decoder,
    cache: KeyValueCache,
    x: jax.Array,
    mask: Edit,
    *,
    positions: jax.Array,
    now: int | jax.Array,
    generated: jax.Array | None = None,
    first: int | jax.Array = 0,
    last: int | jax.Array | None = None,
) -> tuple[jax.Array, KeyValueCache]:
    """Takes the tokens at times now, now + 1 ... through the layers first <= layer < last (None: to the end); they also
    see the earlier times that the cache holds.

    x: float32 [batch, time, hidden], the residual stream that enters layer `first`, `embedded` tokens for layer 0.
    positions: int32 [batch or 1, times of the cache], each token's position in its row, -1 where no token is to be
    seen. generated: bool [batch or 1, time], as in `hidden_states`. Returns (the residual stream that leaves layer
    `last` - 1, the cache with these layers and times written).
    `first` and `last` may be traced, so one program serves any part of the model; a `now` that is a Python number
    spares attention the times after it. The cache must have room: where it has none, the last times are overwritten.
    Not for training: a bfloat16 cache passes no gradient on.
    """
    config = decoder.config
    layer_inputs = stacked_inputs(decoder, mask)
    own = jax.lax.dynamic_slice_in_dim(positions, now, x.shape[1], axis=1)
    tables = position_tables(config, own)

    def step(layer: jax.Array, carry: tuple[jax.Array, KeyValueCache]) -> tuple[jax.Array, KeyValueCache]:
        # The cache is carried and not scanned over: a carry is updated in place, a scanned output is a copy.
        x, cache = carry
        inputs = inputs_of_layer(decoder, layer_inputs, layer)._replace(generated=generated)

        def attention(q: jax.Array, k: jax.Array, v: jax.Array) -> tuple[jax.Array, KeyValueCache]:
            written = cache.write(layer, now, heads_first(k), heads_first(v))
            keys, values = written.read(layer)
            at, sinks = (inputs.window, own, positions), inputs.weights.get("sinks")
            return attend(config, q, keys, values, *at, decoder.dtype, now, sinks=sinks), written

        x, cache, _ = decoder_layer(config, x, inputs, tables, attention)
        return x, cache

    return jax.lax.fori_loop(first, config.num_layers if last is None else last, step, (x, cache))
