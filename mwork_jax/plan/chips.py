"""What chips can do, from their makers' public specifications, and the machines that they come in."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from math import prod

from mwork_jax.errors import InputError
from mwork_jax.plan.gpus import GPUS, Gpu

_GIB = 2.0**30


@dataclass(frozen=True)
class Chip:
    """One kind of chip. Peaks are those of the specification, which no program reaches.

    flops: bfloat16, per second. hbm: bytes per second. hbm_gib: memory. ici: bytes per second that a chip sends to its
    neighbours, one direction of all links together. vector: element-wise operations per second (of TPUs assumed, see
    CHIPS); special: exponentials and the like, where they are slower. slices: the usual sizes. room: of the memory,
    what programs may have. link: what `ici` is called. between: bytes per second that a chip sends to other nodes.
    """

    name: str
    flops: float
    hbm: float
    hbm_gib: float
    ici: float
    vector: float
    slices: tuple[str, ...]
    special: float | None = None
    room: float = 1.0
    link: str = "interconnect"
    between: float | None = None
    gpu: Gpu | None = None

    @property
    def usable(self) -> float:
        """Bytes of memory that programs may have."""
        return self.hbm_gib * self.room * _GIB


_FLAT = ("1x1", "2x2", "2x4", "4x4", "4x8", "8x8", "8x16", "16x16")
# Peak bfloat16, HBM size and bandwidth, and inter-chip bandwidth (1,600, 4,800 and 3,584 Gbit/s per chip) are from the
# pages "TPU v5e", "TPU v5p" and "TPU v6e" of the Cloud TPU documentation, read in November 2026. The vector unit is not
# specified there: 8 x 128 lanes with 4 operations per cycle at 1.5 to 1.75 GHz (two such cores on v5p) is assumed.
_TPUS = (
    Chip("v5e", 197e12, 819e9, 16, 200e9, 6.1e12, _FLAT),
    Chip(
        "v5p", 459e12, 2765e9, 95, 600e9, 14.3e12,
        ("1x1x1", "2x2x1", "2x2x2", "2x2x4", "2x4x4", "4x4x4", "4x4x8", "4x8x8"),
    ),
    Chip("v6e", 918e12, 1640e9, 32, 448e9, 7.2e12, _FLAT),
)  # fmt: skip
_SERVERS = ("1", "2", "4", "8", "2x8", "4x8", "8x8", "16x8", "32x8")  # GPUs, or nodes x GPUs of each
# Of a GPU's memory, what JAX's allocator can be given; the rest is for CUDA, cuBLAS and NCCL themselves.
GPU_ROOM, USUAL_ROOM = 0.95, 0.75  # XLA_PYTHON_CLIENT_MEM_FRACTION, and its value where nobody sets it


def _of_gpu(gpu: Gpu) -> Chip:
    return Chip(
        gpu.name, gpu.flops, gpu.memory, gpu.memory_mib / 1024, gpu.link_bytes, gpu.vector, _SERVERS,
        gpu.special, GPU_ROOM, gpu.link, gpu.between, gpu,
    )  # fmt: skip


CHIPS: Mapping[str, Chip] = {chip.name: chip for chip in (*_TPUS, *map(_of_gpu, GPUS.values()))}
_FORMS = "as in v5e:4x4, h100:8 or 2xh100:8"
_MOST_GPUS = 1024


@dataclass(frozen=True)
class Slice:
    """Some chips of one kind: TPUs wired as a grid, `v5e:4x4`, or nodes with GPUs, `h100:8`, `2xh100:8`; the grid of
    those is (nodes, GPUs of each)."""

    chip: Chip
    grid: tuple[int, ...]

    @classmethod
    def parse(cls, text: str) -> Slice:
        """Raises InputError for a chip or a shape that is not known."""
        nodes, name, shape = _parts(text)
        chip = CHIPS.get(name)
        if chip is None:
            raise InputError(f"--topology {text}: chip {name!r} is not one of {', '.join(CHIPS)}, {_FORMS}")
        parts = shape.split("x")
        whole = all(p.isdecimal() and int(p) > 0 for p in parts)
        if chip.gpu is not None:
            if len(parts) != 1 or not whole or nodes < 1 or nodes * int(shape) > _MOST_GPUS:
                forms = f"{name}:GPUS or NODESx{name}:GPUS"
                raise InputError(f"--topology {text}: {forms} is needed, up to {_MOST_GPUS} in all, {_FORMS}")
            return cls(chip, (nodes, int(shape)))
        dimensions = len(chip.slices[0].split("x"))
        if len(parts) != dimensions or not whole or nodes != 1:
            raise InputError(
                f"--topology {text}: {dimensions} sizes are needed after {name}:, such as {', '.join(chip.slices)}"
            )
        return cls(chip, tuple(map(int, parts)))

    @property
    def name(self) -> str:
        if self.chip.gpu is None:
            return f"{self.chip.name}:{'x'.join(map(str, self.grid))}"
        nodes, each = self.grid
        return f"{nodes}x{self.chip.name}:{each}" if nodes > 1 else f"{self.chip.name}:{each}"

    @property
    def count(self) -> int:
        return prod(self.grid)

    @property
    def in_node(self) -> int | None:
        """Chips of a node, where there are several nodes."""
        return self.grid[1] if self.chip.gpu is not None and self.grid[0] > 1 else None

    def siblings(self) -> list[Slice]:
        """All usual slices of this chip, the smallest first."""
        grids = [tuple(map(int, shape.split("x"))) for shape in self.chip.slices]
        of_gpus = self.chip.gpu is not None
        return [Slice(self.chip, (1, *grid) if of_gpus and len(grid) == 1 else grid) for grid in grids]

    def with_bandwidth(self, link: float | None = None, between: float | None = None) -> Slice:
        """The same with other bytes per second within a node and between nodes."""
        given = {"ici": link, "between": between}
        return replace(self, chip=replace(self.chip, **{n: v for n, v in given.items() if v is not None}))


def _parts(text: str) -> tuple[int, str, str]:
    """`2xh100:8` as (2, h100, 8)."""
    name, _, shape = text.partition(":")
    several = re.fullmatch(r"(\d{1,4})x(\w+)", name)
    return (int(several[1]), several[2], shape) if several else (1, name, shape)
