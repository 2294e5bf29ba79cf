"""What the commands share: how they are declared, the options that several have, and the checks of options."""

from __future__ import annotations

import argparse
import json
import os
import re
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NoReturn

import jax

from mwork_jax.errors import InputError
from mwork_jax.load import Model, load_model, weight_bytes
from mwork_jax.report import printable
from mwork_jax.runtime.distributed import agreed, is_first, meet, several, start
from mwork_jax.runtime.files import output_folder, read_json
from mwork_jax.select.rules import DEFAULT_RULE, MODES
from mwork_jax.sharding import default_shape, make_mesh, parse_mesh


class Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        raise InputError(f"{message} (see {self.prog} --help)")


def command(
    commands: Any, name: str, function: Callable[[argparse.Namespace], None], what: str, example: str
) -> argparse.ArgumentParser:
    """Declares a command: `function` is what it does, `what` says so in its help, with one example."""
    layout = argparse.RawDescriptionHelpFormatter
    parser = commands.add_parser(
        name, help=what, description=what, epilog=f"example:\n  {example}", formatter_class=layout
    )
    parser.set_defaults(command=function)
    parser.add_argument("--json", action="store_true", help="print one JSON object on stdout")
    return parser


def add_model(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--model",
        default="gemma3-270m",
        help="a folder in Hugging Face layout, here or in a bucket (gs://, s3://), a .gguf file, a Hub id, or "
        "gemma3-270m (the default)",
    )
    parser.add_argument(
        "--dtype", choices=("float32", "bfloat16"), help="of weights and matrix operands; default: what is fast here"
    )

    _add_joining(parser)
    devices = "the devices to share the work out over, data=N,model=N,mask=N"
    parser.add_argument("--mesh", help=f"{devices} (default: documents over all; the model where it is too large)")


def _add_joining(parser: argparse.ArgumentParser) -> None:
    """The options that join several processes."""
    parser.add_argument("--coordinator", help="several processes: host:port of the first, or auto (see docs/pods.md)")
    parser.add_argument("--processes", type=int, help="how many processes there are")
    parser.add_argument("--process-id", type=int, help="which of them this one is, from 0")


def joining_options(arguments: Sequence[str]) -> argparse.Namespace:
    """The options of `_add_joining` alone, whatever else is among the arguments: a process whose arguments cannot be
    used can still tell the others. Without them where they cannot be used themselves."""
    parser = Parser(add_help=False, allow_abbrev=False)
    _add_joining(parser)
    try:
        args = parser.parse_known_args(list(arguments))[0]
    except InputError:
        return argparse.Namespace()
    return args if args.coordinator else argparse.Namespace()


def load_model_of(args: argparse.Namespace) -> Model:
    """The model that the options of `add_model` name, on the devices that they ask for."""
    join_others(args)
    meet()
    shape = None if args.mesh is None else parse_mesh(args.mesh)
    if shape is None and jax.device_count() > 1:
        size = weight_bytes(args.model, args.dtype)
        shape = agreed(lambda: default_shape(jax.local_devices()[0], jax.device_count(), size))
    mesh = None if shape is None else make_mesh(shape)
    return load_model(args.model, dtype=args.dtype, mesh=mesh)


def join_others(args: argparse.Namespace) -> None:
    """Joins the other processes of this run, where there are any; before anything uses a device."""
    if not several() and start(args.coordinator, args.processes, args.process_id):
        _keep_stdout()


def _keep_stdout() -> None:
    """Leaves standard output to the results: gloo, in C++, would say there whom it has met."""
    sys.stdout.flush()
    results = os.dup(1)
    os.dup2(2, 1)
    sys.stdout = os.fdopen(results, "w", encoding=sys.stdout.encoding, errors=sys.stdout.errors)


def add_rule(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--rule",
        default=DEFAULT_RULE,
        help=f"epsilon:X, top_k:K or top_fraction:F, each with @SHARE, or lape:F (default: {DEFAULT_RULE})",
    )
    parser.add_argument("--mode", default=MODES[0], help=f"{', '.join(MODES)} (default: {MODES[0]})")


def add_stages(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--n1", type=int, help="layers of the understanding stage (default: a quarter)")
    parser.add_argument("--n2", type=int, help="layers of the generation stage (default: an eighth)")


def results_folder(path: str, command: str) -> Path:
    """The output folder of a command that writes results.json there. Raises InputError where it cannot be written to or
    holds a file of this name that the command did not write."""
    out = output_folder(path)
    there = out / "results.json"
    try:
        results = read_json(there) if there.exists() else None
    except InputError:  # damaged, so nothing is lost
        return out
    if results is not None and (writer := _writer_of(results)) != command:
        whose = f"the results of `mwork {writer}`" if writer else "a results.json that is not of this project"
        raise InputError(f"{out}: holds {whose}; choose another output folder with --out")
    return out


def _writer_of(results: Any) -> str | None:
    """Which command wrote a results.json; None for none."""
    if not isinstance(results, dict) or results.get("format") != "mwork-results-1":
        return None
    return "evaluate" if "tables" in results else "run" if "languages" in results else "enhance"


def print_result(args: argparse.Namespace, value: Any, text: str) -> None:
    """The result on stdout: one JSON object with --json, else a text in signs that the terminal can show. Of several
    processes the first says it."""
    if not is_first():
        return
    print(json.dumps(value) if args.json else printable(text, getattr(sys.stdout, "encoding", None)))


def log(line: str) -> None:
    """One line beside the results, on stderr; of several processes the first says it."""
    if is_first():
        print(printable(f"mwork: {line}", getattr(sys.stderr, "encoding", None)), file=sys.stderr, flush=True)


def pairs(option: str, given: Sequence[str]) -> dict[str, str]:
    """LANG=FILE options as a table."""
    files: dict[str, str] = {}
    for item in given:
        language, equals, path = item.partition("=")
        if not (language and equals and path):
            raise InputError(f"{option} {item}: LANG=FILE is needed, as in {option} de=german.txt")
        if language in files:
            raise InputError(f"{option} {item}: {language!r} is given twice")
        files[_code(option, language)] = path
    return files


def languages_of(option: str, text: str) -> tuple[str, ...]:
    """Comma-separated language codes, each once."""
    return tuple(dict.fromkeys(_code(option, part.strip()) for part in text.split(",")))


def _code(option: str, language: str) -> str:
    """A language code, which names files too. InputError for anything that is not letters, digits, - and _."""
    if not re.fullmatch(r"[A-Za-z0-9_-]+", language):
        raise InputError(f"{option}: {language!r} is not a language code; letters, digits, - and _, as in en,de,zh-TW")
    return language


def one_of(option: str, value: str, allowed: Sequence[str]) -> None:
    if value not in allowed:
        raise InputError(f"{option} {value}: it must be one of {', '.join(allowed)}")


def at_least(option: str, value: int, least: int) -> None:
    if value < least:
        raise InputError(f"{option} {value}: it must be at least {least}")
