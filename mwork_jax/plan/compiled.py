"""One case, compiled: does it fit, and what do its programs cost on each chip?"""

from __future__ import annotations

import re
import tempfile
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import NamedTuple

import jax
from jax.experimental.compilation_cache import compilation_cache
from jax.sharding import Mesh

from mwork_jax.config import ModelConfig
from mwork_jax.errors import InputError
from mwork_jax.model.decoder import Decoder
from mwork_jax.model.mixture import BLOCKS_LOOP
from mwork_jax.model.parameters import weight_bytes
from mwork_jax.plan.chips import Slice
from mwork_jax.plan.gpus import COMPILER_OPTIONS
from mwork_jax.plan.stages import Size, StageProgram, programs
from mwork_jax.plan.topology import abstract_mesh
from mwork_jax.runtime.compiled import TPU, Cost, Target, cost_of

_GIB = 2.0**30
_CACHE = "jax_enable_compilation_cache"
_UNITS = {"K": 2.0**10, "M": 2.0**20, "G": _GIB, "T": 2.0**40, "": 1.0}


@dataclass(frozen=True)
class Memory:
    """Bytes of one chip that the largest program needs. weights: computed from their sharding; state: what else goes
    in or comes out (caches, masks, statistics, optimizer); temporaries: what the program needs besides."""

    weights: float
    state: float
    temporaries: float

    @property
    def total(self) -> float:
        return self.weights + self.state + self.temporaries


@dataclass(frozen=True)
class Case:
    """A stage on a mesh of a slice, compiled. cost is None where it does not fit; memory is then what the compiler
    reported that it would need, or, where the weights alone are too large, the weights."""

    fits: bool
    memory: Memory
    limit: float  # bytes of a chip that programs may use
    cost: Cost | None
    parts: Mapping[str, Cost]
    seconds: float  # to compile


def compile_case(stage: str, config: ModelConfig, slice_: Slice, shape: Mapping[str, int], size: Size) -> Case:
    """Compiles every program of a stage. shape: the mesh's, as in `sharding.make_mesh`."""
    begin = time.monotonic()
    mesh = abstract_mesh(slice_, shape)
    weights, limit = weight_bytes(config, mesh=mesh, int8=size.int8), slice_.chip.usable
    if weights > limit:
        return Case(False, Memory(weights, 0, 0), limit, None, {}, 0.0)
    parts: dict[str, Cost] = {}
    largest = Memory(weights, 0, 0)
    for program in programs(stage, config, mesh, size):
        memory, cost = _compiled(program, mesh, weights, config.num_experts, slice_)
        largest = max(largest, memory, key=lambda m: m.total)
        if cost is None or largest.total > limit:
            return Case(False, largest, limit, None, {}, time.monotonic() - begin)
        parts[program.name] = cost
    return Case(True, largest, limit, sum(parts.values(), Cost()), parts, time.monotonic() - begin)


def target_of(slice_: Slice) -> Target:
    """What the counting of a program for this slice has to know."""
    gpu = slice_.chip.gpu
    # A float32 product of the usual precision is one of TF32, at half the speed of bfloat16 on all of GPUS.
    return TPU if gpu is None else Target(exact=gpu.exact_passes, float32=2.0, in_node=slice_.in_node)


def _compiled(
    program: StageProgram, mesh: Mesh, weights: float, experts: int, slice_: Slice
) -> tuple[Memory, Cost | None]:
    of_gpu = slice_.chip.gpu is not None
    with jax.set_mesh(mesh), _without_cache(of_gpu), tempfile.TemporaryDirectory(prefix="mwork-plan-") as folder:
        # libtpu may write instructions that JAX's own reader does not know yet, so the text is libtpu's own.
        to_text = {"xla_dump_to": folder, "xla_dump_hlo_as_text": True}
        options = dict(COMPILER_OPTIONS) if of_gpu else to_text
        lowered = program.function.lower(*program.arguments)
        try:
            compiled = lowered.compile(compiler_options=options)
        except jax.errors.JaxRuntimeError as error:
            needed = _needed(str(error))
            if needed is None:
                reason = " ".join(str(error).split())[:200]
                compiler = "XLA for GPUs" if of_gpu else "libtpu"
                raise InputError(f"{compiler} cannot compile {program.name} ({reason})") from None
            total = needed.bytes if needed.whole else weights + _argument_bytes(program) + needed.bytes
            return Memory(weights, 0, total - weights), None
        texts = sorted(Path(folder).glob("*.after_codegen.txt"))
        text = texts[-1].read_text() if texts else compiled.as_text()
    analysis = compiled.memory_analysis()
    # Weights that a program does not read are no arguments of it, but stay where they are.
    state = _argument_bytes(program) + analysis.output_size_in_bytes - analysis.alias_size_in_bytes
    cost = cost_of(text, program.trips, experts, target_of(slice_), (BLOCKS_LOOP, program.chosen))
    return Memory(weights, state, analysis.temp_size_in_bytes), cost + program.inside.times(cost.custom_calls)


@contextmanager
def _without_cache(of_gpu: bool) -> Iterator[None]:
    """A block whose programs are not read from JAX's cache of compiled ones: those for a GPU are only read where one
    is. JAX asks once in a process whether there is a cache, so it has to ask anew."""
    before = getattr(jax.config, _CACHE)
    if not of_gpu or not before:
        yield
        return
    try:
        jax.config.update(_CACHE, False)
        compilation_cache.reset_cache()
        yield
    finally:
        jax.config.update(_CACHE, before)
        compilation_cache.reset_cache()


def _argument_bytes(program: StageProgram) -> float:
    """Bytes of a program's arguments on each chip, without the weights."""
    is_model = lambda x: isinstance(x, Decoder)  # noqa: E731
    leaves = [x for x in jax.tree.leaves(program.arguments, is_leaf=is_model) if isinstance(x, jax.ShapeDtypeStruct)]
    return sum(float(prod(x.sharding.shard_shape(x.shape)) * x.dtype.itemsize) for x in leaves if x.sharding)


class Needed(NamedTuple):
    """What a refused program would have needed of a chip: all of it, or its temporaries alone."""

    bytes: float
    whole: bool


def _needed(message: str) -> Needed | None:
    """Read from the compiler's refusal; None where it refused for another reason than memory."""
    size = r"([\d.]+)([KMGT]?)(?:i?B)?"
    match = re.search(rf"[Uu]sed {size} of {size} hbm", message)
    if match:
        return Needed(float(match[1]) * _UNITS[match[2]], True)
    match = re.search(rf"memory required for (\w+(?: \w+)*) \({size}\) exceeds available HBM", message)
    return Needed(float(match[2]) * _UNITS[match[3]], "temporaries" not in match[1]) if match else None
