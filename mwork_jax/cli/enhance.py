"""`mwork enhance`: tune a language's neurons on its documents, write the tuned model; with --sweep, Table 6 and
Figure 4."""

from __future__ import annotations

import argparse
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from mwork_jax.cli.options import (
    add_model,
    add_other_model,
    add_rule,
    check_sets,
    command,
    command_of,
    languages_of,
    load_model_of,
    neurons_of,
    pairs,
    print_result,
    results_folder,
)
from mwork_jax.corpus import LANGUAGES, corpus_of_file, encoded, own_corpus, read_corpus
from mwork_jax.detect.scores import DETECTION_COST, load_or_score
from mwork_jax.enhance.export import check_folder, save_delta, save_folder
from mwork_jax.enhance.table6 import EvaluationSuite, HeldOut, Job, check, run_enhancement
from mwork_jax.enhance.tune import TuningResult
from mwork_jax.errors import InputError
from mwork_jax.evaluate.evaluations import TaskEvaluation
from mwork_jax.evaluate.table_run import prepare
from mwork_jax.evaluate.tasks import task_named
from mwork_jax.metrics import ENGLISH
from mwork_jax.model.model import Model
from mwork_jax.neurons import NeuronSet
from mwork_jax.report import enhance_report, tuning_figure
from mwork_jax.results import EnhanceResults, write_results
from mwork_jax.runtime.files import write_text
from mwork_jax.runtime.progress import Progress
from mwork_jax.select.modes import Mode, select_neurons
from mwork_jax.select.rules import Rule, kept_needed
from mwork_jax.settings import EnhanceSettings, TableSettings, TuneSettings

_DETECTION_DOCUMENTS = 32  # of each language, where no neuron sets are given
_SWEEP = (100, 200, 400, 800)
_TUNING = {
    "learning_rate": "the highest learning rate", "epochs": "times that training sees every document",
    "steps": "stop after so many steps", "batch": "packed rows per step",
    "accumulate": "parts that a batch is worked through in", "max_tokens": "longer documents are cut here",
    "weight_decay": "of the tuned neurons", "clip": "the largest norm of a gradient",
    "validate_every": "steps between validations, each with a checkpoint",
    "patience": "validations without a better loss that end a run", "seed": "order of the documents",
}  # fmt: skip


def add(commands: Any) -> None:
    what = "tune nothing but a language's neurons on its documents; --sweep: Table 6 and Figure 4"
    example = "mwork enhance --model gemma3-270m --language de --corpus german.txt --documents 400 --out tuned"
    parser = command(commands, "enhance", _enhance, what, example)
    add_model(parser, tuned=True)
    parser.add_argument("--out", default="mwork-enhanced", help="output folder (default: mwork-enhanced)")
    parser.add_argument("--language", default="de", help="code of the language; several with --sweep (default: de)")
    parser.add_argument(
        "--corpus",
        action="extend",
        nargs="+",
        metavar="[LANG=]FILE",
        help="documents to tune on, text or JSONL (default: the project's own few)",
    )
    parser.add_argument(
        "--documents", help="tune on the first so many documents; several with --sweep (default: all; 100,200,400,800)"
    )
    parser.add_argument(
        "--neurons", help="neurons/LANG.json is in this folder, from `mwork run` or `mwork select` (default: find them)"
    )
    add_other_model(parser)
    add_rule(parser)
    parser.add_argument(
        "--held-out",
        action="append",
        metavar="LANG=FILE",
        help="documents to measure on; if any, then en's and the language's too (default: the project's own)",
    )
    parser.add_argument(
        "--held-out-documents", type=int, help="measure on the first so many of each language's (default: all)"
    )
    parser.add_argument(
        "--seeds",
        type=int,
        help="how many times a language's own neurons are tuned, and as many random ones, in other orders of the "
        "documents (default: 0, its own once and no control; 3 with --sweep)",
    )
    parser.add_argument(
        "--sweep",
        action="store_true",
        help="several languages and numbers of documents: table, figure and deltas, no model folder",
    )
    parser.add_argument("--tasks", default="", help="comma-separated tasks to measure too, such as xquad,xcopa")
    parser.add_argument("--data", help="official files of the tasks, or a folder of them, or hub")
    parser.add_argument("--items", type=int, help="score the first so many items of each task (default: all)")
    parser.add_argument("--at-once", type=int, default=8, help="runs in one program (default: 8)")
    parser.add_argument(
        "--weights", choices=("float32", "bfloat16"), default="float32", help="of the written folder (default: float32)"
    )
    for name, what in _TUNING.items():
        default = getattr(TuneSettings(), name)
        kind = int if isinstance(default, int | None) else float
        shown = "" if default is None else f" (default: {default:g})"
        parser.add_argument(f"--{name.replace('_', '-')}", type=kind, help=what + shown)
    parser.add_argument("--no-remat", action="store_true", help="keep what layers compute: faster, more memory")


def _enhance(args: argparse.Namespace) -> None:
    languages = _languages(args)
    corpora, origins = _corpora(args, languages)
    settings = _settings(args, corpora)
    check(corpora, corpora, settings)
    used = max(*settings.documents, _DETECTION_DOCUMENTS)
    corpora = {lang: documents[:used] for lang, documents in corpora.items()}
    suite = EvaluationSuite(_held_out(args, languages), _task_evaluations(args, languages))
    out = results_folder(args.out, "enhance")
    if not args.sweep:
        check_folder(out / "model")
    given = neurons_of(args.neurons, languages) if args.neurons is not None else {}
    model = load_model_of(args)
    check_sets(args, model, given)
    for language, documents in corpora.items():
        list(encoded(model, documents, settings.tune.max_tokens, where=origins[language]))
    suite.evaluations(model, settings.tune.max_tokens)  # what cannot be measured is found before any work
    neurons = given or _detected(args, model, corpora, origins, out)
    results, tunings = run_enhancement(model, corpora, origins, neurons, suite, settings, out, command=command_of(args))
    # After the tuning, which refuses a folder of other work: no neurons beside results that are not theirs.
    for language, own in neurons.items():
        own.save(out / "neurons" / f"{language}.json")
    written = _write(args, out, model, results, tunings, origins)
    text = enhance_report(results)
    write_text(out / "table.txt", text + "\n")
    print_result(args, results.to_json(), f"{text}\n\nWritten: {', '.join(map(str, written))}.")


def _languages(args: argparse.Namespace) -> tuple[str, ...]:
    Rule.parse(args.rule)
    languages = languages_of("--language", args.language)
    Mode.parse(args.mode).check((ENGLISH, *languages))
    if len(languages) > 1 and not args.sweep:
        raise InputError(f"--language {args.language}: one language, or several with --sweep")
    if ENGLISH in languages:
        raise InputError("--language en: English is what the other languages are compared with")
    return languages


def _write(
    args: argparse.Namespace,
    out: Path,
    model: Model,
    results: EnhanceResults,
    tunings: Mapping[Job, TuningResult],
    origins: Mapping[str, str],
) -> list[Path]:
    """The results, the delta of each language's first own tuning and, without --sweep, the tuned model's folder."""
    write_results(out / "results.json", results)
    written = [out / "results.json"]
    for job, tuning in tunings.items():
        if job.kind == "lang-spec" and job.seed == 0:
            tuned, name = tuning.merged(model), "delta" if not args.sweep else f"deltas/{job.name}"
            save_delta(tuned, out / f"{name}.safetensors")
            written.append(out / f"{name}.safetensors")
            if not args.sweep:
                save_folder(tuned, out / "model", dtype=args.weights, notes={"corpus": origins[job.language]})
                written.append(out / "model")
    if args.sweep:
        write_text(out / "figure4.svg", tuning_figure(results).plain + "\n")
        written.append(out / "figure4.svg")
    return written


def _corpora(args: argparse.Namespace, languages: Sequence[str]) -> tuple[dict[str, list[str]], dict[str, str]]:
    """{language: documents to tune on}, and where they are from."""
    if not args.corpus:
        own = {language: own_corpus(language) for language in languages}
        return {lang: list(c.detection) for lang, c in own.items()}, {lang: c.origin for lang, c in own.items()}
    given = args.corpus
    if len(languages) == 1 and len(given) == 1 and not given[0].startswith(f"{languages[0]}="):
        given = [f"{languages[0]}={given[0]}"]
    files = pairs("--corpus", given)
    if set(files) != set(languages):
        raise InputError(f"--corpus has documents of {', '.join(files)}; --language is {', '.join(languages)}")
    return {lang: read_corpus(files[lang]) for lang in languages}, {lang: files[lang] for lang in languages}


def _settings(args: argparse.Namespace, corpora: Mapping[str, Sequence[str]]) -> EnhanceSettings:
    given = {name: getattr(args, name) for name in _TUNING if getattr(args, name) is not None}
    tune = replace(TuneSettings(remat=not args.no_remat), **given)
    fewest = min(map(len, corpora.values()))
    if args.documents:
        counts = tuple(_count(part) for part in args.documents.split(","))
    else:
        counts = tuple(n for n in _SWEEP if n <= fewest) if args.sweep else ()
    if len(counts) > 1 and not args.sweep:
        raise InputError(f"--documents {args.documents}: one number, or several with --sweep")
    seeds = args.seeds if args.seeds is not None else 3 if args.sweep else 0
    if seeds < 0 or args.at_once < 1:
        raise InputError("--seeds must be at least 0, --at-once at least 1")
    return EnhanceSettings(counts or (fewest,), seeds, args.at_once, tune)


def _count(text: str) -> int:
    if not text.strip().isdecimal():
        raise InputError(f"--documents {text}: a whole number is needed, as in 400")
    return int(text)


def _held_out(args: argparse.Namespace, languages: Sequence[str]) -> dict[str, HeldOut]:
    """Documents to measure on: English, the languages that are tuned, and all others that there are."""
    files = pairs("--held-out", args.held_out or ())
    corpora = (
        {lang: corpus_of_file(lang, path, 0) for lang, path in files.items()}
        if files
        else {lang: own_corpus(lang) for lang in LANGUAGES}
    )
    for language in (ENGLISH, *languages):
        if language not in corpora:
            raise InputError(f"no documents to measure {language!r} on; give them with --held-out {language}=FILE")
    count = args.held_out_documents
    for corpus in corpora.values():
        if count is not None and not 1 <= count <= len(corpus.held_out):
            raise InputError(
                f"{corpus.origin}: --held-out-documents {count} asked; from 1 to {len(corpus.held_out)} can be"
            )
    return {
        lang: HeldOut(corpus.held_out[:count], corpus.clusters[:count], corpus.origin)
        for lang, corpus in corpora.items()
    }


def _task_evaluations(args: argparse.Namespace, languages: Sequence[str]) -> dict[str, dict[str, TaskEvaluation]]:
    """Each task in English and in those of the languages that it has."""
    evaluations = {}
    for name in filter(None, args.tasks.split(",")):
        task = task_named(name.strip())
        available = [lang for lang in languages if lang in (task.languages if args.data else task.built_in)]
        if not available:
            raise InputError(f"--tasks {name}: it has none of {', '.join(languages)}")
        evaluations[task.name] = prepare(task, args.data, TableSettings((ENGLISH, *available), args.items))
    return evaluations


def _detected(
    args: argparse.Namespace,
    model: Model,
    corpora: Mapping[str, Sequence[str]],
    origins: Mapping[str, str],
    out: Path,
) -> dict[str, NeuronSet]:
    """Each language's neurons, found on its first documents and on the project's own in English."""
    english = own_corpus(ENGLISH)
    texts = {ENGLISH: english.detection, **{lang: d[:_DETECTION_DOCUMENTS] for lang, d in corpora.items()}}
    where = {ENGLISH: english.origin, **origins}
    longest = args.max_tokens or TuneSettings().max_tokens
    ready = {lang: list(encoded(model, d, longest, where=where[lang])) for lang, d in texts.items()}
    with Progress() as bar:
        bar.expect(DETECTION_COST * sum(map(len, ready.values())))
        scores = {
            lang: load_or_score(
                model,
                documents,
                out / "scores" / f"{lang}.safetensors",
                bar,
                language=lang,
                origin=where[lang],
                max_tokens=longest,
                kept=kept_needed(args.rule, len(documents)),
            )
            for lang, documents in ready.items()
        }
    selected = select_neurons(scores, args.rule, args.mode)
    return {lang: selected[lang] for lang in corpora}
