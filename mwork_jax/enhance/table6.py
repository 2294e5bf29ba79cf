"""Does tuning a language's neurons help the language, and spare the others? Table 6 and Figure 4 of the paper.

Languages x numbers of documents x seeds x {language-specific, random} are tuned in few programs; every tuned model is
measured beside the original. What was measured is kept and never measured twice.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from mwork_jax.corpus import Batching, encoded
from mwork_jax.enhance.train import TuneSettings
from mwork_jax.enhance.tune import Run, TuningResult, fine_tune_many, ready
from mwork_jax.errors import InputError
from mwork_jax.evaluate.evaluations import HELD_OUT_LOSS, Evaluation, LossEvaluation, TaskEvaluation
from mwork_jax.metrics import ENGLISH, delta
from mwork_jax.model.model import Model
from mwork_jax.neurons import NeuronMask, NeuronSet
from mwork_jax.runtime.cache import ResultCache
from mwork_jax.runtime.distributed import agreed
from mwork_jax.runtime.progress import Progress

_POINTS = 100.0  # task scores are between 0 and 1, tables show points
_KINDS = ("lang-spec", "random")

Points = dict[str, list[float]]  # of one measure: {language: one number per item, higher is better}
Weights = Mapping[str, np.ndarray]  # of one measure: {language: how much each item counts}


@dataclass(frozen=True)
class StudySettings:
    """documents: numbers of documents to tune on. seeds: how many times each language's own neurons are tuned, and as
    many random ones, each time in another order of the documents; 0 for its own neurons once and no control.
    at_once: runs in one program."""

    documents: tuple[int, ...] = (400,)
    seeds: int = 1
    at_once: int = 8
    tune: TuneSettings = field(default_factory=TuneSettings)


@dataclass(frozen=True)
class EvaluationSuite:
    """What models are measured on: documents of every language, and the evaluations of each task in some."""

    held_out: Mapping[str, Sequence[str]]
    tasks: Mapping[str, Mapping[str, TaskEvaluation]] = field(default_factory=dict)

    def evaluations(self, model: Model, max_tokens: int) -> dict[str, dict[str, Evaluation]]:
        """{measure: {language: evaluation}}; documents are cut at `max_tokens`. Raises InputError for one that
        cannot be used, or an item that does not fit the model."""
        batching = Batching(max_tokens, 2048)
        losses: dict[str, Evaluation] = {
            lang: LossEvaluation(
                tuple(encoded(model, texts, max_tokens, where=f"held-out documents, {lang}")), batching
            )
            for lang, texts in self.held_out.items()
        }
        for evaluations in self.tasks.values():
            for evaluation in evaluations.values():
                evaluation.check_fits(model)
        return {HELD_OUT_LOSS: losses, **{task: dict(evaluations) for task, evaluations in self.tasks.items()}}


@dataclass(frozen=True)
class Job:
    """One run's place in the tables."""

    language: str
    kind: str
    documents: int
    seed: int

    @property
    def name(self) -> str:
        return f"{self.language}-{self.kind}-{self.documents}-{self.seed}"


def jobs(languages: Sequence[str], settings: StudySettings) -> list[Job]:
    """Every run of a study: those of about the same length beside each other."""
    kinds = _KINDS if settings.seeds else _KINDS[:1]
    return [
        Job(lang, kind, count, seed)
        for count in sorted(settings.documents)
        for lang in languages
        for kind in kinds
        for seed in range(max(1, settings.seeds))
    ]


def study(
    model: Model,
    corpora: Mapping[str, Sequence[str]],
    found: Mapping[str, NeuronSet],
    evaluations: Mapping[str, Mapping[str, Evaluation]],
    settings: StudySettings,
    out: Path,
    progress: Progress | None = None,
) -> tuple[dict[str, Any], dict[Job, TuningResult]]:
    """Tunes and measures; returns what `out/results.json` says, and every run's result.

    corpora: {language: documents to tune on}; found: {language: its neurons}; evaluations: those of
    `EvaluationSuite`. Raises InputError, before anything is tuned, where a language has fewer documents than
    asked, or no neurons.
    """
    check(corpora, found, settings)
    wanted = jobs(list(corpora), settings)
    runs = {job: _run(job, corpora, found) for job in wanted}
    ready(model, list(runs.values()), settings.tune)
    tunings: dict[Job, TuningResult] = {}
    with progress or Progress(1) as bar:
        bar.total = float(2 * len(wanted) + 1)
        for number, group in enumerate(_groups(wanted, settings.at_once), 1):
            bar.describe(f"tune {group[0].name}" + (f" and {len(group) - 1} more" if len(group) > 1 else ""))
            together = {job: runs[job] for job in group}
            tunings |= _tune(model, together, settings, out / "checkpoints" / f"{number}", bar)
        cache = ResultCache(out / "cells")
        bar.describe("measure the original")
        original = _measure(model, {"tuned": None, "model": model.key}, evaluations, None, cache)
        bar.add(1)
        tuned = {}
        for job, result in tunings.items():
            bar.describe(f"measure {job.name}")
            key = {"tuned": _values_of(result), "model": model.key}
            tuned[job] = _measure(result.merged(model), key, evaluations, job.language, cache)
            bar.add(1)
    return _results(model, settings, evaluations, tunings, original, tuned), tunings


def check(corpora: Mapping[str, Sequence[str]], found: Mapping[str, NeuronSet], settings: StudySettings) -> None:
    """Raises InputError for what would only come to light after hours."""
    if not settings.documents or min(settings.documents) < 2:
        raise InputError("--documents: at least 2 are needed, one to learn from and one to validate with")
    for language, documents in corpora.items():
        if language not in found:
            raise InputError(f"no neurons of {language!r}; find them first, or leave the language out")
        if len(documents) < max(settings.documents):
            raise InputError(
                f"{language}: {max(settings.documents)} documents asked, there are {len(documents)}; "
                "ask for fewer with --documents"
            )


def _groups(wanted: Sequence[Job], at_once: int) -> Iterator[list[Job]]:
    """Runs of one number of documents, so that none waits long for another, at most `at_once` of them."""
    for count in dict.fromkeys(job.documents for job in wanted):
        alike = [job for job in wanted if job.documents == count]
        for begin in range(0, len(alike), at_once):
            yield alike[begin : begin + at_once]


def _run(job: Job, corpora: Mapping[str, Sequence[str]], found: Mapping[str, NeuronSet]) -> Run:
    own = found[job.language]
    neurons = own if job.kind == "lang-spec" else own.random_like(job.seed)
    return Run(neurons, corpora[job.language][: job.documents], job.name, job.seed)


def _tune(
    model: Model,
    runs: Mapping[Job, Run],
    settings: StudySettings,
    checkpoints: Path,
    bar: Progress,
) -> dict[Job, TuningResult]:
    done = 0.0

    def step(made: int, of: int) -> None:
        nonlocal done
        bar.add(len(runs) * made / of - done)
        done = len(runs) * made / of

    tunings = fine_tune_many(model, list(runs.values()), settings.tune, checkpoints=checkpoints, progress=step)
    bar.add(len(runs) - done)
    return dict(zip(runs, tunings, strict=True))


def _values_of(result: TuningResult) -> str:
    """A fingerprint of what was tuned."""
    digest = hashlib.sha256()
    for part in (result.index, result.values):
        for name in sorted(part):
            digest.update(np.ascontiguousarray(part[name]).tobytes())
    return digest.hexdigest()[:16]


def _measure(
    model: Model,
    key: Mapping[str, Any],
    evaluations: Mapping[str, Mapping[str, Evaluation]],
    language: str | None,
    cache: ResultCache,
) -> dict[str, Points]:
    """{measure: {language: points}}. Held-out loss in every language; tasks, which take long, in English and in
    `language`, or in all where it is None."""
    keep = NeuronMask.keep_all(model.config)
    found: dict[str, Points] = {}
    for measure, by_language in evaluations.items():
        found[measure] = {}
        for lang, evaluation in by_language.items():
            if measure != HELD_OUT_LOSS and language is not None and lang not in (ENGLISH, language):
                continue
            cell = {**key, **evaluation.key}
            scores = agreed(partial(cache.get, cell))
            if scores is None:
                (scores,) = evaluation.scores(model, [keep])
                cache.put(cell, scores)
            found[measure][lang] = _points(evaluation, scores)
    return found


def _points(evaluation: Evaluation, scores: Mapping[str, list[float]]) -> list[float]:
    """Minus nats per token of each document, or the first of a task's scores of each item."""
    if isinstance(evaluation, TaskEvaluation):
        return (_POINTS * np.asarray(scores[evaluation.task.scores[0]])).tolist()
    return (-np.asarray(scores["nats"]) / np.asarray(scores["tokens"])).tolist()


def _results(
    model: Model,
    settings: StudySettings,
    evaluations: Mapping[str, Mapping[str, Evaluation]],
    tunings: Mapping[Job, TuningResult],
    original: Mapping[str, Points],
    tuned: Mapping[Job, Mapping[str, Points]],
) -> dict[str, Any]:
    """What results.json says: how each run went, and one row per measure, language, number of documents and kind."""
    rows, means = [], {}
    for measure, before in original.items():
        weights = {lang: evaluation.weights for lang, evaluation in evaluations[measure].items()}
        means[measure] = {lang: _mean([before], lang, weights) for lang in before}
        for job in tuned:
            if job.seed == 0 and job.language in before:
                alike = {kind: _scores(tuned, measure, replace(job, kind=kind)) for kind in _KINDS}
                row = _row(model, measure, job, before, alike[job.kind], weights)
                if job.kind != "random" and alike["random"]:
                    row["own_beyond_random"] = _own_beyond(alike[job.kind], alike["random"], job.language, weights)
                rows.append(row)
    return {
        "format": "mwork-results-1",
        "study": "enhance",
        "made_by": {"model": model.identity, "settings": asdict(settings)},
        "data": {
            measure: {lang: evaluation.size for lang, evaluation in found.items()}
            for measure, found in evaluations.items()
        },
        "original": means,
        "runs": {job.name: _run_facts(result) | {"kept": result.kept(model)} for job, result in tunings.items()},
        "rows": rows,
    }


def _scores(tuned: Mapping[Job, Mapping[str, Points]], measure: str, job: Job) -> list[Points]:
    """One measure of a job with each of its seeds."""
    return [scores[measure] for other, scores in tuned.items() if replace(other, seed=0) == replace(job, seed=0)]


def _own_beyond(own: Sequence[Points], random: Sequence[Points], language: str, weights: Weights) -> dict[str, Any]:
    """By how much a language's own neurons help it more than random ones, means over seeds, paired over items."""
    before, after = ({lang: _of_items(alike, lang) for lang in (ENGLISH, language)} for alike in (random, own))
    found = delta(before, {language: after}, weights)
    return {"change": found.delta_n_eng, "ci95": list(found.delta_n_eng_ci95)}


def _of_items(alike: Sequence[Points], language: str) -> np.ndarray:
    """The score of each item, mean over seeds."""
    return np.mean([scores[language] for scores in alike], axis=0)


def _mean(alike: Sequence[Points], language: str, weights: Weights) -> float:
    return float(np.average(_of_items(alike, language), weights=weights[language]))


def _run_facts(result: TuningResult) -> dict[str, Any]:
    history = result.history
    return {
        "neurons": result.run.neurons.count(),
        "documents": len(result.run.documents),
        "steps": len(history.train),
        "best_step": history.best[0],
        "validation_before": history.validation[0][1],
        "validation_best": history.best[1],
        "diverged": history.diverged,
        "train": history.train,
        "validation": history.validation,
    }


def _row(
    model: Model, measure: str, job: Job, original: Points, alike: Sequence[Points], weights: Weights
) -> dict[str, Any]:
    """One language under one kind of tuning, mean over seeds, beside the original; intervals over items."""
    others = [lang for lang in alike[0] if lang not in (ENGLISH, job.language)]
    own = delta(
        {lang: np.asarray(original[lang]) for lang in (ENGLISH, job.language)},
        {job.language: {lang: _of_items(alike, lang) for lang in (ENGLISH, job.language)}},
        weights,
    )
    change = [_mean(alike, lang, weights) - _mean([original], lang, weights) for lang in others]
    return {
        "table": 6,
        "task": measure,
        "model": model.source,
        "under": False,
        "s_attn": False,
        "s_ffn": False,
        "gen": False,
        "neurons": job.kind,
        "language": job.language,
        "documents": job.documents,
        "seeds": len(alike),
        **{k: list(v) if isinstance(v, tuple) else v for k, v in asdict(own).items()},
        "own_by_seed": [_mean([scores], job.language, weights) for scores in alike],
        "delta_others": float(np.mean(change)) if change else None,
        "others": others,
    }
