"""The decoder, whatever its family: its forward pass.

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
from typing import TYPE_CHECKING, Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from mwork_jax.config import FULL_ATTENTION, ModelConfig
from mwork_jax.intervention import Edit
from mwork_jax.model.attention import PositionTables, attend, heads_first, in_halves, position_tables, rotate
from mwork_jax.model.bfloat16_bits import rows_of
from mwork_jax.model.experts import expert_products, route
from mwork_jax.model.int8 import FACTOR, multiplied_out
from mwork_jax.model.neuron_change import Changes, add_columns, add_expert_rows, add_rows, changed_columns, changed_rows
from mwork_jax.model.operations import normed, product, rms_norm, soft_cap
from mwork_jax.model.parameters import XIELU, layer_specs, parameter_specs
from mwork_jax.neurons import LayOut
from mwork_jax.sharding import EXPERT, MODEL, constrain, num_shards, per_device, size_here


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
    `q` and `k` are before RoPE and after the q/k-norm and what scales queries by position, where there are, `q_raw` and
    `k_raw` before. `product` is after the mask; where the feed-forward has no gate, it is `activated` times the mask.
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

        x, _, record = decoder_layer(config, x, inputs._replace(generated=generated), tables, attend_here)
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
    """What the layers differ in, each leaf with a leading layer axis until one layer's are taken."""

    weights: dict[str, jax.Array]
    mask: Edit
    rope: jax.Array  # int32, an index into the configuration's ropes
    window: jax.Array  # int32, how many positions a query sees, itself included
    changes: Changes
    generated: jax.Array | None = None  # bool [b or 1, t], the same for all layers: see `hidden_states`


def stacked_inputs(decoder: Decoder, mask: Edit) -> LayerInputs:
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
PerDevice = Callable[..., Any]  # as `sharding.per_device`


def decoder_layer(
    config: ModelConfig,
    x: jax.Array,
    inputs: LayerInputs,
    tables: PositionTables,
    attend: Attend,
    per_device: PerDevice = per_device,
) -> tuple[jax.Array, Any, LayerRecord]:
    """One decoder layer: x float32 [b, t, m] -> (x after the layer, what `attend` keeps, what the layer computed).

    tables: of these tokens. attend: over these tokens and, with a cache, those before them. per_device: how experts
    that devices share out are computed, `per_device_over` a `jax.vmap` over what `expert` shares out too.
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
        if config.num_experts:
            out, fed = _experts(config, ffn_in, inputs, per_device)
        else:
            out, fed = _feed_forward(config, ffn_in, inputs)
        x = after + config.residual_scale * (norm(out, "ffn_post_norm") if config.post_norms else out)
        x = inputs.mask.steered(x, inputs.generated)
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


class _Fed(NamedTuple):
    """What the feed-forward computed: fields of LayerRecord."""

    activated: jax.Array
    product: jax.Array
    experts: jax.Array | None = None
    shares: jax.Array | None = None


def _feed_forward(config: ModelConfig, x: jax.Array, inputs: LayerInputs) -> tuple[jax.Array, _Fed]:
    """What the feed-forward adds, before a norm [b, t, m], and what it computed."""
    w, changes = inputs.weights, inputs.changes

    def rows(name: str) -> jax.Array:
        out = add_rows(product("btm,fm->btf", x, w[name]), x, changes.get(name), w[name].dtype)
        return out + w[f"{name}_bias"] if config.mlp_bias else out

    activated, h = _gated(config, inputs, rows("gate") if config.gated else None, rows("up"), lambda of_each: of_each)
    out = add_columns(product("btf,mf->btm", h, w["down"]), h, changes.get("down"), w["down"].dtype)
    return (out + w["down_bias"] if config.mlp_bias else out), _Fed(activated, h)


def _experts(config: ModelConfig, x: jax.Array, inputs: LayerInputs, per_device: PerDevice) -> tuple[jax.Array, _Fed]:
    """The same where a router sends each token to a few experts: the sum of what they give, each times its share. Each
    device computes the experts that it holds for the rows of all that share them out; sums bring them together."""
    w, changes = inputs.weights, inputs.changes
    experts, shares = route(config, x, w)
    names = [name for name in ("gate", "up", "down", "gate_bias", "up_bias", "down_bias") if name in w]
    added = {name: changed_rows(x, changes[name], w[name].dtype) for name in ("gate", "up") if name in changes}
    indices = {name: changes[name].indices for name in ("gate", "up", "down") if name in changes}
    own_weights = {name: w[name] for name in names}
    parts = _ExpertParts(x, experts, shares, own_weights, inputs.mask, inputs.generated, indices, added)
    leaves, structure = jax.tree.flatten(parts)
    in_axes = jax.tree.leaves(_axes_of(config, parts), is_leaf=lambda axes: type(axes) is tuple)
    inner, tokens = (*experts.shape, config.intermediate_size), ("batch", "time", None)
    out_axes, shapes = [tokens, (*tokens, None), (*tokens, None)], [x.shape, inner, inner]
    if "down" in changes:
        out_axes.append(tokens)
        shapes.append((*x.shape[:2], indices["down"].shape[0]))

    def on_one_device(*leaves: jax.Array) -> tuple[jax.Array, ...]:
        parts = jax.tree.unflatten(structure, leaves)
        if parts.weights["up"].shape[0] == config.num_experts:
            return _own_experts(config, parts, None)
        return _of_shared_experts(config, parts)

    out, activated, h, *changed = per_device(on_one_device, leaves, in_axes, out_axes, shapes)
    if changed:
        out = out + product("btw,wm->btm", changed[0], changes["down"].values.astype(w["down"].dtype))
    return out, _Fed(activated, h, experts, shares)


class _ExpertParts(NamedTuple):
    """What a feed-forward with experts is computed from."""

    x: jax.Array  # [b, t, m]
    experts: jax.Array  # int32 [b, t, e], those that each token goes to
    shares: jax.Array  # [b, t, e]
    weights: dict[str, jax.Array]  # the experts' matrices and biases, [experts, ...]
    mask: Edit
    generated: jax.Array | None
    indices: dict[str, jax.Array]  # int32 [w], of changes to the weights
    added: dict[str, jax.Array]  # [b, t, w], what changed rows add


def _axes_of(config: ModelConfig, parts: _ExpertParts) -> _ExpertParts:
    """The axes of each part, as `per_device` takes them."""
    specs, tokens = layer_specs(config), ("batch", "time", None)
    shared = num_shards("experts", config.num_experts) > 1

    def of_edit(leaf: jax.Array) -> tuple[str | None, ...]:
        return ("neurons",) if shared and leaf.shape == (config.ffn_width,) else (None,) * leaf.ndim

    axes: dict[str, Any] = {
        **dict.fromkeys(("x", "experts", "shares"), tokens),
        "weights": {name: specs[name].axes for name in parts.weights},
        "mask": jax.tree.map(of_edit, parts.mask),
        "generated": None if parts.generated is None else ("batch", "time"),
        "indices": dict.fromkeys(parts.indices, (None,)),
        "added": dict.fromkeys(parts.added, tokens),
    }
    return _ExpertParts(**axes)


def _of_shared_experts(config: ModelConfig, parts: _ExpertParts) -> tuple[jax.Array, ...]:
    """Within one device: `_own_experts` where several devices share the experts out, summed over them. Devices along
    `expert` have rows of their own too: each gets those of all, with what is done to its own experts' neurons there,
    and every row's sum goes back to its device. That holds too where they have the same rows, which are then computed
    more than once."""
    first = parts.weights["up"].shape[0] * jax.lax.axis_index((MODEL, EXPERT))
    if size_here(EXPERT) == 1:
        results = _own_experts(config, parts, first)
    else:
        axes = _ExpertParts._make((0, 0, 0, None, 0, 0, None, 0))
        of_all = jax.vmap(lambda each: _own_experts(config, each, first), in_axes=(axes,))
        results = tuple(jax.lax.psum_scatter(each, EXPERT) for each in of_all(_from_all(config, parts)))
    return tuple(jax.lax.psum(each, MODEL) for each in results)


def _from_all(config: ModelConfig, parts: _ExpertParts) -> _ExpertParts:
    """The parts of every device along `expert`, side by side, but for the weights; of what is done to neurons, that
    for this device's experts alone."""
    size, width = size_here(EXPERT), config.ffn_width // size_here(MODEL)

    def gather(leaf: jax.Array) -> jax.Array:
        return jax.lax.all_gather(leaf, EXPERT)

    def of_edit(leaf: jax.Array) -> jax.Array:
        return jax.lax.all_to_all(leaf.reshape(size, -1), EXPERT, 0, 0) if leaf.shape == (width,) else gather(leaf)

    names = ("x", "experts", "shares", "generated", "added")
    gathered = {name: jax.tree.map(gather, getattr(parts, name)) for name in names}
    return parts._replace(**gathered, mask=jax.tree.map(of_edit, parts.mask))


def _own_experts(config: ModelConfig, parts: _ExpertParts, first: jax.Array | None) -> tuple[jax.Array, ...]:
    """What the experts that a device holds give [b, t, m], `activated` and `product` of `_Fed`, and, where columns of
    `down` are changed, what those are multiplied with [b, t, w]. first: the first of them; None where it holds all."""
    w, experts, shares = parts.weights, parts.experts, parts.shares
    held, shared = w["up"].shape[0], first is not None
    own = experts if first is None else experts - first
    # An expert that another device holds is `held`, which is no expert here.
    own = jnp.where((own >= 0) & (own < held), own, held) if shared else own
    names = ("gate", "up") if config.gated else ("up",)
    sent = own.reshape(-1, own.shape[-1])
    products = expert_products(parts.x.reshape(-1, parts.x.shape[-1]), sent, tuple(w[name] for name in names))
    inner: dict[str, jax.Array] = dict(zip(names, products, strict=True))

    def rows(name: str) -> jax.Array:
        out = inner[name].reshape(*experts.shape, -1)
        if name in parts.added:
            out = add_expert_rows(out, experts, parts.indices[name], parts.added[name])
        return out + w[f"{name}_bias"][own] if config.mlp_bias else out

    def of_experts(of_each: jax.Array) -> jax.Array:
        return of_each.reshape(held, -1)[own]

    def of_own(x: jax.Array) -> jax.Array:
        return jnp.where((own < held)[..., None], x, 0.0) if shared else x

    inputs = LayerInputs(w, parts.mask, jnp.int32(0), jnp.int32(0), {}, parts.generated)
    activated, h = _gated(config, inputs, rows("gate") if config.gated else None, rows("up"), of_experts)
    activated, h = of_own(activated), of_own(h)
    (out,) = expert_products(h.reshape(-1, h.shape[-1]), own.reshape(-1, 1), (w["down"],))
    out = out.reshape(*experts.shape, -1)
    if config.mlp_bias:
        out = of_own(out + w["down_bias"][own])
    results = [jnp.einsum("btem,bte->btm", out, shares, precision=jax.lax.Precision.HIGHEST), activated, h]
    if "down" in parts.indices:
        results.append(changed_columns(h, experts, shares, parts.indices["down"]))
    return tuple(results)


def _gated(
    config: ModelConfig, inputs: LayerInputs, gate: jax.Array | None, up: jax.Array, lay_out: LayOut
) -> tuple[jax.Array, jax.Array]:
    """act(gate), and its product with up; act(up) for both where there is no gate. lay_out: brings what a mask has per
    neuron into the shape of these."""
    if gate is not None and config.act_limit is not None:
        gate, up = jnp.minimum(gate, config.act_limit), jnp.clip(up, -config.act_limit, config.act_limit) + 1.0
        activated = gate * jax.nn.sigmoid(config.act_slope * gate)
    else:
        activated = _activation(config, inputs.weights, up if gate is None else gate)
    activated = inputs.mask.applied("gate", activated, lay_out, inputs.generated)
    whole = activated if gate is None else activated * up
    return activated, inputs.mask.applied("neuron", whole, lay_out, inputs.generated)


def _project(y: jax.Array, inputs: LayerInputs, name: str, head_dim: int) -> jax.Array:
    """Queries, keys or values [b, t, heads, k]; a masked neuron is 0, bias included, as if its weights were."""
    w = inputs.weights
    x = product("btm,fm->btf", y, w[name].reshape(-1, y.shape[-1]))
    x = add_rows(x, y, inputs.changes.get(name), w[name].dtype)
    axis = "heads" if name == "q" else "kv_heads"
    # Where there are fewer heads than devices, each device computes a part of a head, so that none computes all heads.
    if splits_heads := num_shards("neurons", x.shape[-1]) > num_shards(axis, x.shape[-1] // head_dim):
        x = constrain(x, "batch", "time", "neurons")
    x = x.reshape(*x.shape[:2], -1, head_dim)
    if splits_heads:
        x = constrain(x, "batch", "time", axis, None)
    if f"{name}_bias" in w:
        x = x + w[f"{name}_bias"]
    return inputs.mask.applied(f"attn_{name}", x, lambda of_each: of_each.reshape(-1, head_dim), inputs.generated)


_ACTIVATIONS = {
    "silu": jax.nn.silu,
    "gelu": partial(jax.nn.gelu, approximate=False),
    "gelu_tanh": partial(jax.nn.gelu, approximate=True),
}


def _activation(config: ModelConfig, w: dict[str, jax.Array], x: jax.Array) -> jax.Array:
    if config.activation == "xielu":
        return xielu(x, *(w[name] for name in XIELU))
    return _ACTIVATIONS[config.activation](x)


def xielu(x: jax.Array, positive: jax.Array, negative: jax.Array, linear: jax.Array, least: jax.Array) -> jax.Array:
    """xIELU (Huang and Schlag 2024): for x > 0 a x^2 + c x, else b (e^x - 1 - x) + c x, with a = softplus(positive),
    b = c + softplus(negative) and c = linear. The exponent is at most `least`, which is close to 0."""
    a, b = jax.nn.softplus(positive), linear + jax.nn.softplus(negative)
    return jnp.where(x > 0, a * x * x, b * (jnp.expm1(jnp.minimum(x, least)) - x)) + linear * x
