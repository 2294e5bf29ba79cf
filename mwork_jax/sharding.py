"""How arrays are laid out on the devices: one table from the names of axes to the axes of a mesh.

A mesh has four axes. `data` shares out documents, prompts and rows of a batch, `mask` shares out masks and tuning
runs, `model` shares out the weights. `expert` shares out the experts of a mixture, and rows as `data` does: a device
computes its experts for the rows of all that share them, and everything else for its own rows. The layout of every
array follows from this table. An axis that is not shared out, or that does not split evenly, is whole on every device,
which is always right and only costs memory. A name that is not in the table is an error: taken for an axis that is not
shared out, a typing error would go unnoticed.

GSPMD does the rest: programs are written for whole arrays, and the compiler adds the communication.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from math import prod
from typing import Any

import jax
import numpy as np
from jax.core import Tracer
from jax.custom_batching import custom_vmap
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from mwork_jax.errors import InputError

_PROMOTION = (
    ("jax_numpy_rank_promotion", "allow", jax.numpy_rank_promotion),
    ("jax_numpy_dtype_promotion", "standard", jax.numpy_dtype_promotion),
)
DATA, MODEL, MASK, EXPERT = MESH_AXES = ("data", "model", "mask", "expert")

# The logical axes and the mesh axis that shares each out; None where every device holds the whole axis.
TABLE: Mapping[str, str | tuple[str, ...] | None] = {
    # parameters (`model.parameters.parameter_specs`), and what is computed with one entry per head or feed-forward unit
    "vocab": MODEL,
    "heads": MODEL,
    "kv_heads": MODEL,
    "ffn": MODEL,
    "experts": (MODEL, EXPERT),  # in this order: the neurons of a device's part of `model` lie side by side
    # masks, scores and order statistics: one entry per neuron of a layer and group
    "neurons": MODEL,
    "score_layers": MODEL,  # ranks are taken within a layer, so scores are shared out by layers
    "tuned": MODEL,  # the rows and columns that tuning gathers, and what is computed with one entry for each
    # activations, caches and batches
    "batch": (DATA, EXPERT),
    "shards": (DATA, EXPERT),  # one running result for each part of the documents
    "slots": (MASK, DATA, EXPERT),  # rows with a mask of each its own
    # what runs side by side through one program
    "masks": MASK,
    "runs": MASK,
    # what no device shares out
    "layers": None,
    "time": None,
    "hidden": None,
    "head_dim": None,
    "expert_ffn": None,  # the units of one expert, which is whole on a device
    "kept": None,  # documents that order statistics remember per neuron
    "width": None,  # neurons of a layer and group where `score_layers` is shared out; an activation's one parameter
    "positions": None,
}


def make_mesh(shape: Mapping[str, int] | None = None, devices: Sequence[Any] | None = None) -> Mesh:
    """A mesh over devices (by default all of them). shape: {axis: size}; an axis that is missing has size 1, and
    without any axis all devices are on `data`. Raises InputError where the sizes do not multiply to the devices."""
    devices = jax.devices() if devices is None else list(devices)
    if unknown := sorted(map(str, set(shape or ()) - set(MESH_AXES))):
        raise InputError(f"mesh axis {unknown[0]!r:.40} is not one of {', '.join(MESH_AXES)}")
    given = shape or {DATA: len(devices)}
    sizes = [given.get(axis, 1) for axis in MESH_AXES]
    if prod(sizes) != len(devices):
        requested = ",".join(f"{axis}={size}" for axis, size in given.items())
        raise InputError(f"mesh {requested}: that is {prod(sizes)} devices, there are {len(devices)}")
    # The last axis is the one whose devices lie closest together: the model's communication is the heaviest.
    order = (MASK, DATA, EXPERT, MODEL)
    grid = np.asarray(devices, object).reshape([sizes[MESH_AXES.index(axis)] for axis in order])
    return Mesh(grid, order, axis_types=(AxisType.Auto,) * len(order))


def default_shape(own: Any, count: int, weights: int, given: int | None = None) -> dict[str, int]:
    """All `count` devices on `data`; where weights of so many bytes would take more than half of a device's memory, as
    few on `model` as hold them. own: one of this process's devices, as a process knows the memory of no other's;
    given: bytes of it that may be used, in place of all."""
    memory = given or ((own.memory_stats() or {}).get("bytes_limit", 0) if own.platform != "cpu" else 0)
    model = 1
    while memory and weights / model > memory / 2 and count % (2 * model) == 0:
        model *= 2
    return {DATA: count // model, MODEL: model}


def parse_mesh(text: str) -> dict[str, int]:
    """`data=4,model=2` as {axis: size}. Raises InputError for anything else."""
    shape: dict[str, int] = {}
    for part in text.split(","):
        axis, equals, size = (word.strip() for word in part.partition("="))
        if axis not in MESH_AXES or not equals or not size.isdecimal() or int(size) < 1 or axis in shape:
            known = ", ".join(f"{name}=N" for name in MESH_AXES)
            raise InputError(f"--mesh {text}: {part!r} is not one of {known}, each at most once")
        shape[axis] = int(size)
    return shape


def mesh_axes(axis: str | None) -> tuple[str, ...]:
    """The mesh axes that share out a logical axis, none where no device does. Raises ValueError for a name that is not
    in TABLE."""
    if axis is not None and axis not in TABLE:
        raise ValueError(f"no logical axis {axis!r}; sharding.TABLE has {', '.join(TABLE)}")
    shared_by = None if axis is None else TABLE[axis]
    return (shared_by,) if isinstance(shared_by, str) else shared_by or ()


def spec(mesh: Any, axes: Sequence[str | None], shape: Sequence[int]) -> PartitionSpec:
    """How an array of this shape is laid out, its axes named as in TABLE; an axis named None is not shared out. Raises
    ValueError for a name that is not in TABLE."""
    used: set[str] = set()
    entries: list[str | tuple[str, ...] | None] = []
    for name, size in zip(axes, shape, strict=True):
        shared_by = tuple(axis for axis in mesh_axes(name) if mesh.shape[axis] > 1)
        if not shared_by or used.intersection(shared_by) or size % prod(mesh.shape[axis] for axis in shared_by):
            entries.append(None)
        else:
            used.update(shared_by)
            entries.append(shared_by[0] if len(shared_by) == 1 else shared_by)
    return PartitionSpec(*entries)


def sharding(mesh: Mesh, axes: Sequence[str | None], shape: Sequence[int]) -> NamedSharding:
    """`spec` as the sharding of an array on this mesh."""
    return NamedSharding(mesh, spec(mesh, axes, shape))


def mesh_of(tree: Any) -> Mesh | None:
    """The mesh that the arrays of a pytree lie on, or None where they are on one device without a mesh."""
    for leaf in jax.tree.leaves(tree):
        layout = getattr(leaf, "sharding", None)
        if isinstance(layout, NamedSharding) and set(layout.mesh.axis_names) == set(MESH_AXES):
            return layout.mesh if isinstance(layout.mesh, Mesh) else None
    return None


@contextmanager
def on_mesh_of(tree: Any) -> Iterator[None]:
    """A block for programs over these arrays: `constrain` means their mesh, where they have one, and ranks and dtypes
    are promoted as our programs are written, whatever the caller has JAX refuse in programs of its own."""
    mesh = mesh_of(tree)
    with ExitStack() as block:
        if mesh is not None:
            block.enter_context(jax.set_mesh(mesh))
        # Only where they are otherwise: JAX compiles anew for a setting that is made explicitly.
        for flag, usual, setting in _PROMOTION:
            if getattr(jax.config, flag) != usual:
                block.enter_context(setting(usual))
        yield


def constrain(x: jax.Array, *axes: str | None) -> jax.Array:
    """Within a program: x, laid out as TABLE says for its axes. Outside of a mesh, x as it is. Raises ValueError for a
    name that is not in TABLE, with a mesh or without."""
    mesh = jax.sharding.get_abstract_mesh()
    if mesh.empty or set(mesh.axis_names) != set(MESH_AXES):
        _check_names(axes)
        return x
    return jax.lax.with_sharding_constraint(x, spec(mesh, axes, x.shape))


def _check_names(axes: Sequence[str | None]) -> None:
    for axis in axes:
        mesh_axes(axis)


def size_of(mesh: Mesh | None, axis: str) -> int:
    """How many devices share an axis of the mesh; 1 without a mesh."""
    return 1 if mesh is None else mesh.shape[axis]


def parts_of(mesh: Mesh | None, axis: str) -> int:
    """Into how many parts TABLE shares out a logical axis on the mesh, where it splits evenly; 1 without a mesh."""
    return prod(size_of(mesh, each) for each in mesh_axes(axis))


def size_here(axis: str) -> int:
    """Within a program: how many devices share an axis of the mesh; 1 without a mesh."""
    mesh = jax.sharding.get_abstract_mesh()
    return 1 if mesh.empty else mesh.shape[axis]


def num_shards(axis: str, size: int) -> int:
    """Within a program: over how many devices TABLE shares out an axis of this size. Raises ValueError for a name that
    is not in TABLE."""
    mesh, shared_by = jax.sharding.get_abstract_mesh(), mesh_axes(axis)
    count = 1 if mesh.empty else prod(mesh.shape.get(each, 1) for each in shared_by)
    return count if size % count == 0 else 1


def vmap_axis(axis: str, size: int) -> str | tuple[str, ...] | None:
    """Within a program: the `spmd_axis_name` of a `jax.vmap` over a logical axis of this size, so that what `constrain`
    and `per_device` do inside is shared out over its devices too; None where it is not. Raises ValueError for a name
    that is not in TABLE."""
    if num_shards(axis, size) == 1:
        return None
    shape = jax.sharding.get_abstract_mesh().shape
    shared_by = tuple(each for each in mesh_axes(axis) if shape[each] > 1)
    return shared_by[0] if len(shared_by) == 1 else shared_by


def per_device(
    function: Callable[..., Any], inputs: Sequence[Any], in_axes: Sequence[Any], out_axes: Any, out_shapes: Any
) -> Any:
    """Within a program: function(*inputs), each device on its own part, for functions that the compiler cannot split
    itself (kernels, loops over what is shared out). The axes are named as in `constrain`, None for an input that is
    None; the parts must not depend on each other."""
    mesh = jax.sharding.get_abstract_mesh()
    if mesh.empty or set(mesh.axis_names) != set(MESH_AXES):
        _check_names([axis for axes in (*in_axes, *out_axes) for axis in axes])
        return function(*inputs)
    present = [(x, axes) for x, axes in zip(inputs, in_axes, strict=True) if x is not None]

    def on_one_device(*parts: jax.Array) -> Any:
        rest = iter(parts)
        return function(*(None if x is None else next(rest) for x in inputs))

    in_specs = tuple(spec(mesh, axes, x.shape) for x, axes in present)
    out_specs = tuple(spec(mesh, axes, shape) for axes, shape in zip(out_axes, out_shapes, strict=True))
    mapped = jax.shard_map(on_one_device, mesh=mesh, in_specs=in_specs, out_specs=out_specs, check_vma=False)
    return mapped(*(x for x, _ in present))


def per_device_over(
    axis: str, function: Callable[..., Any], inputs: Sequence[Any], in_axes: Sequence[Any], out_axes: Any, shapes: Any
) -> Any:
    """`per_device` within one `jax.vmap` over a logical axis that shares devices with `in_axes`: JAX refuses that with
    `vmap_axis`. All inputs are arrays. Not differentiable."""

    @custom_vmap
    def mapped(*inputs: jax.Array) -> Any:
        return per_device(function, inputs, in_axes, out_axes, shapes)

    @mapped.def_vmap
    def of_all(size: int, batched: Sequence[bool], *inputs: jax.Array) -> tuple[Any, Any]:
        several = jax.vmap(function, in_axes=[0 if own else None for own in batched])
        axes = [(axis, *of) if own else of for of, own in zip(in_axes, batched, strict=True)]
        results = per_device(several, inputs, axes, [(axis, *of) for of in out_axes], [(size, *of) for of in shapes])
        return results, tuple(True for _ in results)

    return mapped(*inputs)


def put(tree: Any, mesh: Mesh | None, *axes: str | None) -> Any:
    """Host arrays on the devices, every leaf with these axes; as they are without a mesh. Of several processes each
    puts the parts there that its own devices hold; all of them must give the same arrays. Raises ValueError for a name
    that is not in TABLE, with a mesh or without."""
    if mesh is None:
        _check_names(axes)
        return tree

    def one(x: Any) -> jax.Array:
        if isinstance(x, jax.Array) and mesh_of(x) is not None:
            return jax.device_put(x, sharding(mesh, axes, x.shape))
        host = np.asarray(x)
        return jax.make_array_from_callback(host.shape, sharding(mesh, axes, host.shape), lambda index: host[index])

    return jax.tree.map(one, tree)


def known_values(array: Any) -> np.ndarray | None:
    """The values on the host; None where they are traced, or where another process holds some of them."""
    if isinstance(array, Tracer) or not getattr(array, "is_fully_addressable", True):
        return None
    return np.asarray(array)


def fetch(tree: Any) -> Any:
    """Device arrays on the host, whole, in every process."""

    def whole(x: Any) -> np.ndarray:
        if isinstance(x, jax.Array) and not x.is_fully_addressable and not x.is_fully_replicated:
            x = jax.jit(lambda x: x, out_shardings=NamedSharding(x.sharding.mesh, PartitionSpec()))(x)  # type: ignore
        return np.asarray(x)

    return jax.tree.map(whole, tree)


def fetch_each(x: jax.Array) -> Iterator[np.ndarray]:
    """The entries along an array's first axis on the host, one after the other: what several devices or hosts hold is
    never whole on one."""
    if mesh_of(x) is None:
        yield from np.asarray(x)
    else:
        yield from (fetch(_entry(x, index)) for index in range(x.shape[0]))


@jax.jit
def _entry(x: jax.Array, index: int | jax.Array) -> jax.Array:
    return jax.lax.dynamic_index_in_dim(x, index, keepdims=False)
