"""`mwork run`: the whole loop."""

from __future__ import annotations

import argparse
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from mwork_jax.cli.options import (
    add_log_samples,
    add_model,
    add_rule,
    add_stages,
    at_least,
    command,
    command_of,
    draw_report,
    languages_of,
    load_model_of,
    pairs,
    print_result,
    results_folder,
)
from mwork_jax.corpus import LANGUAGES, Corpus, corpus_of_file, own_corpus
from mwork_jax.errors import InputError
from mwork_jax.intervene.stages import StageSplit
from mwork_jax.pipeline import documents_of_run, run_pipeline
from mwork_jax.report import read_report, run_report
from mwork_jax.runtime.distributed import is_first
from mwork_jax.runtime.files import write_text
from mwork_jax.select.modes import Mode
from mwork_jax.select.rules import Rule
from mwork_jax.settings import RunSettings


def add(commands: Any) -> None:
    what = "the whole loop: find each language's neurons, switch them off, measure the loss, print the tables"
    parser = command(commands, "run", _run, what, "mwork run --model gemma3-270m --languages en,de,th --out results")
    add_model(parser)
    parser.add_argument("--out", default="mwork-results", help="output folder (default: mwork-results)")
    parser.add_argument("--languages", help="comma-separated codes, en among them (default: all that the data has)")
    parser.add_argument("--documents", type=int, help="documents per language to find neurons on (default: 32)")
    parser.add_argument("--held-out", type=int, help="other documents per language to measure on (default: 8)")
    parser.add_argument(
        "--data",
        nargs="+",
        metavar="LANG=FILE",
        help="own documents, text or JSONL: the first --documents find neurons, the next --held-out measure",
    )
    add_rule(parser)
    parser.add_argument(
        "--seeds", type=int, help="random sets per language; below 5 they have a mean and no interval (default: 5)"
    )
    add_stages(parser)
    parser.add_argument("--max-tokens", type=int, default=512, help="longer documents are cut here (default: 512)")
    parser.add_argument(
        "--matrix-documents",
        type=int,
        help="held-out documents to measure each language's set on in the languages other than its own and English, "
        "which take all of them (default: 2; 0: no matrix of languages)",
    )
    add_log_samples(parser)
    parser.add_argument(
        "--random-stages",
        action="store_true",
        help="random sets in each stage too, so that every row has its control; measuring takes three times as long",
    )
    parser.add_argument(
        "--quick", action="store_true", help="a first look: few documents, two seeds, and en, de, zh unless --languages"
    )


def _run(args: argparse.Namespace) -> None:
    settings, corpora = _run_settings(args)
    out = results_folder(args.out, "run", "detect")
    model = load_model_of(args)
    StageSplit.of(model.config.num_layers, settings.n1, settings.n2)
    results = run_pipeline(model, corpora, settings, out, log_samples=args.log_samples, command=command_of(args))
    if not is_first():
        return
    text = run_report(results)
    write_text(out / "table.txt", text + "\n")
    page = draw_report(read_report(out))
    where = f"Look at {page}. Everything is in {out}: results.json, table.txt, neurons/, scores/, figures/."
    print_result(args, results.to_json(), f"{text}\n\n{where}")


def _run_settings(args: argparse.Namespace) -> tuple[RunSettings, dict[str, Corpus]]:
    """The settings and the documents, checked before the model takes its time to load."""
    Rule.parse(args.rule)
    Mode.parse(args.mode)
    at_least("--seeds", 1 if args.seeds is None else args.seeds, 1)
    at_least("--matrix-documents", 0 if args.matrix_documents is None else args.matrix_documents, 0)
    at_least("--max-tokens", args.max_tokens, 2)
    files = pairs("--data", args.data) if args.data else {}
    available = tuple(files) or (("en", "de", "zh") if args.quick else LANGUAGES)
    languages = available if args.languages is None else languages_of("--languages", args.languages)
    settings = RunSettings(
        languages=languages,
        rule=args.rule,
        mode=args.mode,
        n1=args.n1,
        n2=args.n2,
        max_tokens=args.max_tokens,
        random_stages=args.random_stages,
    )
    if args.quick:
        settings = settings.quick()
    given = {
        "documents": args.documents,
        "held_out": args.held_out,
        "seeds": args.seeds,
        "matrix_documents": args.matrix_documents,
    }
    settings = _replace_given(settings, given)
    if files and not set(languages) <= set(files):
        missing = ", ".join(sorted(set(languages) - set(files)))
        raise InputError(f"--data has no documents for {missing!r}; it has {', '.join(files)}")
    if files:
        corpora = {language: corpus_of_file(language, files[language], settings.documents) for language in languages}
    else:
        corpora = {language: own_corpus(language) for language in languages}
    documents_of_run(corpora, settings)
    return settings, corpora


def _replace_given(settings: RunSettings, given: Mapping[str, int | None]) -> RunSettings:
    """The settings with those values that were given on the command line."""
    return replace(settings, **{name: value for name, value in given.items() if value is not None})
