"""`mwork plan`: what a stage will need on TPUs that are not here."""

from __future__ import annotations

import argparse
from typing import Any

import jax

from mwork_jax.cli.options import command, log, one_of, print_result
from mwork_jax.errors import InputError
from mwork_jax.plan import (
    DEFAULTS,
    NAMED,
    STAGES,
    Slice,
    as_record,
    config_of,
    plan,
    plan_report,
    smallest_that_fits,
    sweep_report,
    with_given,
)
from mwork_jax.sharding import parse_mesh


def add(commands: Any) -> None:
    what = "compile a stage for TPUs that are not here: does it fit, how fast can it be, what limits it"
    parser = command(commands, "plan", _plan, what, "mwork plan --model mistral-7b --topology v5e:4x4 --stage detect")
    parser.add_argument(
        "--model",
        default="mistral-7b",
        help=f"a config.json, a folder with one (no weights needed), or {', '.join(NAMED)} (default: mistral-7b)",
    )
    parser.add_argument("--topology", default="v5e:4x4", help="v5e:AxB, v6e:AxB or v5p:AxBxC (default: v5e:4x4)")
    parser.add_argument("--stage", default="detect", help=f"{', '.join(STAGES)} (default: detect)")
    groups = "for each group of chips that holds a model"
    parser.add_argument("--batch", type=int, help=f"documents, prompts or packed rows {groups} (default: small)")
    parser.add_argument("--length", type=int, help="tokens of each (default: 512)")
    parser.add_argument(
        "--masks", type=int, help=f"evaluate, generate: masks side by side; enhance: runs; {groups} (default: 8; 1)"
    )
    parser.add_argument("--new", type=int, help="generate: new tokens of each prompt (default: 64)")
    parser.add_argument("--mesh", help="data=N,model=N,mask=N (default: the fewest chips to a model that fit)")
    parser.add_argument("--sweep-topologies", action="store_true", help="a line for every slice of the chip")
    parser.add_argument("--no-smallest", action="store_true", help="do not look for the smallest slice that fits")


def _plan(args: argparse.Namespace) -> None:
    # Compiling needs none of this machine's own devices, and with libtpu there JAX would look for a TPU.
    jax.config.update("jax_platforms", "cpu")
    one_of("--stage", args.stage, STAGES)
    config, slice_ = config_of(args.model), Slice.parse(args.topology)
    mesh = None if args.mesh is None else parse_mesh(args.mesh)
    if mesh is not None and args.sweep_topologies:
        raise InputError("--mesh: one mesh does not fit every slice of --sweep-topologies; leave one of them out")
    if args.masks is not None and args.stage == "detect":
        raise InputError("--masks: detection has none; they are for the stages evaluate, generate and enhance")
    if args.new is not None and args.stage != "generate":
        raise InputError("--new: only the stage generate makes new tokens")
    size = with_given(DEFAULTS[args.stage], {name: getattr(args, name) for name in ("batch", "length", "masks", "new")})
    if (size.length + size.new > config.max_length and args.stage == "generate") or size.length > config.max_length:
        raise InputError(f"--length {size.length}: the model's context is {config.max_length}")
    if args.sweep_topologies:
        plans = [plan(args.stage, config, one, size, log=log) for one in slice_.siblings()]
        print_result(args, [as_record(one) for one in plans], sweep_report(plans, args.model))
        return
    planned = plan(args.stage, config, slice_, size, mesh, log=log)
    smallest = None if args.no_smallest else smallest_that_fits(planned, log=log)
    text = plan_report(planned, args.model, smallest, searched=not args.no_smallest)
    print_result(args, as_record(planned, smallest), text)
