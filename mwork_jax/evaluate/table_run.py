"""The paper's Tables 2 to 5 on a model: task x setting x language, and the grid of N1 and N2."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np

from mwork_jax.errors import InputError
from mwork_jax.evaluate.delta_rows import ORIGINAL, DeltaTable, conditions, corrected_rows, delta_rows
from mwork_jax.evaluate.evaluations import POINTS, TaskEvaluation
from mwork_jax.evaluate.paper_tables import PaperTable
from mwork_jax.evaluate.runner import Measured, measure
from mwork_jax.evaluate.tasks import NoData, Task, prompt, questions, task_named, with_examples
from mwork_jax.intervene.stages import StageSplit
from mwork_jax.metrics import ENGLISH
from mwork_jax.model.model import Model
from mwork_jax.neurons import NeuronMask, NeuronSet
from mwork_jax.results import (
    DataInfo,
    NeuronSetInfo,
    Provenance,
    TableResult,
    TaskInfo,
    versions,
)
from mwork_jax.runtime.cache import ResultCache
from mwork_jax.runtime.progress import Progress
from mwork_jax.settings import TableSettings


def prepare(task: Task, data: str | Path | None, settings: TableSettings) -> dict[str, TaskEvaluation]:
    """The items and prompts of every language, English first. Raises InputError for what is missing or too little."""
    if ENGLISH not in settings.languages or len(settings.languages) < 2:
        raise InputError("the languages must include en and another one: Delta compares every language with English")
    if data is not None and Path(data).is_file():
        raise InputError(f"{data}: one file, where {', '.join(settings.languages)} need one each; give their folder")
    evaluations = {}
    for language in (ENGLISH, *(lang for lang in settings.languages if lang != ENGLISH)):
        available = questions(task, language, data)
        examples, items = with_examples(available, settings.shots)
        count = len(items) if settings.items is None else settings.items
        if not 1 <= count <= len(items):
            raise InputError(
                f"{available.origin}: {count} items asked, there are {len(items)}; ask for 1 to {len(items)}"
            )
        items = items[:count]
        prompts = tuple(prompt(task, item, examples) for item in items)
        evaluations[language] = TaskEvaluation(task, language, items, prompts, available.origin, available.revision)
    return evaluations


def prepare_table(table: PaperTable, data: str | Path | None, settings: TableSettings) -> dict[str, TaskEvaluation]:
    """`prepare` for the table's task or, where its data is not at hand in all languages, for the one that stands in for
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


def splits_of(settings: TableSettings, layers: int) -> list[StageSplit]:
    """Every combination of N1 and N2 that the settings ask for; the default where they name none."""
    first, last = settings.n1 or (None,), settings.n2 or (None,)
    return [StageSplit.of(layers, n1, n2) for n1 in first for n2 in last]


def run_table(
    model: Model,
    table: PaperTable,
    evaluations: Mapping[str, TaskEvaluation],
    neurons: Mapping[str, NeuronSet],
    settings: TableSettings,
    cache: ResultCache,
    *,
    progress: Progress | None = None,
    command: Sequence[str] = (),
) -> TableResult:
    """Every row of one of the paper's tables or, where the settings name several N1 or N2, its rows of
    language-specific neurons for each of them: which split separates best is seen, not assumed.

    evaluations: of `prepare` or `prepare_table`. neurons: {language: its set}, for every language but English. Scores
    that the cache holds are not computed again. command: as it was typed, for the provenance. Raises InputError, before
    any work, for a language without neurons, sets of another shape, and items that do not fit the model's context.
    """
    asked = ready_evaluations(model, evaluations, neurons, settings)
    splits = splits_of(settings, model.config.num_layers)
    is_grid = len(splits) > 1
    specs = [row for row in table.rows if not (is_grid and row.is_random)]
    task = asked[ENGLISH].task
    delta_table = DeltaTable(
        table=table.number,
        task=task.name,
        model=model.source,
        evaluations=asked,
        neurons=neurons,
        seeds=settings.seeds,
    )
    wanted = {c.name: c for split in splits for c in conditions(delta_table, specs, split)}
    with progress or Progress() as bar:
        bar.expect(sum(asked[lang].size for condition in wanted.values() for lang in condition.languages))
        measured = measure(model, asked, list(wanted.values()), cache, bar)
    rows = tuple(
        replace(row, understanding=split.understanding, generation=split.generation) if is_grid else row
        for split in splits
        for row in delta_rows(delta_table, specs, split, measured)
    )
    return TableResult(
        kind="grid" if is_grid else "table",
        provenance=_provenance(model, asked, settings, command),
        table=table.number,
        stage=table.stage,
        task=TaskInfo(task.name, task.version, task.score_names[0]),
        stages=None if is_grid else splits[0],
        neurons={lang: NeuronSetInfo.of(neurons[lang]) for lang in delta_table.others},
        original=_original(asked, measured),
        rows=corrected_rows(rows),
    )


def ready_evaluations(
    model: Model,
    evaluations: Mapping[str, TaskEvaluation],
    neurons: Mapping[str, NeuronSet],
    settings: TableSettings,
) -> dict[str, TaskEvaluation]:
    """The evaluations as this model gets them, in its chat template where asked. Raises InputError for whatever
    `run_table` would not begin with."""
    missing = [lang for lang in evaluations if lang != ENGLISH and lang not in neurons]
    if missing:
        raise InputError(f"no neurons of {', '.join(missing)}; find them first, or leave the language out")
    if settings.seeds < 1:
        raise InputError(f"{settings.seeds} random sets per language asked; a table's random rows need at least 1")
    for own in neurons.values():
        NeuronMask.keep_all(model.config).drop(own)  # a set of another shape is found before any work
    ready = {lang: e.as_chat(model) if settings.chat else e for lang, e in evaluations.items()}
    for evaluation in ready.values():
        evaluation.check_fits(model)
    return ready


def _provenance(
    model: Model, evaluations: Mapping[str, TaskEvaluation], settings: TableSettings, command: Sequence[str]
) -> Provenance[TableSettings]:
    data = {lang: DataInfo(e.origin, e.size, str(e.key["items"]), e.revision) for lang, e in evaluations.items()}
    return Provenance(model.info, data, settings, versions(), tuple(command))


def _original(evaluations: Mapping[str, TaskEvaluation], measured: Measured) -> dict[str, dict[str, float]]:
    """The original model's scores in points: {language: {score: mean}}."""
    return {
        lang: {name: POINTS * float(np.mean(values)) for name, values in measured[ORIGINAL][lang].items()}
        for lang in evaluations
    }
