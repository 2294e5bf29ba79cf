"""`mwork evaluate`: the paper's Tables 2 to 5, and the grid of N1 and N2."""

from __future__ import annotations

import argparse
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from mwork_jax.cli.options import (
    add_model,
    at_least,
    command,
    join_others,
    languages_of,
    load_model_of,
    log,
    print_result,
    results_folder,
)
from mwork_jax.errors import InputError
from mwork_jax.evaluate.evaluations import TaskEvaluation
from mwork_jax.evaluate.paper_tables import PaperTable, tables_named
from mwork_jax.evaluate.table_run import Sweep, SweepSettings, prepare, prepare_table, run_grid, run_table
from mwork_jax.evaluate.tasks import task_named
from mwork_jax.intervene.stages import StageSplit
from mwork_jax.metrics import ENGLISH
from mwork_jax.model.model import Model
from mwork_jax.neurons import NeuronSet
from mwork_jax.report import grid_report, table_report
from mwork_jax.runtime.files import read_json, write_json, write_text
from mwork_jax.runtime.progress import compilations


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
    parser.add_argument("--chat", action="store_true", help="put prompts into the model's chat template")
    parser.add_argument("--seeds", type=int, default=5, help="random controls per language (default: 5)")
    grid = "; several, as in 2,4,8, make a grid"
    parser.add_argument("--n1", help=f"layers of the understanding stage (default: a quarter){grid}")
    parser.add_argument("--n2", help=f"layers of the generation stage (default: an eighth){grid}")


def _evaluate(args: argparse.Namespace) -> None:
    at_least("--seeds", args.seeds, 1)
    settings = SweepSettings(languages_of("--languages", args.languages), args.items, args.shots, args.seeds, args.chat)
    tables = tables_named(args.table)
    first, last = _numbers("--n1", args.n1), _numbers("--n2", args.n2)
    join_others(args)
    evaluations = [_evaluations(args, table, settings) for table in tables]
    out = results_folder(args.out, "evaluate")
    found = _found(Path(args.neurons) / "neurons", settings.languages)
    model = load_model_of(args)
    earlier = _earlier(out, model)
    splits = [StageSplit.of(model.config.num_layers, n1, n2) for n1 in first for n2 in last]
    sweeps = [Sweep(model, t, e, found, settings, out) for t, e in zip(tables, evaluations, strict=True)]
    with compilations() as compiled:
        done = [run_table(s, splits[0]) if len(splits) == 1 else run_grid(s, splits) for s in sweeps]
    tables = [*(table for table in earlier if _kind(table) not in map(_kind, done)), *done]
    results = {
        "format": "mwork-results-1",
        "tables": tables,
        "rows": [row for table in tables for row in table["rows"]],
    }
    write_json(out / "results.json", results)
    write_text(out / "table.txt", _text(tables) + "\n")
    log(f"{compiled.count} programs compiled, for every shape once")
    print_result(args, results, _text(done))


def _earlier(out: Path, model: Model) -> list[Mapping[str, Any]]:
    """The tables that the folder has; those that are run now replace their like. Raises InputError where they are of
    another model."""
    path = out / "results.json"
    try:
        there = read_json(path)["tables"] if path.exists() else []
    except InputError:  # damaged: nothing of it can be kept
        return []
    for table in there:
        if not model.is_of(table["model"]):
            other = table["model"].get("source")
            raise InputError(f"{path}: tables of another model ({other}); choose another output folder with --out")
    return there


def _kind(table: Mapping[str, Any]) -> tuple[Any, ...]:
    """What there is one of in a folder: a table on a task, for one N1 and N2 or for many."""
    return table["table"], table["task"]["name"], "stages" in table


def _text(tables: Sequence[Mapping[str, Any]]) -> str:
    return "\n\n".join((table_report if "stages" in table else grid_report)(table) for table in tables)


def _evaluations(args: argparse.Namespace, table: PaperTable, settings: SweepSettings) -> dict[str, TaskEvaluation]:
    if args.task:
        return prepare(task_named(args.task), args.data, settings)
    evaluations = prepare_table(table, args.data, settings)
    used = evaluations[ENGLISH].task.name
    if used != table.task:
        log(f"table {table.number}: no data of {table.task} there; {used} stands in for it")
    return evaluations


def _found(folder: Path, languages: tuple[str, ...]) -> dict[str, NeuronSet]:
    paths = {lang: folder / f"{lang}.json" for lang in languages if lang != ENGLISH}
    absent = [str(path) for path in paths.values() if not path.exists()]
    if absent:
        raise InputError(f"{absent[0]}: no such file; `mwork run` and `mwork select` write it, --neurons says where")
    return {lang: NeuronSet.load(path) for lang, path in paths.items()}


def _numbers(option: str, text: str | None) -> list[int | None]:
    """Comma-separated numbers of layers; one None where the option is not given."""
    if text is None:
        return [None]
    parts = [part.strip() for part in text.split(",")]
    if not all(part.isdecimal() for part in parts):
        raise InputError(f"{option} {text}: a number of layers is needed, or several, as in {option} 2,4,8")
    return list(dict.fromkeys(map(int, parts)))
