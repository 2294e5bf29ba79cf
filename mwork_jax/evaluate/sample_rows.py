"""From what was measured to `Sample`s: each item with its answer and score under each condition. Nothing is computed
with the model: scores are those of the table, answers those that the result cache keeps beside them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import NamedTuple

import numpy as np

from mwork_jax.errors import InputError
from mwork_jax.evaluate.delta_rows import ORIGINAL, DeltaTable, RowSpec, condition_name, conditions, parts_of
from mwork_jax.evaluate.evaluations import Evaluation, TaskEvaluation
from mwork_jax.evaluate.runner import Condition, Measured, kept_answers
from mwork_jax.evaluate.steering import SteeredAnswers, SteeringPrompts
from mwork_jax.intervene.stages import StageSplit
from mwork_jax.metrics import Identify, harmonic_mean, identifier, main_language
from mwork_jax.model.model import Model
from mwork_jax.runtime.cache import ResultCache
from mwork_jax.runtime.distributed import is_first
from mwork_jax.samples import STEERING_SECTION, Sample, SampleAnswer, Under, samples_path, write_samples


class _Column(NamedTuple):
    """One condition in one language: what is off, each item's score, and its answer where that was kept."""

    under: Under
    neurons: str
    setting: str
    seed: int | None
    scores: np.ndarray
    answers: Sequence[str] | None


def log_table(
    out: str | Path,
    section: str,
    model: Model,
    table: DeltaTable,
    rows: Sequence[RowSpec],
    splits: Sequence[StageSplit],
    measured: Measured,
    results: ResultCache,
    texts: Mapping[str, Sequence[str]],
) -> None:
    """Writes `out/samples/SECTION.jsonl`: every item of every language with what it scored under each condition of a
    table, for each of the splits. texts: {language: each item's prompt, or the document that was read}."""
    if not is_first():
        return
    identify = answer_identifier(tuple(table.evaluations))
    named = {condition.name: condition for split in splits for condition in conditions(table, rows, split)}

    def all_samples() -> Iterator[Sample]:
        for language, evaluation in table.evaluations.items():
            columns = list(_columns(model, table, rows, splits, named, measured, results, language))
            references = _references(evaluation)
            for n, (item, text) in enumerate(zip(evaluation.item_ids, texts[language], strict=True)):
                answers = tuple(_answer(column, n, identify) for column in columns)
                yield Sample(section, item, language, text, references[n], answers)

    write_samples(samples_path(out, section), all_samples())


def _columns(
    model: Model,
    table: DeltaTable,
    rows: Sequence[RowSpec],
    splits: Sequence[StageSplit],
    named: Mapping[str, Condition],
    measured: Measured,
    results: ResultCache,
    language: str,
) -> Iterator[_Column]:
    """The conditions that a language was measured under, the original first."""
    evaluation = table.evaluations[language]

    def column(
        condition: Condition, under: Under, neurons: str = "", setting: str = "", seed: int | None = None,
        scale: float = 0.0,
    ) -> _Column:  # fmt: skip
        scores = evaluation.points(measured[condition.name][language])
        measured_by = evaluation.scaled(scale) if scale else evaluation
        answers = kept_answers(model, measured_by, condition.neurons, results)
        return _Column(under, neurons, setting, seed, scores, answers)

    yield column(named[ORIGINAL], "original")
    for split in splits:
        for row in rows:
            setting = parts_of(row)
            kind = row.like if row.is_random else row.neurons
            setting += "" if kind == "lang-spec" else f", {kind} neurons"
            setting += f" x {row.scale:g}" if row.scale else ""
            if len(splits) > 1:
                setting += f" {split.understanding}/{split.generation}"
            for own in table.others:
                for seed in range(table.seeds if row.is_random else 1):
                    condition = named[condition_name(row, split, own, seed)]
                    if language in condition.languages:
                        under: Under = "random" if row.is_random else "own"
                        yield column(condition, under, own, setting, seed if row.is_random else None, row.scale)


def _answer(column: _Column, n: int, identify: Identify) -> SampleAnswer:
    answer = None if column.answers is None else column.answers[n]
    return SampleAnswer(
        column.under,
        float(column.scores[n]),
        column.neurons,
        column.setting,
        column.seed,
        answer,
        None if answer is None else main_language(answer, identify),
    )


class SteeredUnder(NamedTuple):
    """The answers to all prompts under one condition of steering."""

    under: Under
    setting: str
    seed: int | None
    answers: SteeredAnswers


def steering_samples(
    questions: SteeringPrompts, wanted: str, under: Sequence[SteeredUnder], identify: Identify
) -> Iterator[Sample]:
    """Every prompt with its answers, each scored by the harmonic mean of its forcing and its relevance, 0 to 1."""
    identify, references = cache(identify), questions.references[wanted]
    scores = [
        [
            harmonic_mean(*map(float, pair))
            for pair in zip(one.answers.forcing(wanted, identify), one.answers.relevance(references), strict=True)
        ]
        for one in under
    ]
    for n, (item, text, reference) in enumerate(zip(questions.ids, questions.texts, references, strict=True)):
        answers = tuple(
            SampleAnswer(
                one.under,
                own[n],
                "" if one.under == "original" else wanted,
                one.setting,
                one.seed,
                one.answers.answers[n],
                main_language(one.answers.answers[n], identify),
            )
            for one, own in zip(under, scores, strict=True)
        )
        yield Sample(STEERING_SECTION, item, questions.language, text, (reference,), answers)


def _references(evaluation: Evaluation) -> list[tuple[str, ...]]:
    """What is right for each item, in the words that the answer can be in."""
    if not isinstance(evaluation, TaskEvaluation):
        return [()] * evaluation.size
    task = evaluation.task
    if task.kind == "choose":
        return [(task.options(item)[item.answer],) for item in evaluation.items]
    return [item.references for item in evaluation.items]


def answer_identifier(languages: tuple[str, ...]) -> Identify:
    """Tells the languages apart in which answers can be; nothing is told where lingua does not know them. A text is
    looked at once, as many masks leave an answer as it was."""
    try:
        identify = identifier(languages)
    except InputError:
        return lambda text: None
    return cache(identify)
