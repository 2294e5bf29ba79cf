"""`mwork report`: one page, or tables for a paper, from a folder of results."""

from __future__ import annotations

import argparse
from typing import Any

from mwork_jax.cli.options import command, draw_report, print_result
from mwork_jax.report import FORMATS, bibtex, read_report, tables_as


def add(commands: Any) -> None:
    what = "one page to send to a colleague, or tables for a paper, from a folder of results"
    parser = command(commands, "report", _report, what, "mwork report mwork-results --format latex")
    parser.add_argument(
        "folder",
        nargs="?",
        default="mwork-results",
        help="a folder that `mwork run`, `evaluate`, `enhance`, `detect` or `lens` wrote; results one level "
        "below count too (default: mwork-results)",
    )
    parser.add_argument(
        "--format",
        default="html",
        choices=("html", *FORMATS, "bibtex"),
        help="html writes FOLDER/report.html and FOLDER/figures/ (the default); bibtex prints what to cite; the others "
        "print the tables, those for LaTeX as wide as a column at most",
    )


def _report(args: argparse.Namespace) -> None:
    if args.format == "bibtex":
        print_result(args, {"bibtex": bibtex()}, bibtex().rstrip("\n"))
    elif args.format == "html":
        path = draw_report(read_report(args.folder))
        print_result(args, {"report": str(path), "figures": str(path.parent / "figures")}, f"Written: {path}")
    elif args.json:
        tables = read_report(args.folder).tables.values()
        print_result(args, {t.name: {"title": t.title, "rows": [dict(r) for r in t.records]} for t in tables}, "")
    else:
        print_result(args, None, tables_as(args.folder, args.format).rstrip("\n"))
