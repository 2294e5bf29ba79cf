"""A plan against the devices that are here: one step of a stage, run, beside what was predicted of it."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from mwork_jax.config import ModelConfig
from mwork_jax.errors import InputError
from mwork_jax.model.decoder import Decoder
from mwork_jax.plan.chips import Slice
from mwork_jax.plan.gpus import GPUS, gpu_called
from mwork_jax.plan.plan import Plan, least_seconds
from mwork_jax.plan.stages import Size, StageProgram, programs
from mwork_jax.sharding import make_mesh

_GIB = 2.0**30


@dataclass(frozen=True)
class Measured:
    """One program, run once after a first time: seconds, and the most bytes that a device held until then in this
    process, None where it does not say."""

    program: str
    seconds: float
    bytes: float | None


def slice_here(devices: Sequence[Any]) -> Slice:
    """The slice that these devices are. Raises InputError where they are no GPUs that plans know."""
    gpu = gpu_called(devices[0].device_kind) if devices[0].platform == "gpu" else None
    if gpu is None:
        kind = f"{devices[0].device_kind} ({devices[0].platform})"
        raise InputError(f"--check runs on GPUs of the kinds {', '.join(GPUS)}; here is {kind}")
    nodes = len({device.process_index for device in devices})
    return Slice.parse(f"{gpu.name}:{len(devices)}" if nodes == 1 else f"{nodes}x{gpu.name}:{len(devices) // nodes}")


def measure(
    stage: str, config: ModelConfig, devices: Sequence[Any], shape: Mapping[str, int], size: Size
) -> list[Measured]:
    """Compiles and runs every program of a stage on these devices, with random weights."""
    mesh = make_mesh(shape, devices)
    measured = []
    with jax.set_mesh(mesh):
        for program in programs(stage, config, mesh, size):
            seconds = 0.0
            for _ in range(2):  # the first compiles the program and loads what it calls
                # A program takes over some of its arguments, so each run has its own.
                arguments = jax.block_until_ready(arrays_of(program, config))
                begin = time.perf_counter()
                jax.block_until_ready(program.function(*arguments))
                seconds = time.perf_counter() - begin
                del arguments
            statistics = devices[0].memory_stats() or {}
            measured.append(Measured(program.name, seconds, statistics.get("peak_bytes_in_use")))
    return measured


def arrays_of(program: StageProgram, config: ModelConfig) -> tuple[Any, ...]:
    """Arguments of a program with values: weights at random, tokens at random, masks that keep all, numbers as the
    program needs them."""
    rng = np.random.default_rng(0)

    def values(x: Any, place: int) -> np.ndarray:
        if place in program.tokens:
            return rng.integers(0, config.vocab_size, x.shape, dtype=x.dtype)
        usual = 1 if jnp.issubdtype(x.dtype, jnp.floating) else 0
        return np.full(x.shape, program.values.get(place, usual), x.dtype)

    # Seven billion different numbers would take minutes; the time of a product does not depend on them.
    some = 0.02 * rng.standard_normal(1 << 16)

    def weights(x: Any) -> np.ndarray:
        scaled = 1000 * some if jnp.issubdtype(x.dtype, jnp.integer) else some
        return np.resize(scaled.astype(x.dtype), x.shape)

    def with_values(argument: Any, place: int) -> Any:
        if isinstance(argument, Decoder):
            return jax.tree.map(lambda x: jax.device_put(weights(x), x.sharding), argument)
        if isinstance(argument, jax.ShapeDtypeStruct):
            return jax.device_put(values(argument, place), argument.sharding)
        return argument  # what the program is compiled for

    def given(argument: Any, place: int) -> Any:
        return jax.tree.map(lambda x, own: jax.device_put(own, x.sharding), argument, program.values[place])

    return tuple(
        given(argument, place)
        if isinstance(argument, tuple) and place in program.values
        else jax.tree.map(
            lambda x, place=place: with_values(x, place),
            argument,
            is_leaf=lambda x: isinstance(x, (Decoder, jax.ShapeDtypeStruct)),
        )
        for place, argument in enumerate(program.arguments)
    )


def check_report(planned: Plan, measured: Sequence[Measured]) -> str:
    """Predicted and measured, a line for each program and one for memory."""
    lines = [f"  {'program':<26}{'predicted s':>14}{'measured s':>14}{'of the bound':>14}"]
    for one in measured:
        cost = planned.case.parts.get(one.program)
        least = None if cost is None else least_seconds(cost, planned.slice)
        predicted, share = ("", "") if least is None else (f"{least:,.4f}", f"{least / one.seconds:.0%}")
        lines.append(f"  {one.program:<26}{predicted:>14}{one.seconds:>14,.4f}{share:>14}")
    peaks = [one.bytes for one in measured if one.bytes is not None]
    held = f"{max(peaks) / _GIB:.2f} GiB measured" if peaks else "not measured: these devices do not say"
    lines.append(f"  memory per device: {planned.case.memory.total / _GIB:.2f} GiB predicted, {held}")
    return "\n".join(lines)
