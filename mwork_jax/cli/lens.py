"""`mwork lens`: the languages that each layer would speak."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from typing import Any

from mwork_jax.cli.options import (
    add_model,
    add_other_model,
    at_least,
    check_sets,
    command,
    command_of,
    languages_of,
    load_model_of,
    neurons_of,
    one_of,
    pairs,
    print_result,
)
from mwork_jax.corpus import own_corpus, read_corpus
from mwork_jax.errors import InputError
from mwork_jax.lens.logit_lens import run_lens
from mwork_jax.lens.vocabulary import LABELLERS
from mwork_jax.report import lens_report
from mwork_jax.results import write_results
from mwork_jax.runtime.files import output_folder
from mwork_jax.settings import LensSettings

_LANGUAGES = "en,de,es,zh,th,ar"


def add(commands: Any) -> None:
    what = "the logit lens: of which language are the tokens that each layer would say next (Figure 1)"
    example = "mwork lens --model gemma3-270m --languages en,de,th --neurons results --out results"
    parser = command(commands, "lens", _lens, what, example)
    add_model(parser)
    parser.add_argument(
        "--out", default="mwork-results", help="output folder; lens.json goes there (default: mwork-results)"
    )
    parser.add_argument(
        "--languages", help=f"comma-separated codes, of the prompts and of the labels (default: {_LANGUAGES})"
    )
    parser.add_argument(
        "--corpus",
        action="extend",
        nargs="+",
        metavar="LANG=FILE",
        help="own prompts, text or JSONL, one file per language",
    )
    parser.add_argument("--documents", type=int, default=8, help="prompts per language (default: 8)")
    parser.add_argument("--max-tokens", type=int, default=64, help="longer prompts are cut here (default: 64)")
    parser.add_argument("--top", type=int, default=10, help="tokens that count at each position (default: 10)")
    parser.add_argument("--neurons", help="folder with neurons/LANG.json: also with each language's own neurons off")
    add_other_model(parser)
    parser.add_argument(
        "--label-languages", help="comma-separated codes of more languages that a token can be of (default: none)"
    )
    parser.add_argument(
        "--labeller",
        default="lingua",
        help=f"decides where a script does not: {', '.join(LABELLERS)} (default: lingua)",
    )


def _lens(args: argparse.Namespace) -> None:
    for option in ("documents", "top"):
        at_least(f"--{option}", getattr(args, option), 1)
    at_least("--max-tokens", args.max_tokens, 2)
    one_of("--labeller", args.labeller, tuple(LABELLERS))
    more = languages_of("--label-languages", args.label_languages) if args.label_languages else ()
    texts, origins = _prompts(args)
    out = output_folder(args.out)
    neurons = {} if args.neurons is None else neurons_of(args.neurons, tuple(texts), needed=False)
    model = load_model_of(args)
    check_sets(args, model, neurons)
    settings = LensSettings(args.top, args.max_tokens, args.labeller, more)
    results = run_lens(model, texts, origins, neurons, settings, out, command=command_of(args))
    write_results(out / "lens.json", results)
    print_result(args, results.to_json(), f"{lens_report(results)}\n\nEverything is in {out / 'lens.json'}.")


def _prompts(args: argparse.Namespace) -> tuple[dict[str, Sequence[str]], dict[str, str]]:
    """The texts and where they come from, by language."""
    files = pairs("--corpus", args.corpus) if args.corpus else {}
    languages = languages_of("--languages", args.languages or ",".join(files) or _LANGUAGES)
    if files and not set(languages) <= set(files):
        missing = ", ".join(sorted(set(languages) - set(files)))
        raise InputError(f"--corpus has no prompts for {missing!r}; it has {', '.join(files)}")
    texts, origins = {}, {}
    for language in languages:
        own = None if files else own_corpus(language)
        available = read_corpus(files[language]) if own is None else own.held_out
        origins[language] = files[language] if own is None else f"{own.origin}, held out"
        if args.documents > len(available):
            raise InputError(f"{origins[language]}: {args.documents} prompts asked, there are {len(available)}")
        texts[language] = available[: args.documents]
    return texts, origins
