"""Interventions: what is done to a model's activations while it reads and writes, as arrays that a program takes.

A mask multiplies neurons by 0 or 1. An intervention does what the papers after PLND do: scale a neuron, put a value in
its place or add one to it (language arithmetics, amplification, patching), or add a vector to the residual stream
(steering). Each of them is an affine map of an activation, so one compiled program serves them all, side by side.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from mwork_jax.config import ModelConfig
from mwork_jax.errors import InputError, whole_number
from mwork_jax.neurons import ATTENTION_GROUPS, FFN_GROUPS, LayOut, NeuronMask, NeuronSet, group_widths
from mwork_jax.sharding import known_values, put

PLACES = ("neuron", "gate")  # where a feed-forward neuron can be changed
PARTS = ("prompt", "generated", "all")  # of a text, where an intervention acts
Array = jax.Array | np.ndarray  # made on the host, traced in a program
Values = float | jax.Array | Mapping[str, Any]  # a number, or {group: float32 [layers, width]}


class Sites(NamedTuple):
    """One array per place where activations are changed, each float32 [layers, width].

    attn_q [H*d], attn_k and attn_v [G*d]: the projections' outputs, biases included, before norms and RoPE.
    gate [F]: act(gate), before it multiplies up; neuron [F]: the product act(gate) * up. Where a family has no gate,
    both are act(up), `gate` first.
    """

    attn_q: Any
    attn_k: Any
    attn_v: Any
    gate: Any
    neuron: Any


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Intervention:
    """What is done to activations: a pytree that stands wherever a NeuronMask stands. Each method gives a new one, with
    one more change after those that are there.

    An activation x becomes x * factors + offsets of its site; `steering` float32 [layers, hidden] is added to the
    residual stream that leaves each layer. on_prompt and on_generated, bool [layers], say whether that happens at the
    tokens of the prompt, and at those after it. Text that is only read, as a held-out document is, is prompt to its
    end; a continuation whose likelihood is measured counts as generated.
    """

    factors: Sites
    offsets: Sites
    steering: Array
    on_prompt: Array
    on_generated: Array

    @classmethod
    def none(cls, config: ModelConfig) -> Intervention:
        """The intervention that changes nothing."""
        widths = group_widths(config)
        sizes = [widths[group] for group in (*ATTENTION_GROUPS, "ffn_up", "ffn_up")]
        acts = np.ones(config.num_layers, bool)
        return cls(
            Sites(*(np.ones((config.num_layers, size), np.float32) for size in sizes)),
            Sites(*(np.zeros((config.num_layers, size), np.float32) for size in sizes)),
            np.zeros((config.num_layers, config.hidden_size), np.float32),
            acts,
            acts,
        )

    @classmethod
    def from_mask(cls, mask: NeuronMask) -> Intervention:
        """The intervention that does what a mask does. A mask does not know how wide the residual stream is: `steering`
        has width 1 here until a vector is added."""
        if not isinstance(mask, NeuronMask):
            raise InputError(f"from_mask: a {type(mask).__name__} is no NeuronMask")
        own = jax.tree.map(_on_host, mask)
        both = own.ffn_up * own.ffn_down
        nothing = Sites(*(np.zeros(np.shape(x), np.float32) for x in (own.attn_q, own.attn_k, own.attn_v, both, both)))
        factors = Sites(own.attn_q, own.attn_k, own.attn_v, np.ones(np.shape(both), np.float32), both)
        acts = np.ones(np.shape(both)[:-1], bool)
        return cls(factors, nothing, np.zeros((*acts.shape, 1), np.float32), acts, acts)

    @staticmethod
    def stack(edits: Sequence[NeuronMask | Intervention]) -> Intervention:
        """Several interventions, masks among them, as one with a leading axis, for `jax.vmap`."""
        each = [as_intervention(edit) for edit in edits]
        if not each:
            raise InputError("stack: there are no interventions; at least one is needed")
        width = max(edit.steering.shape[-1] for edit in each)
        return stacked([edit._as_wide_as(width) for edit in each])

    def scale(self, neurons: NeuronSet, factor: float | jax.Array, at: str = "neuron") -> Intervention:
        """With every neuron of the set times `factor`: 0 switches it off, 2 doubles it. Raises InputError for a set of
        another model, and for a factor that is no finite number."""
        factor = _number("factor", factor)
        inside = self._members(neurons, at)
        return self._then({site: _where(m, factor, 1.0) for site, m in inside.items()}, {})

    def replace(self, neurons: NeuronSet, values: Values, at: str = "neuron") -> Intervention:
        """With `values` in place of what the neurons of the set compute: a number, or {group: float32 [layers, width]},
        of which those of the set's neurons are read.

        at: "neuron", the outputs of q, k and v and the product act(gate) * up; or "gate", act(gate), of the set's
        `ffn_up` neurons alone. Raises InputError for a set or values of another shape, a group without values, values
        that are not finite, and for different ones at the two ends of one product.
        """
        inside = self._members(neurons, at)
        given = self._values(neurons, inside, values)
        return self._then({site: _where(m, 0.0, 1.0) for site, m in inside.items()}, given)

    def add(self, neurons: NeuronSet, values: Values, at: str = "neuron") -> Intervention:
        """With `values` added to what the neurons of the set compute; as in `replace`."""
        inside = self._members(neurons, at)
        return self._then({}, self._values(neurons, inside, values))

    def steer(self, layer: int, vector: Any, strength: float | jax.Array = 1.0) -> Intervention:
        """With strength * vector, [hidden], added to the residual stream that leaves `layer`, 0 being the first. Raises
        InputError for a layer outside the model, and for a vector of another width or one that is not finite."""
        layers, width = self.steering.shape[-2:]
        if whole_number("layer", layer, 0) >= layers:
            raise InputError(f"steer: layer {layer} is outside the model, which has layers 0 to {layers - 1}")
        vector = _array("steer: the vector", vector)
        if vector.ndim != 1 or vector.shape[0] != width != 1:
            raise InputError(f"steer: the vector is {list(vector.shape)}; [{width}], as wide as the model, is needed")
        added = _number("strength", strength) * vector
        rows = _where(np.arange(layers)[:, None] == layer, added, 0.0)
        return replace(self, steering=self._as_wide_as(vector.shape[0]).steering + rows)

    def on(self, part: str) -> Intervention:
        """Acting on a part of each text only: "prompt", "generated", or "all" of it."""
        if part not in PARTS:
            raise InputError(f"on: {part!r:.40} is not one of {', '.join(PARTS)}")
        return replace(
            self,
            on_prompt=np.full(self.on_prompt.shape, part != "generated"),
            on_generated=np.full(self.on_generated.shape, part != "prompt"),
        )

    @property
    def fingerprint(self) -> str:
        """A short hash over everything that it does, the same for equal interventions wherever they came from."""
        digest = hashlib.sha256()
        for leaf in jax.tree.leaves(self):
            digest.update(f"{leaf.shape}\n".encode())
            digest.update(np.asarray(leaf).tobytes())
        return digest.hexdigest()[:32]

    def changed_layers(self, generated: bool = True) -> np.ndarray:
        """Whether a layer computes anything else than in the original model: bool [..., layers]; without `generated`,
        of texts in which no token is."""
        changed = np.asarray(self.steering != 0).any(axis=-1)
        for factor, offset in zip(self.factors, self.offsets, strict=True):
            changed |= np.asarray((factor != 1) | (offset != 0)).any(axis=-1)
        return changed & np.asarray(self.on_prompt | self.on_generated if generated else self.on_prompt)

    def applied(self, site: str, x: jax.Array, lay_out: LayOut, generated: jax.Array | None) -> jax.Array:
        """Within one layer: what becomes of the activations x [b, t, ...] of a site. lay_out: brings [width] into a
        shape that x can be multiplied with. generated: bool [b or 1, t], which tokens are not of the prompt; None where
        all are."""
        factor, offset = (lay_out(getattr(each, site)) for each in (self.factors, self.offsets))
        return jnp.where(self._acts(generated, x.ndim), x * factor + offset, x)

    def steered(self, x: jax.Array, generated: jax.Array | None) -> jax.Array:
        """Within one layer: the residual stream x [b, t, hidden] that leaves it."""
        return jnp.where(self._acts(generated, x.ndim), x + self.steering, x)

    def _acts(self, generated: jax.Array | None, ndim: int) -> Array:
        """Whether this layer's intervention acts on each token, with so many axes."""
        if generated is None:
            return self.on_prompt
        acts = jnp.where(generated, self.on_generated, self.on_prompt)
        return acts.reshape(*acts.shape, *(1,) * (ndim - acts.ndim))

    def _as_wide_as(self, width: int) -> Intervention:
        shape = (*self.steering.shape[:-1], width)
        if self.steering.shape == shape:
            return self
        wide = np.broadcast_to if isinstance(self.steering, np.ndarray) else jnp.broadcast_to
        return replace(self, steering=wide(self.steering, shape))

    def _members(self, neurons: NeuronSet, at: str) -> dict[str, np.ndarray]:
        """{site: bool [layers, width]}, the neurons of the set there."""
        if at not in PLACES:
            raise InputError(f"at: {at!r:.40} is not one of {', '.join(PLACES)}")
        if not isinstance(neurons, NeuronSet):
            raise InputError(f"a {type(neurons).__name__} cannot be changed; a NeuronSet is needed")
        groups = neurons.groups
        members = {site: groups[site] for site in ATTENTION_GROUPS}
        members = {"gate": groups["ffn_up"]} if at == "gate" else members | {"neuron": _products(neurons)}
        for site, inside in members.items():
            if (own := getattr(self.factors, site).shape[-2:]) != inside.shape:
                raise InputError(
                    f"neuron set: {site} has {inside.shape[0]} layers x {inside.shape[1]} neurons, "
                    f"the model has {own[0]} x {own[1]}; the set is of another model"
                )
        return members

    def _values(self, neurons: NeuronSet, inside: Mapping[str, np.ndarray], values: Values) -> dict[str, Array]:
        """{site: float32 [layers, width]}, the values at the neurons of the set and 0 elsewhere."""
        if not isinstance(values, Mapping):
            number = _number("values", values)
            return {site: _where(m, number, 0.0) for site, m in inside.items()}
        given = _given(neurons, values)
        chosen = {}
        for site, members in inside.items():
            if not members.any():
                continue
            value = given.get(site) if site in ATTENTION_GROUPS else _of_products(neurons, given)
            if value is None:
                raise InputError(f"values: there are none for {site}, in which the set has neurons")
            chosen[site] = _where(members, value, 0.0)
            if (known := known_values(chosen[site])) is not None and not np.isfinite(known).all():
                raise InputError(f"values: {site} holds NaN or infinity at a neuron of the set")
        return chosen

    def _then(self, factors: Mapping[str, Array], offsets: Mapping[str, Array]) -> Intervention:
        """With another affine map after the one of each site."""
        scaled, shifted = self.factors._asdict(), self.offsets._asdict()
        for site, factor in factors.items():
            scaled[site], shifted[site] = scaled[site] * factor, shifted[site] * factor
        for site, offset in offsets.items():
            shifted[site] = shifted[site] + offset
        return replace(self, factors=Sites(**scaled), offsets=Sites(**shifted))


Edit = NeuronMask | Intervention  # what is done to a model's activations
E = TypeVar("E", NeuronMask, Intervention, Edit)


def as_intervention(edit: Edit) -> Intervention:
    """A mask as an intervention, an intervention as it is. Raises InputError for anything else."""
    if isinstance(edit, Intervention):
        return edit
    if not isinstance(edit, NeuronMask):
        raise InputError(f"a {type(edit).__name__} is no intervention; an Intervention or a NeuronMask is needed")
    return Intervention.from_mask(edit)


def alike(edits: Sequence[Edit], config: ModelConfig) -> list[Edit]:
    """All as masks where all are, else all as interventions of one structure, so that one program serves them."""
    if all(isinstance(edit, NeuronMask) for edit in edits):
        return list(edits)
    return [as_intervention(edit)._as_wide_as(config.hidden_size) for edit in edits]


def stacked(edits: Sequence[E]) -> E:
    """Several that are `alike` as one with a leading axis."""

    def together(*leaves: Any) -> Any:
        return (np if all(isinstance(leaf, np.ndarray) for leaf in leaves) else jnp).stack(leaves)

    return jax.tree.map(together, *edits)


def placed(edit: Edit, mesh: Mesh | None, *leading: str | None) -> Edit:
    """On the devices of a mesh: leading names the axes in front of `layers`."""
    axes = (*leading, "layers")
    if isinstance(edit, NeuronMask):
        return put(edit, mesh, *axes, "neurons")
    return Intervention(
        put(edit.factors, mesh, *axes, "neurons"),
        put(edit.offsets, mesh, *axes, "neurons"),
        put(edit.steering, mesh, *axes, "hidden"),
        put(edit.on_prompt, mesh, *axes),
        put(edit.on_generated, mesh, *axes),
    )


# An intervention is made on the host, where nothing needs to be compiled for it, unless it is made of traced numbers.
def _on_host(array: Any) -> Any:
    known = known_values(array)
    return array if known is None else known


def _where(inside: np.ndarray, value: Any, otherwise: float) -> Any:
    """float32, `value` where `inside`."""
    if known_values(value) is None:
        return jnp.where(inside, value, otherwise)
    return np.where(inside, np.asarray(value, np.float32), np.float32(otherwise))


def _number(name: str, value: Any) -> Any:
    """A number, traced or not. Raises InputError for anything else, and for NaN and infinity."""
    array = _array(name, value)
    if array.ndim:
        raise InputError(f"{name} is {list(array.shape)}; one number is needed")
    return array


def _array(name: str, value: Any) -> Any:
    """float32 [...], finite as far as that is known. Raises InputError for anything else."""
    try:
        array = None if isinstance(value, str | bool) else _as_float32(value)
    except (TypeError, ValueError, OverflowError):
        array = None
    if array is None:
        raise InputError(f"{name} is {value!r:.40}; numbers are needed")
    if (known := known_values(array)) is not None and not np.isfinite(known).all():
        raise InputError(
            f"{name} holds NaN or infinity" if array.ndim else f"{name} is {float(known)}; finite is needed"
        )
    return array


def _as_float32(value: Any) -> Any:
    known = known_values(value)
    return jnp.asarray(value, jnp.float32) if known is None else np.asarray(known, np.float32)


def _products(neurons: NeuronSet) -> np.ndarray:
    """Which products act(gate) * up the set has, by either end: bool [layers, f]."""
    return neurons.groups["ffn_up"] | neurons.groups["ffn_down"]


def _given(neurons: NeuronSet, values: Mapping[str, Any]) -> dict[str, Array]:
    """Values by group, each of the set's shape."""
    given = {}
    for group, value in values.items():
        if group not in neurons.groups:
            raise InputError(f"values: {group!r:.40} is not a neuron group; the groups are {', '.join(neurons.groups)}")
        array, shape = _as_float32(value), neurons.groups[group].shape
        if array.shape != shape:
            raise InputError(f"values: {group} is {list(array.shape)}; {list(shape)} is needed")
        given[group] = array
    return given


def _of_products(neurons: NeuronSet, given: Mapping[str, Array]) -> Array | None:
    """The values of the products: those of `ffn_up` or of `ffn_down`, which are two ends of one. Raises InputError
    where both are given and differ at a neuron of the set."""
    up, down = (given.get(group) for group in FFN_GROUPS)
    if up is None or down is None:
        return down if up is None else up
    ups, downs = (neurons.groups[group] for group in FFN_GROUPS)
    of_up, of_down = known_values(up), known_values(down)
    if of_up is None or of_down is None:
        return jnp.where(ups, up, down)
    differ = (ups & downs) & (of_up != of_down)
    if differ.any():
        layer, index = np.argwhere(differ)[0]
        raise InputError(
            f"values: layer {layer}, neuron {index}: ffn_up says {of_up[layer, index]:g}, "
            f"ffn_down {of_down[layer, index]:g}; they are two ends of one product, which has one value"
        )
    return np.where(ups, of_up, of_down)
