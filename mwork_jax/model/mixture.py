"""The feed-forward of a layer with experts: a router sends each token to a few, and nothing is dropped.

A layer's tokens are rows, each with its experts and their shares. Where experts are shared out over devices, a device
computes those rows that go to the experts which it holds; sums bring the results together.

- On `model`, devices have the same rows, and add up what their experts give.
- On `expert`, devices have rows of their own. Each gets the rows of all, and every row's sum goes back to its device.

Letters in shape comments: n rows, k experts of a token, e experts that a device holds, f size of one expert, m hidden
size, u edits; b and t, rows and tokens of a batch.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from types import MappingProxyType
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.custom_batching import custom_vmap

from mwork_jax.config import ModelConfig
from mwork_jax.intervention import Edit
from mwork_jax.model.experts import expert_products, route, sorted_products
from mwork_jax.model.feed_forward import Fed, Weights, gated
from mwork_jax.model.neuron_change import Changes, add_expert_rows, changed_columns, changed_rows
from mwork_jax.model.operations import product
from mwork_jax.model.parameters import layer_specs
from mwork_jax.sharding import EXPERT, MODEL, num_shards, per_device, size_here

PerDevice = Callable[..., Any]  # as `sharding.per_device`
BLOCKS_LOOP = "expert_blocks"  # the name of the loop over blocks of rows in programs
_NONE: Mapping[str, jax.Array] = MappingProxyType({})
_PARAMETERS = ("gate", "up", "down", "gate_bias", "up_bias", "down_bias")
_BLOCK = 128  # rows: blocks have a multiple of it
_BLOCKS = 4  # in so many blocks go the rows of a device, where the router sends as many to every expert


def mixture(
    config: ModelConfig,
    x: jax.Array,
    w: Weights,
    edit: Edit,
    generated: jax.Array | None,
    changes: Changes,
    *,
    recorded: bool,
    per_device: PerDevice = per_device,
) -> tuple[jax.Array, Fed]:
    """What the experts add to the residual stream, before a norm [b, t, m]: the sum of what they give, each times its
    share. recorded: whether what each expert computes is wanted too, for every token; otherwise that is not kept.
    per_device: as `decoder_layer` has it."""
    experts, shares = route(config, x, w)
    indices = {name: changes[name].indices for name in ("gate", "up", "down") if name in changes}
    weights = {name: w[name] for name in _PARAMETERS if name in w}
    added = {name: changed_rows(x, changes[name], w[name].dtype) for name in ("gate", "up") if name in changes}
    parts = _Parts(x, experts, shares, weights, edit, generated, indices, added)
    keeps = recorded or bool(changes)
    of_tokens, of_experts = ("batch", "time", None), ("batch", "time", None, None)
    inner = (*experts.shape, config.intermediate_size)
    out_axes, shapes = [of_tokens], [x.shape]
    if keeps:
        out_axes, shapes = [*out_axes, of_experts, of_experts], [*shapes, inner, inner]
    if "down" in changes:
        out_axes.append(of_tokens)
        shapes.append((*x.shape[:2], indices["down"].shape[0]))
    leaves, structure = jax.tree.flatten(parts)
    in_axes = jax.tree.leaves(_axes_of(config, parts), is_leaf=lambda axes: type(axes) is tuple)

    def on_one_device(*leaves: jax.Array) -> tuple[jax.Array, ...]:
        return _on_one_device(config, jax.tree.unflatten(structure, leaves), keeps)

    out, *kept = per_device(on_one_device, leaves, in_axes, out_axes, shapes)
    if "down" in changes:
        out = out + product("btw,wm->btm", kept.pop(), changes["down"].values.astype(w["down"].dtype))
    activated, h = kept or (None, None)
    return out, Fed(activated, h, experts, shares)


class _Parts(NamedTuple):
    """What a feed-forward with experts is computed from."""

    x: jax.Array  # [b, t, m]
    experts: jax.Array  # int32 [b, t, k], those that each token goes to
    shares: jax.Array  # [b, t, k]
    weights: Weights  # the experts' matrices and biases, [e, ...]
    edit: Edit  # of this layer
    generated: jax.Array | None  # bool [b or 1, t]
    indices: dict[str, jax.Array]  # int32 [w], of changes to the weights
    added: dict[str, jax.Array]  # [b, t, w], what changed rows add


def _axes_of(config: ModelConfig, parts: _Parts) -> _Parts:
    """The axes of each part, as `per_device` takes them."""
    specs, tokens = layer_specs(config), ("batch", "time", None)
    shared = num_shards("experts", config.num_experts) > 1

    def of_edit(leaf: jax.Array) -> tuple[str | None, ...]:
        return ("neurons",) if shared and leaf.shape == (config.ffn_width,) else (None,) * leaf.ndim

    axes: dict[str, Any] = {
        **dict.fromkeys(("x", "experts", "shares"), tokens),
        "weights": {name: specs[name].axes for name in parts.weights},
        "edit": jax.tree.map(of_edit, parts.edit),
        "generated": None if parts.generated is None else ("batch", "time"),
        "indices": dict.fromkeys(parts.indices, (None,)),
        "added": dict.fromkeys(parts.added, tokens),
    }
    return _Parts(**axes)


class Rows(NamedTuple):
    """Rows and where they go."""

    x: jax.Array  # [n, m]
    experts: jax.Array  # int32 [n, k], numbered through the experts of all devices
    shares: jax.Array  # [n, k]
    generated: jax.Array  # bool [n]
    edit: Edit  # u of them: leaves [u, ...]
    edit_of: jax.Array  # int32 [n], which of them is the row's
    added: dict[str, jax.Array]  # [n, w], what changed rows of gate and up add


def _on_one_device(config: ModelConfig, parts: _Parts, keeps: bool) -> tuple[jax.Array, ...]:
    """Within one device: what all experts give for its rows [b, t, m], with `keeps` also `activated` and `product` of
    `Fed`, and, where columns of `down` are changed, what those are multiplied with [b, t, w]."""
    tokens = parts.x.shape[:2]
    generated = jnp.zeros(tokens, bool) if parts.generated is None else jnp.broadcast_to(parts.generated, tokens)
    rows = Rows(
        *map(_flat, (parts.x, parts.experts, parts.shares, generated)),
        edit=jax.tree.map(lambda leaf: leaf[None], parts.edit),
        edit_of=jnp.zeros(generated.size, jnp.int32),
        added={name: _flat(of_each) for name, of_each in parts.added.items()},
    )
    if keeps:
        results = _over_devices(config, parts.weights, rows, partial(every_expert, config, indices=parts.indices))
    else:
        results = (sum_of_experts(config, parts.weights, rows),)
    return tuple(each.reshape(*tokens, *each.shape[1:]) for each in results)


def _flat(of_tokens: jax.Array) -> jax.Array:
    """[b, t, ...] -> [n, ...]"""
    return of_tokens.reshape(-1, *of_tokens.shape[2:])


# Weights, rows and the first expert that is held (None: all are) -> what is to be added up over devices, each [n, ...].
_OfHeld = Callable[[Weights, Rows, jax.Array | None], tuple[jax.Array, ...]]


def _over_devices(config: ModelConfig, w: Weights, rows: Rows, of_held: _OfHeld) -> tuple[jax.Array, ...]:
    """Within one device: what `of_held` gives for its rows, added up over the devices that share the experts out.

    Devices along `expert` may have the same rows, where a batch does not split: then each computes those of all."""
    held = w["up"].shape[0]
    if held == config.num_experts:
        return of_held(w, rows, None)
    first, several = held * jax.lax.axis_index((MODEL, EXPERT)), size_here(EXPERT) > 1
    results = of_held(w, _of_all(config, rows) if several else rows, first)
    if several:
        results = tuple(jax.lax.psum_scatter(each, EXPERT, tiled=True) for each in results)
    return tuple(jax.lax.psum(each, MODEL) for each in results)


def _of_all(config: ModelConfig, rows: Rows) -> Rows:
    """The rows of every device along `expert`, one device's after the other's. Rows may each have an edit of their own,
    so edits go with them: of what is done to neurons, that for this device's experts alone."""
    size, width, edits = size_here(EXPERT), config.ffn_width // size_here(MODEL), jax.tree.leaves(rows.edit)[0].shape[0]

    def gather(leaf: jax.Array) -> jax.Array:
        return jax.lax.all_gather(leaf, EXPERT, tiled=True)

    def of_edit(leaf: jax.Array) -> jax.Array:
        if leaf.shape != (edits, width):
            return gather(leaf)
        to_each = jnp.moveaxis(leaf.reshape(edits, size, -1), 1, 0)
        return jax.lax.all_to_all(to_each, EXPERT, 0, 0).reshape(size * edits, -1)

    of_each = {name: jax.tree.map(gather, value) for name, value in rows._asdict().items() if name != "edit"}
    of_each["edit_of"] += edits * jnp.repeat(jnp.arange(size, dtype=jnp.int32), rows.edit_of.shape[0])
    return Rows(edit=jax.tree.map(of_edit, rows.edit), **of_each)


def _numbered(rows: Rows, held: int, first: jax.Array | None) -> jax.Array:
    """The experts of rows, int32 [n, k], numbered from the first that is held; those that are not have the number
    e, one after the last."""
    if first is None:
        return rows.experts
    here = (rows.experts >= first) & (rows.experts < first + held)
    return jnp.where(here, rows.experts - first, held)


def every_expert(
    config: ModelConfig, w: Weights, rows: Rows, first: jax.Array | None, indices: Mapping[str, jax.Array] = _NONE
) -> tuple[jax.Array, ...]:
    """The sum of what the experts give [n, m], act(gate) and its product with up [n, k, f] of each; 0 for experts that
    are not held. The definition of `sum_of_experts`. indices: int32 [w] of changed rows and columns; where there are
    some of `down`, what those are multiplied with [n, w] comes last."""
    held = w["up"].shape[0]
    experts = _numbered(rows, held, first)
    names = ("gate", "up") if config.gated else ("up",)
    products = expert_products(rows.x, experts, tuple(w[name] for name in names))
    inner: dict[str, jax.Array] = dict(zip(names, products, strict=True))
    for name, added in rows.added.items():
        inner[name] = add_expert_rows(inner[name][None], rows.experts[None], indices[name], added[None])[0]
    if config.mlp_bias:
        inner = {name: out + w[f"{name}_bias"][experts] for name, out in inner.items()}
    here = (experts < held)[..., None]
    edit, lay_out = _edit_at(rows, held, rows.edit_of[:, None], experts)
    both = gated(config, w, edit, rows.generated, inner.get("gate"), inner["up"], lay_out)
    activated, h = (jnp.where(here, each, 0.0) for each in both)
    (out,) = expert_products(h.reshape(-1, h.shape[-1]), experts.reshape(-1, 1), (w["down"],))
    out = out.reshape(*experts.shape, -1)
    if config.mlp_bias:
        out = jnp.where(here, out + w["down_bias"][experts], 0.0)
    results = (_weighted(out, rows.shares), activated, h)
    if "down" not in indices:
        return results
    return *results, changed_columns(h[None], rows.experts[None], rows.shares[None], indices["down"])[0]


def _weighted(out: jax.Array, shares: jax.Array) -> jax.Array:
    return jnp.einsum("nkm,nk->nm", out, shares, precision=jax.lax.Precision.HIGHEST)


def _edit_at(
    rows: Rows, held: int, edit_of: jax.Array, experts: jax.Array
) -> tuple[Edit, Callable[[jax.Array], jax.Array]]:
    """The edit of rows, and how it is laid out: what it has per neuron is taken for the experts alone."""
    of_rows = edit_of.reshape(edit_of.shape[0])

    def lay_out(of_each: jax.Array) -> jax.Array:
        return of_each.reshape(of_each.shape[0], held, -1)[edit_of, jnp.minimum(experts, held - 1)]

    return jax.tree.map(lambda leaf: leaf[of_rows] if leaf.ndim == 1 else leaf, rows.edit), lay_out


def sum_of_experts(config: ModelConfig, w: Weights, rows: Rows) -> jax.Array:
    """Within one device: the sum of what all experts give, each times its share [n, m], in as much memory as the rows
    of the experts that the device holds take, in whatever order they come and however many there are: they are sorted
    by expert and go through in blocks of one shape. Differentiable backwards, where `every_expert` is computed."""
    assert not rows.added, "changed rows are added by `every_expert` alone"
    return _differentiable(config, w, rows)


@partial(jax.custom_vjp, nondiff_argnums=(0,))
def _differentiable(config: ModelConfig, w: Weights, rows: Rows) -> jax.Array:
    return _of_several(config)(w, rows)


def _forward(config: ModelConfig, w: Weights, rows: Rows) -> tuple[jax.Array, Any]:
    return _differentiable(config, w, rows), (w, rows)


def _backward(config: ModelConfig, kept: Any, above: jax.Array) -> tuple[Any, ...]:
    def definition(w: Weights, rows: Rows) -> jax.Array:
        return _over_devices(config, w, rows, partial(every_expert, config))[0]

    return jax.vjp(definition, *kept)[1](above)


_differentiable.defvjp(_forward, _backward)


def _of_several(config: ModelConfig) -> Any:
    """The rows that a `vmap` has several of, all together: the weights are the same."""
    op = custom_vmap(lambda w, rows: _over_devices(config, w, rows, partial(sum_of_held, config))[0])

    @op.def_vmap
    def rule(size: int, batched: Any, w: Weights, rows: Rows) -> tuple[jax.Array, bool]:
        of_w, of_rows = batched

        def spread(leaf: jax.Array, own: bool) -> jax.Array:
            return leaf if own else jnp.broadcast_to(leaf[None], (size, *leaf.shape))

        if any(jax.tree.leaves(of_w)):
            each = jax.tree.map(spread, (w, rows), (of_w, of_rows))
            return jax.lax.map(lambda args: op(*args), each), True
        edit, edit_of = rows.edit, spread(rows.edit_of, of_rows.edit_of)
        if any(jax.tree.leaves(of_rows.edit)):
            edit = jax.tree.map(spread, edit, of_rows.edit)
            edits = jax.tree.leaves(edit)[0].shape[1]
            edit = jax.tree.map(lambda leaf: leaf.reshape(size * edits, *leaf.shape[2:]), edit)
            edit_of = edit_of + edits * jnp.arange(size, dtype=edit_of.dtype)[:, None]
        names = ("x", "experts", "shares", "generated")
        flat = {name: spread(getattr(rows, name), getattr(of_rows, name)) for name in names} | {"edit_of": edit_of}
        together = Rows(edit=edit, added={}, **{name: leaf.reshape(-1, *leaf.shape[2:]) for name, leaf in flat.items()})
        return op(w, together).reshape(size, -1, rows.x.shape[-1]), True

    return op


def sum_of_held(config: ModelConfig, w: Weights, rows: Rows, first: jax.Array | None) -> tuple[jax.Array]:
    """The first of `every_expert`'s results, block by block."""
    held = w["up"].shape[0]
    # As products read it, before it is sent and copied; on one device that gains nothing, and costs on a CPU.
    x = rows.x if first is None else rows.x.astype(w["up"].dtype)
    rows = rows._replace(x=x, experts=_numbered(rows, held, first))
    (number, each), experts = rows.experts.shape, rows.experts.reshape(-1)
    order = jnp.argsort(experts, stable=True).astype(jnp.int32)
    sizes = jnp.bincount(experts, length=held + 1)[:held].astype(jnp.int32)
    block = rows_of_a_block(number * each, held, config.num_experts)
    if block == number * each:
        back = jnp.zeros_like(order).at[order].set(jnp.arange(order.size, dtype=order.dtype))
        out = _of_block(config, w, rows, order, sizes)
        return (_weighted(out[back].reshape(number, each, -1), rows.shares),)
    ends = jnp.cumsum(sizes)
    order = jnp.pad(order, (0, block))  # the last block may reach past the end

    def add(i: jax.Array, total: jax.Array) -> jax.Array:
        begin = i * block
        picked = jax.lax.dynamic_slice_in_dim(order, begin, block)
        within = jnp.clip(ends, begin, begin + block) - jnp.clip(ends - sizes, begin, begin + block)
        out = _of_block(config, w, rows, picked, within)
        return total.at[picked // each].add(out * rows.shares.reshape(-1)[picked][:, None])

    with jax.named_scope(BLOCKS_LOOP):
        blocks = (ends[-1] + block - 1) // block
        return (jax.lax.fori_loop(0, blocks, add, jnp.zeros((number, w["down"].shape[1]), jnp.float32)),)


def rows_of_a_block(rows: int, held: int, experts: int) -> int:
    """How many of so many rows, a token as often as it has experts, go through the experts that a device holds at a
    time; all of them where it holds all experts. An eighth more than an even router needs: a few rows more than that
    take no block of their own."""
    even = -(-9 * rows * held // (8 * experts * _BLOCKS * _BLOCK)) * _BLOCK
    return rows if held == experts else min(rows, even)


def _of_block(config: ModelConfig, w: Weights, rows: Rows, picked: jax.Array, sizes: jax.Array) -> jax.Array:
    """What the experts give [n, m] for `picked`, int32 [n], places in `rows.experts` read row by row, sorted by expert:
    `sizes` [e] for each. Results after the last expert's rows are 0."""
    held, each = w["up"].shape[0], rows.experts.shape[1]
    tokens, experts = picked // each, rows.experts.reshape(-1)[picked]
    names = ("gate", "up") if config.gated else ("up",)
    products = sorted_products(rows.x[tokens], sizes, tuple(w[name] for name in names))
    inner = dict(zip(names, products, strict=True))
    if config.mlp_bias:
        inner = {name: out + w[f"{name}_bias"][experts] for name, out in inner.items()}
    edit, lay_out = _edit_at(rows, held, rows.edit_of[tokens], experts)
    _, h = gated(config, w, edit, rows.generated[tokens], inner.get("gate"), inner["up"], lay_out)
    (out,) = sorted_products(h, sizes, (w["down"],))
    if config.mlp_bias:
        out = out + w["down_bias"][experts]
    return jnp.where((jnp.arange(picked.shape[0]) < sizes.sum())[:, None], out, 0.0)
