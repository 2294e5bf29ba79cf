"""What the commands share: how they are declared, the options that several have, and the checks of options."""

from __future__ import annotations

import argparse
import json
import os
import re
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from difflib import get_close_matches
from pathlib import Path
from typing import Any, NoReturn

import jax

from mwork_jax.errors import InputError
from mwork_jax.iso_639 import is_code, meant_code
from mwork_jax.load import default_dtype, load_model, read_config
from mwork_jax.model.identity import model_of
from mwork_jax.model.model import Model
from mwork_jax.model.parameters import weight_bytes
from mwork_jax.model.slot_sizes import with_recorded_memory
from mwork_jax.neurons import NeuronSet, check_language
from mwork_jax.report import NAMES, Report, printable
from mwork_jax.results import FORMAT, FORMATS_OF_0_1
from mwork_jax.runtime.cache import CACHE_FOLDER
from mwork_jax.runtime.compiled_cache import keep_compiled_programs
from mwork_jax.runtime.distributed import agreed, is_first, meet, several, start
from mwork_jax.runtime.files import output_folder, read_json
from mwork_jax.runtime.progress import while_it_lasts
from mwork_jax.select.modes import MODE_FORMS, MODES
from mwork_jax.select.rules import DEFAULT_RULE
from mwork_jax.sharding import default_shape, make_mesh, parse_mesh

_COMMANDS = {"tables": "evaluate", "lm_eval": "evaluate --lm-eval"}  # the others have the name of their command


class Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        raise InputError(f"{message} (see {self.prog} --help)")


class CommandParser(Parser):
    """Of one command. It knows which options there are, and so which one was meant."""

    def parse_known_args(self, *args: Any, **named: Any) -> Any:
        parsed, unknown = super().parse_known_args(*args, **named)
        if unknown:
            options = [option for option in self._option_string_actions if option.startswith("--")]
            close = get_close_matches(unknown[0].partition("=")[0], options, 1)
            meant = f"; {close[0]} is meant?" if close else ""
            self.error(f"unrecognized arguments: {' '.join(unknown)}{meant}")
        return parsed, unknown


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


def add_model(parser: argparse.ArgumentParser, *, tuned: bool = False) -> None:
    """tuned: whether the model's weights are tuned, which int8 ones cannot be."""
    parser.add_argument(
        "--model",
        default="gemma3-270m",
        help="a folder in Hugging Face layout, here or in a bucket (gs://, s3://), a .gguf file, a Hub id, or "
        "gemma3-270m (the default)",
    )
    parser.add_argument(
        "--dtype", choices=("float32", "bfloat16"), help="of weights and matrix operands; default: what is fast here"
    )

    parser.set_defaults(kept_weights=None)
    if not tuned:
        what = "keep the layers' matrices as 8-bit whole numbers, which are multiplied out layer by layer"
        parser.add_argument("--weights", choices=("int8",), dest="kept_weights", help=what)
    room = "of a device, for weights and the rows that are written at once, as 12GB (default: what is there)"
    parser.add_argument("--memory", metavar="SIZE", help=room)
    kept = "keep compiled programs in the user's cache folder, or where JAX_COMPILATION_CACHE_DIR says (default: yes)"
    parser.add_argument("--cache", action=argparse.BooleanOptionalAction, default=True, help=kept)
    _add_joining(parser)
    devices = "the devices to share the work out over, data=N,model=N,mask=N,expert=N"
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
    memory = None if args.memory is None else _bytes("--memory", args.memory)
    if args.cache:
        keep_compiled_programs()
    join_others(args)
    meet()
    shape = None if args.mesh is None else parse_mesh(args.mesh)
    if shape is None and jax.device_count() > 1:
        size = weight_bytes(read_config(args.model), args.dtype or default_dtype(), int8=args.kept_weights == "int8")
        shape = agreed(lambda: default_shape(jax.local_devices()[0], jax.device_count(), size, memory))
    mesh = None if shape is None else make_mesh(shape)
    model = load_model(args.model, dtype=args.dtype, mesh=mesh, weights=args.kept_weights, memory=memory)
    return with_recorded_memory(model, Path(args.out) / CACHE_FOLDER) if getattr(args, "out", None) else model


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


def add_other_model(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--allow-other-model",
        action="store_true",
        help="use neurons that were found in another model of the same shape, such as the base of an instruct model",
    )


def command_of(args: argparse.Namespace) -> tuple[str, ...]:
    """The command as it was typed, for the provenance of results."""
    return ("mwork", *args.typed)


def add_rule(parser: argparse.ArgumentParser, mode: str = MODES[0]) -> None:
    parser.add_argument(
        "--rule",
        default=DEFAULT_RULE,
        help=f"epsilon:X, top_k:K or top_fraction:F, each with @SHARE, or lape:F (default: {DEFAULT_RULE})",
    )
    kept = "which of a language's activated neurons are its own"
    parser.add_argument("--mode", default=mode, help=f"{kept}: {MODE_FORMS} (default: {mode})")


def add_stages(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--n1", type=int, help="layers of the understanding stage (default: a quarter)")
    parser.add_argument("--n2", type=int, help="layers of the generation stage (default: an eighth)")


def draw_report(report: Report) -> Path:
    """Writes the page of results with its figures, which takes some seconds, and says so meanwhile."""
    with while_it_lasts("drawing the report ..."):
        return report.write()


def results_folder(path: str, *kinds: str) -> Path:
    """The output folder of a command that writes results.json there. Raises InputError where it cannot be written to,
    and where it holds a results.json of another kind than `kinds`, of version 0.1, or of another project."""
    out = output_folder(path)
    existing = out / "results.json"
    if not existing.exists():
        return out
    try:
        body = read_json(existing)
    except InputError:  # damaged, so nothing is lost
        return out
    form = body.get("format") if isinstance(body, dict) else None
    kind = body["kind"] if form == FORMAT and isinstance(body.get("kind"), str) else None
    if kind not in kinds:
        whose = "a results.json that is not of this project"
        if form in FORMATS_OF_0_1:
            whose = "results of version 0.1"
        elif kind is not None:
            whose = f"the results of `mwork {_COMMANDS.get(kind, kind)}`"
        raise InputError(f"{out}: holds {whose}; choose another output folder with --out")
    return out


def neurons_of(folder: str | Path, languages: Sequence[str], *, needed: bool = True) -> dict[str, NeuronSet]:
    """The sets in FOLDER/neurons of these languages. Raises InputError where one is missing or, unless it is `needed`
    that all are there, where none is."""
    paths = {lang: Path(folder) / "neurons" / f"{lang}.json" for lang in languages}
    missing = [path for path in paths.values() if not path.exists()]
    if missing and (needed or len(missing) == len(paths)):
        if Path(folder).is_file() or (Path(folder) / missing[0].name).is_file():
            raise InputError(f"{folder}: --neurons takes the folder that neurons/{missing[0].name} is in")
        raise InputError(f"{missing[0]}: no such file; `mwork run` and `mwork select` write it, --neurons says where")
    sets = {lang: NeuronSet.load(path) for lang, path in paths.items() if path.exists()}
    for language, own in sets.items():
        check_language(paths[language], own.provenance)
    return sets


def check_sets(args: argparse.Namespace, model: Model, neurons: Mapping[str, NeuronSet]) -> None:
    """Raises InputError, naming both models, for sets that were found in another model, base for instruct say, which
    can have the same shape; with --allow-other-model it only warns."""
    for language, own in neurons.items():
        of = model_of(own.provenance, f"the neurons of {language}")
        if of is not None and not of.is_same_as(model.info):
            line = f"the neurons of {language} were found in {of}, the model is {model.info}"
            if not args.allow_other_model:
                raise InputError(f"{line}; find them in this model, or use --allow-other-model")
            log(f"warning: {line}")


def add_log_samples(parser: argparse.ArgumentParser) -> None:
    what = "save every item's answer and score under each mask in OUT/samples/*.jsonl (default: yes)"
    parser.add_argument("--log-samples", action=argparse.BooleanOptionalAction, default=True, help=what)


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
    _refuse_one_file_name(option, files)
    return files


def languages_of(option: str, text: str) -> tuple[str, ...]:
    """Comma-separated language codes, each once."""
    languages = tuple(dict.fromkeys(_code(option, part.strip()) for part in text.split(",")))
    _refuse_one_file_name(option, languages)
    return languages


def _refuse_one_file_name(option: str, languages: Iterable[str]) -> None:
    """InputError for codes that differ only in capital letters: disks of macOS and Windows have one file for both."""
    by_name: dict[str, str] = {}
    for language in languages:
        if (other := by_name.setdefault(language.lower(), language)) != language:
            raise InputError(f"{option}: {other} and {language} differ only in capital letters; which one is meant?")


def _code(option: str, language: str) -> str:
    """A language code, which names files too. InputError for anything that is not letters, digits, - and _, and for
    what is no code, with the one that is probably meant."""
    wrong = f"{option}: {language!r} is not a language code"
    if not is_code(language) and (meant := meant_code(language)) is not None:
        raise InputError(f"{wrong}; did you mean {meant}, {NAMES[meant]}?")
    if not re.fullmatch(r"[A-Za-z0-9_-]+", language):
        raise InputError(f"{wrong}; letters, digits, - and _, as in en,de,zh-TW")
    if not is_code(language):
        raise InputError(f"{wrong} of ISO 639, as en and yue are; for one of your own write x-{language}")
    return language


def one_of(option: str, value: str, allowed: Sequence[str]) -> None:
    if value not in allowed:
        raise InputError(f"{option} {value}: it must be one of {', '.join(allowed)}")


def _bytes(option: str, text: str) -> int:
    """A size with its unit, as 12GB or 800MB (powers of 1024), in bytes."""
    found = re.fullmatch(r"(\d{1,9}(?:\.\d{1,9})?) ?([MGT])i?B", text, re.ASCII)
    if not found or not float(found[1]):
        raise InputError(f"{option} {text:.40}: a size is needed, as in 12GB or 800MB")
    return int(float(found[1]) * 1024 ** ("MGT".index(found[2]) + 2))


def layers_of(option: str, text: str | None) -> tuple[int, ...]:
    """Layers, from 0: numbers and ranges with commas between them, as in 4,9 or 4-12; none where nothing is given."""
    layers: dict[int, None] = {}
    for part in text.split(",") if text else ():
        found = re.fullmatch(r" *(\d{1,6})(?: *- *(\d{1,6}))? *", part, re.ASCII)
        if not found:
            raise InputError(f"{option} {text:.40}: layers with commas between them are needed, as in 4,9 or 4-12")
        first, last = int(found[1]), int(found[2] or found[1])
        if first > last:
            raise InputError(f"{option} {text:.40}: {first}-{last} runs backwards; {last}-{first} is meant?")
        layers |= dict.fromkeys(range(first, last + 1))
    return tuple(layers)


def at_least(option: str, value: int, least: int) -> None:
    if value < least:
        raise InputError(f"{option} {value}: it must be at least {least}")
