"""`mwork evaluate --lm-eval`: tasks of lm-evaluation-harness under every language's neurons."""

from __future__ import annotations

import argparse
from pathlib import Path

from mwork_jax.cli.options import (
    at_least,
    check_sets,
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
from mwork_jax.intervene.stages import StageSetting
from mwork_jax.metrics import ENGLISH, MIN_SEEDS
from mwork_jax.neurons import NeuronSet, files_of_languages
from mwork_jax.report.lm_eval import lm_eval_report
from mwork_jax.results import write_results
from mwork_jax.runtime.cache import CACHE_FOLDER, ResultCache
from mwork_jax.runtime.files import write_text
from mwork_jax.runtime.progress import compilations
from mwork_jax.settings import LmEvalSettings

OUT = "mwork-lm-eval"


def add_lm_eval(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--include-path", help="--lm-eval: a folder with tasks of your own as YAML files")
    parts = "--lm-eval: which parts of each set are off, all or as in under+gen (default: all)"
    parser.add_argument("--off", metavar="PARTS", help=parts)


def refuse_lm_eval_options(args: argparse.Namespace) -> None:
    """Raises InputError for options that a table would leave out without a word."""
    for option, value in (("--off", args.off), ("--include-path", args.include_path)):
        if value is not None:
            raise InputError(f"{option} belongs to --lm-eval; a table has its own rows")


def evaluate_lm_eval(args: argparse.Namespace) -> None:
    seeds = MIN_SEEDS if args.seeds is None else args.seeds
    at_least("--seeds", seeds, 0)
    names = tuple(dict.fromkeys(name.strip() for name in args.lm_eval.split(",") if name.strip()))
    if not names:
        raise InputError("--lm-eval: no task; names of tasks are needed, as in --lm-eval belebele_deu_Latn,xnli_de")
    n1, n2 = (_number(option, text) for option, text in (("--n1", args.n1), ("--n2", args.n2)))
    off_parts = args.off or "all"
    StageSetting.parse(off_parts)
    for option, value in (("--task", args.task), ("--data", args.data)):
        if value is not None:
            raise InputError(f"{option} belongs to --table; the tasks of --lm-eval have their own data")
    join_others(args)
    out = results_folder(args.out or OUT, "lm_eval")
    neurons = _sets(args)
    settings = LmEvalSettings(
        names, tuple(neurons), off_parts, seeds, args.items, args.shots, args.chat, n1, n2
    )  # fmt: skip
    # The harness is an extra: whoever has not installed it reads so here.
    from mwork_jax.evaluate.lm_eval_host import conditions_of, lm_eval_tasks, run_lm_eval

    tasks = lm_eval_tasks(names, args.include_path, args.shots)
    model = load_model_of(args)
    check_sets(args, model, neurons)
    conditions, off = conditions_of(model, neurons, settings)
    with compilations() as compiled:
        results = run_lm_eval(
            model,
            tasks,
            conditions,
            settings,
            ResultCache(out / CACHE_FOLDER),
            neurons=off,
            samples=out if args.log_samples else None,
            command=command_of(args),
        )
    write_results(out / "results.json", results)
    text = lm_eval_report(results)
    write_text(out / "table.txt", f"{text}\n")
    log(f"{compiled.count} programs compiled, for every shape once")
    print_result(args, results.to_json(), text)


def _sets(args: argparse.Namespace) -> dict[str, NeuronSet]:
    """The sets of the languages that are named, English aside, or of all that the folder has."""
    folder = Path(args.neurons)
    if args.languages:
        named = languages_of("--languages", args.languages)
    else:
        named = tuple(files_of_languages(folder / "neurons", ".json"))
    languages = [lang for lang in named if lang != ENGLISH]
    if not languages:
        raise InputError(f"{folder / 'neurons'}: no sets; `mwork run` and `mwork select` write them, see --neurons")
    return neurons_of(folder, languages)


def _number(option: str, text: str | None) -> int | None:
    if text is not None and not text.strip().isdecimal():
        raise InputError(f"{option} {text}: with --lm-eval, one number of layers is needed")
    return None if text is None else int(text)
