"""The most important neurons of a set."""

from __future__ import annotations

import numpy as np

from mwork_jax.detect.scores import NeuronScores
from mwork_jax.errors import InputError, whole_number
from mwork_jax.neurons import NeuronSet


def strongest_neurons(neurons: NeuronSet, scores: NeuronScores | None, count: int) -> NeuronSet:
    """Of each group of a set, the `count` neurons with the highest mean importance over all layers; of equal ones those
    of the lower layer and index. Of a group that has no more than that, all, and no scores are needed.

    Raises InputError for a group of more without scores, and for scores of another shape.
    """
    count, groups = whole_number("count", count, 1), {}
    for group, members in neurons.groups.items():
        if int(members.sum()) <= count:
            groups[group] = members
            continue
        if scores is None:
            raise InputError(
                f"{group} has {members.sum()} neurons, and the {count} strongest are known from scores alone; "
                "`mwork detect` makes them"
            )
        if scores.mean[group].shape != members.shape:
            raise InputError(
                f"{group} has {list(members.shape)} neurons, the scores {list(scores.mean[group].shape)}; they are of "
                "another model"
            )
        importance = np.where(members, scores.mean[group], -np.inf).reshape(-1)
        kept = np.zeros(members.size, bool)
        kept[np.argsort(-importance, kind="stable")[:count]] = True
        groups[group] = kept.reshape(members.shape)
    return NeuronSet(groups, {**neurons.provenance, "strongest": count})
