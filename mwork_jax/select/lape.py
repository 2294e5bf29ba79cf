"""Language activation probability entropy (LAPE; Tang et al., ACL 2024), a rule that compares languages."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from mwork_jax.detect.scores import NeuronScores, check_comparable
from mwork_jax.errors import InputError
from mwork_jax.neurons import FFN_GROUPS, GROUPS, NeuronSet
from mwork_jax.select.rules import Rule

_OFTEN = 0.95  # a neuron acts often in a language where its probability is above this quantile of all probabilities


def lape_neurons(scores: Mapping[str, NeuronScores], rule: Rule) -> dict[str, NeuronSet]:
    """Language activation probability entropy: of the neurons that act often in some language, those whose
    probabilities, normalised over the languages, have the lowest entropy; each belongs where it acts often."""
    if len(scores) < 2:
        raise InputError("rule lape compares languages; it needs at least two")
    check_comparable(scores)
    probability = np.stack([s.active for s in scores.values()]).astype(np.float64)
    often = probability > np.quantile(probability, _OFTEN)
    share = probability / np.maximum(probability.sum(axis=0), 1e-300)
    entropy = -np.sum(share * np.log(np.maximum(share, 1e-300)), axis=0)
    entropy[~often.any(axis=0)] = np.inf
    wanted = max(1, round(rule.value * entropy.size))
    lowest = np.argsort(entropy, axis=None, kind="stable")[:wanted]
    selected = np.zeros(entropy.size, bool)
    selected[lowest] = np.isfinite(entropy.flat[lowest])
    selected = selected.reshape(entropy.shape)
    neurons = {}
    for language, acts, own in zip(scores, often, scores.values(), strict=True):
        groups = {g: selected & acts if g in FFN_GROUPS else np.zeros(own.mean[g].shape, bool) for g in GROUPS}
        provenance = {**own.provenance, "documents": own.documents, "tokens": own.tokens, "rule": str(rule)}
        neurons[language] = NeuronSet(groups, {**provenance, "language": language, "mode": "all"})
    return neurons
