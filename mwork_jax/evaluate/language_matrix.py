"""Language x language: each language's set switched off everywhere, every language measured, as in LAPE (Tang et al.,
ACL 2024) and its followers.

A run measures each set on its own language and on English anyway. Those cells come from the same scores, over all
held-out documents. The others grow with the square of the number of languages, so they may be over fewer documents, and
each cell says over how many.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from mwork_jax.evaluate.evaluations import ItemScores, LossEvaluation, nats_per_token
from mwork_jax.evaluate.runner import Condition, Measured
from mwork_jax.metrics import ENGLISH, paired_difference
from mwork_jax.neurons import NeuronSet
from mwork_jax.results import LossRise


def own_conditions(sets: Mapping[str, NeuronSet]) -> list[Condition]:
    """Each set, measured on its own language and on English, over all documents."""
    return [Condition(_name(off), own, tuple(dict.fromkeys((ENGLISH, off)))) for off, own in sets.items()]


def other_conditions(sets: Mapping[str, NeuronSet], languages: Sequence[str]) -> list[Condition]:
    """Each set, measured on the other languages but English."""
    return [
        Condition(_name(off), own, tuple(lang for lang in languages if lang not in (ENGLISH, off)))
        for off, own in sets.items()
    ]


def _name(off: str) -> str:
    return f"{off} in every language"


def language_matrix(
    evaluations: Mapping[str, LossEvaluation],
    sets: Mapping[str, NeuronSet],
    original: Mapping[str, ItemScores],
    own: Measured,
    others: Measured,
) -> dict[str, dict[str, LossRise]]:
    """{language whose set is off: {language measured: rise of its loss}}, both in the order of `evaluations`.

    original: {language: scores of the original model} on all documents; own, others: what was measured under
    `own_conditions`, on all documents, and under `other_conditions`, on all or on the first of them.
    """
    return {
        off: {
            lang: _rise(evaluation, original[lang], {**others[_name(off)], **own[_name(off)]}[lang], lang)
            for lang, evaluation in evaluations.items()
        }
        for off in evaluations
        if off in sets
    }


def _rise(evaluation: LossEvaluation, original: ItemScores, after: ItemScores, language: str) -> LossRise:
    """The rise on the documents that `after` has scores of, the first of those of `original`."""
    part = evaluation.first(len(after["nats"]))
    before = {name: numbers[: part.size] for name, numbers in original.items()}
    difference = paired_difference(
        {language: part.points(before)},  # minus the loss, so that before - after is its rise
        {language: part.points(after)},
        {language: part.weights},
        {language: part.item_ids},
    )
    return LossRise(nats_per_token(after) - nats_per_token(before), difference.ci95, part.size)
