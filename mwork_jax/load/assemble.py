"""From a checkpoint's tensors to the stacked parameters of a `Decoder`."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh

from mwork_jax.config import ModelConfig
from mwork_jax.errors import InputError
from mwork_jax.families import FAMILIES, checkpoint_names
from mwork_jax.load.names import with_usual_names
from mwork_jax.load.source import SlicedSource, WeightSource
from mwork_jax.model.decoder import Decoder
from mwork_jax.model.int8 import FACTOR, INPUT_AXES, quantised
from mwork_jax.model.parameters import parameter_specs
from mwork_jax.sharding import sharding

Index = tuple[slice, ...]

# Buffers that some checkpoints carry and that the configuration determines anyway.
_DERIVED = ("rotary_emb.inv_freq", "attn.masked_bias", "attn.bias")


# By the bytes of a float: the whole numbers of that size, and infinity as one (bfloat16's for two bytes).
_EXPONENTS = {2: (np.uint16, 0x7F80), 4: (np.uint32, 0x7F800000), 8: (np.uint64, 0x7FF0000000000000)}
_WITHOUT_SIGN = {np.uint16: np.uint16(0x7FFF), np.uint32: np.uint32(0x7FFFFFFF), np.uint64: np.uint64(2**63 - 1)}
_ROWS = 4096  # of the vocabulary, compared together
_AT_ONCE = 1 << 20  # values looked at together: they fit a cache


def assemble(
    config: ModelConfig,
    source: WeightSource,
    dtype: Any,
    put: Callable[[str, np.ndarray], jax.Array],
    int8: bool = False,
) -> Decoder:
    """Reads every parameter into its stacked form, one after the other, so that little more than the weights is in
    memory; int8: with the layers' matrices as whole numbers.

    put(parameter name, host array) puts one finished parameter on the devices. Raises InputError for a tensor that is
    missing, left over, or of another shape than the configuration says.
    """
    source = _checked(config, source)
    arrays = {}
    for name, spec in parameter_specs(config).items():
        arrays |= _stored(name, put(name, _parameter(config, source, name, spec.shape, spec.stored_in(dtype))), int8)
    return Decoder(config, arrays)


def assemble_on(config: ModelConfig, source: WeightSource, dtype: Any, mesh: Mesh, int8: bool = False) -> Decoder:
    """`assemble` onto a mesh, laid out by `sharding.TABLE`. Of a checkpoint that gives parts, every process reads the
    parts that its own devices hold and nothing else; of another, each parameter is whole on the host for a moment."""
    source = _checked(config, source)
    arrays = {}
    for name, spec in parameter_specs(config).items():
        if isinstance(source, SlicedSource):
            read = partial(_part, config, source, name, spec.shape, spec.stored_in(dtype))
        else:
            read = _parameter(config, source, name, spec.shape, spec.stored_in(dtype)).__getitem__
        array = jax.make_array_from_callback(spec.shape, sharding(mesh, spec.axes, spec.shape), _once(read))  # pyright: ignore[reportArgumentType]
        arrays |= _stored(name, array, int8)
    return Decoder(config, arrays)


def _stored(name: str, array: jax.Array, int8: bool) -> dict[str, jax.Array]:
    """A parameter as the decoder keeps it: a matrix of the layers as whole numbers and factors where `int8`."""
    inputs = INPUT_AXES.get(name.removeprefix("layers.")) if int8 and name.startswith("layers.") else None
    if inputs is None:
        return {name: array}
    whole, factor = _quantised(array, inputs)
    return {name: whole, f"{name}{FACTOR}": factor}


_quantised = jax.jit(quantised, static_argnums=1)


def _checked(config: ModelConfig, source: WeightSource) -> WeightSource:
    source = with_usual_names(config, source)
    _check_names(config, source)
    _check_tied(config, source)
    return source


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
    first = _tensor(source, names[0], shape[1:], dtype)  # before anything of that size is asked for
    stacked = np.empty(shape, dtype)
    stacked[0] = first
    for layer, tensor_name in enumerate(names[1:], 1):
        stacked[layer] = _tensor(source, tensor_name, shape[1:], dtype)
    return stacked


def _tensor(source: WeightSource, name: str, shape: tuple[int, ...], dtype: np.dtype) -> np.ndarray:
    """One tensor with its heads apart. Raises InputError where the checkpoint has it in a shape that does not fit."""
    tensor = source.read(name, dtype)
    _merged_axis(source, name, tensor.shape, shape)
    _check_finite(source, name, tensor, dtype)
    return tensor.reshape(shape)


def _part(
    config: ModelConfig, source: SlicedSource, name: str, shape: tuple[int, ...], dtype: np.dtype, index: Index
) -> np.ndarray:
    """A part of one parameter on the host."""
    names = checkpoint_names(config, name)
    if not name.startswith("layers."):
        return _tensor_part(source, names[0], shape, index, dtype).astype(dtype, copy=False)
    sizes = [len(range(*s.indices(n))) for s, n in zip(index, shape, strict=True)]
    stacked = np.empty(sizes, dtype)
    for layer, tensor_name in enumerate(names[index[0]]):
        stacked[layer] = _tensor_part(source, tensor_name, shape[1:], index[1:], dtype)
    return stacked


def _tensor_part(source: SlicedSource, name: str, shape: tuple[int, ...], index: Index, dtype: np.dtype) -> np.ndarray:
    """A part of one tensor with its heads apart. Errors as in `_tensor`."""
    bounds = [s.indices(n)[:2] for s, n in zip(index, shape, strict=True)]
    sizes = [end - begin for begin, end in bounds]
    axis = _merged_axis(source, name, source.shape(name), shape)
    if axis is not None:  # a device holds whole heads
        (begin, end), size = bounds[axis], shape[axis + 1]
        bounds[axis : axis + 2] = [(begin * size, end * size)]
    part = source.part(name, tuple(slice(*b) for b in bounds))
    _check_finite(source, name, part, dtype)
    return part.reshape(sizes)


def _check_finite(source: WeightSource, name: str, values: np.ndarray, dtype: np.dtype) -> None:
    """Raises InputError where a value is NaN or infinite, or becomes so in `dtype`: each would make some results wrong
    without a word. Read from the exponents' bits, as arithmetic on 16-bit floats is slow on the host."""
    unsigned, infinity = _EXPONENTS[values.dtype.itemsize]
    infinity = infinity if values.dtype != np.float16 else 0x7C00
    bits = np.ascontiguousarray(values).reshape(-1).view(unsigned)
    chunks = (bits[begin : begin + _AT_ONCE] for begin in range(0, bits.size, _AT_ONCE))
    largest = max((int((chunk & _WITHOUT_SIGN[unsigned]).max()) for chunk in chunks), default=0)
    if largest >= infinity:
        raise InputError(f"{source.where}: {name} holds NaN or infinity; the weights are damaged")
    if values.dtype.itemsize > 2 and values.dtype != dtype:
        extreme = np.asarray(largest, unsigned).view(values.dtype)
        with np.errstate(over="ignore"):
            becomes = float(extreme.astype(dtype))
        if not np.isfinite(becomes):
            raise InputError(f"{source.where}: {name} holds {extreme:g}, which {np.dtype(dtype).name} does not have")


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
    return config.tie_embeddings and name == FAMILIES[config.family].whole_tensors["head"]


def _check_tied(config: ModelConfig, source: WeightSource) -> None:
    """Raises InputError for a head that differs from the embedding which the configuration says it is."""
    whole = FAMILIES[config.family].whole_tensors
    embed, head = whole["embed"], whole["head"]
    if not config.tie_embeddings or head not in source.names():
        return
    readers = [_rows(source, name) for name in (embed, head)]
    for begin in range(0, config.vocab_size, _ROWS):
        index = slice(begin, min(begin + _ROWS, config.vocab_size)), slice(0, config.hidden_size)
        one, other = (read(index) for read in readers)
        if not np.array_equal(one, other):
            raise InputError(
                f"{source.where}: tie_word_embeddings is true, but {head} differs from {embed}; which holds? Remove "
                "the tensor, or set tie_word_embeddings to false"
            )


def _rows(source: WeightSource, name: str) -> Callable[[Index], np.ndarray]:
    """Reads parts of a tensor; of a checkpoint that gives only whole ones it is read once."""
    return partial(source.part, name) if isinstance(source, SlicedSource) else source.read(name).__getitem__


def _first_names(names: list[str]) -> str:
    shown: Iterator[str] = iter(names[:3])
    return f"tensors {', '.join(shown)}" + (f" and {len(names) - 3} more" if len(names) > 3 else "")
