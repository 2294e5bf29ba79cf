"""`mwork evaluate`: the paper's Tables 2 to 5, and the grid of N1 and N2."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from mwork_jax.cli.options import (
    add_model,
    add_other_model,
    at_least,
    check_sets,
    command,
    command_of,
    join_others,
    languages_of,
    load_model_of,
    log,
    neurons_of,
    print_result,
    results_folder,
)
from mwork_jax.errors import InputError
from mwork_jax.evaluate.evaluations import TaskEvaluation
from mwork_jax.evaluate.paper_tables import PaperTable, tables_named
from mwork_jax.evaluate.table_run import prepare, prepare_table, ready_evaluations, run_table, splits_of
from mwork_jax.evaluate.tasks import task_named
from mwork_jax.metrics import ENGLISH
from mwork_jax.model.model import Model
from mwork_jax.report import table_report
from mwork_jax.results import TableResult, TablesResults, read_results, write_results
from mwork_jax.runtime.cache import CACHE_FOLDER, ResultCache
from mwork_jax.runtime.files import write_text
from mwork_jax.runtime.progress import compilations
from mwork_jax.settings import TableSettings


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
    data = "official files, a folder of them, `hub` for the Hugging Face Hub, or hub:OWNER/NAME (default: a small set)"
    parser.add_argument("--data", help=data)
    parser.add_argument("--languages", default="en,de", help="comma-separated codes, en among them (default: en,de)")
    parser.add_argument("--task", help="another task for the table, such as xcopa or headlines")
    parser.add_argument("--items", type=int, help="score the first so many items of each language (default: all)")
    parser.add_argument("--shots", type=int, default=0, help="worked examples before each item (default: 0)")
    add_other_model(parser)
    parser.add_argument("--chat", action="store_true", help="put prompts into the model's chat template")
    parser.add_argument("--seeds", type=int, default=5, help="random sets per language (default: 5)")
    grid = "; several, as in 2,4,8, make a grid"
    parser.add_argument("--n1", help=f"layers of the understanding stage (default: a quarter){grid}")
    parser.add_argument("--n2", help=f"layers of the generation stage (default: an eighth){grid}")


def _evaluate(args: argparse.Namespace) -> None:
    at_least("--seeds", args.seeds, 1)
    settings = TableSettings(
        languages_of("--languages", args.languages), args.items, args.shots, args.seeds, args.chat,
        _numbers("--n1", args.n1), _numbers("--n2", args.n2),
    )  # fmt: skip
    tables = tables_named(args.table)
    join_others(args)
    evaluations = [_evaluations(args, table, settings) for table in tables]
    out = results_folder(args.out, "tables")
    neurons = neurons_of(args.neurons, [lang for lang in settings.languages if lang != ENGLISH])
    model = load_model_of(args)
    check_sets(args, model, neurons)
    earlier = _earlier_tables(out, model)
    splits_of(settings, model.config.num_layers)
    for of_table in evaluations:
        ready_evaluations(model, of_table, neurons, settings)
    cache = ResultCache(out / CACHE_FOLDER)
    with compilations() as compiled:
        new = [
            run_table(model, table, of_table, neurons, settings, cache, command=command_of(args))
            for table, of_table in zip(tables, evaluations, strict=True)
        ]
    replaced = {table.identity for table in new}
    results = TablesResults.of([*(table for table in earlier if table.identity not in replaced), *new])
    write_results(out / "results.json", results)
    write_text(out / "table.txt", "\n\n".join(map(table_report, results.tables)) + "\n")
    log(f"{compiled.count} programs compiled, for every shape once")
    print_result(args, results.to_json(), "\n\n".join(map(table_report, new)))


def _earlier_tables(out: Path, model: Model) -> tuple[TableResult, ...]:
    """The tables that the folder has; those that are run now replace their like. Raises InputError where they are of
    another model."""
    path = out / "results.json"
    try:
        results = read_results(path) if path.exists() else None
    except InputError:  # damaged: nothing of it can be kept
        return ()
    tables = results.tables if isinstance(results, TablesResults) else ()
    for table in tables:
        if table.provenance.model.key != model.key:
            other = table.provenance.model.source
            raise InputError(f"{path}: tables of another model ({other}); choose another output folder with --out")
    return tables


def _evaluations(args: argparse.Namespace, table: PaperTable, settings: TableSettings) -> dict[str, TaskEvaluation]:
    if args.task:
        return prepare(task_named(args.task), args.data, settings)
    evaluations = prepare_table(table, args.data, settings)
    used = evaluations[ENGLISH].task.name
    if used != table.task:
        log(f"table {table.number}: no data of {table.task} there; {used} stands in for it")
    return evaluations


def _numbers(option: str, text: str | None) -> tuple[int, ...]:
    """Comma-separated numbers of layers; none where the option is not given."""
    parts = [part.strip() for part in text.split(",")] if text is not None else []
    if not all(part.isdecimal() for part in parts):
        raise InputError(f"{option} {text}: a number of layers is needed, or several, as in {option} 2,4,8")
    return tuple(dict.fromkeys(map(int, parts)))
