"""The plan: which mesh, does it fit, how fast can it be at most, and how long do the full tables take."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from math import prod

from mwork_jax.config import ModelConfig
from mwork_jax.errors import InputError
from mwork_jax.model.parameters import weight_bytes
from mwork_jax.plan.chips import Slice
from mwork_jax.plan.compiled import Case, compile_case
from mwork_jax.plan.stages import Size, own_operations
from mwork_jax.plan.work import Work, full_tables
from mwork_jax.runtime.compiled import Cost
from mwork_jax.sharding import DATA, MESH_AXES, MODEL

Log = Callable[[str], None]
_ROOM = 0.97  # of a chip's memory that weights may take before it is worth compiling
_REPEATED = 1.05  # operations against the model's own; where memory is short, XLA computes some products again
_LARGEST_MODEL_AXIS = 32  # devices that share one model; beyond, its own communication eats what is gained


@dataclass(frozen=True)
class Plan:
    """What one stage of one model needs on one slice."""

    stage: str
    config: ModelConfig
    slice: Slice
    mesh: Mapping[str, int]
    size: Size
    case: Case

    @property
    def replicas(self) -> int:
        """Groups of devices that have rows of their own."""
        return self.slice.count // self.mesh[MODEL]

    @property
    def tokens(self) -> int:
        """Tokens of a step on the whole slice; of generation, the new ones."""
        each = self.size.new if self.stage == "generate" else self.size.length
        return self.replicas * self.size.batch * self.size.masks * each

    @property
    def operations_ratio(self) -> float | None:
        """Compiled operations of matrix products, all chips together, against the model's own."""
        if self.case.cost is None:
            return None
        own = own_operations(self.stage, self.config, self.size) * self.tokens
        return self.case.cost.flops * self.slice.count / own

    @property
    def limits(self) -> dict[str, float]:
        """Seconds that a step takes at least, by what limits it."""
        return {} if self.case.cost is None else _seconds(self.case.cost, self.slice)

    @property
    def step_seconds(self) -> float | None:
        """The least time of a step: every program at its own limit."""
        parts = [least_seconds(cost, self.slice) for cost in self.case.parts.values()]
        return sum(parts) if parts else None

    @property
    def binds(self) -> str:
        """Which limit takes the most of a step."""
        by_part = [_seconds(cost, self.slice) for cost in self.case.parts.values()]
        totals: dict[str, float] = {}
        for limits in by_part:
            name = max(limits, key=lambda n: limits[n])
            totals[name] = totals.get(name, 0.0) + limits[name]
        return max(totals, key=lambda n: totals[n]) if totals else ""

    @property
    def tokens_per_second(self) -> float | None:
        """At most, on the whole slice."""
        return None if self.step_seconds is None else self.tokens / self.step_seconds

    @property
    def work(self) -> Work:
        return full_tables(self.stage)

    @property
    def hours(self) -> float | None:
        """At least, for the full tables."""
        return None if self.tokens_per_second is None else self.work.tokens / self.tokens_per_second / 3600

    @property
    def chip_hours(self) -> float | None:
        return None if self.hours is None else self.hours * self.slice.count


def least_seconds(cost: Cost, slice_: Slice) -> float:
    """Of a program: what its own limit allows."""
    return max(_seconds(cost, slice_).values())


def _seconds(cost: Cost, slice_: Slice) -> dict[str, float]:
    chip = slice_.chip
    special = cost.transcendental / chip.special if chip.special else 0.0
    limits = {
        "matrix units": cost.passes / chip.flops,
        "vector unit": max((cost.vector + cost.transcendental) / chip.vector, special),
        "memory": cost.bytes / chip.hbm,
        chip.link: (cost.collective_bytes - cost.between_bytes) / chip.ici,
    }
    return limits | ({"between nodes": cost.between_bytes / chip.between} if slice_.in_node and chip.between else {})


def plan(
    stage: str,
    config: ModelConfig,
    slice_: Slice,
    size: Size,
    mesh: Mapping[str, int] | None = None,
    log: Log = lambda line: None,
) -> Plan:
    """Compiles a stage for a slice. mesh: as given, or the one with the fewest devices to a model that fits and does
    little work twice; where none does, the first that fits, or else the last that was tried. Raises InputError where
    the compiler is missing, or the mesh is not of the slice's size."""
    tried = first = None
    for shape in [mesh] if mesh is not None else meshes(stage, config, slice_, size.int8):
        full = {axis: shape.get(axis, 1) for axis in MESH_AXES}
        if prod(full.values()) != slice_.count:
            raise InputError(
                f"--mesh {mesh_name(full)}: that is {prod(full.values())} devices, {slice_.name} has {slice_.count}"
            )
        log(f"{slice_.name}: compiling {stage} with {mesh_name(full)}")
        tried = Plan(stage, config, slice_, full, size, compile_case(stage, config, slice_, full, size))
        if tried.case.fits and (tried.operations_ratio or 0.0) <= _REPEATED:
            return tried
        first = first or (tried if tried.case.fits else None)
    if tried is None:
        raise InputError(f"{slice_.name}: no mesh of {slice_.count} devices suits the model")
    return first or tried


def meshes(stage: str, config: ModelConfig, slice_: Slice, int8: bool = False) -> Iterator[Mapping[str, int]]:
    """Meshes of a slice, the model shared out over as few devices as its weights need, then over twice as many ...
    What is left goes to the documents: masks and runs are many on each device already."""
    weights = weight_bytes(config, int8=int8)
    limit = slice_.chip.usable * _ROOM
    sizes = [n for n in (2**i for i in range(10)) if slice_.count % n == 0 and n <= _LARGEST_MODEL_AXIS]
    fitting = [n for n in sizes if weights / n <= limit]
    for size in fitting or sizes[-1:]:
        yield {DATA: slice_.count // size, MODEL: size}


def smallest_that_fits(known: Plan, log: Log = lambda line: None) -> Plan | None:
    """The smallest usual slice of the chip of a plan on which its stage fits at its size, or None. Slices are tried
    from the smallest up until one fits; the known one is not compiled again."""
    stage, config, slice_, size = known.stage, known.config, known.slice, known.size
    weights = weight_bytes(config, int8=size.int8)
    for candidate in slice_.siblings():
        if weights / candidate.count > slice_.chip.usable * _ROOM:
            continue
        candidate_plan = (
            known if candidate == slice_ and known.case.fits else plan(stage, config, candidate, size, log=log)
        )
        if candidate_plan.case.fits:
            return candidate_plan
    return None


def most_masks(known: Plan, log: Log = lambda line: None) -> Plan:
    """The plan with the most masks (tuning runs) side by side that fit on the slice and mesh of a plan that fits. What
    they take grows nearly in a line, so that few numbers have to be compiled: the result fits and one more does not."""
    fits, too_many, memory = known, None, {known.size.masks: known.case.memory.total}
    while too_many is None or too_many - fits.size.masks > 1:
        masks = _next_masks(fits.size.masks, too_many, memory, known.case.limit)
        tried = plan(known.stage, known.config, known.slice, replace(known.size, masks=masks), known.mesh, log=log)
        memory[masks] = tried.case.memory.total
        if tried.case.fits:
            fits = tried
        else:
            too_many = masks
    return fits


def _next_masks(fits: int, too_many: int | None, memory: Mapping[int, float], limit: float) -> int:
    """What to compile next: where the line through the two largest numbers that are known meets the limit."""
    if len(memory) == 1:
        return 2 * fits
    (low, at_low), (high, at_high) = sorted(memory.items())[-2:]
    slope = max((at_high - at_low) / (high - low), 1.0)
    meets = int(low + (limit - at_low) / slope)
    if too_many is None:
        return max(meets, fits + 1)
    return min(max(meets, fits + 1), too_many - 1)


def mesh_name(shape: Mapping[str, int]) -> str:
    """A mesh as `--mesh` takes it, without the axes of size 1."""
    return ",".join(f"{axis}={size}" for axis, size in shape.items() if size > 1) or "one device"
