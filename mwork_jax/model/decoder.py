"""The decoder of the Llama, Mistral, Qwen and Gemma families: its parameters and its forward pass.

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
from jax.sharding import Mesh

from mwork_jax.config import FULL_ATTENTION, ModelConfig
from mwork_jax.model.attention import attend, heads_first, rope_tables, rotate
from mwork_jax.model.bfloat16_bits import rows_of
from mwork_jax.model.operations import product, rms_norm, soft_cap
from mwork_jax.neurons import NeuronMask
from mwork_jax.sharding import constrain, num_shards, spec


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
    for name, own in layer.items():
        specs[f"layers.{name}"] = ParameterSpec((c.num_layers, *own.shape), ("layers", *own.axes), own.keep_float32)
    return specs


def weight_bytes(config: ModelConfig, dtype: Any = jnp.bfloat16, mesh: Mesh | None = None) -> int:
    """Bytes that the parameters of a model take in `dtype`: all of them, or, with a mesh, those that each of its
    devices holds."""
    total = 0
    for parameter in parameter_specs(config).values():
        size = 4 if parameter.keep_float32 else jnp.dtype(dtype).itemsize
        mesh_axes = (None,) * len(parameter.shape) if mesh is None else spec(mesh, parameter.axes, parameter.shape)
        for dimension, mesh_axis in zip(parameter.shape, mesh_axes, strict=True):
            size *= dimension if mesh_axis is None or mesh is None else dimension // mesh.shape[mesh_axis]
        total += size
    return total


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
        if shapes != {name: parameter.shape for name, parameter in specs.items()}:
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
        for name, parameter in parameter_specs(config).items():
            key, own = jax.random.split(key)
            fan_in = parameter.shape[-1] if name != "layers.o" else config.num_heads * config.head_dim
            noise = jax.random.normal(own, parameter.shape, jnp.float32)
            if name.endswith("norm"):
                arrays[name] = 1.0 - config.norm_offset + 0.1 * noise
            else:
                arrays[name] = noise * (0.1 if parameter.keep_float32 else fan_in**-0.5)
            arrays[name] = arrays[name].astype(jnp.float32 if parameter.keep_float32 else dtype)
        return cls(config, arrays)

    @property
    def dtype(self) -> Any:
        """The dtype of the weights, in which matrix products read their operands."""
        return self.embed[...].dtype


class NeuronChange(NamedTuple):
    """What is added to some rows or some columns of a weight matrix [out, in]; the matrix itself stays as it is.

    An index just past the matrix is padding: every layer has as many.
    """

    indices: jax.Array  # int32 [w]
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
    """The residual stream after the last layer, and what `observe` returned for every layer.

    tokens: int32 [batch, time]. Padding on the right needs no care (attention is causal); for padding elsewhere give
    `positions`, int32 [batch, time]: each token's position in its row, -1 for one that no query may see. documents:
    int32 [batch, time], where a row holds several documents: tokens see those of the same number only. changes: added
    to the weights, as small products beside the unchanged ones. remat: each layer is computed again in the backward
    pass instead of keeping what it computed. Returns (float32 [batch, time, hidden] before the final norm, observe's
    results stacked over layers, or None).
    """
    config = decoder.config
    if positions is None:
        positions = jnp.arange(tokens.shape[1], dtype=jnp.int32)[None]
    layer_inputs = stacked_inputs(decoder, mask)._replace(changes=changes or {})
    tables = rope_tables(config.ropes, config.head_dim, positions)

    def step(x: jax.Array, inputs: LayerInputs) -> tuple[jax.Array, Any]:
        def attention(q: jax.Array, k: jax.Array, v: jax.Array) -> tuple[jax.Array, None]:
            at = (inputs.window, positions, positions)
            k, v = heads_first(k), heads_first(v)
            return attend(config, q, k, v, *at, decoder.dtype, documents=documents), None

        x, _, record = decoder_layer(config, x, inputs, tables, attention)
        return x, observe(record) if observe is not None else None

    return jax.lax.scan(jax.checkpoint(step) if remat else step, embedded(decoder, tokens), layer_inputs)


def embedded(decoder: Decoder, tokens: jax.Array) -> jax.Array:
    """The residual stream that enters the first layer: tokens int32 [...] -> float32 [..., hidden]."""
    x = rows_of(decoder.embed[...], tokens).astype(jnp.float32) * decoder.config.embed_scale
    return constrain(x, "batch", "time", "hidden") if x.ndim == 3 else x


class LayerInputs(NamedTuple):
    """What the layers differ in, each leaf with a leading layer axis until one layer's are taken."""

    weights: dict[str, jax.Array]
    mask: NeuronMask
    rope: jax.Array  # int32, an index into the configuration's ropes
    window: jax.Array  # int32, how many positions a query sees, itself included
    changes: Changes


def stacked_inputs(decoder: Decoder, mask: NeuronMask) -> LayerInputs:
    """The inputs of all layers, without changes to the weights."""
    config = decoder.config
    windows = np.array([w if w != FULL_ATTENTION else np.iinfo(np.int32).max for w in config.windows], np.int32)
    return LayerInputs(
        {name: value[...] for name, value in vars(decoder.layers).items() if isinstance(value, nnx.Param)},
        mask,
        jnp.asarray(config.layer_rope, jnp.int32),
        jnp.asarray(windows),
        {},
    )


def inputs_of_layer(inputs: LayerInputs, layer: jax.Array) -> LayerInputs:
    """The inputs of one layer, out of those of all."""
    return jax.tree.map(lambda whole: rows_of(whole, layer), inputs)


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


def decoder_layer(
    config: ModelConfig,
    x: jax.Array,
    inputs: LayerInputs,
    tables: tuple[jax.Array, jax.Array],
    attention: Callable[[jax.Array, jax.Array, jax.Array], tuple[jax.Array, Any]],
) -> tuple[jax.Array, Any, LayerRecord]:
    """One decoder layer: x float32 [b, t, m] -> (x after the layer, what attention keeps, what the layer computed).

    tables: RoPE's cos and sin of these tokens. attention: rotated q, k and v of these tokens -> (heads [b, t, h, k],
    what it keeps).
    """
    w, mask, changes = inputs.weights, inputs.mask, inputs.changes
    cos, sin = tables[0][inputs.rope], tables[1][inputs.rope]
    with jax.named_scope("attention"):
        normed = rms_norm(x, w["attn_norm"], config)
        q_raw = _project(normed, w, "q", changes, mask.attn_q, config.head_dim)
        k_raw = _project(normed, w, "k", changes, mask.attn_k, config.head_dim)
        v = _project(normed, w, "v", changes, mask.attn_v, config.head_dim)
        q = rms_norm(q_raw, w["q_norm"], config) if config.qk_norm else q_raw
        k = rms_norm(k_raw, w["k_norm"], config) if config.qk_norm else k_raw
        heads, kept = attention(rotate(q, cos, sin), rotate(k, cos, sin), v)
        out = product("btf,mf->btm", heads.reshape(*heads.shape[:2], -1), w["o"].reshape(w["o"].shape[0], -1))
        if config.attn_out_bias:
            out = out + w["o_bias"]
        x = x + (rms_norm(out, w["attn_post_norm"], config) if config.post_norms else out)
    with jax.named_scope("ffn"):
        normed = rms_norm(x, w["ffn_norm"], config)
        gate = add_rows(product("btm,fm->btf", normed, w["gate"]), normed, changes.get("gate"), w["gate"].dtype)
        up = add_rows(product("btm,fm->btf", normed, w["up"]), normed, changes.get("up"), w["up"].dtype)
        if config.mlp_bias:
            gate, up = gate + w["gate_bias"], up + w["up_bias"]
        h = _ACTIVATIONS[config.activation](gate) * up * (mask.ffn_up * mask.ffn_down)
        out = add_columns(product("btf,mf->btm", h, w["down"]), h, changes.get("down"), w["down"].dtype)
        if config.mlp_bias:
            out = out + w["down_bias"]
        x = x + (rms_norm(out, w["ffn_post_norm"], config) if config.post_norms else out)
    return x, kept, LayerRecord(q_raw, k_raw, q, k, v, cos, sin, inputs.window, heads, gate, h, x, w)


def _project(
    y: jax.Array, w: dict[str, jax.Array], name: str, changes: Changes, mask: jax.Array, head_dim: int
) -> jax.Array:
    """Queries, keys or values [b, t, heads, k]; a masked neuron is 0, bias included, as if its weights were."""
    x = product("btm,fm->btf", y, w[name].reshape(-1, y.shape[-1]))
    x = add_rows(x, y, changes.get(name), w[name].dtype)
    axis = "heads" if name == "q" else "kv_heads"
    # Where there are fewer heads than devices, each device computes a part of a head, so that none computes all heads.
    if splits_heads := num_shards("neurons", x.shape[-1]) > num_shards(axis, x.shape[-1] // head_dim):
        x = constrain(x, "batch", "time", "neurons")
    x = x.reshape(*x.shape[:2], -1, head_dim)
    if splits_heads:
        x = constrain(x, "batch", "time", axis, None)
    if f"{name}_bias" in w:
        x = x + w[f"{name}_bias"]
    return x * mask.reshape(-1, head_dim)


def add_rows(out: jax.Array, x: jax.Array, change: NeuronChange | None, dtype: Any) -> jax.Array:
    """`out` [b, t, f], a product of x [b, t, m] with a matrix, as if `change` had been added to the matrix's rows."""
    if change is None:
        return out
    added = constrain(product("btm,wm->btw", x, change.values.astype(dtype)), "batch", "time", "tuned")
    return out.at[:, :, change.indices].add(added, mode="drop")


def add_columns(out: jax.Array, x: jax.Array, change: NeuronChange | None, dtype: Any) -> jax.Array:
    """`out` [b, t, m], a product of x [b, t, f] with a matrix, as if `change` had been added to the matrix's
    columns."""
    if change is None:
        return out
    changed = constrain(jnp.take(x, change.indices, axis=2, mode="fill", fill_value=0), "batch", "time", "tuned")
    return out + product("btw,wm->btm", changed, change.values.astype(dtype))


_ACTIVATIONS = {
    "silu": jax.nn.silu,
    "gelu": partial(jax.nn.gelu, approximate=False),
    "gelu_tanh": partial(jax.nn.gelu, approximate=True),
}
