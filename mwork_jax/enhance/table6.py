"""Does tuning a language's neurons help the language, and spare the others? Table 6 and Figure 4 of the paper.

Languages x numbers of documents x seeds x {language-specific, random} are tuned in few programs; every tuned model is
measured beside the original. What was measured is kept and never measured twice.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np

from mwork_jax.corpus import Batching, encoded
from mwork_jax.enhance.tune import TuningResult, TuningRun, fine_tune_many, ready
from mwork_jax.errors import InputError
from mwork_jax.evaluate.evaluations import HELD_OUT_LOSS, Evaluation, LossEvaluation, TaskEvaluation
from mwork_jax.evaluate.runner import Condition, measure
from mwork_jax.metrics import ENGLISH, delta, paired_difference
from mwork_jax.model.model import Model
from mwork_jax.neurons import NeuronSet
from mwork_jax.results import (
    DataInfo,
    EnhanceResults,
    NeuronKind,
    Provenance,
    TuningChange,
    TuningRow,
    TuningRunInfo,
    versions,
)
from mwork_jax.runtime.cache import CACHE_FOLDER, ResultCache, fingerprint
from mwork_jax.runtime.progress import Progress
from mwork_jax.settings import EnhanceSettings

_KINDS: tuple[NeuronKind, ...] = ("lang-spec", "random")
_TOKENS_PER_BATCH = 2048

Points = dict[str, np.ndarray]  # of one measure: {language: float64 [items], higher is better}


@dataclass(frozen=True)
class HeldOut:
    """Documents of one language to measure on; ids: the same for a document and its translations; origin: where they
    are from."""

    documents: Sequence[str]
    ids: tuple[str, ...]
    origin: str = "documents given from Python"

    @property
    def info(self) -> DataInfo:
        return DataInfo(self.origin, len(self.documents), fingerprint(list(self.documents)))


@dataclass(frozen=True)
class EvaluationSuite:
    """What models are measured on: documents of every language, and each task's evaluations in some of them."""

    held_out: Mapping[str, HeldOut]
    tasks: Mapping[str, Mapping[str, TaskEvaluation]] = field(default_factory=dict)

    def evaluations(self, model: Model, max_tokens: int) -> dict[str, dict[str, Evaluation]]:
        """{measure: {language: evaluation}}; documents are cut at `max_tokens`. Raises InputError for one that
        cannot be used, or an item that does not fit the model."""
        batching = Batching(max_tokens, _TOKENS_PER_BATCH)
        losses: dict[str, Evaluation] = {
            lang: LossEvaluation(
                tuple(encoded(model, held.documents, max_tokens, where=f"held-out documents, {lang}")),
                batching,
                held.ids,
            )
            for lang, held in self.held_out.items()
        }
        for evaluations in self.tasks.values():
            for evaluation in evaluations.values():
                evaluation.check_fits(model)
        tasks: dict[str, dict[str, Evaluation]] = {task: dict(self.tasks[task]) for task in self.tasks}
        return {HELD_OUT_LOSS: losses, **tasks}


@dataclass(frozen=True)
class Job:
    """One run's place in the tables."""

    language: str
    kind: NeuronKind
    documents: int
    seed: int

    @property
    def name(self) -> str:
        return f"{self.language}-{self.kind}-{self.documents}-{self.seed}"


def jobs(languages: Sequence[str], settings: EnhanceSettings) -> list[Job]:
    """Every run: those of about the same length beside each other."""
    kinds = _KINDS if settings.seeds else _KINDS[:1]
    return [
        Job(lang, kind, count, seed)
        for count in sorted(settings.documents)
        for lang in languages
        for kind in kinds
        for seed in range(max(1, settings.seeds))
    ]


def run_enhancement(
    model: Model,
    corpora: Mapping[str, Sequence[str]],
    origins: Mapping[str, str],
    neurons: Mapping[str, NeuronSet],
    suite: EvaluationSuite,
    settings: EnhanceSettings,
    out: str | Path,
    *,
    progress: Progress | None = None,
    command: Sequence[str] = (),
) -> tuple[EnhanceResults, dict[Job, TuningResult]]:
    """Tunes each language's neurons on its documents and measures what that changed: the results, and every tuning.

    corpora: {language: documents to tune on}; origins: where they are from; neurons: {language: its set}. Checkpoints
    and scores are kept in `out`, so that the same call goes on. Raises InputError, before anything is tuned, where a
    language has fewer documents than asked, or no neurons, and for documents or items that cannot be used.
    """
    out = Path(out)
    check(corpora, neurons, settings)
    evaluations = suite.evaluations(model, settings.tune.max_tokens)
    wanted = jobs(list(corpora), settings)
    runs = {job: _run(job, corpora, neurons) for job in wanted}
    ready(model, list(runs.values()), settings.tune)
    tunings: dict[Job, TuningResult] = {}
    with progress or Progress() as bar:
        bar.expect(float(2 * len(wanted) + 1))
        for number, group in enumerate(_groups(wanted, settings.at_once), 1):
            bar.describe(f"tune {group[0].name}" + (f" and {len(group) - 1} more" if len(group) > 1 else ""))
            together = {job: runs[job] for job in group}
            tunings |= _tune(model, together, settings, out / "checkpoints" / f"{number}", bar)
        cache = ResultCache(out / CACHE_FOLDER)
        bar.describe("measure the original")
        original = _measure(model, model.key, evaluations, None, cache, bar)
        tuned = {}
        for job, tuning in tunings.items():
            bar.describe(f"measure {job.name}")
            key = {**model.key, "tuned": _fingerprint_of(tuning)}
            tuned[job] = _measure(tuning.merged(model), key, evaluations, job.language, cache, bar)
    data = {lang: DataInfo(origins[lang], len(texts), fingerprint(list(texts))) for lang, texts in corpora.items()}
    provenance = Provenance(model.info, data, settings, versions(), tuple(command), settings.tune.seed)
    results = _results(model, provenance, evaluations, tunings, original, tuned)
    return replace(results, items=_measured_on(suite)), tunings


def check(corpora: Mapping[str, Sequence[str]], neurons: Mapping[str, object], settings: EnhanceSettings) -> None:
    """Raises InputError for what would only come to light after hours. neurons: the languages that have, or will have,
    a set."""
    if not settings.documents or min(settings.documents) < 2:
        raise InputError("--documents: at least 2 are needed, one to learn from and one to validate with")
    for language, documents in corpora.items():
        if language not in neurons:
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


def _run(job: Job, corpora: Mapping[str, Sequence[str]], neurons: Mapping[str, NeuronSet]) -> TuningRun:
    own = neurons[job.language]
    tuned = own if job.kind == "lang-spec" else own.random_like(job.seed)
    return TuningRun(tuned, corpora[job.language][: job.documents], job.name, job.seed)


def _tune(
    model: Model, runs: Mapping[Job, TuningRun], settings: EnhanceSettings, checkpoints: Path, bar: Progress
) -> dict[Job, TuningResult]:
    done = 0.0

    def step(made: int, of: int) -> None:
        nonlocal done
        bar.add(len(runs) * made / of - done)
        done = len(runs) * made / of

    tunings = fine_tune_many(model, list(runs.values()), settings.tune, checkpoints=checkpoints, progress=step)
    bar.add(len(runs) - done)
    return dict(zip(runs, tunings, strict=True))


def _fingerprint_of(tuning: TuningResult) -> str:
    """A short hash over what was tuned."""
    digest = hashlib.sha256()
    for part in (tuning.index, tuning.values):
        for name in sorted(part):
            digest.update(np.ascontiguousarray(part[name]).tobytes())
    return digest.hexdigest()[:16]


def _measure(
    model: Model,
    key: Mapping[str, object],
    evaluations: Mapping[str, Mapping[str, Evaluation]],
    language: str | None,
    cache: ResultCache,
    progress: Progress,
) -> dict[str, Points]:
    """{measure: {language: points}}. Held-out loss in every language; tasks, which take long, in English and in
    `language`, or in all where it is None. One unit of progress."""
    measured: dict[str, Points] = {}
    computed = False
    for name, by_language in evaluations.items():
        every = name == HELD_OUT_LOSS or language is None
        scored = tuple(lang for lang in by_language if every or lang in (ENGLISH, language))
        nothing = Condition(name, NeuronSet.empty(model.config), scored)
        with Progress(quiet=True) as quiet:
            scores = measure(model, by_language, [nothing], cache, quiet, key)[name]
            computed = computed or quiet.worked > 0
        measured[name] = {lang: by_language[lang].points(scores[lang]) for lang in scored}
    progress.add(1, free=not computed)
    return measured


@dataclass(frozen=True, eq=False)
class _Items:
    """What is known of one measure's items: {language: weight of each, id of each}."""

    weights: Mapping[str, np.ndarray]
    ids: Mapping[str, Sequence[str]]

    @classmethod
    def of(cls, evaluations: Mapping[str, Evaluation]) -> _Items:
        return cls({k: e.weights for k, e in evaluations.items()}, {k: e.item_ids for k, e in evaluations.items()})

    def mean(self, points: Points, language: str) -> float:
        return float(np.average(points[language], weights=self.weights[language]))


def _results(
    model: Model,
    provenance: Provenance[EnhanceSettings],
    evaluations: Mapping[str, Mapping[str, Evaluation]],
    tunings: Mapping[Job, TuningResult],
    original: Mapping[str, Points],
    tuned: Mapping[Job, Mapping[str, Points]],
) -> EnhanceResults:
    """How each run went, and one row per measure, language, number of documents and kind."""
    rows = []
    for name, before in original.items():
        items = _Items.of(evaluations[name])
        for job in tuned:
            if job.seed == 0 and job.language in before:
                by_kind = {kind: _over_seeds(tuned, name, replace(job, kind=kind)) for kind in _KINDS}
                rows.append(_row(model, name, job, before, by_kind, items))
    return EnhanceResults(
        kind="enhance",
        provenance=provenance,
        original={
            name: {lang: _Items.of(evaluations[name]).mean(before, lang) for lang in before}
            for name, before in original.items()
        },
        sizes={name: {lang: e.size for lang, e in of.items()} for name, of in evaluations.items()},
        runs={job.name: _tuning_run(tuning, model) for job, tuning in tunings.items()},
        rows=tuple(rows),
    )


def _measured_on(suite: EvaluationSuite) -> dict[str, dict[str, DataInfo]]:
    """{measure: {language: its documents or items}}"""
    tasks = {
        name: {lang: DataInfo(e.origin, e.size, str(e.key["items"]), e.revision) for lang, e in of.items()}
        for name, of in suite.tasks.items()
    }
    return {HELD_OUT_LOSS: {lang: held.info for lang, held in suite.held_out.items()}, **tasks}


def _over_seeds(tuned: Mapping[Job, Mapping[str, Points]], name: str, job: Job) -> Points:
    """One measure of a job: {language: [seeds, items]}; empty where there is no such job."""
    alike = [scores[name] for other, scores in tuned.items() if replace(other, seed=0) == replace(job, seed=0)]
    return {lang: np.stack([points[lang] for points in alike]) for lang in alike[0]} if alike else {}


def _row(
    model: Model, name: str, job: Job, original: Points, by_kind: Mapping[str, Points], items: _Items
) -> TuningRow:
    """One language tuned in one way beside the original: means over seeds, intervals over clusters of items.

    The intervals hold for the seeds that were run: a seed orders the documents, and draws the random set."""
    after = by_kind[job.kind]
    scored = (ENGLISH, job.language)
    means = {lang: points.mean(axis=0) for lang, points in after.items()}
    change = delta(
        {lang: original[lang] for lang in scored},
        {job.language: {lang: means[lang] for lang in scored}},
        items.weights,
        items.ids,
    )
    others = tuple(lang for lang in after if lang not in scored)
    of_others = [items.mean(means, lang) - items.mean(original, lang) for lang in others]
    beyond = None
    if job.kind == "lang-spec" and by_kind["random"]:
        beyond = _own_beyond_random(after, by_kind["random"], job.language, items)
    return TuningRow(
        kind="tuning",
        table=6,
        task=name,
        model=model.source,
        neurons=job.kind,
        language=job.language,
        documents=job.documents,
        seeds=len(after[job.language]),
        eng=change.eng,
        n_eng=change.n_eng,
        delta_eng=change.delta_eng,
        delta_n_eng=change.delta_n_eng,
        delta=change.delta,
        delta_eng_ci95=change.delta_eng_ci95,
        delta_n_eng_ci95=change.delta_n_eng_ci95,
        delta_ci95=change.delta_ci95,
        p=change.p,
        n_items=change.n_items,
        n_clusters=change.n_clusters,
        languages=change.languages,
        own_by_seed=tuple(items.mean({job.language: one}, job.language) for one in after[job.language]),
        delta_others=float(np.mean(of_others)) if of_others else None,
        others=others,
        own_beyond_random=beyond,
    )


def _own_beyond_random(own: Points, random: Points, language: str, items: _Items) -> TuningChange:
    """By how much a language's own neurons help it more than random ones; chance in the seeds of both sides counts, so
    there is an interval only with enough of them."""
    weights, ids = {language: items.weights[language]}, {language: items.ids[language]}
    difference = paired_difference({language: own[language]}, {language: random[language]}, weights, ids)
    return TuningChange(difference.change, difference.ci95, difference.p)


def _tuning_run(tuning: TuningResult, model: Model) -> TuningRunInfo:
    history = tuning.history
    return TuningRunInfo(
        neurons=tuning.run.neurons.count(),
        documents=len(tuning.run.documents),
        steps=len(history.train),
        best_step=history.best[0],
        validation_before=history.validation[0][1],
        validation_best=history.best[1],
        diverged=history.diverged,
        kept=tuning.kept(model),
        train=tuple(history.train),
        validation=tuple(history.validation),
    )
