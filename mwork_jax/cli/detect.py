"""`mwork detect`: scores of every neuron on each language's documents."""

from __future__ import annotations

import argparse
from typing import Any

from mwork_jax.cli.options import add_model, at_least, command, load_model_of, pairs, print_result
from mwork_jax.corpus import encoded, read_corpus
from mwork_jax.detect.scores import DEFAULT_KEPT, DETECTION_COST, load_or_score
from mwork_jax.errors import InputError
from mwork_jax.runtime.files import output_folder
from mwork_jax.runtime.progress import Progress


def add(commands: Any) -> None:
    what = "score every neuron on each language's documents"
    example = "mwork detect --model gemma3-270m --corpus en=en.txt --corpus de=de.jsonl --out results"
    parser = command(commands, "detect", _detect, what, example)
    add_model(parser)
    parser.add_argument(
        "--corpus",
        action="append",
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
        default=DEFAULT_KEPT,
        help="weakest documents that each neuron remembers; a rule with @SHARE lets all but one of them "
        f"miss it (default: {DEFAULT_KEPT})",
    )
    parser.add_argument("--include-bos", action="store_true", help="count the BOS position in the norms")


def _detect(args: argparse.Namespace) -> None:
    at_least("--max-tokens", args.max_tokens, 2)
    at_least("--kept", args.kept, 1)
    files = pairs("--corpus", args.corpus)
    corpora = {language: _first(read_corpus(path), args.documents, path) for language, path in files.items()}
    out = output_folder(args.out)
    model = load_model_of(args)
    # All of them before any work, so that a document that cannot be used is found at once.
    ready = {lang: list(encoded(model, d, args.max_tokens, where=files[lang])) for lang, d in corpora.items()}
    written = {}
    with Progress(DETECTION_COST * sum(map(len, ready.values()))) as bar:
        for lang, documents in ready.items():
            path = out / "scores" / f"{lang}.safetensors"
            scores = load_or_score(
                model,
                documents,
                path,
                bar,
                language=lang,
                origin=files[lang],
                max_tokens=args.max_tokens,
                kept=args.kept,
                include_bos=args.include_bos,
            )
            written[lang] = {"file": str(path), "documents": scores.documents, "tokens": scores.tokens}
    lines = [f"{lang}: {w['documents']} documents, {w['tokens']} tokens -> {w['file']}" for lang, w in written.items()]
    print_result(args, written, "\n".join(lines))


def _first(documents: list[str], count: int | None, where: str) -> list[str]:
    if count is None:
        return documents
    at_least("--documents", count, 1)
    if count > len(documents):
        raise InputError(f"{where}: {count} documents asked, there are {len(documents)}")
    return documents[:count]
