"""`mwork evaluate`: the paper's Tables 2 to 5, tables of your own, held-out loss, the grid of N1 and N2, and tasks of
lm-evaluation-harness."""

from __future__ import annotations

import argparse
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from mwork_jax.cli.lm_eval import add_lm_eval, evaluate_lm_eval, refuse_lm_eval_options
from mwork_jax.cli.options import (
    add_log_samples,
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
    pairs,
    print_result,
    results_folder,
)
from mwork_jax.corpus import Corpus, corpus_of_file, own_corpus
from mwork_jax.errors import InputError
from mwork_jax.evaluate.evaluations import HELD_OUT_LOSS, Evaluation, TaskEvaluation
from mwork_jax.evaluate.table_files import TableSpec, tables_named
from mwork_jax.evaluate.table_run import (
    check_mode,
    prepare,
    prepare_losses,
    prepare_table,
    ready_evaluations,
    run_table,
    splits_of,
)
from mwork_jax.evaluate.tasks import task_named
from mwork_jax.metrics import ENGLISH
from mwork_jax.model.model import Model
from mwork_jax.report import table_report
from mwork_jax.results import TableResult, TablesResults, read_results, write_results
from mwork_jax.runtime.cache import CACHE_FOLDER, ResultCache
from mwork_jax.runtime.files import write_text
from mwork_jax.runtime.progress import compilations
from mwork_jax.samples import remove_samples, section_name
from mwork_jax.settings import TableSettings

_LANGUAGES = ("en", "de")


def add(commands: Any) -> None:
    what = "one of the paper's Tables 2 to 5, or your own: a task or held-out loss under every deactivation setting"
    example = "mwork evaluate --table 2 --data xquad --languages en,de --neurons results --items 50 --out tables"
    parser = command(commands, "evaluate", _evaluate, what, example)
    add_model(parser)
    tables = "2 (understanding), 3 (reasoning), 4 (knowledge), 5 (generation), all, or a file of your own, NAME.toml"
    which = parser.add_mutually_exclusive_group()
    which.add_argument("--table", help=f"{tables}; `mwork tables` shows them")
    harness = "tasks or groups of lm-evaluation-harness instead of a table, as in xnli_de,belebele_deu_Latn"
    which.add_argument("--lm-eval", metavar="TASKS", help=harness)
    add_lm_eval(parser)
    parser.add_argument("--loss", action="store_true", help="measure held-out loss in place of the table's task")
    parser.add_argument("--out", help="output folder (default: mwork-tables; mwork-lm-eval with --lm-eval)")
    parser.add_argument(
        "--neurons",
        default="mwork-results",
        help="folder of `mwork run` or `mwork select`, with neurons/LANG.json (default: mwork-results)",
    )
    data = "official files, a folder of them, `hub` for the Hugging Face Hub, or hub:OWNER/NAME; of held-out loss, "
    parser.add_argument("--data", nargs="+", help=f"{data}LANG=FILE for each language (default: a small set)")
    languages = "default: en,de; of held-out loss, those of --data; with --lm-eval, all that have neurons"
    parser.add_argument("--languages", help=f"comma-separated codes ({languages})")
    parser.add_argument("--task", help="another task for the table, such as xcopa or headlines")
    parser.add_argument("--items", type=int, help="score the first so many items of each language (default: all)")
    shots = "worked examples before each item (default: 0; with --lm-eval, the task's own number)"
    parser.add_argument("--shots", type=int, help=shots)
    parser.add_argument("--max-tokens", type=int, default=512, help="longer documents are cut here (default: 512)")
    add_other_model(parser)
    parser.add_argument("--chat", action="store_true", help="put prompts into the model's chat template")
    parser.add_argument("--seeds", type=int, help="random sets per language (default: 5)")
    add_log_samples(parser)
    grid = "; several, as in 2,4,8, make a grid"
    parser.add_argument("--n1", help=f"layers of the understanding stage (default: a quarter){grid}")
    parser.add_argument("--n2", help=f"layers of the generation stage (default: an eighth){grid}")


def _evaluate(args: argparse.Namespace) -> None:
    if args.lm_eval is not None and not args.loss:
        return evaluate_lm_eval(args)
    refuse_lm_eval_options(args)
    at_least("--seeds", 1 if args.seeds is None else args.seeds, 1)
    at_least("--max-tokens", args.max_tokens, 2)
    if args.lm_eval is not None or not (args.table or args.loss):
        raise InputError("--table, --loss or --lm-eval: one is needed; `mwork tables` shows which tables there are")
    join_others(args)
    jobs = [_job(args, table) for table in tables_named(args.table or "loss")]
    out = results_folder(args.out or "mwork-tables", "tables")
    languages = dict.fromkeys(lang for job in jobs for lang in job.settings.languages if lang != ENGLISH)
    neurons = neurons_of(args.neurons, list(languages))
    model = load_model_of(args)
    check_sets(args, model, neurons)
    earlier = _earlier_tables(out, model)
    ready = [job.evaluations_of(model, args.max_tokens) for job in jobs]
    for job, evaluations in zip(jobs, ready, strict=True):
        check_mode(job.table, neurons)
        splits_of(job.settings, model.config.num_layers)
        ready_evaluations(model, evaluations, neurons, job.settings)
    cache, samples = ResultCache(out / CACHE_FOLDER), out if args.log_samples else None
    with compilations() as compiled:
        new = [
            run_table(
                model, job.table, evaluations, neurons, job.settings, cache,
                samples=samples, texts=job.texts, command=command_of(args),
            )
            for job, evaluations in zip(jobs, ready, strict=True)
        ]  # fmt: skip
    for table in () if args.log_samples else new:
        remove_samples(out, section_name(table.kind, table.table, table.task.name))
    replaced = {table.identity for table in new}
    results = TablesResults.of([*(table for table in earlier if table.identity not in replaced), *new])
    write_results(out / "results.json", results)
    write_text(out / "table.txt", "\n\n".join(map(table_report, results.tables)) + "\n")
    log(str(compiled))
    print_result(args, results.to_json(), "\n\n".join(map(table_report, new)))


@dataclass(frozen=True)
class _Job:
    """One table with what it is measured on: items, or documents, which need the model's tokenizer."""

    table: TableSpec
    settings: TableSettings
    items: Mapping[str, TaskEvaluation]
    corpora: Mapping[str, Corpus]

    def evaluations_of(self, model: Model, max_tokens: int) -> Mapping[str, Evaluation]:
        return self.items or prepare_losses(model, self.corpora, self.settings, max_tokens)

    @property
    def texts(self) -> dict[str, tuple[str, ...]] | None:
        """The documents, for the saved samples."""
        return {lang: corpus.held_out[: self.settings.items] for lang, corpus in self.corpora.items()} or None


def _job(args: argparse.Namespace, table: TableSpec) -> _Job:
    is_loss = args.loss or (table.task == HELD_OUT_LOSS and not args.task)
    if is_loss and args.task:
        raise InputError(f"--loss and --task {args.task}: one of them")
    files = pairs("--data", args.data) if is_loss and args.data else {}
    settings = _settings(args, table, tuple(files) or _LANGUAGES)
    if is_loss:
        known = {lang: corpus_of_file(lang, path, 0) for lang, path in files.items()}
        corpora = known or {lang: own_corpus(lang) for lang in settings.languages}
        if missing := [lang for lang in settings.languages if lang not in corpora]:
            raise InputError(f"--data has no documents of {', '.join(missing)}; it has {', '.join(files)}")
        job = _Job(table, settings, {}, {lang: corpora[lang] for lang in settings.languages})
    else:
        if args.data and len(args.data) > 1:
            raise InputError(f"--data {' '.join(args.data)}: one folder, where a task is measured")
        data = args.data[0] if args.data else None
        items = prepare(task_named(args.task), data, settings) if args.task else prepare_table(table, data, settings)
        _say_stand_in(args, table, items)
        job = _Job(table, settings, items, {})
    if ENGLISH not in (*job.items, *job.corpora):
        line = f"table {table.name}: no English there; Delta needs it, rows show what becomes of the languages alone"
        log(line + (" (COPA's test set is XCOPA's English, as test.en.jsonl)" if "xcopa" in _tasks(job) else ""))
    return job


def _tasks(job: _Job) -> set[str]:
    return {one.task.name for one in job.items.values()}


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


def _say_stand_in(args: argparse.Namespace, table: TableSpec, items: Mapping[str, TaskEvaluation]) -> None:
    used = next(iter(items.values())).task.name
    if used not in (table.task, args.task):
        log(f"table {table.name}: no data of {table.task} there; {used} stands in for it")


def _settings(args: argparse.Namespace, table: TableSpec, languages: tuple[str, ...]) -> TableSettings:
    """What the options say, then what the table's file says, then the defaults."""
    given = {
        "languages": languages_of("--languages", args.languages) if args.languages else None,
        "items": args.items, "shots": args.shots, "seeds": args.seeds,
        "n1": _numbers("--n1", args.n1) or None, "n2": _numbers("--n2", args.n2) or None,
    }  # fmt: skip
    explicit = {name: value for name, value in given.items() if value is not None}
    settings = replace(TableSettings(languages, chat=args.chat), **explicit)
    settings = table.settings(settings, tuple(explicit))
    return replace(settings, languages=languages_of("languages", ",".join(settings.languages)))


def _numbers(option: str, text: str | None) -> tuple[int, ...]:
    """Comma-separated numbers of layers; none where the option is not given."""
    parts = [part.strip() for part in text.split(",")] if text is not None else []
    if not all(part.isdecimal() for part in parts):
        raise InputError(f"{option} {text}: a number of layers is needed, or several, as in {option} 2,4,8")
    return tuple(dict.fromkeys(map(int, parts)))
