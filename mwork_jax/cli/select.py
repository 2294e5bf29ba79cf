"""`mwork select`: each language's neurons from its scores."""

from __future__ import annotations

import argparse
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from mwork_jax.cli.options import add_rule, command, output_folder, print_result
from mwork_jax.detect.scores import NeuronScores
from mwork_jax.errors import InputError
from mwork_jax.neurons import NeuronSet, check_language, files_of_languages
from mwork_jax.results import RunResults, read_results
from mwork_jax.runtime.files import refuse_links
from mwork_jax.select.modes import Mode, select_neurons
from mwork_jax.select.rules import Rule


def add(commands: Any) -> None:
    what = "choose each language's neurons from the scores of `mwork detect` or `mwork run`"
    parser = command(
        commands, "select", _select, what, "mwork select results --rule top_fraction:0.1 --mode minus_english"
    )
    parser.add_argument("folder", help="the folder with scores/LANG.safetensors")
    parser.add_argument("--out", help="neurons go to OUT/neurons (default: to FOLDER/neurons)")
    parser.add_argument("--replace", action="store_true", help="replace other sets that are there")
    add_rule(parser)


def _select(args: argparse.Namespace) -> None:
    folder = Path(args.folder)
    paths = files_of_languages(folder / "scores", ".safetensors")
    if not paths and (folder.is_file() or files_of_languages(folder, ".safetensors")):
        raise InputError(f"{folder}: give the folder that scores/LANG.safetensors are in, not the scores themselves")
    if not paths:
        raise InputError(f"{folder}: no scores/LANG.safetensors in it; `mwork detect` or `mwork run` writes them")
    out = folder if args.out is None else output_folder(args.out)
    refuse_links(out)
    _refuse_other_rule(out, str(Rule.parse(args.rule)), str(Mode.parse(args.mode)))
    scores = {language: NeuronScores.load(path) for language, path in paths.items()}
    for language, path in paths.items():
        check_language(path, scores[language].provenance)
    selected = select_neurons(scores, args.rule, args.mode)
    if not args.replace:
        _refuse_replacing(out, selected)
    written = {}
    for language, neurons in selected.items():
        path = out / "neurons" / f"{language}.json"
        neurons.save(path)
        written[language] = {"file": str(path), "count": neurons.count(), "share": neurons.count() / neurons.total()}
    lines = [f"{lang}: {w['count']:,} neurons ({100 * w['share']:.2f}%) -> {w['file']}" for lang, w in written.items()]
    print_result(args, written, "\n".join(lines))


def _refuse_other_rule(folder: Path, rule: str, mode: str) -> None:
    """Raises InputError where the neurons would stand beside what a run measured with others."""
    path = folder / "results.json"
    results = read_results(path) if path.exists() else None
    if not isinstance(results, RunResults):
        return
    used = results.provenance.settings
    if (str(Rule.parse(used.rule)), str(Mode.parse(used.mode))) != (rule, mode):
        raise InputError(
            f"{folder}: holds what `mwork run` measured with rule {used.rule}, mode {used.mode}; choose another folder "
            "with --out, or run with the other rule: scores are kept"
        )


def _refuse_replacing(out: Path, selected: Mapping[str, NeuronSet]) -> None:
    """Raises InputError, before anything is written, where another set would be replaced."""
    for language, neurons in selected.items():
        path = out / "neurons" / f"{language}.json"
        if not path.exists():
            continue
        earlier = NeuronSet.load(path)
        if earlier != neurons:
            rule, mode = (earlier.provenance.get(name, "unknown") for name in ("rule", "mode"))
            raise InputError(
                f"{path}: holds another set ({earlier.count():,} neurons, rule {rule}, mode {mode}), which would be "
                "replaced; choose another folder with --out, or use --replace"
            )
