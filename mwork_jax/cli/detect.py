"""`mwork detect`: scores of every neuron on each language's documents."""

from __future__ import annotations

import argparse
from typing import Any

from mwork_jax.cli.options import (
    add_model,
    at_least,
    command,
    command_of,
    load_model_of,
    pairs,
    print_result,
    results_folder,
)
from mwork_jax.corpus import read_corpus
from mwork_jax.errors import InputError
from mwork_jax.pipeline import run_detection
from mwork_jax.settings import DetectSettings


def add(commands: Any) -> None:
    what = "score every neuron on each language's documents"
    example = "mwork detect --model gemma3-270m --corpus en=en.txt --corpus de=de.jsonl --out results"
    parser = command(commands, "detect", _detect, what, example)
    add_model(parser)
    parser.add_argument(
        "--corpus",
        action="extend",
        nargs="+",
        required=True,
        metavar="LANG=FILE",
        help="one per language: text or JSONL with a 'text'",
    )
    parser.add_argument(
        "--out", default="mwork-results", help="output folder; scores go to OUT/scores (default: mwork-results)"
    )
    parser.add_argument("--documents", type=int, help="use the first so many documents of each corpus (default: all)")
    parser.add_argument("--max-tokens", type=int, default=512, help="longer documents are cut here (default: 512)")
    parser.add_argument(
        "--kept",
        type=int,
        default=DetectSettings().kept,
        help="weakest documents that each neuron remembers; a rule with @SHARE lets all but one of them "
        f"miss it (default: {DetectSettings().kept})",
    )
    parser.add_argument("--include-bos", action="store_true", help="count the BOS position in the norms")


def _detect(args: argparse.Namespace) -> None:
    at_least("--max-tokens", args.max_tokens, 2)
    at_least("--kept", args.kept, 1)
    files = pairs("--corpus", args.corpus)
    documents = {language: _first(read_corpus(path), args.documents, path) for language, path in files.items()}
    out = results_folder(args.out, "detect")
    model = load_model_of(args)
    settings = DetectSettings(args.max_tokens, args.kept, args.include_bos)
    results = run_detection(model, documents, files, settings, out, command=command_of(args))
    lines = [
        f"{lang}: {scores.documents} documents, {scores.tokens} tokens -> {out / scores.file}"
        for lang, scores in results.scores.items()
    ]
    print_result(args, results.to_json(), "\n".join(lines))


def _first(documents: list[str], count: int | None, where: str) -> list[str]:
    if count is None:
        return documents
    at_least("--documents", count, 1)
    if count > len(documents):
        raise InputError(f"{where}: {count} documents asked, there are {len(documents)}")
    return documents[:count]
