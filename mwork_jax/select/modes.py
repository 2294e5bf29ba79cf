"""Modes: the neurons that are specific to a language, from those that are activated for each (section 3.1 of the
paper)."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from mwork_jax.detect.scores import NeuronScores, check_comparable
from mwork_jax.errors import InputError
from mwork_jax.metrics import ENGLISH
from mwork_jax.neurons import GROUPS, NeuronSet
from mwork_jax.select.lape import lape_neurons
from mwork_jax.select.rules import DEFAULT_RULE, Rule, activated

MODES = ("minus_english", "minus_shared", "all")


def select_neurons(
    scores: Mapping[str, NeuronScores], rule: str | Rule = DEFAULT_RULE, mode: str = "minus_english"
) -> dict[str, NeuronSet]:
    """The neurons specific to each language: {language: NeuronSet}.

    mode: `minus_english` takes the neurons of English away from every other language (Tables 2 to 6; under "en" is
    English's whole set); `minus_shared` takes away what all the languages given share (the authors' code); `all` takes
    nothing away (the paper's Table 1). The rule lape compares the languages itself, and no mode takes anything
    away from its neurons. Raises InputError for an unknown mode, too few languages for it, or scores of
    different models.
    """
    if mode not in MODES:
        raise InputError(f"mode {mode!r} is not one of {', '.join(MODES)}")
    if not isinstance(scores, Mapping):
        raise InputError(f"scores are a {type(scores).__name__}; {{language: NeuronScores}} is needed")
    if not scores:
        raise InputError("no scores to select from")
    for language, given in scores.items():
        if not isinstance(given, NeuronScores):
            raise InputError(f"the scores of {language!r:.40} are a {type(given).__name__}; NeuronScores are needed")
    rule = Rule.of(rule)
    if rule.kind == "lape":
        return lape_neurons(scores, rule)
    if mode == "minus_english" and ENGLISH not in scores:
        raise InputError(f"mode minus_english needs scores of {ENGLISH!r}; there are {', '.join(scores)}")
    if mode == "minus_shared" and len(scores) < 2:
        raise InputError("mode minus_shared needs at least two languages")
    check_comparable(scores)
    active = {language: activated(s, rule) for language, s in scores.items()}
    if mode == "all":
        taken = dict.fromkeys(active)
    elif mode == "minus_english":
        taken = {language: None if language == ENGLISH else active[ENGLISH] for language in active}
    else:
        shared = _shared(active)
        taken = dict.fromkeys(active, shared)
    return {language: _specific(language, own, taken[language], mode) for language, own in active.items()}


def _shared(active: Mapping[str, NeuronSet]) -> NeuronSet:
    groups = {g: np.logical_and.reduce([own.groups[g] for own in active.values()]) for g in GROUPS}
    return NeuronSet(groups)


def _specific(language: str, own: NeuronSet, taken: NeuronSet | None, mode: str) -> NeuronSet:
    groups = (own if taken is None else own - taken).groups
    return NeuronSet(groups, {**own.provenance, "language": language, "mode": mode})
