"""`mwork select`: each language's neurons from its scores."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from mwork_jax.cli.options import add_rule, command, print_result
from mwork_jax.detect.scores import NeuronScores
from mwork_jax.errors import InputError
from mwork_jax.neurons import check_language, files_of_languages
from mwork_jax.results import RunResults, read_results
from mwork_jax.runtime.files import refuse_links
from mwork_jax.select.modes import select_neurons
from mwork_jax.select.rules import Rule


def add(commands: Any) -> None:
    what = "choose each language's neurons from the scores of `mwork detect` or `mwork run`"
    parser = command(
        commands, "select", _select, what, "mwork select results --rule top_fraction:0.1 --mode minus_english"
    )
    parser.add_argument("folder", help="the folder with scores/LANG.safetensors; neurons go to FOLDER/neurons")
    add_rule(parser)


def _select(args: argparse.Namespace) -> None:
    folder = Path(args.folder)
    paths = files_of_languages(folder / "scores", ".safetensors")
    if not paths:
        raise InputError(f"{folder}: no scores/LANG.safetensors in it; `mwork detect` or `mwork run` writes them")
    refuse_links(folder)
    _refuse_other_rule(folder, str(Rule.parse(args.rule)), args.mode)
    scores = {language: NeuronScores.load(path) for language, path in paths.items()}
    for language, path in paths.items():
        check_language(path, scores[language].provenance)
    selected = select_neurons(scores, args.rule, args.mode)
    written = {}
    for language, neurons in selected.items():
        path = folder / "neurons" / f"{language}.json"
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
    if (str(Rule.parse(used.rule)), used.mode) != (rule, mode):
        raise InputError(
            f"{folder}: holds what `mwork run` measured with rule {used.rule}, mode {used.mode}; copy its "
            "scores/ to another folder, or run with the other rule: scores are kept"
        )
