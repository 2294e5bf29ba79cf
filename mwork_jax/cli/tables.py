"""`mwork tables`: the tables that come with the package, and what a table's file says."""

from __future__ import annotations

import argparse
from importlib import resources
from pathlib import Path
from typing import Any

import msgspec

from mwork_jax.cli.options import command, print_result
from mwork_jax.evaluate.table_files import PACKAGED, SUFFIX, TableSpec, tables_named
from mwork_jax.report.table import Table
from mwork_jax.report.tables.deltas import parts_title


def add(commands: Any) -> None:
    what = "list the tables that can be measured, or show one; --toml: its file, to begin your own with"
    parser = command(commands, "tables", _tables, what, "mwork tables 4 --toml > mine.toml")
    parser.add_argument("table", nargs="?", help="a table of the package, or a file NAME.toml (default: list all)")
    parser.add_argument("--toml", action="store_true", help="print the file itself")


def _tables(args: argparse.Namespace) -> None:
    named = tuple(PACKAGED.values()) if args.table is None else tables_named(args.table)
    if args.toml:
        text = "\n".join(_text(args.table, table) for table in named)
        print_result(args, {str(table.name): _text(args.table, table) for table in named}, text.rstrip("\n"))
    elif args.table is None:
        print_result(args, [msgspec.to_builtins(table) for table in named], _list(named))
    else:
        print_result(args, [msgspec.to_builtins(table) for table in named], "\n\n".join(map(_shown, named)))


def _list(tables: tuple[TableSpec, ...]) -> str:
    rows = tuple((str(t.name), t.stage, t.task, t.stand_in, str(len(t.rows))) for t in tables)
    table = Table("tables", "", ("table", "tests", "task", "stands in", "rows"), rows, 4)
    return f"{table.text()}\n\nmwork tables NAME shows one, mwork evaluate --table NAME measures it."


def _shown(table: TableSpec) -> str:
    """The rows in words, with what was printed for each model."""
    models = tuple(dict.fromkeys(model for row in table.rows for model in row.printed))
    rows = tuple(
        (
            parts_title(row.setting),
            f"random like {row.like}" if row.is_random and row.like != "lang-spec" else row.neurons,
            f"x {row.scale:g}" if row.scale else "off",
            *(f"{row.printed[model].delta:+.1f}" if model in row.printed else "" for model in models),
        )
        for row in table.rows
    )
    columns = ("parts", "neurons", "", *(f"Delta, {model}" for model in models))
    head = f"Table {table.name}: {table.stage or table.task}, {table.task}"
    head += f" ({table.stand_in} stands in)" if table.stand_in else ""
    return f"{head}\n\n{Table('table', '', columns, rows, 3).text()}"


def _text(given: str | None, table: TableSpec) -> str:
    """The file that a table was read from."""
    if given is not None and given.endswith(SUFFIX):
        return Path(given).read_text(encoding="utf-8")
    name = f"table-{table.name}" if isinstance(table.name, int) else table.name
    return (resources.files("mwork_jax") / "evaluate" / "tables" / f"{name}{SUFFIX}").read_text("utf-8")
