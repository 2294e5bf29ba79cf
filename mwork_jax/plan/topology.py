"""TPUs and GPUs that are not here: their devices as descriptions, and models on them as shapes.

Programs compile for these as for real ones, on any machine that has their compiler.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import Mesh

from mwork_jax.config import ModelConfig
from mwork_jax.errors import InputError
from mwork_jax.model.decoder import Decoder
from mwork_jax.model.parameters import parameter_specs
from mwork_jax.neurons import NeuronMask, group_widths
from mwork_jax.plan.chips import Slice
from mwork_jax.plan.gpus import described_gpus
from mwork_jax.sharding import make_mesh, sharding


def described(slice_: Slice) -> list[Any]:
    """The slice's devices, as descriptions to compile for. Raises InputError where the compiler is missing or does not
    know the slice."""
    if slice_.chip.gpu is not None:
        nodes, each = slice_.grid
        return described_gpus(slice_.chip.gpu, nodes, each)
    # Without these, libtpu searches for a TPU on this machine and for the others of its pod, and waits.
    os.environ.setdefault("TPU_SKIP_MDS_QUERY", "1")
    os.environ.setdefault("ALLOW_MULTIPLE_LIBTPU_LOAD", "1")  # the lock guards a TPU, which is not used here
    os.environ.setdefault("TPU_ACCELERATOR_TYPE", "v5litepod-8")
    os.environ.setdefault("TPU_WORKER_HOSTNAMES", "localhost")
    from jax.experimental import topologies

    try:
        import libtpu  # noqa: F401  # pyright: ignore[reportMissingImports]
    except ImportError:
        raise InputError("mwork plan compiles with libtpu, which is not installed: pip install libtpu") from None
    single = {"chips_per_host_bounds": [1, 1, 1]} if slice_.count == 1 else {}
    try:
        topology = topologies.get_topology_desc(platform="tpu", topology_name=slice_.name, **single)
    except Exception as error:  # libtpu raises several kinds for a shape that does not exist
        reason = " ".join(str(error).split())[:160]
        shapes = ", ".join(slice_.chip.slices)
        raise InputError(f"--topology {slice_.name}: libtpu cannot describe it ({reason}); usual: {shapes}") from None
    return list(topology.devices)


def abstract_mesh(slice_: Slice, shape: Mapping[str, int]) -> Mesh:
    """A mesh over a slice that is not here; see `sharding.make_mesh`."""
    return make_mesh(shape, described(slice_))


def abstract(mesh: Mesh, shape: Sequence[int], dtype: Any, *axes: str | None) -> Any:
    """A `jax.ShapeDtypeStruct` that stands for an array: its shape, and its layout on the mesh with its axes named as
    in `sharding.TABLE`."""
    names = axes if axes else (None,) * len(shape)
    return jax.ShapeDtypeStruct(tuple(shape), dtype, sharding=sharding(mesh, names, shape))


def abstract_decoder(config: ModelConfig, mesh: Mesh, dtype: Any = jnp.bfloat16, int8: bool = False) -> Decoder:
    """A decoder without weights, sharded over the mesh as a real one would be."""
    arrays = {
        name: abstract(mesh, spec.shape, spec.stored_in(dtype), *spec.axes)
        for name, spec in parameter_specs(config, int8).items()
    }
    return Decoder(config, arrays)


def abstract_masks(config: ModelConfig, mesh: Mesh, masks: int) -> NeuronMask:
    """A table of so many masks, each leaf [masks, layers, width]."""
    return NeuronMask(**{
        group: abstract(mesh, (masks, config.num_layers, width), jnp.float32, None, "layers", "neurons")
        for group, width in group_widths(config).items()
    })  # fmt: skip
