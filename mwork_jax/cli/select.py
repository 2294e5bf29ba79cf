"""`mwork select`: each language's neurons from its scores."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from mwork_jax.cli.options import add_rule, command, print_result
from mwork_jax.detect import NeuronScores
from mwork_jax.errors import InputError
from mwork_jax.select import select_neurons


def add(commands: Any) -> None:
    what = "choose each language's neurons from the scores of `mwork detect` or `mwork run`"
    parser = command(
        commands, "select", _select, what, "mwork select results --rule top_fraction:0.1 --mode minus_english"
    )
    parser.add_argument("folder", help="the folder with scores/LANG.safetensors; neurons go to FOLDER/neurons")
    add_rule(parser)


def _select(chosen: argparse.Namespace) -> None:
    folder = Path(chosen.folder)
    paths = sorted((folder / "scores").glob("*.safetensors"))
    if not paths:
        raise InputError(f"{folder}: no scores/LANG.safetensors in it; `mwork detect` or `mwork run` writes them")
    found = select_neurons({p.stem: NeuronScores.load(p) for p in paths}, chosen.rule, chosen.mode)
    written = {}
    for language, neurons in found.items():
        path = folder / "neurons" / f"{language}.json"
        neurons.save(path)
        written[language] = {"file": str(path), "count": neurons.count(), "share": neurons.count() / neurons.total()}
    lines = [f"{lang}: {w['count']:,} neurons ({100 * w['share']:.2f}%) -> {w['file']}" for lang, w in written.items()]
    print_result(chosen, written, "\n".join(lines))
