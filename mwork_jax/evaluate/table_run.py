"""The rows of Tables 2 to 5 on a model: task x setting x language.

English is scored under every language's own set, as in the paper; a random row is matched to the set it is compared
with, layer by layer and group by group.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from mwork_jax.errors import InputError
from mwork_jax.evaluate.evaluations import Scores, TaskEvaluation
from mwork_jax.evaluate.paper_tables import PaperRow, PaperTable
from mwork_jax.evaluate.runner import Condition, measure
from mwork_jax.evaluate.tasks import NoData, Task, prompt, questions, task_named, with_examples
from mwork_jax.intervene.stages import StageSplit
from mwork_jax.metrics import ENGLISH, benjamini_hochberg, delta, holm, mcnemar, spread
from mwork_jax.model.model import Model
from mwork_jax.neurons import NeuronSet
from mwork_jax.runtime.cache import ResultCache
from mwork_jax.runtime.progress import Progress

_POINTS = 100.0  # scores are between 0 and 1, tables show points
ORIGINAL = "original"


@dataclass(frozen=True)
class SweepSettings:
    """How a table is run: the languages (English among them), items per language, worked examples, random seeds, and
    whether prompts go through the model's chat template."""

    languages: tuple[str, ...]
    items: int | None = None
    shots: int = 0
    seeds: int = 5
    chat: bool = False


def prepare(task: Task, data: str | Path | None, settings: SweepSettings) -> dict[str, TaskEvaluation]:
    """The items and prompts of every language, English first. Raises InputError for what is missing or too little."""
    if ENGLISH not in settings.languages or len(settings.languages) < 2:
        raise InputError("the languages must include en and another one: Delta compares every language with English")
    if data is not None and Path(data).is_file():
        raise InputError(f"{data}: one file, where {', '.join(settings.languages)} need one each; give their folder")
    evaluations = {}
    for language in (ENGLISH, *(lang for lang in settings.languages if lang != ENGLISH)):
        found = questions(task, language, data)
        examples, items = with_examples(found, settings.shots)
        asked = len(items) if settings.items is None else settings.items
        if not 1 <= asked <= len(items):
            raise InputError(f"{found.origin}: {asked} items asked, there are {len(items)}; ask for 1 to {len(items)}")
        items = items[:asked]
        prompts = tuple(prompt(task, item, examples) for item in items)
        evaluations[language] = TaskEvaluation(task, language, items, prompts, found.origin)
    return evaluations


def prepare_table(table: PaperTable, data: str | Path | None, settings: SweepSettings) -> dict[str, TaskEvaluation]:
    """`prepare` for the table's task or, where its data is not there in all languages, for the one that stands in for
    it."""
    try:
        return prepare(task_named(table.task), data, settings)
    except NoData:
        if not table.stand_in:
            raise
        try:
            return prepare(task_named(table.stand_in), data, settings)
        except NoData:
            pass
        raise  # what is missing of the table's own task


@dataclass(frozen=True)
class Sweep:
    """A table to run on a model. found: {language: its neurons} for every language of the evaluations but English."""

    model: Model
    table: PaperTable
    evaluations: Mapping[str, TaskEvaluation]
    found: Mapping[str, NeuronSet]
    settings: SweepSettings
    out: Path

    def __post_init__(self) -> None:
        missing = [lang for lang in self.others if lang not in self.found]
        if missing:
            raise InputError(f"no neurons of {', '.join(missing)}; find them first, or leave the language out")
        ready = {lang: e.as_chat(self.model) if self.settings.chat else e for lang, e in self.evaluations.items()}
        for evaluation in ready.values():
            evaluation.check_fits(self.model)
        object.__setattr__(self, "evaluations", ready)

    @property
    def task(self) -> Task:
        return self.evaluations[ENGLISH].task

    @property
    def others(self) -> list[str]:
        """The languages but English."""
        return [lang for lang in self.evaluations if lang != ENGLISH]


def run_table(sweep: Sweep, split: StageSplit, progress: Progress | None = None) -> dict[str, Any]:
    """Every row of a table: what was measured, in the fields that `results.json` has, and what made it.

    Finished cells are kept in `out/cells` and never computed twice.
    """
    scores = _measured(sweep, list(_conditions(sweep, sweep.table.rows, split)), progress)
    rows = [_row(sweep, row, split, scores) for row in sweep.table.rows]
    _add_comparisons(sweep, rows, split, scores)
    _correct(rows)
    return _about(sweep, scores) | {"stages": asdict(split), "rows": rows}


def run_grid(sweep: Sweep, splits: Sequence[StageSplit], progress: Progress | None = None) -> dict[str, Any]:
    """The table's rows of language-specific neurons for every N1 and N2: which split separates best is seen, not
    assumed. Rows as in `run_table`, each with its `understanding` (N1) and `generation` (N2)."""
    own = [row for row in sweep.table.rows if row.neurons == "lang-spec"]
    wanted = {c.name: c for split in splits for c in _conditions(sweep, own, split)}
    scores = _measured(sweep, list(wanted.values()), progress)
    rows = [_row(sweep, row, split, scores) | asdict(split) for split in splits for row in own]
    _correct(rows)
    return _about(sweep, scores) | {"rows": rows}


def _measured(sweep: Sweep, conditions: Sequence[Condition], progress: Progress | None) -> dict[str, dict[str, Scores]]:
    cache = ResultCache(sweep.out / "cells")
    with progress or Progress(1) as bar:
        bar.total = sum(sweep.evaluations[lang].size for condition in conditions for lang in condition.scored)
        return measure(sweep.model, sweep.evaluations, conditions, cache, bar)


def _about(sweep: Sweep, scores: Mapping[str, Mapping[str, Scores]]) -> dict[str, Any]:
    """What a table's results say besides its rows."""
    task = sweep.task
    return {
        "table": sweep.table.number,
        "stage": sweep.table.stage,
        "task": {"name": task.name, "version": task.version, "score": task.scores[0]},
        "model": sweep.model.identity,
        "settings": asdict(sweep.settings),
        "neurons": {lang: dict(sweep.found[lang].provenance) for lang in sweep.others},
        "data": {
            lang: {"origin": e.origin, "items": e.size, "fingerprint": e.key["items"]}
            for lang, e in sweep.evaluations.items()
        },
        "original": {
            lang: {name: _POINTS * float(np.mean(values)) for name, values in scores[ORIGINAL][lang].items()}
            for lang in sweep.evaluations
        },
    }


def _conditions(sweep: Sweep, rows: Sequence[PaperRow], split: StageSplit) -> Iterator[Condition]:
    """The original model on every language, then each row's masks."""
    yield Condition(ORIGINAL, NeuronSet.empty(sweep.model.config), tuple(sweep.evaluations))
    for row in rows:
        for language in sweep.others:
            chosen = row.setting.choose(sweep.found[language], split)
            drawn = [chosen.random_like(s) for s in range(sweep.settings.seeds)] if _random(row) else [chosen]
            for seed, neurons in enumerate(drawn):
                yield Condition(_name(row, split, language, seed), neurons, (ENGLISH, language))


def _random(row: PaperRow) -> bool:
    return row.neurons == "random"


def _name(row: PaperRow, split: StageSplit, language: str, seed: int) -> str:
    off = "+".join(part for part, is_off in asdict(row.setting).items() if is_off)
    return f"{language} {row.neurons} {off} {split.understanding}/{split.generation} {seed}"


@dataclass(frozen=True)
class _Points:
    """One row's scores, in points: before [items] and after [seeds, items], by language; English after under each."""

    before: dict[str, np.ndarray]
    after: dict[str, dict[str, np.ndarray]]

    def of_seed(self, seed: int | None) -> dict[str, dict[str, np.ndarray]]:
        """After deactivation, of one seed or averaged over them."""
        return {
            lang: {at: x.mean(axis=0) if seed is None else x[seed] for at, x in runs.items()}
            for lang, runs in self.after.items()
        }


def _points(
    sweep: Sweep, row: PaperRow, split: StageSplit, scores: Mapping[str, Mapping[str, Scores]], score: str
) -> _Points:
    seeds = range(sweep.settings.seeds if _random(row) else 1)

    def points(name: str, language: str) -> np.ndarray:
        return _POINTS * np.asarray(scores[name][language][score])

    return _Points(
        {lang: points(ORIGINAL, lang) for lang in sweep.evaluations},
        {
            lang: {at: np.stack([points(_name(row, split, lang, s), at) for s in seeds]) for at in (ENGLISH, lang)}
            for lang in sweep.others
        },
    )


def _row(sweep: Sweep, row: PaperRow, split: StageSplit, scores: Mapping[str, Mapping[str, Scores]]) -> dict[str, Any]:
    """One row in the paper's layout, in points; True in a stage means off."""
    points = _points(sweep, row, split, scores, sweep.task.scores[0])
    found = delta(points.before, points.of_seed(None))
    made = {
        "table": sweep.table.number,
        "task": sweep.task.name,
        "model": sweep.model.source,
        **asdict(row.setting),
        "neurons": row.neurons,
        "seeds": sweep.settings.seeds if _random(row) else 0,
        **{k: list(v) if isinstance(v, tuple) else v for k, v in asdict(found).items()},
        "by_language": _by_language(points),
    }
    if _random(row):
        made["seed_spread"] = _seed_spread(points, sweep.settings.seeds)
    else:
        made["mcnemar"] = _mcnemar(sweep, row, split, scores)
    return made


def _by_language(points: _Points) -> dict[str, dict[str, float]]:
    """The change of each language, and of English, with that language's neurons off."""
    after = points.of_seed(None)
    return {
        lang: {
            "own": float((after[lang][lang] - points.before[lang]).mean()),
            "english": float((after[lang][ENGLISH] - points.before[ENGLISH]).mean()),
        }
        for lang in after
    }


def _seed_spread(points: _Points, seeds: int) -> dict[str, dict[str, Any]]:
    """Of delta and of its two sides, over the random draws."""
    each = [delta(points.before, points.of_seed(seed)) for seed in range(seeds)]
    return {
        name: asdict(spread([getattr(one, name) for one in each])) for name in ("delta_eng", "delta_n_eng", "delta")
    }


def _mcnemar(
    sweep: Sweep, row: PaperRow, split: StageSplit, scores: Mapping[str, Mapping[str, Scores]]
) -> dict[str, dict[str, Any]] | None:
    """Exact McNemar tests of the task's score of right and wrong, of each language and of English under its neurons;
    None for a task without one."""
    if not sweep.task.right_or_wrong:
        return None
    points = _points(sweep, row, split, scores, sweep.task.right_or_wrong)
    return {
        lang: {
            # A tie of choices counts as wrong: part of an item cannot be right.
            side: asdict(mcnemar(points.before[at] == _POINTS, points.after[lang][at][0] == _POINTS))
            for side, at in (("own", lang), ("english", ENGLISH))
        }
        for lang in sweep.others
    }


def _add_comparisons(
    sweep: Sweep, rows: list[dict[str, Any]], split: StageSplit, scores: Mapping[str, Mapping[str, Scores]]
) -> None:
    """For rows of language-specific neurons that have a random row with the same parts off, `beyond_random`: by how
    much its Delta is higher, paired over items."""
    random = {row.setting: row for row in sweep.table.rows if _random(row)}
    for made, row in zip(rows, sweep.table.rows, strict=True):
        if _random(row) or row.setting not in random:
            continue
        own, other = (_points(sweep, r, split, scores, sweep.task.scores[0]) for r in (row, random[row.setting]))
        drawn = other.of_seed(None)
        # Delta is a difference of means, so the difference of two Deltas is the Delta of one after the other.
        english = np.mean([runs[ENGLISH] for runs in drawn.values()], axis=0)
        found = delta({ENGLISH: english, **{lang: drawn[lang][lang] for lang in drawn}}, own.of_seed(None))
        made["beyond_random"] = {"delta": found.delta, "ci95": list(found.delta_ci95), "p": found.p}


def _correct(rows: Sequence[dict[str, Any]]) -> None:
    """Corrects p values over the cells of a table: Delta's over its rows (Holm), McNemar's over rows, languages and
    sides (Benjamini and Hochberg)."""
    for row, p in zip(rows, holm([row["p"] for row in rows]), strict=True):
        row["p_holm"] = float(p)
    compared = [row["beyond_random"] for row in rows if "beyond_random" in row]
    for one, p in zip(compared, holm([one["p"] for one in compared]), strict=True):
        one["p_holm"] = float(p)
    tests = [t for row in rows for sides in (row.get("mcnemar") or {}).values() for t in sides.values()]
    for test, p in zip(tests, benjamini_hochberg([t["p"] for t in tests]), strict=True):
        test["p_bh"] = float(p)
