"""The rows of Tables 2 to 5 on a model: task x setting x language, each cell computed once and kept.

A cell is one mask on one language's items. English is scored under every language's own set, as in the paper; a random
row is matched to the set it is compared with, layer by layer and group by group.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from mwork_jax.deactivate import StageSplit
from mwork_jax.errors import InputError
from mwork_jax.evaluate import log_likelihood
from mwork_jax.generate import generate
from mwork_jax.ledger import Ledger, fingerprint
from mwork_jax.load import Model
from mwork_jax.metrics import ENGLISH, delta
from mwork_jax.neurons import NeuronMask, NeuronSet
from mwork_jax.progress import Progress
from mwork_jax.tables import Row, Table
from mwork_jax.tasks import Choices, Item, Task, continuations, filtered, prompt, questions, with_examples

_POINTS = 100.0  # scores are between 0 and 1, tables show points


@dataclass(frozen=True)
class SweepSettings:
    """How a table is run: the languages (English among them), items per language, worked examples, random seeds."""

    languages: tuple[str, ...]
    items: int | None = None
    shots: int = 0
    seeds: int = 5


@dataclass(frozen=True)
class Exam:
    """One task in one language, ready to be put to the model."""

    task: Task
    items: tuple[Item, ...]
    prompts: tuple[str, ...]
    origin: str


@dataclass(frozen=True)
class Cell:
    """One mask and the languages whose items it is scored on."""

    name: str
    neurons: NeuronSet
    scored: tuple[str, ...]


def prepare(task: Task, data: str | Path | None, settings: SweepSettings) -> dict[str, Exam]:
    """The items and prompts of every language, English first. Raises InputError for what is missing or too little."""
    if ENGLISH not in settings.languages or len(settings.languages) < 2:
        raise InputError("the languages must include en and another one: Delta compares every language with English")
    exams = {}
    for language in (ENGLISH, *(lang for lang in settings.languages if lang != ENGLISH)):
        found = questions(task, language, data)
        examples, items = with_examples(found, settings.shots)
        asked = len(items) if settings.items is None else settings.items
        if not 1 <= asked <= len(items):
            raise InputError(f"{found.origin}: {asked} items asked, there are {len(items)}; ask for 1 to {len(items)}")
        items = items[:asked]
        exams[language] = Exam(task, items, tuple(prompt(task, item, examples) for item in items), found.origin)
    return exams


def run_table(
    model: Model,
    table: Table,
    exams: Mapping[str, Exam],
    found: Mapping[str, NeuronSet],
    split: StageSplit,
    settings: SweepSettings,
    out: Path,
    progress: Progress | None = None,
) -> dict[str, Any]:
    """Every row of a table: what was measured, in the fields that `results.json` has, and what made it.

    found: {language: its neurons} for every language of the exams but English. Finished cells are kept in `out/cells`
    and never computed twice. Raises InputError for a language without neurons, or a prompt that does not fit the model.
    """
    missing = [lang for lang in exams if lang != ENGLISH and lang not in found]
    if missing:
        raise InputError(f"no neurons of {', '.join(missing)}; find them first, or leave the language out")
    cells = list(_cells(table, exams, found, split, settings.seeds))
    ledger = Ledger(out / "cells")
    scores: dict[str, dict[str, dict[str, list[float]]]] = {}
    with progress or Progress(1) as bar:
        bar.total = sum(len(exams[lang].items) for cell in cells for lang in cell.scored)
        for cell in cells:
            scores[cell.name] = {lang: _score(model, exams[lang], cell, ledger, bar) for lang in cell.scored}
    task = next(iter(exams.values())).task
    return {
        "table": table.number,
        "stage": table.stage,
        "task": {"name": task.name, "version": task.version, "score": task.scores[0]},
        "model": model.identity,
        "settings": asdict(settings),
        "stages": asdict(split),
        "data": {lang: {"origin": e.origin, "items": len(e.items)} for lang, e in exams.items()},
        "original": {lang: _means(scores["original"][lang]) for lang in exams},
        "rows": [_row(model, table, task, i, row, exams, scores, settings.seeds) for i, row in enumerate(table.rows)],
    }


def _cells(
    table: Table, exams: Mapping[str, Exam], found: Mapping[str, NeuronSet], split: StageSplit, seeds: int
) -> Iterator[Cell]:
    """The original model on every language, then each row's masks."""
    some = next(iter(found.values()))
    yield Cell("original", some - some, tuple(exams))
    for i, row in enumerate(table.rows):
        for language in exams:
            if language == ENGLISH:
                continue
            chosen = row.setting.choose(found[language], split)
            drawn = [chosen.random_like(seed) for seed in range(seeds)] if row.neurons == "random" else [chosen]
            for seed, neurons in enumerate(drawn):
                yield Cell(_name(i, language, seed), neurons, (ENGLISH, language))


def _name(row: int, language: str, seed: int) -> str:
    return f"row {row + 1} {language} {seed}"


def _score(model: Model, exam: Exam, cell: Cell, ledger: Ledger, bar: Progress) -> dict[str, list[float]]:
    """{score name: one number per item}, from the ledger where it is there."""
    language = exam.items[0].language
    key = {
        "task": [exam.task.name, exam.task.version],
        "model": model.key,
        "items": fingerprint([exam.prompts, [asdict(item) for item in exam.items]]),
        "off": fingerprint({g: np.flatnonzero(m).tolist() for g, m in cell.neurons.groups.items()}),
    }
    bar.say(f"{cell.name} on {language}")
    known = ledger.get(key)
    if known is None:
        mask = NeuronMask.keep_all(model.config).drop(cell.neurons)
        answer = _generated if exam.task.kind == "generate" else _chosen
        each = [exam.task.score(item, said) for item, said in zip(exam.items, answer(model, exam, mask), strict=True)]
        known = {name: [one[name] for one in each] for name in exam.task.scores}
        ledger.put(key, known)
        bar.add(len(exam.items))
    else:
        bar.add(len(exam.items), free=True)
    return known


def _generated(model: Model, exam: Exam, mask: NeuronMask) -> list[str]:
    """What the model writes after each prompt, as it is scored."""
    language = exam.items[0].language
    texts = generate(model, exam.prompts, mask, max_new_tokens=exam.task.max_new_tokens, stop=exam.task.stop(language))
    return [filtered(exam.task, language, str(text)) for text in texts]


def _chosen(model: Model, exam: Exam, mask: NeuronMask) -> list[Choices]:
    """How likely the model finds each choice after each prompt; all choices of all items go through together."""
    options = [continuations(exam.task, item) for item in exam.items]
    contexts = [text for text, choices in zip(exam.prompts, options, strict=True) for _ in choices]
    found = log_likelihood(model, contexts, [choice for choices in options for choice in choices], mask)
    ends = np.cumsum([len(choices) for choices in options])
    parts = zip(np.split(found.nats, ends[:-1]), np.split(found.tokens, ends[:-1]), strict=True)
    return [Choices(nats, tokens) for nats, tokens in parts]


def _means(scores: Mapping[str, Sequence[float]]) -> dict[str, float]:
    return {name: _POINTS * float(np.mean(values)) for name, values in scores.items()}


def _row(
    model: Model,
    table: Table,
    task: Task,
    place: int,
    row: Row,
    exams: Mapping[str, Exam],
    scores: Mapping[str, Mapping[str, Mapping[str, Sequence[float]]]],
    seeds: int,
) -> dict[str, Any]:
    """One row in the paper's layout, in points; True in a stage means off."""
    others = [lang for lang in exams if lang != ENGLISH]
    drawn = range(seeds if row.neurons == "random" else 1)

    def points(name: str, language: str) -> np.ndarray:
        return _POINTS * np.asarray(scores[name][language][task.scores[0]])

    def after(language: str, scored: str) -> np.ndarray:
        return np.mean([points(_name(place, language, seed), scored) for seed in drawn], axis=0)

    found = delta(
        {lang: points("original", lang) for lang in exams},
        {lang: {scored: after(lang, scored) for scored in (ENGLISH, lang)} for lang in others},
    )
    return {
        "table": table.number,
        "task": task.name,
        "model": model.source,
        **asdict(row.setting),
        "neurons": row.neurons,
        "seeds": len(drawn) if row.neurons == "random" else 0,
        **{k: list(v) if isinstance(v, tuple) else v for k, v in asdict(found).items()},
    }
