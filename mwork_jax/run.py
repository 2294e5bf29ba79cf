"""The whole loop: load, detect, select, deactivate, evaluate, Delta. What `mwork run` does.

Every step reads and writes one folder. Scores and losses are kept under a fingerprint of everything that determines
them, so an interrupted run, or one repeated with other settings, computes only what is new.
"""

from __future__ import annotations

import platform
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np

from mwork_jax.corpus import LANGUAGES, Batching, Corpus, Encoded, encoded
from mwork_jax.deactivate import EACH_STAGE, EVERYWHERE, Setting, StageSplit
from mwork_jax.detect import NeuronScores, score_neurons
from mwork_jax.errors import InputError
from mwork_jax.evaluate import held_out_loss
from mwork_jax.files import write_json
from mwork_jax.ledger import Ledger, fingerprint
from mwork_jax.load import Model
from mwork_jax.metrics import ENGLISH, delta
from mwork_jax.neurons import NeuronMask, NeuronSet
from mwork_jax.progress import Progress
from mwork_jax.select import DEFAULT_RULE, select_neurons

EVALUATOR = "held_out_loss-1"  # its version: results of another one are not mixed in
_DETECTION_COST = 3.0  # how much longer than evaluating a document scoring it takes, for the time left


@dataclass(frozen=True)
class RunSettings:
    """What a run does, apart from the model and the documents."""

    languages: tuple[str, ...] = LANGUAGES
    documents: int = 32
    held_out: int = 12
    rule: str = DEFAULT_RULE
    mode: str = "minus_english"
    seeds: int = 5
    n1: int | None = None
    n2: int | None = None
    max_tokens: int = 512

    def quick(self) -> RunSettings:
        """A first look in about a minute: few documents, two random seeds."""
        return replace(
            self, documents=min(self.documents, 12), held_out=min(self.held_out, 4), seeds=min(self.seeds, 2)
        )

    def split(self, layers: int) -> StageSplit:
        default = StageSplit.default(layers)
        n1 = default.understanding if self.n1 is None else self.n1
        n2 = default.generation if self.n2 is None else self.n2
        return StageSplit(layers, n1, n2)


def run(
    model: Model, corpora: Mapping[str, Corpus], settings: RunSettings, out: Path, progress: Progress | None = None
) -> dict[str, Any]:
    """Runs the loop and returns what `out/results.json` says. Raises InputError for languages or documents that are
    missing."""
    chosen = choose_documents(corpora, settings)
    split = settings.split(model.config.num_layers)
    work = _work(chosen, settings)
    with progress or Progress(work) as bar:
        bar.total = work
        scores = {lang: _scores(model, c, settings, out, bar) for lang, c in chosen.items()}
        found = select_neurons(scores, settings.rule, settings.mode)
        for language, neurons in found.items():
            neurons.save(out / "neurons" / f"{language}.json")
        cells = _Cells(model, chosen, settings, out, bar)
        losses = {
            c.name: {lang: cells.loss(c, lang) for lang in c.scored} for c in conditions(found, split, settings.seeds)
        }
    results = _results(model, chosen, settings, split, found, losses)
    write_json(out / "results.json", results)
    return results


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
                raise InputError(
                    f"{corpus.origin}: {asked} {name} documents asked, there are {there}; ask for 1 to {there}"
                )
        chosen[language] = replace(
            corpus, detection=corpus.detection[: settings.documents], held_out=corpus.held_out[: settings.held_out]
        )
    return chosen


@dataclass(frozen=True)
class Condition:
    """One mask to evaluate: whose neurons, which of them, and on which languages' held-out documents."""

    name: str  # language/kind, as in de/under or de/random-3
    neurons: NeuronSet
    scored: tuple[str, ...]


def conditions(found: Mapping[str, NeuronSet], split: StageSplit, seeds: int) -> Iterator[Condition]:
    """The original model, then for each language its neurons off everywhere, in each stage, and as many random ones
    off."""
    none = next(iter(found.values()))
    yield Condition("original", none - none, tuple(found))
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
    return _DETECTION_COST * settings.documents * len(chosen) + evaluated


def _scores(model: Model, corpus: Corpus, settings: RunSettings, out: Path, bar: Progress) -> NeuronScores:
    """One language's scores, from the folder where it has them for the same model and documents."""
    path = out / "scores" / f"{corpus.language}.safetensors"
    key = {"model": model.identity, "documents": fingerprint(corpus.detection), "max_tokens": settings.max_tokens}
    bar.say(f"detect {corpus.language}")
    if path.exists():
        try:
            scores = NeuronScores.load(path)
        except InputError:
            scores = None  # damaged: made again
        if scores is not None and scores.provenance.get("key") == fingerprint(key):
            bar.add(_DETECTION_COST * len(corpus.detection), free=True)
            return scores
    done = 0

    def step(count: int) -> None:
        nonlocal done
        bar.add(_DETECTION_COST * (count - done))
        done = count

    scores = score_neurons(
        model,
        corpus.detection,
        batching=Batching(max_tokens=settings.max_tokens),
        provenance={"language": corpus.language, "corpus": corpus.origin, "key": fingerprint(key)},
        progress=step,
    )
    scores.save(path)
    return scores


class _Cells:
    """Losses, each computed once: a cell is one condition on one language's held-out documents."""

    def __init__(self, model: Model, corpora: Mapping[str, Corpus], settings: RunSettings, out: Path, bar: Progress):
        self.model, self.bar = model, bar
        self.batching = Batching(max_tokens=settings.max_tokens, tokens_per_batch=2048)
        self.ledger = Ledger(out / "cells")
        self.documents = {lang: self._encode(c) for lang, c in corpora.items()}
        self.keys = {lang: fingerprint(c.held_out) for lang, c in corpora.items()}

    def _encode(self, corpus: Corpus) -> list[Encoded]:
        return list(encoded(self.model, corpus.held_out, self.batching.max_tokens, where=f"{corpus.origin}, held out"))

    def loss(self, condition: Condition, language: str) -> dict[str, list[float]]:
        """{"nats", "tokens", "bytes"} of each held-out document of `language` with the condition's neurons off."""
        documents = self.documents[language]
        key = {
            "evaluator": EVALUATOR,
            "model": self.model.identity,
            "documents": self.keys[language],
            "max_tokens": self.batching.max_tokens,
            "off": fingerprint({g: np.flatnonzero(m).tolist() for g, m in condition.neurons.groups.items()}),
        }
        self.bar.say(f"{condition.name} on {language}")
        known = self.ledger.get(key)
        if known is None:
            mask = NeuronMask.keep_all(self.model.config).drop(condition.neurons)
            found = held_out_loss(self.model, documents, mask, batching=self.batching)
            known = {"nats": found.nats.tolist(), "tokens": found.tokens.tolist(), "bytes": found.bytes.tolist()}
            self.ledger.put(key, known)
            self.bar.add(len(documents))
        else:
            self.bar.add(len(documents), free=True)
        return known


Losses = Mapping[str, Mapping[str, Mapping[str, list[float]]]]  # condition -> language -> nats, tokens, bytes


def _results(
    model: Model,
    chosen: Mapping[str, Corpus],
    settings: RunSettings,
    split: StageSplit,
    found: Mapping[str, NeuronSet],
    losses: Losses,
) -> dict[str, Any]:
    """What results.json says: who made it, one row per language, and the rows of the Delta table."""
    others = [lang for lang in chosen if lang != ENGLISH]
    return {
        "format": "mwork-results-1",
        "made_by": {
            "model": model.identity,
            "settings": asdict(settings),
            "stages": asdict(split),
            "data": {
                lang: {"origin": c.origin, "fingerprint": fingerprint([c.detection, c.held_out])}
                for lang, c in chosen.items()
            },
            "evaluator": EVALUATOR,
            "versions": {p: version(p) for p in ("mwork-jax", "jax", "flax", "numpy", "transformers")}
            | {"python": platform.python_version()},
        },
        "original": {lang: _loss(losses["original"][lang]) for lang in chosen},
        "languages": {lang: _language_row(lang, found[lang], losses, settings.seeds) for lang in others},
        "rows": [_delta_row(model, others, losses, kind, setting, settings.seeds) for kind, setting in _table_rows()],
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


def _table_rows() -> Iterator[tuple[str, Setting]]:
    yield "random", EVERYWHERE
    yield "everywhere", EVERYWHERE
    yield from EACH_STAGE.items()


def _delta_row(
    model: Model, others: list[str], losses: Losses, kind: str, setting: Setting, seeds: int
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
        "table": "held-out loss",
        "task": "held_out_loss",
        "model": model.source,
        **asdict(setting),
        "neurons": "random" if kind == "random" else "lang-spec",
        "seeds": seeds if kind == "random" else 0,
        **{k: list(v) if isinstance(v, tuple) else v for k, v in asdict(found).items()},
    }
