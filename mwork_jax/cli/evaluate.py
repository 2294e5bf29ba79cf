"""`mwork evaluate`: the paper's Tables 2 to 5."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from mwork_jax.cli.options import add_model, add_stages, at_least, command, languages_of, print_result
from mwork_jax.deactivate import StageSplit
from mwork_jax.errors import InputError
from mwork_jax.files import output_folder, read_json, write_json
from mwork_jax.load import load_model
from mwork_jax.metrics import ENGLISH
from mwork_jax.neurons import NeuronSet
from mwork_jax.report import table_report
from mwork_jax.sweep import SweepSettings, prepare, run_table
from mwork_jax.tables import tables_named
from mwork_jax.tasks import task_named


def add(commands: Any) -> None:
    what = "one of the paper's Tables 2 to 5, or all: a task under every deactivation setting"
    example = "mwork evaluate --table 2 --data xquad --languages en,de --neurons results --items 50 --out tables"
    parser = command(commands, "evaluate", _evaluate, what, example)
    add_model(parser)
    tables = "2 (understanding), 3 (reasoning), 4 (knowledge), 5 (generation) or all"
    parser.add_argument("--table", required=True, help=tables)
    parser.add_argument("--out", default="mwork-tables", help="output folder (default: mwork-tables)")
    parser.add_argument(
        "--neurons",
        default="mwork-results",
        help="folder of `mwork run` or `mwork select`, with neurons/LANG.json (default: mwork-results)",
    )
    parser.add_argument("--data", help="official files, or a folder of them (default: the project's own small set)")
    parser.add_argument("--languages", default="en,de", help="comma-separated codes, en among them (default: en,de)")
    parser.add_argument("--task", help="another task for the table, such as xcopa or headlines")
    parser.add_argument("--items", type=int, help="score the first so many items of each language (default: all)")
    parser.add_argument("--shots", type=int, default=0, help="worked examples before each item (default: 0)")
    parser.add_argument("--seeds", type=int, default=5, help="random controls per language (default: 5)")
    add_stages(parser)


def _evaluate(chosen: argparse.Namespace) -> None:
    at_least("--seeds", chosen.seeds, 1)
    settings = SweepSettings(languages_of(chosen.languages), chosen.items, chosen.shots, chosen.seeds)
    tables = tables_named(chosen.table)
    exams = [prepare(task_named(chosen.task or table.task), chosen.data, settings) for table in tables]
    out = output_folder(chosen.out)
    if (out / "results.json").exists() and "tables" not in read_json(out / "results.json"):
        raise InputError(f"{out}: holds the results of `mwork run`; choose another output folder with --out")
    folder = Path(chosen.neurons) / "neurons"
    paths = {lang: folder / f"{lang}.json" for lang in settings.languages if lang != ENGLISH}
    absent = [str(path) for path in paths.values() if not path.exists()]
    if absent:
        raise InputError(f"{absent[0]}: no such file; `mwork run` and `mwork select` write it, --neurons says where")
    found = {lang: NeuronSet.load(path) for lang, path in paths.items()}
    model = load_model(chosen.model, dtype=chosen.dtype)
    split = StageSplit.of(model.config.num_layers, chosen.n1, chosen.n2)
    done = [run_table(model, t, e, found, split, settings, out) for t, e in zip(tables, exams, strict=True)]
    results = {"format": "mwork-results-1", "tables": done, "rows": [row for table in done for row in table["rows"]]}
    write_json(out / "results.json", results)
    text = "\n\n".join(map(table_report, done))
    print_result(chosen, results, text)
