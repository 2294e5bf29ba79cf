"""The whole loop: load, detect, select, switch off, measure, Delta. What `mwork run` and `mwork detect` do.

Every step reads and writes one folder. Scores and losses are kept under a fingerprint of everything that determines
them, so an interrupted run, or one repeated with other settings, computes only what is new.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from mwork_jax.corpus import Batching, Corpus, Encoded, encoded
from mwork_jax.detect.scores import DETECTION_COST, NeuronScores, load_or_score, scores_key
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
from mwork_jax.evaluate.evaluations import HELD_OUT_LOSS, ItemScores, LossEvaluation
from mwork_jax.evaluate.runner import Measured, measure
from mwork_jax.intervene.stages import EACH_STAGE, EVERYWHERE, StageSplit
from mwork_jax.metrics import ENGLISH
from mwork_jax.model.identity import model_of
from mwork_jax.model.model import Model
from mwork_jax.neurons import NeuronSet, files_of_languages
from mwork_jax.results import (
    Change,
    DataInfo,
    DetectResults,
    LanguageChange,
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
from mwork_jax.select.modes import select_neurons
from mwork_jax.select.rules import kept_needed
from mwork_jax.settings import DetectSettings, RunSettings

_TOKENS_PER_BATCH = 2048
_SETTINGS = {"everywhere": EVERYWHERE, **EACH_STAGE}  # what a run switches off with own neurons
_RANDOM_ROW = RowSpec(EVERYWHERE, "random")  # random sets for each stage too would take three times as long
_ROWS = (_RANDOM_ROW, *(RowSpec(setting, "lang-spec") for setting in _SETTINGS.values()))


def run_pipeline(
    model: Model,
    corpora: Mapping[str, Corpus],
    settings: RunSettings,
    out: str | Path,
    *,
    progress: Progress | None = None,
    command: Sequence[str] = (),
) -> RunResults:
    """Finds each language's neurons, switches them off, measures the held-out loss, and writes `out/results.json`,
    `out/neurons/` and `out/scores/`.

    corpora: {language: its documents}, with English. command: as it was typed, for the provenance. Raises InputError
    for languages or documents that are missing, and for a folder with scores or neurons of another model.
    """
    out = Path(out)
    corpora = documents_of_run(corpora, settings)
    split = StageSplit.of(model.config.num_layers, settings.n1, settings.n2)
    documents = {lang: _Documents.of(model, corpus, settings.max_tokens) for lang, corpus in corpora.items()}
    refuse_other_models(out, model, list(corpora))
    provenance = _provenance(model, corpora, settings, command)
    with progress or Progress() as bar:
        bar.expect(_work(documents, settings))
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
        table = _delta_table(model, corpora, documents, neurons, settings)
        measured = measure(
            model, table.evaluations, list(conditions(table, _ROWS, split)), ResultCache(out / CACHE_FOLDER), bar
        )
    results = _results(provenance, split, table, measured)
    _write(out, results, neurons)
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
    """The documents that the settings ask for, English first. Raises InputError where there are fewer."""
    if ENGLISH not in settings.languages:
        raise InputError("the languages must include en: Delta compares every language with English")
    if len(settings.languages) < 2:
        raise InputError("at least one language other than en is needed")
    wanted = {}
    for language in (ENGLISH, *(lang for lang in settings.languages if lang != ENGLISH)):
        corpus = corpora[language]
        for name, available, count in (
            ("detection", len(corpus.detection), settings.documents),
            ("held-out", len(corpus.held_out), settings.held_out),
        ):
            if available < count or count < 1:
                needed = f"--documents and --held-out need {settings.documents} + {settings.held_out} in all"
                raise InputError(f"{corpus.origin}: {count} {name} documents asked, there are {available}; {needed}")
        wanted[language] = replace(
            corpus,
            detection=corpus.detection[: settings.documents],
            held_out=corpus.held_out[: settings.held_out],
            held_out_ids=corpus.held_out_ids[: settings.held_out],
        )
    return wanted


def refuse_other_models(out: Path, model: Model, languages: Sequence[str]) -> None:
    """Raises InputError where scores or neurons of another model would stand beside those of these languages."""
    scores, neurons = (files_of_languages(out / f, s) for f, s in (("scores", ".safetensors"), ("neurons", ".json")))
    for path in (*scores.values(), *neurons.values()):
        if path.stem not in languages:
            kept = NeuronScores.load(path) if path.suffix == ".safetensors" else NeuronSet.load(path)
            of = model_of(kept.provenance, str(path))
            if of is not None and of.key != model.key:
                raise InputError(f"{path}: of another model ({of}); choose another output folder")


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


def _delta_table(
    model: Model,
    corpora: Mapping[str, Corpus],
    documents: Mapping[str, _Documents],
    neurons: Mapping[str, NeuronSet],
    settings: RunSettings,
) -> DeltaTable:
    batching = Batching(settings.max_tokens, _TOKENS_PER_BATCH)
    evaluations = {
        lang: LossEvaluation(tuple(ready.held_out), batching, corpora[lang].clusters)
        for lang, ready in documents.items()
    }
    others = {lang: own for lang, own in neurons.items() if lang != ENGLISH}
    return DeltaTable(
        table=HELD_OUT_LOSS,
        task=HELD_OUT_LOSS,
        model=model.source,
        evaluations=evaluations,
        neurons=others,
        seeds=settings.seeds,
    )


def _work(documents: Mapping[str, _Documents], settings: RunSettings) -> float:
    """Units of work in the whole run, for the time left."""
    others = len(documents) - 1
    masks = len(_SETTINGS) + settings.seeds
    measured = settings.held_out * (len(documents) + others * masks * 2)
    return DETECTION_COST * settings.documents * len(documents) + measured


def _results(
    provenance: Provenance[RunSettings], split: StageSplit, table: DeltaTable, measured: Measured
) -> RunResults:
    return RunResults(
        kind="run",
        provenance=provenance,
        stages=split,
        neurons={lang: NeuronSetInfo.of(own) for lang, own in table.neurons.items()},
        original={lang: _loss(measured[ORIGINAL][lang]) for lang in table.evaluations},
        languages={lang: _language_change(table, lang, split, measured) for lang in table.others},
        rows=corrected_rows(delta_rows(table, _ROWS, split, measured)),
    )


def _loss(scores: ItemScores) -> OriginalLoss:
    nats, size = sum(scores["nats"]), sum(scores["bytes"])
    return OriginalLoss(nats / sum(scores["tokens"]), nats / size if size else None)


def _language_change(table: DeltaTable, language: str, split: StageSplit, measured: Measured) -> LanguageChange:
    """The change of loss, in nats per token, of the language and of English; positive = worse."""

    def rise(row: RowSpec, scored: str, seed: int = 0) -> float:
        after = _loss(measured[condition_name(row, split, language, seed)][scored])
        return after.nats_per_token - _loss(measured[ORIGINAL][scored]).nats_per_token

    def change(row: RowSpec) -> Change:
        return Change(rise(row, language), rise(row, ENGLISH))

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
