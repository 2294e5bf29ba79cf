"""Measuring a model with sets of neurons off: each set on each language's evaluation is computed once and kept."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TypeGuard

from mwork_jax.evaluate.evaluations import Evaluation, ItemScores, answered
from mwork_jax.model.decode_queue import Filling
from mwork_jax.model.model import Model
from mwork_jax.neurons import NeuronMask, NeuronSet
from mwork_jax.runtime.cache import ResultCache
from mwork_jax.runtime.distributed import agreed
from mwork_jax.runtime.progress import Progress

_ENGINE = "slots-1"  # how rows are computed; results of another way differ in rounding, and are not mixed in
_CHUNK = 32  # sets whose scores are finished together: they share the original model's pass over an evaluation

Measured = Mapping[str, Mapping[str, ItemScores]]  # condition -> language -> scores


@dataclass(frozen=True)
class Condition:
    """A set of neurons to switch off, and the languages whose evaluations it is measured on."""

    name: str
    neurons: NeuronSet
    languages: tuple[str, ...]


def measure(
    model: Model,
    evaluations: Mapping[str, Evaluation],
    conditions: Sequence[Condition],
    cache: ResultCache,
    progress: Progress,
    model_key: Mapping[str, object] | None = None,
) -> dict[str, dict[str, ItemScores]]:
    """{condition: {language: scores}}, from the cache where they are there. Conditions that switch off the same neurons
    are computed once. Progress counts items. model_key: what tells this model apart (default: its own key)."""
    measured: dict[str, dict[str, ItemScores]] = {condition.name: {} for condition in conditions}
    for language, evaluation in evaluations.items():
        wanted = [condition for condition in conditions if language in condition.languages]
        sets = {condition.neurons.fingerprint: condition.neurons for condition in wanted}
        keys = {off: _key(evaluation, model, off, model_key) for off in sets}
        scores = agreed(partial(_cached, cache, keys, evaluation))
        missing = [off for off in keys if off not in scores]
        progress.add(evaluation.size * (len(wanted) - len(missing)), free=True)
        for chunk in _chunks(missing):
            progress.describe(f"{language}: {len(chunk)} masks of {len(missing)}")
            masks = [NeuronMask.keep_all(model.config).drop(sets[off]) for off in chunk]
            found = answered(evaluation, model, masks, progress.callback(), _watching(progress))
            results = dict(zip(chunk, found, strict=True))
            answers = [
                (_of_answers(keys[off]), list(texts)) for off, (_, texts) in results.items() if texts is not None
            ]
            cache.put_all([*((keys[off], own) for off, (own, _) in results.items()), *answers])
            scores |= {off: own for off, (own, _) in results.items()}
        for condition in wanted:
            measured[condition.name][language] = scores[condition.neurons.fingerprint]
    return measured


def _watching(progress: Progress) -> Callable[[Filling], None]:
    """Shows how full the slots are."""
    tell = progress.speedometer()
    return lambda filled: tell(filled.tokens, filled.in_flight, filled.tokens / max(1, filled.slot_steps))


def kept_answers(
    model: Model,
    evaluation: Evaluation,
    neurons: NeuronSet,
    cache: ResultCache,
    model_key: Mapping[str, object] | None = None,
) -> tuple[str, ...] | None:
    """The answers that the cache holds beside the scores that `measure` put there, one per item; None where there are
    none: text is only read, or what computed the scores did not keep them."""
    value = cache.get(_of_answers(_key(evaluation, model, neurons.fingerprint, model_key)))
    if not isinstance(value, list) or len(value) != evaluation.size or not all(isinstance(text, str) for text in value):
        return None
    return tuple(value)


def _key(evaluation: Evaluation, model: Model, off: str, model_key: Mapping[str, object] | None) -> dict[str, object]:
    """What determines the scores with a set, by its fingerprint, switched off."""
    return {**evaluation.key, "model": dict(model_key or model.key), "off": off, "engine": _ENGINE}


def _of_answers(key: Mapping[str, object]) -> dict[str, object]:
    """The key of the answers that were scored."""
    return {**key, "kept": "answers"}


def valid_scores(value: object, evaluation: Evaluation) -> TypeGuard[ItemScores]:
    """Whether a cached value can be the evaluation's scores: the right names, a finite number for each item."""
    return (
        isinstance(value, dict)
        and set(value) == set(evaluation.score_names)
        and all(
            isinstance(numbers, list)
            and len(numbers) == evaluation.size
            and all(type(number) in (int, float) and math.isfinite(number) for number in numbers)
            for numbers in value.values()
        )
    )


def _cached(
    cache: ResultCache, keys: Mapping[str, Mapping[str, object]], evaluation: Evaluation
) -> dict[str, ItemScores]:
    """The scores that the cache holds, by set. One that is damaged or missing is computed alone: what a row computes
    does not depend on what runs beside it."""
    return {off: value for off, key in keys.items() if valid_scores(value := cache.get(key), evaluation)}


def _chunks(keys: Sequence[str]) -> Iterator[list[str]]:
    for begin in range(0, len(keys), _CHUNK):
        yield list(keys[begin : begin + _CHUNK])
