"""Cells of a sweep: one set of neurons off, on one language's evaluation. Each is computed once and kept."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np

from mwork_jax.evaluate.evaluations import Evaluation, Scores
from mwork_jax.model.model import Model
from mwork_jax.neurons import NeuronMask, NeuronSet
from mwork_jax.runtime.cache import ResultCache, fingerprint
from mwork_jax.runtime.distributed import agreed
from mwork_jax.runtime.progress import Progress

_AT_ONCE = 32  # sets whose cells are finished together: they share the original model's pass over an evaluation


@dataclass(frozen=True)
class Condition:
    """A set of neurons to switch off, and the languages whose evaluations it is measured on."""

    name: str
    neurons: NeuronSet
    scored: tuple[str, ...]


def measure(
    model: Model,
    evaluations: Mapping[str, Evaluation],
    conditions: Sequence[Condition],
    cache: ResultCache,
    bar: Progress,
) -> dict[str, dict[str, Scores]]:
    """{condition: {language: scores}}, from the cache where they are there. Conditions that switch off the same
    neurons are computed once. Progress counts items."""
    found: dict[str, dict[str, Scores]] = {condition.name: {} for condition in conditions}
    for language, evaluation in evaluations.items():
        asked = {c.name: _key(model, evaluation, c.neurons) for c in conditions if language in c.scored}
        sets = {fingerprint(asked[c.name]): c.neurons for c in conditions if c.name in asked}
        keys = {fingerprint(key): key for key in asked.values()}
        known = agreed(partial(_finished, cache, keys, evaluation))
        missing = [place for place in keys if place not in known]
        bar.add(evaluation.size * (len(asked) - len(missing)), free=True)
        for portion in _portions(missing):
            bar.describe(f"{language}: {len(portion)} masks of {len(missing)}")
            masks = [NeuronMask.keep_all(model.config).drop(sets[place]) for place in portion]
            values = evaluation.scores(model, masks, bar.callback())
            cache.put_all([(keys[place], value) for place, value in zip(portion, values, strict=True)])
            known |= dict(zip(portion, values, strict=True))
        for name, key in asked.items():
            found[name][language] = known[fingerprint(key)]
    return found


def _finished(cache: ResultCache, keys: Mapping[str, Mapping[str, Any]], evaluation: Evaluation) -> dict[str, Scores]:
    """The cells that are in the cache, by fingerprint; none where one is damaged: alone, it would come out with other
    last digits than in its first company."""
    found = {place: value for place, key in keys.items() if _fits(value := cache.get(key), evaluation)}
    return {} if any(cache.has(key) for place, key in keys.items() if place not in found) else found


def _portions(places: Sequence[str]) -> Iterator[list[str]]:
    for begin in range(0, len(places), _AT_ONCE):
        yield list(places[begin : begin + _AT_ONCE])


def _key(model: Model, evaluation: Evaluation, neurons: NeuronSet) -> dict[str, Any]:
    off = fingerprint({g: np.flatnonzero(members).tolist() for g, members in neurons.groups.items()})
    return {**evaluation.key, "model": model.key, "off": off}


def _fits(value: Any, evaluation: Evaluation) -> bool:
    """Whether a cell's value is one that this evaluation gives; a damaged one is computed again."""
    return (
        isinstance(value, dict)
        and bool(value)
        and all(
            isinstance(numbers, list)
            and len(numbers) == evaluation.size
            and all(isinstance(number, int | float) for number in numbers)
            for numbers in value.values()
        )
    )
