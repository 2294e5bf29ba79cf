"""The whole loop: load, detect, select, switch off, measure, Delta. What `mwork run` and `mwork detect` do.

Every step reads and writes one folder. Scores and losses are kept under a fingerprint of everything that determines
them, so an interrupted run, or one repeated with other settings, computes only what is new.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from mwork_jax.corpus import Batching, Corpus, Encoded, encoded, warn_of_repeats
from mwork_jax.detect.scores import DETECTION_COST, load_or_score, scores_key
from mwork_jax.errors import InputError
from mwork_jax.evaluate.delta_rows import (
    ORIGINAL,
    DeltaTable,
    RowSpec,
    condition_name,
    conditions,
    corrected_rows,
    delta_rows,
)
from mwork_jax.evaluate.evaluations import HELD_OUT_LOSS, ItemScores, LossEvaluation, nats_per_token
from mwork_jax.evaluate.language_matrix import language_matrix, other_conditions, own_conditions
from mwork_jax.evaluate.runner import Measured, measure
from mwork_jax.evaluate.sample_rows import log_table
from mwork_jax.intervene.stages import EACH_STAGE, EVERYWHERE, StageSplit
from mwork_jax.metrics import ENGLISH, paired_difference
from mwork_jax.model.model import Model
from mwork_jax.neurons import NeuronSet, files_of_languages
from mwork_jax.results import (
    Change,
    DataInfo,
    DetectResults,
    Interval,
    LanguageChange,
    LossRise,
    NeuronSetInfo,
    OriginalLoss,
    Provenance,
    RandomChange,
    RunResults,
    ScoresInfo,
    versions,
    write_results,
)
from mwork_jax.runtime.cache import CACHE_FOLDER, ResultCache, fingerprint
from mwork_jax.runtime.distributed import is_first
from mwork_jax.runtime.progress import Progress
from mwork_jax.samples import HELD_OUT_SECTION, remove_samples
from mwork_jax.select.folder import refuse_other_models
from mwork_jax.select.modes import Mode, is_english_alike, select_neurons
from mwork_jax.select.rules import kept_needed
from mwork_jax.settings import DetectSettings, RunSettings

_TOKENS_PER_BATCH = 2048
_SETTINGS = {"everywhere": EVERYWHERE, **EACH_STAGE}  # what a run switches off with own neurons
_RANDOM_ROW = RowSpec(EVERYWHERE, "random")


def _row_specs(settings: RunSettings) -> tuple[RowSpec, ...]:
    """Own neurons everywhere and in each stage; random ones everywhere and, where asked, in each stage too, which takes
    three times as long to measure."""
    return tuple(
        RowSpec(setting, kind)
        for setting in _SETTINGS.values()
        for kind in ("random", "lang-spec")
        if kind == "lang-spec" or setting == EVERYWHERE or settings.random_stages
    )


def run_pipeline(
    model: Model,
    corpora: Mapping[str, Corpus],
    settings: RunSettings,
    out: str | Path,
    *,
    log_samples: bool = True,
    progress: Progress | None = None,
    command: Sequence[str] = (),
) -> RunResults:
    """Finds each language's neurons, switches them off, measures the held-out loss, and writes `out/results.json`,
    `out/neurons/` and `out/scores/`.

    corpora: {language: its documents}, with English. log_samples: writes `out/samples/held-out-loss.jsonl` too, each
    held-out document with its loss under each mask. command: as it was typed, for the provenance. Raises InputError
    for languages or documents that are missing, and for a folder with scores or neurons of another model.
    """
    out = Path(out)
    corpora = documents_of_run(corpora, settings)
    split = StageSplit.of(model.config.num_layers, settings.n1, settings.n2)
    documents = {lang: _Documents.of(model, corpus, settings.max_tokens) for lang, corpus in corpora.items()}
    refuse_other_models(out, model, list(corpora))
    held_out = {lang: corpus.held_out for lang, corpus in corpora.items()}
    warn_of_repeats({lang: corpus.detection for lang, corpus in corpora.items()}, held_out)
    provenance = _provenance(model, corpora, settings, command)
    with progress or Progress() as bar:
        bar.expect(work_of_run(len(documents), settings))
        kept = kept_needed(settings.rule, settings.documents)
        scores = {
            lang: load_or_score(
                model,
                ready.detection,
                _scores_path(out, lang),
                bar,
                language=lang,
                origin=corpora[lang].origin,
                max_tokens=settings.max_tokens,
                kept=kept,
            )
            for lang, ready in documents.items()
        }
        neurons = select_neurons(scores, settings.rule, settings.mode)
        evaluations = _evaluations(corpora, documents, settings)
        table = _delta_table(model, evaluations, neurons, settings)
        rows = _rows_of_matrix(neurons, settings)
        cache = ResultCache(out / CACHE_FOLDER)
        wanted = list(conditions(table, _row_specs(settings), split))
        measured = measure(model, evaluations, [*wanted, *own_conditions(rows)], cache, bar)
        shorter = {lang: evaluation.first(settings.matrix_documents) for lang, evaluation in evaluations.items()}
        others = measure(model, shorter, other_conditions(rows, tuple(evaluations)), cache, bar)
    matrix = language_matrix(evaluations, rows, measured[ORIGINAL], measured, others)
    used = {lang: own for lang, own in neurons.items() if lang in table.neurons or lang in rows}
    results = _results(provenance, split, table, used, measured, matrix)
    remove_samples(out, HELD_OUT_SECTION)  # they are of the results that are replaced now
    _write(out, results, neurons)
    if log_samples:
        log_table(out, HELD_OUT_SECTION, model, table, _row_specs(settings), [split], measured, cache, held_out)
    return results


def run_detection(
    model: Model,
    documents: Mapping[str, Sequence[str]],
    origins: Mapping[str, str],
    settings: DetectSettings,
    out: str | Path,
    *,
    progress: Progress | None = None,
    command: Sequence[str] = (),
) -> DetectResults:
    """Scores every neuron on each language's documents: `out/scores/LANG.safetensors`, and `out/results.json`.

    origins: {language: where the documents are from}. Scores of the same documents by the same model are kept. Raises
    InputError for documents that cannot be used, and for a folder whose scores or neurons would no longer be those that
    its results or neurons were made with.
    """
    out = Path(out)
    ready = {
        lang: list(encoded(model, texts, settings.max_tokens, where=origins[lang])) for lang, texts in documents.items()
    }
    refuse_other_models(out, model, list(documents))
    warn_of_repeats(documents, {})
    _refuse_stale_neurons(out, model, ready, settings)
    written = {}
    with progress or Progress() as bar:
        bar.expect(DETECTION_COST * sum(map(len, ready.values())))
        for lang, texts in ready.items():
            scores = load_or_score(
                model,
                texts,
                _scores_path(out, lang),
                bar,
                language=lang,
                origin=origins[lang],
                max_tokens=settings.max_tokens,
                kept=settings.kept,
                include_bos=settings.include_bos,
            )
            written[lang] = ScoresInfo(str(_scores_path(Path(), lang)), scores.documents, scores.tokens)
    data = {lang: DataInfo(origins[lang], len(texts), fingerprint(list(texts))) for lang, texts in documents.items()}
    provenance = Provenance(model.info, data, settings, versions(), tuple(command))
    results = DetectResults("detect", provenance, written)
    write_results(out / "results.json", results)
    return results


def _scores_path(out: Path, language: str) -> Path:
    return out / "scores" / f"{language}.safetensors"


def documents_of_run(corpora: Mapping[str, Corpus], settings: RunSettings) -> dict[str, Corpus]:
    """The documents that the settings ask for, English first. Raises InputError where there are fewer, and where
    the languages are not those that the mode needs."""
    if ENGLISH not in settings.languages:
        raise InputError("the languages must include en, as in en,de: Delta compares every language with English")
    if len(settings.languages) < 2:
        raise InputError("at least one language other than en is needed")
    Mode.parse(settings.mode).check(settings.languages)
    wanted = {}
    for language in (ENGLISH, *(lang for lang in settings.languages if lang != ENGLISH)):
        corpus = corpora[language]
        for name, available, count in (
            ("detection", len(corpus.detection), settings.documents),
            ("held-out", len(corpus.held_out), settings.held_out),
        ):
            if count < 1:
                raise InputError(f"{count} {name} documents asked; at least 1 is needed")
            if available < count:
                needed = f"--documents and --held-out need {settings.documents} + {settings.held_out} in all"
                raise InputError(f"{corpus.origin}: {count} {name} documents asked, there are {available}; {needed}")
        wanted[language] = replace(
            corpus,
            detection=corpus.detection[: settings.documents],
            held_out=corpus.held_out[: settings.held_out],
            held_out_ids=corpus.held_out_ids[: settings.held_out],
        )
    return wanted


@dataclass(frozen=True, eq=False)
class _Documents:
    """One language's documents as tokens."""

    detection: list[Encoded]
    held_out: list[Encoded]

    @classmethod
    def of(cls, model: Model, corpus: Corpus, max_tokens: int) -> _Documents:
        """Tokenized before any work begins, so that a document that cannot be used is found at once."""
        parts = {"": corpus.detection, ", held out": corpus.held_out}
        return cls(
            *(list(encoded(model, texts, max_tokens, where=corpus.origin + part)) for part, texts in parts.items())
        )


def _provenance(
    model: Model, corpora: Mapping[str, Corpus], settings: RunSettings, command: Sequence[str]
) -> Provenance[RunSettings]:
    data = {
        lang: DataInfo(c.origin, len(c.detection) + len(c.held_out), fingerprint([c.detection, c.held_out]))
        for lang, c in corpora.items()
    }
    return Provenance(model.info, data, settings, versions(), tuple(command))


def _write(out: Path, results: RunResults, neurons: Mapping[str, NeuronSet]) -> None:
    """Writes results and sets now that everything is measured: until here the folder holds what an earlier run left.
    Results come first and name their sets, so that a report notices sets of another run beside them."""
    for name in ("table.txt", "report.html") if is_first() else ():
        (out / name).unlink(missing_ok=True)  # shown from results that are replaced now
    write_results(out / "results.json", results)
    for language, own in neurons.items():
        own.save(out / "neurons" / f"{language}.json")
    rules = {(own.provenance.get("rule"), own.provenance.get("mode")) for own in neurons.values()}
    for path in files_of_languages(out / "neurons", ".json").values() if is_first() else ():
        if path.stem not in neurons:  # of a language that this run does not have
            other = NeuronSet.load(path).provenance
            if (other.get("rule"), other.get("mode")) not in rules:
                path.unlink()


def _refuse_stale_neurons(
    out: Path, model: Model, documents: Mapping[str, Sequence[Encoded]], settings: DetectSettings
) -> None:
    """Raises InputError where neurons that were selected from other scores would stand beside the new ones."""
    for language, texts in documents.items():
        path = out / "neurons" / f"{language}.json"
        if path.exists():
            key = NeuronSet.load(path).provenance.get("key")
            if key != scores_key(model, texts, max_tokens=settings.max_tokens, include_bos=settings.include_bos):
                raise InputError(
                    f"{path}: selected from other scores, which would be replaced; choose another output folder with "
                    "--out, or delete it first"
                )


def _evaluations(
    corpora: Mapping[str, Corpus], documents: Mapping[str, _Documents], settings: RunSettings
) -> dict[str, LossEvaluation]:
    batching = Batching(settings.max_tokens, _TOKENS_PER_BATCH)
    return {
        lang: LossEvaluation(tuple(ready.held_out), batching, corpora[lang].clusters)
        for lang, ready in documents.items()
    }


def _rows_of_matrix(neurons: Mapping[str, NeuronSet], settings: RunSettings) -> dict[str, NeuronSet]:
    """The sets that are switched off in the matrix: all that came about in one way."""
    if not settings.matrix_documents:
        return {}
    with_english = is_english_alike(settings.rule, settings.mode)
    return {lang: own for lang, own in neurons.items() if with_english or lang != ENGLISH}


def _delta_table(
    model: Model, evaluations: Mapping[str, LossEvaluation], neurons: Mapping[str, NeuronSet], settings: RunSettings
) -> DeltaTable:
    others = {lang: own for lang, own in neurons.items() if lang != ENGLISH}
    return DeltaTable(
        table=HELD_OUT_LOSS,
        task=HELD_OUT_LOSS,
        model=model.source,
        evaluations=evaluations,
        neurons=others,
        seeds=settings.seeds,
    )


def work_of_run(languages: int, settings: RunSettings) -> float:
    """Units of work in the whole run, for the time left: a document measured under one mask is one."""
    others = languages - 1
    masks = len(_SETTINGS) + settings.seeds * (len(_SETTINGS) if settings.random_stages else 1)
    measured = settings.held_out * (languages + others * masks * 2)
    if settings.matrix_documents:
        few = min(settings.matrix_documents, settings.held_out)
        measured += others * (2 * settings.held_out + (others - 1) * few)
        if is_english_alike(settings.rule, settings.mode):
            measured += settings.held_out + others * few
    return DETECTION_COST * settings.documents * languages + measured


def _results(
    provenance: Provenance[RunSettings],
    split: StageSplit,
    table: DeltaTable,
    used: Mapping[str, NeuronSet],
    measured: Measured,
    matrix: Mapping[str, Mapping[str, LossRise]],
) -> RunResults:
    return RunResults(
        kind="run",
        provenance=provenance,
        stages=split,
        neurons={lang: NeuronSetInfo.of(own) for lang, own in used.items()},
        original={lang: _loss(measured[ORIGINAL][lang]) for lang in table.evaluations},
        languages={lang: _language_change(table, lang, split, measured) for lang in table.others},
        rows=corrected_rows(delta_rows(table, _row_specs(provenance.settings), split, measured)),
        matrix=matrix,
    )


def _loss(scores: ItemScores) -> OriginalLoss:
    size = sum(scores["bytes"])
    return OriginalLoss(nats_per_token(scores), sum(scores["nats"]) / size if size else None)


def _language_change(table: DeltaTable, language: str, split: StageSplit, measured: Measured) -> LanguageChange:
    """The change of loss, in nats per token, of the language and of English; positive = worse."""

    def rise(row: RowSpec, scored: str, seed: int = 0) -> float:
        after = measured[condition_name(row, split, language, seed)][scored]
        return nats_per_token(after) - nats_per_token(measured[ORIGINAL][scored])

    def interval(row: RowSpec, scored: str) -> Interval | None:
        evaluation, name = table.evaluations[scored], condition_name(row, split, language)
        points = (evaluation.points(measured[at][scored]) for at in (ORIGINAL, name))  # minus the loss
        before, after = ({scored: one} for one in points)
        return paired_difference(before, after, {scored: evaluation.weights}, {scored: evaluation.item_ids}).ci95

    def change(row: RowSpec) -> Change:
        return Change(rise(row, language), rise(row, ENGLISH), interval(row, language), interval(row, ENGLISH))

    own = {name: change(RowSpec(setting, "lang-spec")) for name, setting in _SETTINGS.items()}
    of_language, of_english = (
        tuple(rise(_RANDOM_ROW, at, seed) for seed in range(table.seeds)) for at in (language, ENGLISH)
    )
    random = RandomChange(of_language, of_english, float(np.mean(of_language)), float(np.mean(of_english)))
    neurons, everywhere = table.neurons[language], own["everywhere"]
    return LanguageChange(
        neurons=neurons.count(),
        share=neurons.count() / neurons.total(),
        **own,
        random=random,
        own_to_english=_times(everywhere.own, everywhere.english),
        own_to_random=_times(everywhere.own, random.own_mean),
    )


def _times(rise: float, other: float) -> float | None:
    """How many times the other rise; None where the other is no rise, and no number would mean anything."""
    return rise / other if other > 0 else None
