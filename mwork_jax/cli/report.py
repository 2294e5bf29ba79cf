"""`mwork report`: one page, or tables for a paper, from a folder of results."""

from __future__ import annotations

import argparse
from typing import Any

from mwork_jax.cli.options import command, print_result
from mwork_jax.report import FORMATS, read_report, tables_as


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
        choices=("html", *FORMATS),
        help="html writes FOLDER/report.html and FOLDER/figures/ (the default); the others print the tables",
    )


def _report(chosen: argparse.Namespace) -> None:
    if chosen.format == "html":
        path = read_report(chosen.folder).write()
        print_result(chosen, {"report": str(path), "figures": str(path.parent / "figures")}, f"Written: {path}")
    elif chosen.json:
        tables = read_report(chosen.folder).tables.values()
        print_result(chosen, {t.name: {"title": t.title, "rows": [dict(r) for r in t.records]} for t in tables}, "")
    else:
        print_result(chosen, None, tables_as(chosen.folder, chosen.format).rstrip("\n"))
