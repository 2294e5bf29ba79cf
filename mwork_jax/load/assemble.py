"""From a checkpoint's tensors to the stacked parameters of a `Decoder`."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from mwork_jax.config import ModelConfig
from mwork_jax.errors import InputError
from mwork_jax.families import checkpoint_names
from mwork_jax.families.base import WHOLE_TENSORS
from mwork_jax.load.source import SlicedSource, WeightSource
from mwork_jax.model.decoder import Decoder, ParameterSpec, parameter_specs
from mwork_jax.sharding import sharding

Index = tuple[slice, ...]

# Buffers that some checkpoints carry and that the configuration determines anyway.
_DERIVED = ("rotary_emb.inv_freq", "attn.masked_bias", "attn.bias")


def assemble(
    config: ModelConfig, source: WeightSource, dtype: Any, put: Callable[[str, np.ndarray], jax.Array]
) -> Decoder:
    """Reads every parameter into its stacked form, one after the other, so that little more than the weights is in
    memory.

    put(parameter name, host array) puts one finished parameter on the devices. Raises InputError for a tensor that is
    missing, left over, or of another shape than the configuration says.
    """
    _check_names(config, source)
    arrays = {}
    for name, spec in parameter_specs(config).items():
        arrays[name] = put(name, _parameter(config, source, name, spec.shape, _dtype(spec, dtype)))
    return Decoder(config, arrays)


def assemble_on(config: ModelConfig, source: WeightSource, dtype: Any, mesh: Mesh) -> Decoder:
    """`assemble` onto a mesh, laid out by `sharding.TABLE`. Of a checkpoint that gives parts, every process reads the
    parts that its own devices hold and nothing else; of another, each parameter is whole on the host for a moment."""
    _check_names(config, source)
    arrays = {}
    for name, spec in parameter_specs(config).items():
        if isinstance(source, SlicedSource):
            read = partial(_part, config, source, name, spec.shape, _dtype(spec, dtype))
        else:
            read = _parameter(config, source, name, spec.shape, _dtype(spec, dtype)).__getitem__
        arrays[name] = jax.make_array_from_callback(spec.shape, sharding(mesh, spec.axes, spec.shape), _once(read))  # pyright: ignore[reportArgumentType]
    return Decoder(config, arrays)


def _dtype(spec: ParameterSpec, dtype: Any) -> np.dtype:
    return jnp.dtype(jnp.float32 if spec.keep_float32 else dtype)


def _once(read: Callable[[Index], np.ndarray]) -> Callable[[Index], np.ndarray]:
    """Reads a part once, for all devices of this process that hold it."""
    known: dict[str, np.ndarray] = {}

    def part(index: Index) -> np.ndarray:
        if (key := repr(index)) not in known:
            known[key] = read(index)
        return known[key]

    return part


def _parameter(
    config: ModelConfig, source: WeightSource, name: str, shape: tuple[int, ...], dtype: np.dtype
) -> np.ndarray:
    """One parameter on the host: a tensor of the checkpoint as it is, or the tensors of all layers stacked."""
    names = checkpoint_names(config, name)
    if not name.startswith("layers."):
        return _tensor(source, names[0], shape, dtype).astype(dtype, copy=False)
    stacked = np.empty(shape, dtype)
    for row, tensor_name in zip(stacked, names, strict=True):
        row[...] = _tensor(source, tensor_name, row.shape, dtype)
    return stacked


def _tensor(source: WeightSource, name: str, shape: tuple[int, ...], dtype: np.dtype) -> np.ndarray:
    """One tensor with its heads apart. Raises InputError where the checkpoint has it in a shape that does not fit."""
    tensor = source.read(name, dtype)
    _merged_axis(source, name, tensor.shape, shape)
    return tensor.reshape(shape)


def _part(
    config: ModelConfig, source: SlicedSource, name: str, shape: tuple[int, ...], dtype: np.dtype, index: Index
) -> np.ndarray:
    """A part of one parameter on the host."""
    names = checkpoint_names(config, name)
    if not name.startswith("layers."):
        return _tensor_part(source, names[0], shape, index).astype(dtype, copy=False)
    sizes = [len(range(*s.indices(n))) for s, n in zip(index, shape, strict=True)]
    stacked = np.empty(sizes, dtype)
    for row, tensor_name in zip(stacked, names[index[0]], strict=True):
        row[...] = _tensor_part(source, tensor_name, shape[1:], index[1:])
    return stacked


def _tensor_part(source: SlicedSource, name: str, shape: tuple[int, ...], index: Index) -> np.ndarray:
    """A part of one tensor with its heads apart. Errors as in `_tensor`."""
    bounds = [s.indices(n)[:2] for s, n in zip(index, shape, strict=True)]
    sizes = [end - begin for begin, end in bounds]
    axis = _merged_axis(source, name, source.shape(name), shape)
    if axis is not None:  # a device holds whole heads
        (begin, end), size = bounds[axis], shape[axis + 1]
        bounds[axis : axis + 2] = [(begin * size, end * size)]
    return source.part(name, tuple(slice(*b) for b in bounds)).reshape(sizes)


def _merged_axis(source: WeightSource, name: str, stored: tuple[int, ...], shape: tuple[int, ...]) -> int | None:
    """Which axis of `shape` the checkpoint has as one with the next; None where it has the shape as it is. Raises
    InputError where it has another."""
    merged: dict[tuple[int, ...], int | None] = {}
    if len(shape) == 3:  # q [h, k, m] is [h*k, m] in a checkpoint, o [m, h, k] is [m, h*k]
        merged = {(shape[0], shape[1] * shape[2]): 1, (shape[0] * shape[1], shape[2]): 0}
    if len(shape) == 2:
        merged = {(shape[0] * shape[1],): 0}
    merged[shape] = None
    if tuple(stored) not in merged:
        raise InputError(f"{source.where}: {name} has shape {tuple(stored)}, the configuration needs {shape}")
    return merged[tuple(stored)]


def _check_names(config: ModelConfig, source: WeightSource) -> None:
    needed = {n for parameter in parameter_specs(config) for n in checkpoint_names(config, parameter)}
    present = source.names()
    missing = sorted(needed - present)
    if missing:
        raise InputError(f"{source.where}: {_first_names(missing)} missing; is it complete, and of this config?")
    extra = sorted(n for n in present - needed if not n.endswith(_DERIVED) and not _tied_copy(config, n))
    if extra:
        raise InputError(
            f"{source.where}: {_first_names(extra)} in the checkpoint that the configuration does not explain"
        )


def _tied_copy(config: ModelConfig, name: str) -> bool:
    return config.tie_embeddings and name == WHOLE_TENSORS["head"]


def _first_names(names: list[str]) -> str:
    shown: Iterator[str] = iter(names[:3])
    return f"tensors {', '.join(shown)}" + (f" and {len(names) - 3} more" if len(names) > 3 else "")
