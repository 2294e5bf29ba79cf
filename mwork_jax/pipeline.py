"""The whole loop: load, detect, select, deactivate, evaluate, Delta. What `mwork run` does.

Every step reads and writes one folder. Scores and losses are kept under a fingerprint of everything that determines
them, so an interrupted run, or one repeated with other settings, computes only what is new.
"""

from __future__ import annotations

import json
import platform
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from importlib.metadata import version
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from mwork_jax.corpus import LANGUAGES, Batching, Corpus, Encoded, encoded
from mwork_jax.detect.scores import DETECTION_COST, NeuronScores, load_or_score
from mwork_jax.errors import InputError
from mwork_jax.evaluate.evaluations import HELD_OUT_LOSS, LOSS_VERSION, LossEvaluation
from mwork_jax.evaluate.runner import Condition, measure
from mwork_jax.intervene.stages import EACH_STAGE, EVERYWHERE, StageSetting, StageSplit
from mwork_jax.metrics import ENGLISH, delta
from mwork_jax.model.model import Model
from mwork_jax.neurons import NeuronSet
from mwork_jax.runtime.cache import ResultCache, fingerprint
from mwork_jax.runtime.distributed import is_first
from mwork_jax.runtime.files import read_json, write_json
from mwork_jax.runtime.progress import Progress
from mwork_jax.select.modes import select_neurons
from mwork_jax.select.rules import DEFAULT_RULE, kept_needed


@dataclass(frozen=True)
class RunSettings:
    """What a run does, apart from the model and the documents."""

    languages: tuple[str, ...] = LANGUAGES
    documents: int = 32
    held_out: int = 8
    rule: str = DEFAULT_RULE
    mode: str = "minus_english"
    seeds: int = 3
    n1: int | None = None
    n2: int | None = None
    max_tokens: int = 512

    def quick(self) -> RunSettings:
        """A first look in about a minute: few documents, two random seeds."""
        return replace(
            self, documents=min(self.documents, 12), held_out=min(self.held_out, 4), seeds=min(self.seeds, 2)
        )

    def split(self, layers: int) -> StageSplit:
        return StageSplit.of(layers, self.n1, self.n2)


def run(
    model: Model, corpora: Mapping[str, Corpus], settings: RunSettings, out: Path, progress: Progress | None = None
) -> dict[str, Any]:
    """Runs the loop and returns what `out/results.json` says. Raises InputError for languages or documents that are
    missing."""
    chosen = choose_documents(corpora, settings)
    split = settings.split(model.config.num_layers)
    documents = {lang: _encoded(model, corpus, settings.max_tokens) for lang, corpus in chosen.items()}
    _refuse_others(out, model, list(chosen))
    _drop_results_of_others(out, made := _made_by(model, chosen, settings, split))
    work = _work(chosen, settings)
    with progress or Progress(work) as bar:
        bar.total = work
        kept = kept_needed(settings.rule, settings.documents)
        scores = {
            lang: load_or_score(
                model,
                ready,
                out / "scores" / f"{lang}.safetensors",
                bar,
                language=lang,
                origin=chosen[lang].origin,
                max_tokens=settings.max_tokens,
                kept=kept,
            )
            for lang, (ready, _) in documents.items()
        }
        found = select_neurons(scores, settings.rule, settings.mode)
        for language, neurons in found.items():
            neurons.save(out / "neurons" / f"{language}.json")
        _drop_neurons_of_other_rules(out, found)
        batching = Batching(max_tokens=settings.max_tokens, tokens_per_batch=2048)
        evaluations = {lang: LossEvaluation(tuple(d.held_out), batching) for lang, d in documents.items()}
        losses = measure(
            model, evaluations, list(conditions(found, split, settings.seeds)), ResultCache(out / "cells"), bar
        )
    results = _results(made, model.source, list(chosen), settings.seeds, found, losses)
    write_json(out / "results.json", results)
    return results


class _Documents(NamedTuple):
    """One language's documents as tokens."""

    detection: list[Encoded]
    held_out: list[Encoded]


def _encoded(model: Model, corpus: Corpus, max_tokens: int) -> _Documents:
    """Tokenized before any work begins, so that a document that cannot be used is found at once."""
    parts = {"": corpus.detection, ", held out": corpus.held_out}
    return _Documents(
        *(list(encoded(model, texts, max_tokens, where=corpus.origin + part)) for part, texts in parts.items())
    )


def _drop_results_of_others(out: Path, made: Mapping[str, Any]) -> None:
    """Removes results that the run which begins now would leave standing beside neurons that they are not of."""
    path = out / "results.json"
    if is_first() and path.exists():
        try:
            same = read_json(path)["made_by"] == json.loads(json.dumps(made))
        except (InputError, KeyError, TypeError):
            same = False
        if not same:
            for name in ("results.json", "table.txt", "report.html"):
                (out / name).unlink(missing_ok=True)


def _drop_neurons_of_other_rules(out: Path, found: Mapping[str, NeuronSet]) -> None:
    """Removes sets of languages that this run does not have, chosen by another rule or mode; their scores stay."""
    made = (
        {neurons.provenance.get("rule") for neurons in found.values()},
        {n.provenance["mode"] for n in found.values()},
    )
    for path in (out / "neurons").glob("*.json") if is_first() else ():
        if path.stem not in found:
            other = NeuronSet.load(path).provenance
            if other.get("rule") not in made[0] or other.get("mode") not in made[1]:
                path.unlink()


def _refuse_others(out: Path, model: Model, languages: Sequence[str]) -> None:
    """Raises InputError where scores or neurons of another model would stand beside those of this run."""
    for path in (*(out / "scores").glob("*.safetensors"), *(out / "neurons").glob("*.json")):
        if path.stem not in languages:
            kept = NeuronScores.load(path) if path.suffix == ".safetensors" else NeuronSet.load(path)
            of = kept.provenance.get("model")
            if of and not model.is_of(of):
                raise InputError(f"{path}: of another model ({of.get('source')}); choose another output folder")


def choose_documents(corpora: Mapping[str, Corpus], settings: RunSettings) -> dict[str, Corpus]:
    """The documents that the settings ask for, English first. Raises InputError where there are fewer."""
    if ENGLISH not in settings.languages:
        raise InputError("the languages must include en: Delta compares every language with English")
    if len(settings.languages) < 2:
        raise InputError("at least one language other than en is needed")
    chosen = {}
    for language in (ENGLISH, *(lang for lang in settings.languages if lang != ENGLISH)):
        corpus = corpora[language]
        for name, there, asked in (
            ("detection", len(corpus.detection), settings.documents),
            ("held-out", len(corpus.held_out), settings.held_out),
        ):
            if there < asked or asked < 1:
                needed = f"--documents and --held-out need {settings.documents} + {settings.held_out} in all"
                raise InputError(f"{corpus.origin}: {asked} {name} documents asked, there are {there}; {needed}")
        chosen[language] = replace(
            corpus, detection=corpus.detection[: settings.documents], held_out=corpus.held_out[: settings.held_out]
        )
    return chosen


def conditions(found: Mapping[str, NeuronSet], split: StageSplit, seeds: int) -> Iterator[Condition]:
    """The original model, then for each language its neurons off everywhere, in each stage, and as many random ones
    off."""
    yield Condition("original", next(iter(found.values())).none(), tuple(found))
    for language, own in found.items():
        if language == ENGLISH:
            continue
        scored = (ENGLISH, language)
        for kind, setting in {"everywhere": EVERYWHERE, **EACH_STAGE}.items():
            yield Condition(f"{language}/{kind}", setting.choose(own, split), scored)
        for seed in range(seeds):
            yield Condition(f"{language}/random-{seed}", own.random_like(seed), scored)


def _work(chosen: Mapping[str, Corpus], settings: RunSettings) -> float:
    """Units of work in the whole run, for the time left."""
    others = len(chosen) - 1
    masks = 1 + len(EACH_STAGE) + settings.seeds
    evaluated = settings.held_out * (len(chosen) + others * masks * 2)
    return DETECTION_COST * settings.documents * len(chosen) + evaluated


Losses = Mapping[str, Mapping[str, Mapping[str, list[float]]]]  # condition -> language -> nats, tokens, bytes


def _made_by(model: Model, chosen: Mapping[str, Corpus], settings: RunSettings, split: StageSplit) -> dict[str, Any]:
    """What a run is determined by: model, documents, settings, versions."""
    packages = {p: version(p) for p in ("mwork-jax", "jax", "flax", "numpy", "transformers")}
    return {
        "model": model.identity,
        "settings": asdict(settings),
        "stages": asdict(split),
        "data": {
            lang: {"origin": c.origin, "fingerprint": fingerprint([c.detection, c.held_out])}
            for lang, c in chosen.items()
        },
        "evaluator": LOSS_VERSION,
        "versions": packages | {"python": platform.python_version()},
    }


def _results(
    made: Mapping[str, Any],
    source: str,
    languages: list[str],
    seeds: int,
    found: Mapping[str, NeuronSet],
    losses: Losses,
) -> dict[str, Any]:
    """What results.json says: who made it, one row per language, and the rows of the Delta table."""
    others = [lang for lang in languages if lang != ENGLISH]
    return {
        "format": "mwork-results-1",
        "made_by": made,
        "original": {lang: _loss(losses["original"][lang]) for lang in languages},
        "languages": {lang: _language_row(lang, found[lang], losses, seeds) for lang in others},
        "rows": [_delta_row(source, others, losses, kind, setting, seeds) for kind, setting in _table_rows()],
    }


def _loss(cell: Mapping[str, list[float]]) -> dict[str, Any]:
    nats, size = sum(cell["nats"]), sum(cell["bytes"])
    return {"nats_per_token": nats / sum(cell["tokens"]), "nats_per_byte": nats / size if size else None}


def _language_row(language: str, own: NeuronSet, losses: Losses, seeds: int) -> dict[str, Any]:
    """The change of loss, in nats per token, of the language and of English under each condition; positive = worse."""

    def change(kind: str, scored: str) -> float:
        after, before = _loss(losses[f"{language}/{kind}"][scored]), _loss(losses["original"][scored])
        return after["nats_per_token"] - before["nats_per_token"]

    row: dict[str, Any] = {"neurons": own.count(), "share": own.count() / own.total()}
    for kind in ("everywhere", *EACH_STAGE):
        row[kind] = {"own": change(kind, language), "english": change(kind, ENGLISH)}
    drawn = {
        scored: [change(f"random-{seed}", at) for seed in range(seeds)]
        for scored, at in (("own", language), ("english", ENGLISH))
    }
    means = {scored: float(np.mean(changes)) for scored, changes in drawn.items()}
    row["random"] = drawn | {f"{scored}_mean": mean for scored, mean in means.items()}
    row["own_to_english"] = _times(row["everywhere"]["own"], row["everywhere"]["english"])
    row["own_to_random"] = _times(row["everywhere"]["own"], means["own"])
    return row


def _times(rise: float, other: float) -> float | None:
    """How many times the other rise; None where the other is no rise, and no number would mean anything."""
    return rise / other if other > 0 else None


def _table_rows() -> Iterator[tuple[str, StageSetting]]:
    yield "random", EVERYWHERE
    yield "everywhere", EVERYWHERE
    yield from EACH_STAGE.items()


def _delta_row(
    source: str, others: list[str], losses: Losses, kind: str, setting: StageSetting, seeds: int
) -> dict[str, Any]:
    """One row in the layout of Tables 2 to 5; scores are minus nats per token, so higher is better; True in a stage
    means off."""

    def scores(name: str, language: str) -> np.ndarray:
        cell = losses[name][language]
        return -np.asarray(cell["nats"]) / np.asarray(cell["tokens"])

    def after(language: str, scored: str) -> np.ndarray:
        names = [f"{language}/random-{s}" for s in range(seeds)] if kind == "random" else [f"{language}/{kind}"]
        return np.mean([scores(n, scored) for n in names], axis=0)

    languages = [ENGLISH, *others]
    found = delta(
        {lang: scores("original", lang) for lang in languages},
        {lang: {s: after(lang, s) for s in (ENGLISH, lang)} for lang in others},
        {lang: np.asarray(losses["original"][lang]["tokens"], float) for lang in languages},
    )
    return {
        "table": HELD_OUT_LOSS,
        "task": "held_out_loss",
        "model": source,
        **asdict(setting),
        "neurons": "random" if kind == "random" else "lang-spec",
        "seeds": seeds if kind == "random" else 0,
        **{k: list(v) if isinstance(v, tuple) else v for k, v in asdict(found).items()},
    }
