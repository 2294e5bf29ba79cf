"""`mwork plan`: what a stage will need on TPUs and GPUs that are not here."""

from __future__ import annotations

import argparse
from collections.abc import Mapping
from dataclasses import asdict, replace
from math import isfinite
from typing import Any

import jax

from mwork_jax.cli.options import command, log, one_of, print_result
from mwork_jax.config import ModelConfig
from mwork_jax.errors import InputError
from mwork_jax.plan import (
    CHIPS,
    DEFAULTS,
    NAMED,
    STAGES,
    Plan,
    Size,
    Slice,
    as_record,
    check_report,
    config_of,
    measure,
    most_masks,
    plan,
    plan_report,
    price_of,
    slice_here,
    smallest_that_fits,
    sweep_report,
    with_given,
)
from mwork_jax.sharding import parse_mesh

_TOPOLOGY = "v5e:4x4"


def add(commands: Any) -> None:
    what = "compile a stage for TPUs or GPUs that are not here: does it fit, how fast can it be, what limits it"
    parser = command(commands, "plan", _plan, what, "mwork plan --model mistral-7b --topology h100:8 --stage detect")
    parser.add_argument(
        "--model",
        default="mistral-7b",
        help=f"a config.json, a folder with one (no weights needed), or {', '.join(NAMED)} (default: mistral-7b)",
    )
    gpus = ", ".join(name for name, chip in CHIPS.items() if chip.gpu is not None)
    parser.add_argument(
        "--topology",
        help=f"v5e:AxB, v6e:AxB, v5p:AxBxC, GPU:COUNT or NODESxGPU:COUNT; GPU: {gpus} (default: {_TOPOLOGY})",
    )
    parser.add_argument("--stage", default="detect", help=f"{', '.join(STAGES)} (default: detect)")
    groups = "for each group of chips that holds a model"
    parser.add_argument("--batch", type=int, help=f"documents, prompts or packed rows {groups} (default: small)")
    parser.add_argument("--length", type=int, help="tokens of each (default: 512)")
    parser.add_argument(
        "--masks", type=int, help=f"evaluate, generate: masks side by side; enhance: runs; {groups} (default: 8; 1)"
    )
    parser.add_argument("--new", type=int, help="generate: new tokens of each prompt (default: 64)")
    parser.add_argument("--weights", choices=("int8",), help="the layers' matrices as 8-bit whole numbers")
    parser.add_argument("--mesh", help="data=N,model=N,mask=N,expert=N (default: the fewest chips to a model that fit)")
    parser.add_argument(
        "--link", type=float, metavar="GB/S", help="what a GPU sends to others of its node (default: of its data sheet)"
    )
    parser.add_argument(
        "--between-nodes", type=float, metavar="GB/S", help="what a GPU sends to other nodes (default: docs/pods.md)"
    )
    parser.add_argument(
        "--sweep-topologies",
        nargs="?",
        const="",
        metavar="LIST",
        help="a line for every slice of the chip, or of LIST: chips and slices, as v5e,h100:8,2xh100:8",
    )
    parser.add_argument("--price", metavar="CHIP=N,...", help="of an hour of a chip, for the cheapest of the sweep")
    parser.add_argument("--most-masks", action="store_true", help="find the most masks side by side that fit")
    parser.add_argument("--no-smallest", action="store_true", help="do not look for the smallest slice that fits")
    parser.add_argument(
        "--check", action="store_true", help="run one step on the GPUs of this machine, beside what is predicted"
    )


def _plan(args: argparse.Namespace) -> None:
    if not args.check:
        # Compiling needs none of this machine's own devices, and with libtpu there JAX would look for a TPU.
        jax.config.update("jax_platforms", "cpu")
    one_of("--stage", args.stage, STAGES)
    config, mesh = config_of(args.model), None if args.mesh is None else parse_mesh(args.mesh)
    if args.check and args.topology is None and args.sweep_topologies is None:
        slice_ = _given_bandwidth(args, slice_here(jax.devices()))
    else:
        slice_ = _given_bandwidth(args, Slice.parse(args.topology or _TOPOLOGY))
    size = _size(args, config, mesh)
    if args.sweep_topologies is not None:
        _sweep(args, config, slice_, size)
        return
    if args.check and slice_here(jax.devices()).name != slice_.name:
        raise InputError(f"--topology {slice_.name}: --check runs on {slice_here(jax.devices()).name}, which is here")
    planned = plan(args.stage, config, slice_, size, mesh, log=log)
    smallest = None if args.no_smallest else smallest_that_fits(planned, log=log)
    most = most_masks(planned, log=log) if args.most_masks and planned.case.fits else None
    record = as_record(planned, smallest, most)
    text = plan_report(planned, args.model, smallest, searched=not args.no_smallest, most=most)
    if args.check:
        measured = measure(args.stage, config, jax.devices(), planned.mesh, size)
        record["measured"] = [asdict(one) for one in measured]
        text += "\n" + check_report(planned, measured)
    print_result(args, record, text)


def _size(args: argparse.Namespace, config: ModelConfig, mesh: Mapping[str, int] | None) -> Size:
    """Of the options; raises InputError for those that do not go together."""
    sweep = args.sweep_topologies is not None
    if mesh is not None and sweep:
        raise InputError("--mesh: one mesh does not fit every slice of --sweep-topologies; leave one of them out")
    if sweep and (args.check or args.most_masks):
        raise InputError(f"--{'check' if args.check else 'most-masks'}: it is of one slice, not of --sweep-topologies")
    if args.price is not None and not sweep:
        raise InputError("--price: it is for --sweep-topologies, which looks for the cheapest")
    if args.stage == "detect" and (args.masks is not None or args.most_masks):
        option = "--masks" if args.masks is not None else "--most-masks"
        raise InputError(f"{option}: detection has none; they are for the stages evaluate, generate and enhance")
    if args.new is not None and args.stage != "generate":
        raise InputError("--new: only the stage generate makes new tokens")
    size = with_given(DEFAULTS[args.stage], {name: getattr(args, name) for name in ("batch", "length", "masks", "new")})
    size = replace(size, int8=args.weights == "int8")
    if (size.length + size.new > config.max_length and args.stage == "generate") or size.length > config.max_length:
        raise InputError(f"--length {size.length}: the model's context is {config.max_length}")
    return size


def _given_bandwidth(args: argparse.Namespace, slice_: Slice) -> Slice:
    given = {"--link": args.link, "--between-nodes": args.between_nodes}
    for option, value in given.items():
        if value is not None and slice_.chip.gpu is None:
            raise InputError(f"{option}: it is for GPUs; what joins TPUs is a part of the chip")
        if value is not None and not (isfinite(value) and value > 0):
            raise InputError(f"{option} {value:g}: more than 0 GB/s is needed")
    return slice_.with_bandwidth(*(None if value is None else value * 1e9 for value in given.values()))


def _sweep(args: argparse.Namespace, config: ModelConfig, slice_: Slice, size: Size) -> None:
    prices = _prices(args.price)
    slices: list[Slice] = []
    for part in filter(None, (args.sweep_topologies or slice_.chip.name).split(",")):
        some = Slice(CHIPS[part], (1,)).siblings() if part in CHIPS else [Slice.parse(part)]
        slices += [_given_bandwidth(args, one) if one.chip.gpu is not None else one for one in some]
    plans: list[Plan] = [plan(args.stage, config, one, size, log=log) for one in slices]
    records = [as_record(one) | ({"price": price_of(one, prices)} if prices else {}) for one in plans]
    print_result(args, records, sweep_report(plans, args.model, prices))


def _prices(text: str | None) -> dict[str, float]:
    """`h100=2.5,v5e=1.2` as {chip: price of an hour}."""
    prices: dict[str, float] = {}
    for part in (text or "").split(",") if text is not None else ():
        chip, _, number = part.partition("=")
        try:
            price = float(number)
        except ValueError:
            price = -1.0
        if chip not in CHIPS or not isfinite(price) or price <= 0 or chip in prices:
            raise InputError(f"--price {text}: {part!r} is not CHIP=PRICE, as in h100=2.5; chips: {', '.join(CHIPS)}")
        prices[chip] = price
    return prices
