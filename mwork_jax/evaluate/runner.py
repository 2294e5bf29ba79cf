"""Measuring a model with sets of neurons off: each set on each language's evaluation is computed once and kept."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TypeGuard

from mwork_jax.evaluate.evaluations import Evaluation, ItemScores
from mwork_jax.model.model import Model
from mwork_jax.neurons import NeuronMask, NeuronSet
from mwork_jax.runtime.cache import ResultCache
from mwork_jax.runtime.distributed import agreed
from mwork_jax.runtime.progress import Progress

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
        determined = {**evaluation.key, "model": dict(model_key or model.key)}
        keys = {off: {**determined, "off": off} for off in sets}
        scores = agreed(partial(_cached, cache, keys, evaluation))
        missing = [off for off in keys if off not in scores]
        progress.add(evaluation.size * (len(wanted) - len(missing)), free=True)
        for chunk in _chunks(missing):
            progress.describe(f"{language}: {len(chunk)} masks of {len(missing)}")
            masks = [NeuronMask.keep_all(model.config).drop(sets[off]) for off in chunk]
            values = evaluation.measure(model, masks, progress.callback())
            cache.put_all([(keys[off], value) for off, value in zip(chunk, values, strict=True)])
            scores |= dict(zip(chunk, values, strict=True))
        for condition in wanted:
            measured[condition.name][language] = scores[condition.neurons.fingerprint]
    return measured


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
    """The scores that the cache holds, by set; none where one is damaged: recompute the whole chunk then, as rounding
    depends on which masks share a batch."""
    scores = {off: value for off, key in keys.items() if valid_scores(value := cache.get(key), evaluation)}
    return {} if any(cache.has(key) for off, key in keys.items() if off not in scores) else scores


def _chunks(keys: Sequence[str]) -> Iterator[list[str]]:
    for begin in range(0, len(keys), _CHUNK):
        yield list(keys[begin : begin + _CHUNK])
