"""The decoder of the Llama, Mistral, Qwen and Gemma families, in one file.

Parameters live in a Flax nnx module (`Decoder`), every layer's stacked along a leading axis; computing is done by pure
functions that scan over that axis. A neuron mask is an array like any other, so any number of masks runs in one
compiled program.

Letters in the einsums and shape comments: b batch, t query time, s key time, m hidden size, h query head, g key/value
head, r query head within a group, k head size, f feed-forward size, v vocabulary. Weights keep the orientation of the
checkpoint, [out, in], so a neuron is a row of q, k, v, gate, up and a column of down, as in the paper.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from mwork_jax.config import FULL_ATTENTION, ModelConfig, Rope
from mwork_jax.neurons import NeuronMask
from mwork_jax.sharding import constrain, num_shards

_QUERY_BLOCK = 64  # attention works through at least so many queries at a time,
_QUERY_BLOCKS = 8  # in at most so many blocks: each is compiled on its own


class ParameterSpec(NamedTuple):
    """One declaration per parameter: its shape, the logical name of each axis, and whether it stays float32."""

    shape: tuple[int, ...]
    axes: tuple[str, ...]
    keep_float32: bool = False


def parameter_specs(config: ModelConfig) -> dict[str, ParameterSpec]:
    """Every parameter of a decoder. Names with `layers.` have a leading layer axis."""
    c = config
    heads, keys = (c.num_heads, c.head_dim), (c.num_kv_heads, c.head_dim)
    specs = {
        "embed": ParameterSpec((c.vocab_size, c.hidden_size), ("vocab", "hidden")),
        "final_norm": ParameterSpec((c.hidden_size,), ("hidden",), True),
    }
    if not c.tie_embeddings:
        specs["head"] = ParameterSpec((c.vocab_size, c.hidden_size), ("vocab", "hidden"))
    layer = {
        "attn_norm": ParameterSpec((c.hidden_size,), ("hidden",), True),
        "q": ParameterSpec((*heads, c.hidden_size), ("heads", "head_dim", "hidden")),
        "k": ParameterSpec((*keys, c.hidden_size), ("kv_heads", "head_dim", "hidden")),
        "v": ParameterSpec((*keys, c.hidden_size), ("kv_heads", "head_dim", "hidden")),
        "o": ParameterSpec((c.hidden_size, *heads), ("hidden", "heads", "head_dim")),
        "ffn_norm": ParameterSpec((c.hidden_size,), ("hidden",), True),
        "gate": ParameterSpec((c.intermediate_size, c.hidden_size), ("ffn", "hidden")),
        "up": ParameterSpec((c.intermediate_size, c.hidden_size), ("ffn", "hidden")),
        "down": ParameterSpec((c.hidden_size, c.intermediate_size), ("hidden", "ffn")),
    }
    if c.qkv_bias:
        layer["q_bias"] = ParameterSpec(heads, ("heads", "head_dim"), True)
        layer["k_bias"] = ParameterSpec(keys, ("kv_heads", "head_dim"), True)
        layer["v_bias"] = ParameterSpec(keys, ("kv_heads", "head_dim"), True)
    if c.attn_out_bias:
        layer["o_bias"] = ParameterSpec((c.hidden_size,), ("hidden",), True)
    if c.mlp_bias:
        layer["gate_bias"] = ParameterSpec((c.intermediate_size,), ("ffn",), True)
        layer["up_bias"] = ParameterSpec((c.intermediate_size,), ("ffn",), True)
        layer["down_bias"] = ParameterSpec((c.hidden_size,), ("hidden",), True)
    if c.qk_norm:
        layer["q_norm"] = ParameterSpec((c.head_dim,), ("head_dim",), True)
        layer["k_norm"] = ParameterSpec((c.head_dim,), ("head_dim",), True)
    if c.post_norms:
        layer["attn_post_norm"] = ParameterSpec((c.hidden_size,), ("hidden",), True)
        layer["ffn_post_norm"] = ParameterSpec((c.hidden_size,), ("hidden",), True)
    for name, spec in layer.items():
        specs[f"layers.{name}"] = ParameterSpec((c.num_layers, *spec.shape), ("layers", *spec.axes), spec.keep_float32)
    return specs


class Layers(nnx.Module):
    """The stacked parameters of all layers: attribute `name` for each `layers.name` of `parameter_specs`."""

    def __init__(self, arrays: Mapping[str, jax.Array]):
        for name, array in arrays.items():
            setattr(self, name, nnx.Param(array))


class Decoder(nnx.Module):
    """Holds the parameters of one model and its configuration; computes nothing itself."""

    def __init__(self, config: ModelConfig, arrays: Mapping[str, jax.Array]):
        """arrays: one per entry of `parameter_specs(config)`, of that shape. Raises ValueError where they differ."""
        specs = parameter_specs(config)
        shapes = {name: tuple(array.shape) for name, array in arrays.items()}
        if shapes != {name: spec.shape for name, spec in specs.items()}:
            wrong = {n for n in shapes.keys() | specs.keys() if n not in specs or shapes.get(n) != specs[n].shape}
            raise ValueError(f"parameters do not fit the configuration: {', '.join(sorted(wrong))}")
        self.config = config
        self.embed = nnx.Param(arrays["embed"])
        self.final_norm = nnx.Param(arrays["final_norm"])
        self.head = None if config.tie_embeddings else nnx.Param(arrays["head"])
        self.layers = Layers({n.removeprefix("layers."): a for n, a in arrays.items() if n.startswith("layers.")})

    @classmethod
    def random(cls, config: ModelConfig, key: jax.Array, dtype: Any = jnp.float32) -> Decoder:
        """A decoder with random weights, for tests and for compiling without a checkpoint."""
        arrays = {}
        for name, spec in parameter_specs(config).items():
            key, own = jax.random.split(key)
            fan_in = spec.shape[-1] if name != "layers.o" else config.num_heads * config.head_dim
            noise = jax.random.normal(own, spec.shape, jnp.float32)
            if name.endswith("norm"):
                arrays[name] = 1.0 - config.norm_offset + 0.1 * noise
            else:
                arrays[name] = noise * (0.1 if spec.keep_float32 else fan_in**-0.5)
            arrays[name] = arrays[name].astype(jnp.float32 if spec.keep_float32 else dtype)
        return cls(config, arrays)

    @property
    def dtype(self) -> Any:
        """The dtype of the weights, in which matrix products read their operands."""
        return self.embed[...].dtype


class NeuronChange(NamedTuple):
    """What is added to some rows or some columns of a weight matrix [out, in]; the matrix itself stays as it is.

    An index just past the matrix is padding: every layer has as many.
    """

    index: jax.Array  # int32 [w]
    values: jax.Array  # float32 [w, in] for rows, [w, out] for columns


# What is added to the weights: {parameter name without `layers.`: NeuronChange stacked along layers}; rows of q, k, v,
# gate and up, columns of down.
Changes = Mapping[str, NeuronChange]


class LayerRecord(NamedTuple):
    """What one layer computed, for those who measure it. Unused fields cost nothing: the compiler removes them.

    `q` and `k` are before RoPE and after the q/k-norm where there is one, `q_raw` and `k_raw` before that norm.
    """

    q_raw: jax.Array  # [b, t, h, k]
    k_raw: jax.Array  # [b, t, g, k]
    q: jax.Array  # [b, t, h, k]
    k: jax.Array  # [b, t, g, k]
    v: jax.Array  # [b, t, g, k]
    cos: jax.Array  # [b or 1, t, k]
    sin: jax.Array  # [b or 1, t, k]
    window: jax.Array  # int32 scalar, how many positions a query sees
    heads: jax.Array  # [b, t, h, k], attention output before W_O
    gate: jax.Array  # [b, t, f], before the activation
    product: jax.Array  # [b, t, f], act(gate) * up
    hidden: jax.Array  # [b, t, m], the residual stream after this layer
    weights: dict[str, jax.Array]  # this layer's parameters


def hidden_states(
    decoder: Decoder,
    tokens: jax.Array,
    mask: NeuronMask,
    *,
    positions: jax.Array | None = None,
    documents: jax.Array | None = None,
    changes: Changes | None = None,
    observe: Callable[[LayerRecord], Any] | None = None,
    remat: bool = False,
) -> tuple[jax.Array, Any]:
    """The residual stream after the last layer, and what `observe` made of every layer.

    tokens: int32 [batch, time]. Padding on the right needs no care (attention is causal); for padding elsewhere give
    `positions`, int32 [batch, time]: each token's place in its row, -1 for one that nobody may see. documents: int32
    [batch, time], where a row holds several documents: tokens see those of the same number only. changes: added to the
    weights, as small products beside the unchanged ones. remat: each layer is computed again in the backward pass
    instead of keeping what it computed. Returns (float32 [batch, time, hidden] before the final norm, observe's
    results stacked over layers, or None).
    """
    config = decoder.config
    if positions is None:
        positions = jnp.arange(tokens.shape[1], dtype=jnp.int32)[None]
    layer_inputs = _stacked(decoder, mask)._replace(changes=changes or {})
    tables = rope_tables(config.ropes, config.head_dim, positions)

    def step(x: jax.Array, inputs: _LayerInputs) -> tuple[jax.Array, Any]:
        def attention(q: jax.Array, k: jax.Array, v: jax.Array) -> tuple[jax.Array, None]:
            at = (inputs.window, positions, positions)
            k, v = _heads_first(k), _heads_first(v)
            return attend(config, q, k, v, *at, decoder.dtype, documents=documents), None

        x, _, record = _layer(config, x, inputs, tables, attention)
        return x, observe(record) if observe is not None else None

    return jax.lax.scan(jax.checkpoint(step) if remat else step, embedded(decoder, tokens), layer_inputs)


class KeyValueCache(NamedTuple):
    """Rotated keys and values of the times so far, in the weights' dtype; both [layers, b, g, s, k], as attention reads
    them. bfloat16 is kept as its bits, uint16 (see `_layer_of`)."""

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
        at = (layer, 0, 0, now, 0)

        def written(old: jax.Array, new: jax.Array) -> jax.Array:
            new = _bits(new.astype(jnp.bfloat16)) if old.dtype == jnp.uint16 else new.astype(old.dtype)
            return jax.lax.dynamic_update_slice(old, new[None], at)

        return KeyValueCache(written(self.k, k), written(self.v, v))

    def read(self, layer: jax.Array) -> tuple[jax.Array, jax.Array]:
        """k and v [b, g, s, k] of one layer."""
        k, v = (jax.lax.dynamic_index_in_dim(whole, layer, keepdims=False) for whole in self)
        return (k, v) if k.dtype != jnp.uint16 else (_from_bits(k), _from_bits(v))


def extend(
    decoder: Decoder,
    cache: KeyValueCache,
    x: jax.Array,
    mask: NeuronMask,
    *,
    positions: jax.Array,
    now: int | jax.Array,
    first: int | jax.Array = 0,
    last: int | jax.Array | None = None,
) -> tuple[jax.Array, KeyValueCache]:
    """Takes the tokens at times now, now + 1 ... through the layers first <= layer < last (None: to the end); they also
    see the earlier times that the cache holds.

    x: float32 [batch, time, hidden], the residual stream that enters layer `first`, `embedded` tokens for layer 0.
    positions: int32 [batch or 1, times of the cache], each token's place in its row, -1 where there is none to see.
    Returns (the residual stream that leaves layer `last` - 1, the cache with these layers and times written). `first`
    and `last` may be traced, so one program serves any part of the model; a `now` that is a Python number spares
    attention the times after it. The cache must have room: where it has none, the last times are overwritten. Not for
    training: a bfloat16 cache passes no gradient on.
    """
    config = decoder.config
    layer_inputs = _stacked(decoder, mask)
    own = jax.lax.dynamic_slice_in_dim(positions, now, x.shape[1], axis=1)
    tables = rope_tables(config.ropes, config.head_dim, own)

    def step(layer: jax.Array, carry: tuple[jax.Array, KeyValueCache]) -> tuple[jax.Array, KeyValueCache]:
        # The cache is carried and not scanned over: a carry is updated in place, a scanned output is a copy.
        x, cache = carry
        inputs = _layer_of(layer_inputs, layer)

        def attention(q: jax.Array, k: jax.Array, v: jax.Array) -> tuple[jax.Array, KeyValueCache]:
            written = cache.write(layer, now, _heads_first(k), _heads_first(v))
            return attend(config, q, *written.read(layer), inputs.window, own, positions, decoder.dtype, now), written

        x, cache, _ = _layer(config, x, inputs, tables, attention)
        return x, cache

    return jax.lax.fori_loop(first, config.num_layers if last is None else last, step, (x, cache))


def embedded(decoder: Decoder, tokens: jax.Array) -> jax.Array:
    """The residual stream that enters the first layer: tokens int32 [...] -> float32 [..., hidden]."""
    x = rows_of(decoder.embed[...], tokens).astype(jnp.float32) * decoder.config.embed_scale
    return constrain(x, "batch", "time", "hidden") if x.ndim == 3 else x


class _LayerInputs(NamedTuple):
    """What the layers differ in, each leaf with a leading layer axis until one layer's are taken."""

    weights: dict[str, jax.Array]
    mask: NeuronMask
    rope: jax.Array  # int32, an index into the configuration's ropes
    window: jax.Array  # int32, how many positions a query sees, itself included
    changes: Changes


def _stacked(decoder: Decoder, mask: NeuronMask) -> _LayerInputs:
    config = decoder.config
    windows = np.array([w if w != FULL_ATTENTION else np.iinfo(np.int32).max for w in config.windows], np.int32)
    return _LayerInputs(
        {name: value[...] for name, value in vars(decoder.layers).items() if isinstance(value, nnx.Param)},
        mask,
        jnp.asarray(config.layer_rope, jnp.int32),
        jnp.asarray(windows),
        {},
    )


def _layer_of(inputs: _LayerInputs, layer: jax.Array) -> _LayerInputs:
    """One layer's."""
    return jax.tree.map(lambda whole: rows_of(whole, layer), inputs)


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
    """pick(table, at). On CPUs bfloat16 is read as its bits: XLA's compiler for CPUs picks out no bfloat16, and would
    widen the whole table to float32 first, at every call."""
    if table.dtype != jnp.bfloat16:
        return pick(table, at)

    def as_bits(table: jax.Array, at: jax.Array) -> jax.Array:
        # Within a loop over `at`, the barrier keeps the compiler from copying the whole table's bits in front of it.
        table, at = jax.lax.optimization_barrier((table, at))
        return _from_bits(pick(_bits(table), at))

    return jax.lax.platform_dependent(table, at, cpu=as_bits, default=pick)


def _bits(x: jax.Array) -> jax.Array:
    return jax.lax.bitcast_convert_type(x, jnp.uint16)


def _from_bits(x: jax.Array) -> jax.Array:
    return jax.lax.bitcast_convert_type(x, jnp.bfloat16)


def logits_of(decoder: Decoder, x: jax.Array) -> jax.Array:
    """Next-token logits: float32 [..., hidden] -> float32 [..., vocab]."""
    config = decoder.config
    x = rms_norm(x, decoder.final_norm[...], config)
    table = decoder.embed[...] if decoder.head is None else decoder.head[...]
    return soft_cap(product("...m,vm->...v", x, table), config.final_softcap)


@jax.jit
def forward_decoder(decoder: Decoder, tokens: jax.Array, mask: NeuronMask) -> jax.Array:
    """`tokens` int32 [batch, time] -> logits float32 [batch, time, vocab], with the neurons of `mask` that are 0
    switched off."""
    x, _ = hidden_states(decoder, tokens, mask)
    return logits_of(decoder, x)


def _layer(
    config: ModelConfig,
    x: jax.Array,
    inputs: _LayerInputs,
    tables: tuple[jax.Array, jax.Array],
    attention: Callable[[jax.Array, jax.Array, jax.Array], tuple[jax.Array, Any]],
) -> tuple[jax.Array, Any, LayerRecord]:
    """One decoder layer: x float32 [b, t, m] -> (x after the layer, what attention keeps, what the layer computed).

    tables: RoPE's cos and sin of these tokens. attention: rotated q, k and v of these tokens -> (heads [b, t, h, k],
    what it keeps).
    """
    w, mask, window, changes = inputs.weights, inputs.mask, inputs.window, inputs.changes
    cos, sin = tables[0][inputs.rope], tables[1][inputs.rope]
    with jax.named_scope("attention"):
        y = rms_norm(x, w["attn_norm"], config)
        q_raw = _project(y, w, "q", changes, mask.attn_q, config.head_dim)
        k_raw = _project(y, w, "k", changes, mask.attn_k, config.head_dim)
        v = _project(y, w, "v", changes, mask.attn_v, config.head_dim)
        q = rms_norm(q_raw, w["q_norm"], config) if config.qk_norm else q_raw
        k = rms_norm(k_raw, w["k_norm"], config) if config.qk_norm else k_raw
        heads, kept = attention(rotate(q, cos, sin), rotate(k, cos, sin), v)
        y = product("btf,mf->btm", heads.reshape(*heads.shape[:2], -1), w["o"].reshape(w["o"].shape[0], -1))
        if config.attn_out_bias:
            y = y + w["o_bias"]
        x = x + (rms_norm(y, w["attn_post_norm"], config) if config.post_norms else y)
    with jax.named_scope("ffn"):
        y = rms_norm(x, w["ffn_norm"], config)
        gate, up = (
            add_rows(product("btm,fm->btf", y, w[name]), y, changes.get(name), w[name].dtype) for name in ("gate", "up")
        )
        if config.mlp_bias:
            gate, up = gate + w["gate_bias"], up + w["up_bias"]
        h = _ACTIVATIONS[config.activation](gate) * up * (mask.ffn_up * mask.ffn_down)
        y = add_columns(product("btf,mf->btm", h, w["down"]), h, changes.get("down"), w["down"].dtype)
        if config.mlp_bias:
            y = y + w["down_bias"]
        x = x + (rms_norm(y, w["ffn_post_norm"], config) if config.post_norms else y)
    return x, kept, LayerRecord(q_raw, k_raw, q, k, v, cos, sin, window, heads, gate, h, x, w)


def _project(
    y: jax.Array, w: dict[str, jax.Array], name: str, changes: Changes, mask: jax.Array, head_dim: int
) -> jax.Array:
    """Queries, keys or values [b, t, heads, k]; a masked neuron is 0, bias included, as if its weights were."""
    x = product("btm,fm->btf", y, w[name].reshape(-1, y.shape[-1]))
    x = add_rows(x, y, changes.get(name), w[name].dtype)
    axis = "heads" if name == "q" else "kv_heads"
    if few_heads := num_shards("neurons", x.shape[-1]) > num_shards(axis, x.shape[-1] // head_dim):
        x = constrain(x, "batch", "time", "neurons")  # each device makes a part of a head, and none makes all of them
    x = x.reshape(*x.shape[:2], -1, head_dim)
    if few_heads:
        x = constrain(x, "batch", "time", axis, None)
    if f"{name}_bias" in w:
        x = x + w[f"{name}_bias"]
    return x * mask.reshape(-1, head_dim)


def add_rows(out: jax.Array, x: jax.Array, change: NeuronChange | None, dtype: Any) -> jax.Array:
    """`out` [b, t, f], a product of x [b, t, m] with a matrix, as if `change` had been added to the matrix's rows."""
    if change is None:
        return out
    added = constrain(product("btm,wm->btw", x, change.values.astype(dtype)), "batch", "time", "tuned")
    return out.at[:, :, change.index].add(added, mode="drop")


def add_columns(out: jax.Array, x: jax.Array, change: NeuronChange | None, dtype: Any) -> jax.Array:
    """`out` [b, t, m], a product of x [b, t, f] with a matrix, as if `change` had been added to the matrix's
    columns."""
    if change is None:
        return out
    chosen = constrain(jnp.take(x, change.index, axis=2, mode="fill", fill_value=0), "batch", "time", "tuned")
    return out + product("btw,wm->btm", chosen, change.values.astype(dtype))


def attend(
    config: ModelConfig,
    q: jax.Array,
    k: jax.Array,
    v: jax.Array,
    window: jax.Array,
    queries_at: jax.Array,
    keys_at: jax.Array,
    dtype: Any,
    now: int | jax.Array = 0,
    documents: jax.Array | None = None,
) -> jax.Array:
    """Causal attention over rotated q [b, t, h, k] at times now + t, k and v [b, g, s, k] at times s -> [b, t, h, k],
    float32. queries_at [b or 1, t] and keys_at [b or 1, s] are their positions, as in `visible`; documents [b, t], for
    t and s that are the same times, are numbers that a query and a key must share.

    Works through blocks of queries, each, where `now` is a Python number, against the keys up to its end: half the
    work of the square, and bounded memory. Heads come first within a block, so that every product is a plain batched
    matrix product.
    """
    batch, time, _, size = q.shape
    groups, shared = config.num_kv_heads, config.queries_per_group
    q = q.astype(dtype).reshape(batch, time, groups, shared, size).transpose(0, 2, 3, 1, 4)
    k, v = k.astype(dtype), v.astype(dtype)
    step = max(_QUERY_BLOCK, -(-time // _QUERY_BLOCKS))
    blocks = []
    for begin in range(0, time, step):
        end = min(begin + step, time)
        keys = now + end if isinstance(now, int) else k.shape[2]
        queries = q[:, :, :, begin:end].reshape(batch, groups, -1, size)
        scores = product("bgqk,bgsk->bgqs", queries, k[:, :, :keys]) * config.attn_scale
        scores = soft_cap(scores, config.attn_softcap).reshape(batch, groups, shared, end - begin, keys)
        seen = visible(queries_at[:, begin:end], keys_at[:, :keys], window)
        if documents is not None:
            seen &= documents[:, begin:end, None] == documents[:, None, :keys]
        seen = seen[:, None, None]
        weights = jax.nn.softmax(jnp.where(seen, scores, -1e30), axis=-1)
        weights = weights.astype(dtype).reshape(batch, groups, -1, keys)
        out = product("bgqs,bgsk->bgqk", weights, v[:, :, :keys])
        blocks.append(out.reshape(batch, groups, shared, end - begin, size))
    heads = blocks[0] if len(blocks) == 1 else jnp.concatenate(blocks, axis=3)
    return heads.transpose(0, 3, 1, 2, 4).reshape(batch, time, -1, size)


def _heads_first(x: jax.Array) -> jax.Array:
    """Keys or values [b, t, g, k] as [b, g, t, k]."""
    return x.transpose(0, 2, 1, 3)


def visible(queries_at: jax.Array, keys_at: jax.Array, window: jax.Array) -> jax.Array:
    """Whether a query at position [b or 1, t] sees a key at position [b or 1, s]: bool [b or 1, t, s]. A position of -1
    holds nothing to see."""
    ago = queries_at[:, :, None] - keys_at[:, None, :]
    return (ago >= 0) & (ago < window) & (keys_at >= 0)[:, None, :]


def product(letters: str, a: jax.Array, b: jax.Array) -> jax.Array:
    """An einsum in the dtype of `b` (the weights) with a float32 result: bfloat16 in, float32 accumulated and out."""
    precision = jax.lax.Precision.HIGHEST if b.dtype == jnp.float32 else jax.lax.Precision.DEFAULT
    return jnp.einsum(letters, a.astype(b.dtype), b, precision=precision, preferred_element_type=jnp.float32)


def rms_norm(x: jax.Array, weight: jax.Array, config: ModelConfig) -> jax.Array:
    """Root-mean-square norm over the last axis, float32; Gemma's weight is an offset from 1."""
    scale = jax.lax.rsqrt(jnp.mean(jnp.square(x), axis=-1, keepdims=True) + config.norm_eps)
    return x * scale * (weight + config.norm_offset)


def soft_cap(x: jax.Array, cap: float | None) -> jax.Array:
    """cap * tanh(x / cap): keeps Gemma 2's scores within +-cap; the identity where there is no cap."""
    return x if cap is None else cap * jnp.tanh(x / cap)


def rotate(x: jax.Array, cos: jax.Array, sin: jax.Array) -> jax.Array:
    """RoPE in the half-split layout of HF: x [b, t, heads, k], cos and sin [b or 1, t, k]."""
    first, second = jnp.split(x, 2, axis=-1)
    turned = jnp.concatenate([-second, first], axis=-1)
    return x * cos[:, :, None] + turned * sin[:, :, None]


def rope_tables(ropes: tuple[Rope, ...], head_dim: int, positions: jax.Array) -> tuple[jax.Array, jax.Array]:
    """cos and sin, float32 [ropes, b, t, k], for integer positions [b, t]."""
    cos, sin = [], []
    for rope in ropes:
        angles = positions[..., None].astype(jnp.float32) * jnp.asarray(rope_frequencies(rope, head_dim))
        angles = jnp.concatenate([angles, angles], axis=-1)
        cos.append(jnp.cos(angles) * rope.attention_factor)
        sin.append(jnp.sin(angles) * rope.attention_factor)
    return jnp.stack(cos), jnp.stack(sin)


def rope_frequencies(rope: Rope, head_dim: int) -> np.ndarray:
    """Radians per position of each pair, float32 [head_dim / 2]."""
    plain = rope.theta ** -(np.arange(0, head_dim, 2, dtype=np.float64) / head_dim)
    if rope.kind == "linear":
        plain = plain / rope.factor
    elif rope.kind == "llama3":
        plain = _llama3_frequencies(rope, plain)
    elif rope.kind == "yarn":
        plain = _yarn_frequencies(rope, plain, head_dim)
    return plain.astype(np.float32)


def _llama3_frequencies(rope: Rope, plain: np.ndarray) -> np.ndarray:
    """Llama 3.1: long waves are slowed by `factor`, short ones kept, those between blended."""
    turns = rope.original_length * plain / (2 * np.pi)  # how often a pair turns within the original context
    blend = (turns - rope.low_freq_factor) / (rope.high_freq_factor - rope.low_freq_factor)
    blend = np.clip(blend, 0.0, 1.0)
    return (1 - blend) * plain / rope.factor + blend * plain


def _yarn_frequencies(rope: Rope, plain: np.ndarray, head_dim: int) -> np.ndarray:
    """YaRN (Peng et al. 2023): pairs that turn often are kept, pairs that turn rarely are interpolated, a ramp
    between."""

    def pair_that_turns(times: float) -> float:
        return head_dim * np.log(rope.original_length / (times * 2 * np.pi)) / (2 * np.log(rope.theta))

    low, high = pair_that_turns(rope.beta_fast), pair_that_turns(rope.beta_slow)
    if rope.truncate:
        low, high = np.floor(low), np.ceil(high)
    low, high = max(low, 0), min(high, head_dim - 1)
    ramp = np.clip((np.arange(head_dim // 2) - low) / max(high - low, 0.001), 0, 1)
    return plain / rope.factor * ramp + plain * (1 - ramp)


_ACTIVATIONS = {
    "silu": jax.nn.silu,
    "gelu": partial(jax.nn.gelu, approximate=False),
    "gelu_tanh": partial(jax.nn.gelu, approximate=True),
}
