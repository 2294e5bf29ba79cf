"""`mwork paper`: the whole paper on one model, and a verdict on what it says."""

from __future__ import annotations

import argparse
import re
from typing import Any

import msgspec

from mwork_jax.cli.options import (
    add_model,
    at_least,
    command,
    command_of,
    draw_report,
    join_others,
    languages_of,
    load_model_of,
    log,
    pairs,
    print_result,
    results_folder,
)
from mwork_jax.corpus import Corpus, corpus_of_file, own_corpus
from mwork_jax.errors import InputError
from mwork_jax.paper import PARTS, plan_lines, run_paper, settle, study_of
from mwork_jax.report import read_report
from mwork_jax.report.text import paper_report
from mwork_jax.runtime.distributed import is_first
from mwork_jax.runtime.files import write_text
from mwork_jax.select.rules import DEFAULT_RULE, Rule
from mwork_jax.settings import PaperSettings

_UNITS = {"s": 1, "min": 60, "m": 60, "h": 3600, "d": 86400}


def add(commands: Any) -> None:
    what = "the whole paper on one model: neurons, Tables 1 to 6, Figures 1 and 4, the grid, a verdict on each claim"
    example = "mwork paper --model gemma3-270m --data datasets --languages en,de,zh --budget 2h --out paper"
    parser = command(commands, "paper", _paper, what, example)
    add_model(parser)
    parser.add_argument("--out", default="mwork-paper", help="output folder (default: mwork-paper)")
    parser.add_argument("--data", help="a folder with one folder per data set (default: the project's own small set)")
    parser.add_argument(
        "--corpus",
        nargs="+",
        metavar="LANG=FILE",
        help="documents to find neurons on, to measure the loss on and to tune on (default: the project's own)",
    )
    parser.add_argument("--languages", help="comma-separated codes, en among them (default: en,de,zh, or --corpus's)")
    parser.add_argument("--tables", help=f"some of {','.join(PARTS)} (default: all); lens is Figure 1")
    parser.add_argument("--items", type=int, help="items of each table and language (default: all that there are)")
    parser.add_argument("--budget", metavar="TIME", help="as 2h or 30min: each table gets the items it has time for")
    parser.add_argument("--documents", type=int, default=32, help="per language, to find neurons on (default: 32)")
    parser.add_argument("--held-out", type=int, default=8, help="others per language, for the loss (default: 8)")
    parser.add_argument("--tuning", help="documents of Table 6, comma-separated (default: 100,200,400,800, if there)")
    parser.add_argument("--rule", default=DEFAULT_RULE, help=f"as of `mwork run` (default: {DEFAULT_RULE})")
    parser.add_argument("--seeds", type=int, default=5, help="random sets of a row, and tunings (default: 5)")
    parser.add_argument("--shots", type=int, default=0, help="worked examples before each item (default: 0)")
    parser.add_argument("--chat", action="store_true", help="put prompts into the model's chat template")
    parser.add_argument("--n1", type=int, help="layers of the understanding stage (default: a quarter)")
    parser.add_argument("--n2", type=int, help="layers of the generation stage (default: an eighth)")
    parser.add_argument("--max-tokens", type=int, default=512, help="longer documents are cut here (default: 512)")
    parser.add_argument("--estimate", action="store_true", help="only say what it costs here and what is missing")


def _paper(args: argparse.Namespace) -> None:
    files = pairs("--corpus", args.corpus) if args.corpus else {}
    settings = _settings(args, tuple(files))
    missing = [lang for lang in settings.languages if files and lang not in files]
    if missing:
        raise InputError(f"--corpus has no documents of {', '.join(missing)}; it has {', '.join(files)}")
    corpora = {
        lang: _corpus(lang, files[lang], settings.held_out) if files else own_corpus(lang)
        for lang in settings.languages
    }
    study = study_of(corpora, args.data, settings)
    join_others(args)
    out = results_folder(args.out, "run")
    model = load_model_of(args)
    for line in () if args.estimate else study.lines:
        log(line)
    plan = settle(model, study, settings, out, keep=not args.estimate, log=log)
    if args.estimate:
        print_result(args, msgspec.to_builtins(plan), "\n".join([*study.lines, *plan_lines(plan)]))
        return
    for line in plan_lines(plan):
        log(line)
    run_paper(model, study, plan, settings, out, log=log, command=command_of(args))
    if not is_first():
        return
    report = read_report(out)
    text = paper_report(report.results)
    write_text(out / "table.txt", text + "\n")
    page = draw_report(report)
    tables = {name: [dict(row) for row in report.tables[name].records] for name in ("verdicts",)}
    print_result(args, {"report": str(page), **tables}, f"{text}\n\nLook at {page}.")


def _corpus(language: str, path: str, held_out: int) -> Corpus:
    """A file's documents: the last `held_out` measure the loss, those before find neurons and tune."""
    whole = corpus_of_file(language, path, 0)
    size = max(0, len(whole.held_out) - held_out)
    return Corpus(language, whole.held_out[:size], whole.held_out[size:], whole.origin, whole.held_out_ids[size:])


def _settings(args: argparse.Namespace, given: tuple[str, ...]) -> PaperSettings:
    Rule.parse(args.rule)
    for option, value, least in (
        ("--items", args.items, 2), ("--documents", args.documents, 1), ("--held-out", args.held_out, 2),
        ("--seeds", args.seeds, 1), ("--shots", args.shots, 0), ("--max-tokens", args.max_tokens, 2),
    ):  # fmt: skip
        at_least(option, least if value is None else value, least)
    if args.items is not None and args.budget is not None:
        raise InputError("--items and --budget: one of them; a budget decides how many items there are")
    languages = languages_of("--languages", args.languages) if args.languages else given or ("en", "de", "zh")
    return PaperSettings(
        languages=languages,
        parts=_parts(args.tables),
        items=args.items,
        budget=None if args.budget is None else _seconds(args.budget),
        documents=args.documents,
        held_out=args.held_out,
        tuning=_counts(args.tuning),
        rule=args.rule,
        seeds=args.seeds,
        shots=args.shots,
        chat=args.chat,
        n1=args.n1,
        n2=args.n2,
        max_tokens=args.max_tokens,
    )


def _parts(text: str | None) -> tuple[str, ...]:
    asked = PARTS if text is None else tuple(part.strip() for part in text.split(","))
    wrong = [part for part in asked if part not in PARTS]
    if wrong:
        raise InputError(f"--tables {text}: {wrong[0]!r} is not known; choose some of {','.join(PARTS)}")
    return tuple(part for part in PARTS if part in asked)


def _seconds(text: str) -> float:
    """2h, 90min, 1.5h or a number of seconds."""
    found = re.fullmatch(r"(\d{1,9}(?:\.\d{1,6})?)\s*(s|min|m|h|d)?", text.strip())
    if found is None or float(found[1]) <= 0:
        raise InputError(f"--budget {text}: a time is needed, as in 2h, 30min or 1.5h")
    return float(found[1]) * _UNITS[found[2] or "s"]


def _counts(text: str | None) -> tuple[int, ...]:
    parts = [] if text is None else [part.strip() for part in text.split(",")]
    if not all(part.isdecimal() and len(part) < 10 and int(part) > 1 for part in parts):
        raise InputError(f"--tuning {text}: numbers of documents are needed, 2 or more, as in 100,400")
    return tuple(sorted(set(map(int, parts))))
