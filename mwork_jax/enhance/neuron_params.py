"""The compact form: a neuron set's rows and columns apart from the model, as one small pytree.

A neuron is a row of W_Q, W_K, W_V, or of both W_gate and W_up, or a column of W_down. The set's neurons of every layer
are gathered at one width per group, padded, with traced indices: neuron sets of other languages, random controls and
seeds share one program and stack for `jax.vmap`. In the forward pass the difference to the model's own values is a
small product beside the frozen one (`changes`), so a gradient and an optimizer state exist for the selection alone.
Biases stay as they are.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from mwork_jax.config import ModelConfig
from mwork_jax.errors import InputError
from mwork_jax.model.decoder import Decoder
from mwork_jax.model.int8 import multiplied_out
from mwork_jax.model.neuron_change import Changes, NeuronChange
from mwork_jax.neurons import GROUPS, NeuronSet, group_widths
from mwork_jax.sharding import constrain

_PARAMETERS = {
    "q": ("attn_q", 1), "k": ("attn_k", 1), "v": ("attn_v", 1), "gate": ("ffn_up", 1), "up": ("ffn_up", 1),
    "down": ("ffn_down", 2),
}  # fmt: skip
_STEP = 8  # widths are multiples of it: sets of about the same size share a program

NeuronParams = dict[str, jax.Array]  # {parameter: float32 [layers, w, hidden]}, one row per row or column of the set
NeuronIndex = dict[str, jax.Array]  # {group: int32 [layers, w]}; an index just past the group is padding


def parameters_of(config: ModelConfig) -> dict[str, tuple[str, int]]:
    """The parameters that hold a group's neurons, and the axis of [layers, out, in] that they lie along."""
    return {name: at for name, at in _PARAMETERS.items() if config.gated or name != "gate"}


def widths(sets: Sequence[NeuronSet]) -> dict[str, int]:
    """How many neurons of each group to make room for in every layer, so that each of the sets fits."""
    most = {g: max(int(counts.max()) for counts in (s.counts()[g] for s in sets)) for g in GROUPS}
    return {g: -(-max(1, n) // _STEP) * _STEP for g, n in most.items()}


def index_of(neurons: NeuronSet, room: Mapping[str, int]) -> NeuronIndex:
    """Where the set's neurons are, layer by layer, padded to `room`."""
    index = {}
    for group, members in neurons.groups.items():
        padded = np.full((members.shape[0], room[group]), members.shape[1], np.int32)
        for row, members_of_layer in zip(padded, members, strict=True):
            positions = np.flatnonzero(members_of_layer)
            row[: positions.size] = positions
        index[group] = jnp.asarray(padded)
    return index


def check_fits(neurons: NeuronSet, decoder: Decoder, where: str) -> None:
    """Raises InputError, which begins with `where`, for a set that is empty or of a model of another shape."""
    if decoder.int8:
        raise InputError(f"{where}: weights in int8 cannot be tuned; load the model without --weights int8")
    if not isinstance(neurons, NeuronSet):
        raise InputError(f"{where}: a {type(neurons).__name__} cannot be tuned; a NeuronSet is needed")
    widths_of_model = group_widths(decoder.config)
    for group, members in neurons.groups.items():
        if members.shape != (decoder.config.num_layers, widths_of_model[group]):
            raise InputError(
                f"{where}: the neuron set's {group} has {members.shape[0]} layers x {members.shape[1]} neurons, the "
                f"model has {decoder.config.num_layers} x {widths_of_model[group]}; the set is of another model"
            )
    if not neurons.count():
        raise InputError(
            f"{where}: the neuron set is empty, so nothing is to be tuned; a looser rule finds more neurons"
        )


def gather(decoder: Decoder, index: NeuronIndex) -> NeuronParams:
    """The values of the neurons at `index`: rows as they are, columns laid down as rows; 0 where there is padding."""

    def taken(name: str, group: str, axis: int) -> jax.Array:
        array = getattr(decoder.layers, name)[...]
        rows = jnp.swapaxes(array, -1, -2) if axis == 2 else array
        rows = rows.reshape(rows.shape[0], -1, rows.shape[-1])
        padded = index[group][:, :, None]
        values = jnp.take_along_axis(rows, padded, axis=1, mode="fill", fill_value=0).astype(jnp.float32)
        return constrain(values, "layers", "tuned", "hidden")

    return {name: taken(name, *at) for name, at in parameters_of(decoder.config).items()}


def scatter(decoder: Decoder, index: NeuronIndex, values: NeuronParams) -> Decoder:
    """A decoder with the neurons at `index` set to `values`, rounded to its dtype; every other bit is the same."""
    arrays = parameter_arrays(decoder)
    layers = jnp.arange(decoder.config.num_layers)[:, None]
    for name, (group, axis) in parameters_of(decoder.config).items():
        arrays[f"layers.{name}"] = with_neurons(arrays[f"layers.{name}"], layers, index[group], values[name], axis)
    return Decoder(decoder.config, arrays)


def changes(index: NeuronIndex, base: NeuronParams, values: NeuronParams) -> Changes:
    """What is to be added to the frozen weights, for `hidden_states`."""
    return {name: NeuronChange(index[_PARAMETERS[name][0]], value - base[name]) for name, value in values.items()}


def parameter_arrays(decoder: Decoder) -> dict[str, jax.Array]:
    """The parameters by their names in `parameter_specs`; matrices that are whole numbers multiplied out."""
    whole = {name: value[...] for name, value in vars(decoder).items() if isinstance(value, nnx.Param)}
    layers = {name: value[...] for name, value in vars(decoder.layers).items() if isinstance(value, nnx.Param)}
    return whole | {f"layers.{name}": array for name, array in multiplied_out(layers, decoder.dtype).items()}


def with_neurons(array: jax.Array, layers: jax.Array, neurons: jax.Array, values: jax.Array, axis: int) -> jax.Array:
    """A parameter of all layers with the rows (axis 1) or columns (axis 2) of some neurons set to values [..., out or
    in], which are rounded to its dtype. layers and neurons: int32, of one shape [...] or shapes that broadcast; one
    beyond the last neuron is left out."""
    size = array.shape[-1] if axis == 2 else array.shape[-2]
    with_experts = array.ndim == 4 and axis == 2
    new = values.astype(array.dtype)
    if with_experts:  # [layers, experts, out, in]: neurons count through the experts
        return array.at[layers, neurons // size, :, neurons % size].set(new, mode="drop")
    matrix = array.reshape(array.shape[0], -1, array.shape[-1])
    # An index array on both sides of a slice puts its own axes first: [..., out] for columns too.
    at = (layers, neurons) if axis == 1 else (layers, slice(None), neurons)
    return matrix.at[at].set(new, mode="drop").reshape(array.shape)
