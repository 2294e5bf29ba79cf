"""A plan as text and as a record, with what is compiled, computed and assumed told apart."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict

from mwork_jax.plan.chips import GPU_ROOM, USUAL_ROOM
from mwork_jax.plan.compiled import Case
from mwork_jax.plan.plan import Plan, mesh_name
from mwork_jax.plan.stages import own_operations

_GIB, _GB = 2.0**30, 1e9
_THE = {"memory": "the memory's bandwidth", "matrix units": "the matrix units", "vector unit": "the vector unit",
        "interconnect": "the interconnect", "NVLink": "NVLink", "PCIe": "PCIe",
        "between nodes": "the network between nodes"}  # fmt: skip


def _called(plan: Plan) -> str:
    return "chip" if plan.slice.chip.gpu is None else "GPU"


def as_record(plan: Plan, smallest: Plan | None = None, most: Plan | None = None) -> dict[str, object]:
    """What `mwork plan --json` prints. compiled: from the program that the compiler made; computed: from those numbers
    and the chips' specifications; assumed: what the hours rest on."""
    case, chip = plan.case, plan.slice.chip
    record: dict[str, object] = {
        "topology": plan.slice.name,
        "chips": plan.slice.count,
        "stage": plan.stage,
        "mesh": dict(plan.mesh),
        "size": asdict(plan.size),
        "fits": case.fits,
        "memory_gib": {**{n: v / _GIB for n, v in asdict(case.memory).items()}, "total": case.memory.total / _GIB,
                       "chip": chip.hbm_gib, "usable": case.limit / _GIB},
        "compile_seconds": round(case.seconds, 1),
    }  # fmt: skip
    if case.cost is not None:
        record |= {"compiled": _compiled(plan, case), "computed": _computed(plan)}
        record["assumed"] = {
            "full_tables": plan.work.assumed,
            "vector_operations_per_second": chip.vector,
            "bytes_per_second_between_nodes": chip.between,
            "rows_of_experts": "as many for each" if plan.config.num_experts else None,
        }
    if smallest is not None:
        record["smallest_that_fits"] = {"topology": smallest.slice.name, "mesh": dict(smallest.mesh)}
    if most is not None:
        record["most_masks_that_fit"] = most.size.masks
    return record


def _compiled(plan: Plan, case: Case) -> dict[str, object]:
    cost = case.cost
    assert cost is not None
    return {
        "operations_per_token": cost.flops * plan.slice.count / plan.tokens,
        "bytes_per_chip_and_step": cost.bytes,
        "vector_operations_per_chip_and_step": cost.vector + cost.transcendental,
        "collectives_per_step": cost.collective_count,
        "collective_bytes_per_chip_and_step": cost.collective_bytes,
        "of_them_between_nodes": cost.between_bytes,
        "collectives": _by_kind(plan),
        "kernel_calls": cost.custom_calls,
    }


def _by_kind(plan: Plan) -> dict[str, dict[str, float]]:
    kinds: dict[str, dict[str, float]] = {}
    for one in plan.case.cost.collectives if plan.case.cost else ():
        entry = kinds.setdefault(f"{one.kind} over {one.chips}", {"count": 0.0, "bytes": 0.0})
        entry["count"] += one.times
        entry["bytes"] += one.times * one.bytes
    return kinds


def _computed(plan: Plan) -> dict[str, object]:
    return {
        "own_operations_per_token": own_operations(plan.stage, plan.config, plan.size),
        "operations_ratio": plan.operations_ratio,
        "tokens_per_step": plan.tokens,
        "tokens_per_second_at_most": plan.tokens_per_second,
        "binds": plan.binds,
        "seconds_per_step_by_limit": plan.limits,
        "hours_at_least": plan.hours,
        "chip_hours_at_least": plan.chip_hours,
    }


def plan_report(
    plan: Plan, name: str, smallest: Plan | None = None, *, searched: bool = True, most: Plan | None = None
) -> str:
    """The plan in lines. searched: whether `smallest` None means that no slice fits, not that none was searched for.
    most: the plan with the most masks that fit."""
    size, chip, memory = plan.size, plan.slice.chip, plan.case.memory
    what = {"detect": "documents", "evaluate": "texts x masks", "generate": "prompts x masks", "enhance": "rows x runs"}
    axes = ", ".join(f"{axis} {n}" for axis, n in plan.mesh.items())
    side = "" if plan.stage == "detect" else f" x {size.masks}"
    new = f" + {size.new} new" if plan.stage == "generate" else ""
    lines = [
        f"{plan.stage} of {name} on {plan.slice.name}: {plan.slice.count} {_called(plan)}s, mesh {axes}",
        f"  each group of {plan.mesh['model']}: {size.batch}{side} {what[plan.stage]} of {size.length}{new} tokens",
        f"  {'fits' if plan.case.fits else 'DOES NOT FIT'}: {memory.total / _GIB:.2f} of {chip.hbm_gib:.3g} GiB per "
        f"{_called(plan)}  (weights {memory.weights / _GIB:.2f} computed"
        + (
            f"; caches and state {memory.state / _GIB:.2f}, temporaries {memory.temporaries / _GIB:.2f} compiled)"
            if plan.case.cost is not None
            else f"; with the rest {memory.total / _GIB:.2f}, as the compiler says)"
            if memory.temporaries
            else "; the weights alone are too large, nothing was compiled)"
        ),
    ]
    if plan.case.cost is not None:
        lines += _fitting(plan)
        if chip.gpu is not None and memory.total > USUAL_ROOM * chip.hbm_gib * _GIB:
            lines.append(
                f"  assumed: XLA_PYTHON_CLIENT_MEM_FRACTION={GPU_ROOM:.2g}; JAX's own {USUAL_ROOM:.2g} is not enough"
            )
    if most is not None:
        what_fits = "tuning runs" if plan.stage == "enhance" else "masks"
        lines.append(
            f"  most {what_fits} side by side that fit: {most.size.masks} ({most.case.memory.total / _GIB:.2f} GiB)"
        )
    if smallest is not None:
        lines.append(f"  smallest slice that fits: {smallest.slice.name} (mesh {mesh_name(smallest.mesh)})")
    elif searched and not plan.case.fits:
        largest = plan.slice.siblings()[-1].name
        lines.append(f"  no slice of {chip.name} up to {largest} fits at this size; try a smaller --batch or --masks")
    return "\n".join(lines)


def _fitting(plan: Plan) -> list[str]:
    cost, hours = plan.case.cost, plan.hours
    assert cost is not None
    assert hours is not None
    own = own_operations(plan.stage, plan.config, plan.size)
    compiled = cost.flops * plan.slice.count / plan.tokens
    between = f" ({cost.between_bytes / _GB:.3g} GB of it between nodes)" if plan.slice.in_node else ""
    kinds = "; ".join(
        f"{entry['count']:,.0f} {kind}, {entry['bytes'] / _GB:.3g} GB" for kind, entry in _by_kind(plan).items()
    )
    limits = ", ".join(f"{name} {1e3 * s:,.3g} ms" for name, s in plan.limits.items())
    lines = [
        f"  compiled: {compiled / _GB:,.2f} GFLOP per token, {plan.operations_ratio:.3f} of the model's own "
        f"{own / _GB:,.2f}; {cost.bytes / _GB:,.1f} GB between memory and chip per step",
        f"  compiled: collectives per {_called(plan)} and step: {kinds or 'none'}{between}",
        f"  computed: a step takes at least {limits}",
        f"  computed: at most {plan.tokens_per_second:,.0f} tokens/s on all of it, bound by {_THE[plan.binds]}",
        f"  computed: full tables in at least {hours:,.2f} hours, {plan.chip_hours:,.1f} {_called(plan)}-hours",
        f"  assumed: {plan.work.assumed}; a real run reaches a half to two thirds of the bound",
    ]
    if plan.config.num_experts:
        lines.append("  assumed: the router sends as many rows to every expert")
    if cost.custom_calls:
        lines.append(
            f"  assumed: {cost.custom_calls:,.0f} calls of a kernel, each change of a score in its fastest form"
        )
    return lines


def sweep_report(plans: Sequence[Plan], name: str, prices: Mapping[str, float] | None = None) -> str:
    """One line for each slice, and which of them takes the fewest chip-hours. prices: of an hour of a chip."""
    head = (
        f"{'topology':<12}{'chips':>6}  {'mesh':<18}{'GiB/chip':>9}{'fits':>6}{'ops':>7}{'coll. GB':>10}"
        f"{'tokens/s':>13}  {'bound by':<13}{'hours':>9}{'chip-h':>9}{'price':>10}"
    )
    head = head if prices else head[:-10]
    lines = [f"{plans[0].stage} of {name}", head, "-" * len(head)]
    for one in plans:
        case = one.case
        line = f"{one.slice.name:<12}{one.slice.count:>6}  {mesh_name(one.mesh):<18}{case.memory.total / _GIB:>9.2f}"
        if case.cost is None:
            lines.append(f"{line}{'no':>6}")
            continue
        assert one.hours is not None
        cost = price_of(one, prices or {})
        lines.append(
            f"{line}{'yes':>6}{one.operations_ratio:>7.3f}{case.cost.collective_bytes / _GB:>10.3f}"
            f"{one.tokens_per_second:>13,.0f}  {one.binds:<13}{one.hours:>9.2f}{one.chip_hours:>9.1f}"
            + (f"{'' if cost is None else f'{cost:,.2f}':>10}" if prices else "")
        )
    return "\n".join([*lines, *_cheapest(plans, prices or {})])


def price_of(plan: Plan, prices: Mapping[str, float]) -> float | None:
    """Of the full tables, at least; None where it does not fit or its chip has no price."""
    price = prices.get(plan.slice.chip.name)
    return None if price is None or plan.chip_hours is None else price * plan.chip_hours


def _cheapest(plans: Sequence[Plan], prices: Mapping[str, float]) -> list[str]:
    fitting = [(one.chip_hours, one) for one in plans if one.chip_hours is not None]
    if not fitting:
        return ["none of them fits"]
    hours, fewest = min(fitting, key=lambda pair: pair[0])
    lines = [f"fewest chip-hours: {fewest.slice.name}, {hours:,.2f}"]
    priced = [(price, one) for one in plans if (price := price_of(one, prices)) is not None]
    if priced:
        price, cheapest = min(priced, key=lambda pair: pair[0])
        lines.append(f"cheapest of those with a price: {cheapest.slice.name}, {price:,.2f}")
    return lines
