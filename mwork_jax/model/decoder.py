"""The decoder, whatever its family: its forward pass.

Parameters live in a Flax nnx module (`Decoder`), every layer's stacked along a leading axis; computing is done by pure
functions that scan over that axis. A neuron mask is an array like any other, so any number of masks runs in one
compiled program.

Letters in the einsums and shape comments: b batch, t time, m hidden size, h query head, g key/value head, k head size,
f feed-forward size or width of a projection, e experts of a token, v vocabulary. Weights keep the orientation of the
checkpoint, [out, in], so a neuron is a row of q, k, v, gate, up and a column of down, as in the paper.

A family is a set of numbers and switches in `ModelConfig`; nothing here asks which one it is.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from mwork_jax.config import FULL_ATTENTION, ModelConfig
from mwork_jax.intervention import Edit
from mwork_jax.model.attention import PositionTables, attend, heads_first, in_halves, position_tables, rotate
from mwork_jax.model.bfloat16_bits import rows_of
from mwork_jax.model.feed_forward import feed_forward
from mwork_jax.model.int8 import FACTOR, multiplied_out
from mwork_jax.model.mixture import PerDevice, mixture
from mwork_jax.model.neuron_change import Changes, add_rows
from mwork_jax.model.operations import normed, product, rms_norm, soft_cap
from mwork_jax.model.parameters import parameter_specs
from mwork_jax.sharding import constrain, num_shards, per_device


class Layers(nnx.Module):
    """The stacked parameters of all layers: attribute `name` for each `layers.name` of `parameter_specs`."""

    def __init__(self, arrays: Mapping[str, jax.Array]):
        for name, array in arrays.items():
            setattr(self, name, nnx.Param(array))

    if TYPE_CHECKING:

        def __getattr__(self, name: str) -> nnx.Param: ...


class Decoder(nnx.Module):
    """Holds the parameters of one model and its configuration; computes nothing itself."""

    embed: nnx.Param
    final_norm: nnx.Param
    head: nnx.Param | None

    def __init__(self, config: ModelConfig, arrays: Mapping[str, jax.Array]):
        """arrays: one per entry of `parameter_specs(config)`, of that shape. Raises ValueError where they differ."""
        specs = parameter_specs(config, int8=any(name.endswith(FACTOR) for name in arrays))
        shapes = {name: tuple(array.shape) for name, array in arrays.items()}
        if shapes != {name: parameter.shape for name, parameter in specs.items()}:
            wrong = {n for n in shapes.keys() | specs.keys() if n not in specs or shapes.get(n) != specs[n].shape}
            raise ValueError(f"parameters do not fit the configuration: {', '.join(sorted(wrong))}")
        self.config = config
        for name, array in arrays.items():
            if not name.startswith("layers."):
                setattr(self, name, nnx.Param(array))
        if config.tie_embeddings:
            self.head = None
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
    def int8(self) -> bool:
        """Whether the layers' matrices are whole numbers with factors."""
        return hasattr(self.layers, f"q{FACTOR}")

    @property
    def dtype(self) -> Any:
        """The dtype of the weights, in which matrix products read their operands."""
        return self.embed[...].dtype


class LayerRecord(NamedTuple):
    """What one layer computed, for those who measure it. Unused fields cost nothing: the compiler removes them.

    Of b rows of t tokens: `hidden` [b, t, hidden size], the residual stream after the layer; `product` [b, t, width],
    the activations of `ffn_up` and `ffn_down`; `q_raw` [b, t, heads, size], `k_raw` and `v` [b, t, key heads, size],
    those of `attn_q`, `attn_k` and `attn_v`, whose neurons are numbered head by head.
    All are after what a mask or an intervention does to them. `q` and `k` are before RoPE and after the q/k-norm and
    what scales queries by position, where there are, `q_raw` and `k_raw` before. Where the feed-forward has no gate,
    `product` is `activated` with the edit of the product.
    """

    q_raw: jax.Array  # [b, t, h, k]
    k_raw: jax.Array  # [b, t, g, k]
    q: jax.Array  # [b, t, h, k]
    k: jax.Array  # [b, t, g, k]
    v: jax.Array  # [b, t, g, k]
    cos: jax.Array  # [b or 1, t, k], for q and k as `in_halves` lays them out
    sin: jax.Array  # [b or 1, t, k]
    window: jax.Array  # int32 scalar, how many positions a query sees
    heads: jax.Array  # [b, t, h, k], attention output before W_O
    activated: jax.Array  # [b, t, f], act(gate), or act(up) where there is no gate
    product: jax.Array  # [b, t, f], act(gate) * up
    experts: jax.Array | None  # int32 [b, t, e], those that a token goes to: then the two before are [b, t, e, f]
    shares: jax.Array | None  # [b, t, e], of each in the result
    hidden: jax.Array  # [b, t, m], the residual stream after this layer
    weights: dict[str, jax.Array]  # this layer's parameters


def hidden_states(
    decoder: Decoder,
    tokens: jax.Array,
    mask: Edit,
    *,
    positions: jax.Array | None = None,
    documents: jax.Array | None = None,
    generated: jax.Array | None = None,
    changes: Changes | None = None,
    observe: Callable[..., Any] | None = None,
    per_layer: Any = None,
    remat: bool = False,
) -> tuple[jax.Array, Any]:
    """The residual stream after the last layer, and what `observe` returned for every layer.

    tokens: int32 [batch, time]. Padding on the right needs no care (attention is causal); for padding elsewhere give
    `positions`, int32 [batch, time]: each token's position in its row, -1 for one that no query may see. documents:
    int32 [batch, time], where a row holds several documents: tokens see those of the same number only. generated: bool
    [batch, time], the tokens that an intervention takes for generated; None, for a prompt all of them. changes: added
    to the weights, as small products beside the unchanged ones. observe: called with each layer's `LayerRecord` and,
    where `per_layer` is given, a pytree with a leading layer axis, with that layer's part of it. remat: each layer is
    computed again in the backward pass instead of keeping what it computed. Returns (float32 [batch, time, hidden]
    before the final norm, observe's results stacked over layers, or None).
    """
    config = decoder.config
    if positions is None:
        positions = jnp.arange(tokens.shape[1], dtype=jnp.int32)[None]
    layer_inputs = stacked_inputs(decoder, mask)._replace(changes=changes or {})
    tables = position_tables(config, positions)

    def step(x: jax.Array, of_layer: tuple[LayerInputs, Any]) -> tuple[jax.Array, Any]:
        inputs, own = of_layer
        inputs = inputs._replace(weights=multiplied_out(inputs.weights, decoder.dtype))

        def attend_here(q: jax.Array, k: jax.Array, v: jax.Array) -> tuple[jax.Array, None]:
            at = (inputs.window, positions, positions)
            k, v = heads_first(k), heads_first(v)
            sinks = inputs.weights.get("sinks")
            return attend(config, q, k, v, *at, decoder.dtype, documents=documents, sinks=sinks), None

        inputs = inputs._replace(generated=generated)
        x, _, record = decoder_layer(config, x, inputs, tables, attend_here, recorded=observe is not None)
        if observe is None:
            return x, None
        return x, observe(record) if per_layer is None else observe(record, own)

    over_layers = (layer_inputs, per_layer)
    return jax.lax.scan(jax.checkpoint(step) if remat else step, embedded(decoder, tokens), over_layers)


def embedded(decoder: Decoder, tokens: jax.Array) -> jax.Array:
    """The residual stream that enters the first layer: tokens int32 [...] -> float32 [..., hidden]."""
    config = decoder.config
    x = rows_of(decoder.embed[...], tokens).astype(jnp.float32) * config.embed_scale
    if config.embed_norm:
        x = normed(x, *_whole_norm(decoder, "embed_norm"), config)
    return constrain(x, "batch", "time", "hidden") if x.ndim == 3 else x


class LayerInputs(NamedTuple):
    """What the layers differ in, each leaf with a leading layer axis until one layer's are taken; `generated`, which
    all have in common, is set after that."""

    weights: dict[str, jax.Array]
    edit: Edit
    rope: jax.Array  # int32, an index into the configuration's ropes
    window: jax.Array  # int32, how many positions a query sees, itself included
    changes: Changes
    generated: jax.Array | None = None  # bool [b or 1, t]: see `hidden_states`


def stacked_inputs(decoder: Decoder, edit: Edit) -> LayerInputs:
    """The inputs of all layers, without changes to the weights."""
    config = decoder.config
    windows = np.array([w if w != FULL_ATTENTION else np.iinfo(np.int32).max for w in config.windows], np.int32)
    return LayerInputs(
        {name: value[...] for name, value in vars(decoder.layers).items() if isinstance(value, nnx.Param)},
        edit,
        jnp.asarray(config.layer_rope, jnp.int32),
        jnp.asarray(windows),
        {},
    )


def inputs_of_layer(decoder: Decoder, inputs: LayerInputs, layer: jax.Array) -> LayerInputs:
    """The inputs of one layer, out of those of all."""
    own = jax.tree.map(lambda whole: rows_of(whole, layer), inputs)
    return own._replace(weights=multiplied_out(own.weights, decoder.dtype))


def _whole_norm(decoder: Decoder, name: str) -> tuple[jax.Array, jax.Array | None]:
    """The weight of a norm outside of the layers, and its bias where it has one."""
    bias = getattr(decoder, f"{name}_bias", None)
    return getattr(decoder, name)[...], None if bias is None else bias[...]


def head_inputs(decoder: Decoder, x: jax.Array) -> jax.Array:
    """What the head is multiplied with, logits' scale included: float32 [..., hidden] -> float32 [..., hidden]."""
    config = decoder.config
    x = normed(x, *_whole_norm(decoder, "final_norm"), config)
    return x if config.logit_scale == 1.0 else x * config.logit_scale


def logits_of(decoder: Decoder, x: jax.Array) -> jax.Array:
    """Next-token logits: float32 [..., hidden] -> float32 [..., vocab]."""
    table = decoder.embed[...] if decoder.head is None else decoder.head[...]
    return soft_cap(product("...m,vm->...v", head_inputs(decoder, x), table), decoder.config.final_softcap)


@jax.jit
def forward_decoder(decoder: Decoder, tokens: jax.Array, mask: Edit) -> jax.Array:
    """`tokens` int32 [batch, time] -> logits float32 [batch, time, vocab], with the neurons of `mask` that are 0
    switched off, or under an intervention."""
    x, _ = hidden_states(decoder, tokens, mask)
    return logits_of(decoder, x)


# Rotated q, k and v of some tokens -> (heads [b, t, h, k], what is to be kept).
Attend = Callable[[jax.Array, jax.Array, jax.Array], tuple[jax.Array, Any]]


def decoder_layer(
    config: ModelConfig,
    x: jax.Array,
    inputs: LayerInputs,
    tables: PositionTables,
    attend: Attend,
    *,
    recorded: bool = False,
    per_device: PerDevice = per_device,
) -> tuple[jax.Array, Any, LayerRecord]:
    """One decoder layer: x float32 [b, t, m] -> (x after the layer, what `attend` keeps, what the layer computed).

    tables: of these tokens. attend: over these tokens and, with a cache, those before them. recorded: whether what
    experts compute is wanted, without which `activated` and `product` of a mixture are None. per_device: how experts
    are computed that devices share out; under a `jax.vmap` over slots, `partial(per_device_over, "slots")`.
    """

    def norm(x: jax.Array, name: str) -> jax.Array:
        return normed(x, inputs.weights[name], inputs.weights.get(f"{name}_bias"), config)

    with jax.named_scope("attention"):
        attn_in = norm(x, "attn_norm") if config.pre_norms else x
        out, kept, attended = _attention(config, attn_in, inputs, tables, attend)
        after = x + config.residual_scale * (norm(out, "attn_post_norm") if config.post_norms else out)
    with jax.named_scope("ffn"):
        ffn_in = attn_in
        if not config.parallel:
            ffn_in = norm(after, "ffn_norm") if config.pre_norms else after
        args = (config, ffn_in, inputs.weights, inputs.edit, inputs.generated, inputs.changes)
        if config.num_experts:
            out, fed = mixture(*args, recorded=recorded, per_device=per_device)
        else:
            out, fed = feed_forward(*args)
        x = after + config.residual_scale * (norm(out, "ffn_post_norm") if config.post_norms else out)
        x = inputs.edit.steered(x, inputs.generated)
    return x, kept, LayerRecord(**attended._asdict(), **fed._asdict(), hidden=x, weights=inputs.weights)


class _Attended(NamedTuple):
    """What attention computed: fields of LayerRecord."""

    q_raw: jax.Array
    k_raw: jax.Array
    q: jax.Array
    k: jax.Array
    v: jax.Array
    cos: jax.Array
    sin: jax.Array
    window: jax.Array
    heads: jax.Array


def _attention(
    config: ModelConfig, x: jax.Array, inputs: LayerInputs, tables: PositionTables, attend: Attend
) -> tuple[jax.Array, Any, _Attended]:
    """What attention adds, before a norm [b, t, m]; what it keeps; what it computed."""
    w = inputs.weights
    cos, sin, query_scale = tables.of(inputs.rope)
    q_raw, k_raw, v = (_project(x, inputs, name, config.head_dim) for name in "qkv")
    q, k = (_query_key_norm(config, raw, w, name) for raw, name in ((q_raw, "q_norm"), (k_raw, "k_norm")))
    if query_scale is not None:
        q = q * query_scale[:, :, None, None]
    turned_q, turned_k = q, k
    if not config.alibi:
        turned_q, turned_k = (rotate(in_halves(config, each), cos, sin) for each in (q, k))
    heads, kept = attend(turned_q, turned_k, v)
    out = product("btf,mf->btm", heads.reshape(*heads.shape[:2], -1), w["o"].reshape(w["o"].shape[0], -1))
    if config.attn_out_bias:
        out = out + w["o_bias"]
    return out, kept, _Attended(q_raw, k_raw, q, k, v, cos, sin, inputs.window, heads)


def _query_key_norm(config: ModelConfig, x: jax.Array, w: dict[str, jax.Array], name: str) -> jax.Array:
    """Queries or keys [b, t, heads, k] after the norm on them, as they are where there is none."""
    if config.qk_norm is None:
        return x
    if config.qk_norm == "width":
        flat = rms_norm(x.reshape(*x.shape[:2], -1), w[name].reshape(-1), config)
        return flat.reshape(x.shape)
    return normed(x, w[name], None, config)


def _project(y: jax.Array, inputs: LayerInputs, name: str, head_dim: int) -> jax.Array:
    """Queries, keys or values [b, t, heads, k]; a masked neuron is 0, bias included, as if its weights were."""
    w = inputs.weights
    x = product("btm,fm->btf", y, w[name].reshape(-1, y.shape[-1]))
    x = add_rows(x, y, inputs.changes.get(name), w[name].dtype)
    axis = "heads" if name == "q" else "kv_heads"
    # Where heads do not split evenly over the devices, each computes a part of a head, so that none computes all of
    # them; attention then has whole heads again.
    if splits_heads := num_shards("neurons", x.shape[-1]) > num_shards(axis, x.shape[-1] // head_dim):
        x = constrain(x, "batch", "time", "neurons")
    x = x.reshape(*x.shape[:2], -1, head_dim)
    if splits_heads:
        x = constrain(x, "batch", "time", axis, None)
    if f"{name}_bias" in w:
        x = x + w[f"{name}_bias"]
    return inputs.edit.applied(f"attn_{name}", x, lambda of_each: of_each.reshape(-1, head_dim), inputs.generated)
