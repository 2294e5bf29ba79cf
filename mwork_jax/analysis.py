"""The atlas: where a model's language neurons sit, how much languages share, and what another threshold would find.

Reads what detection and selection left (order statistics and sets), never a model. Every threshold is answered at once:
a neuron is in a language's set for exactly those thresholds that its worst document passes.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from mwork_jax.detect.scores import NeuronScores
from mwork_jax.errors import InputError
from mwork_jax.metrics import ENGLISH
from mwork_jax.neurons import GROUPS, NeuronSet
from mwork_jax.select.modes import MODES

QUANTILES = (0.1, 0.5, 0.9, 0.99, 0.999)
THRESHOLD_KINDS = ("top_fraction", "epsilon")


@dataclass(frozen=True, eq=False)
class Overlap:
    """How many neurons each two languages share, similar languages side by side.

    shared: int [n, n], neurons in both sets, the diagonal being the sets' sizes; jaccard: float64 [n, n], shared over
    the union, 0 for two empty sets.
    """

    languages: tuple[str, ...]
    shared: np.ndarray
    jaccard: np.ndarray


def overlap(sets: Mapping[str, NeuronSet]) -> Overlap:
    """Overlap of every two sets, in the order of a hierarchical clustering by Jaccard distance (average linkage)."""
    languages = tuple(sets)
    if not languages:
        raise InputError("overlap: no neuron sets; at least one is needed")
    for language, own in sets.items():
        if not isinstance(own, NeuronSet):
            raise InputError(f"overlap: {language!r:.40} is a {type(own).__name__}; a NeuronSet is needed")
    members = np.stack([np.concatenate([sets[lang].groups[g].ravel() for g in GROUPS]) for lang in languages])
    counts = members.astype(np.float32) @ members.T.astype(np.float32)  # whole numbers below 2^24, exact
    sizes = np.diag(counts)
    union = sizes[:, None] + sizes[None, :] - counts
    jaccard = np.divide(counts, union, out=np.zeros(counts.shape), where=union > 0)
    order = _clustered(jaccard)
    square = np.ix_(order, order)
    return Overlap(tuple(languages[i] for i in order), counts[square].astype(int), jaccard[square])


def _clustered(jaccard: np.ndarray) -> np.ndarray:
    """The order of rows that puts similar ones side by side."""
    from scipy.cluster.hierarchy import leaves_list, linkage, optimal_leaf_ordering  # half a second to import
    from scipy.spatial.distance import squareform

    if len(jaccard) < 3:
        return np.arange(len(jaccard))
    distance = 1.0 - jaccard
    np.fill_diagonal(distance, 0.0)
    condensed = squareform(distance, checks=False)
    return leaves_list(optimal_leaf_ordering(linkage(condensed, "average"), condensed))


def threshold_curves(
    scores: Mapping[str, NeuronScores], values: Sequence[float], kind: str = "top_fraction", mode: str = "minus_english"
) -> dict[str, np.ndarray]:
    """How many neurons `select_neurons` would find for each language under the rule `kind:value`, for every value:
    {language: int [values]}.

    Sorting each group once answers all values. kind: "top_fraction" or "epsilon"; mode as in selection. Raises
    InputError for others, and for minus_english without English.
    """
    if kind not in THRESHOLD_KINDS or mode not in MODES:
        raise InputError(
            f"{kind!r}, {mode!r}: the kinds are {', '.join(THRESHOLD_KINDS)}, the modes {', '.join(MODES)}"
        )
    if mode == "minus_english" and ENGLISH not in scores:
        raise InputError(f"mode minus_english needs scores of {ENGLISH!r}; there are {', '.join(scores)}")
    counts = {language: np.zeros(len(values), int) for language in scores}
    for group in GROUPS:
        # As "at most a limit" for both kinds: ranks below it, or minus the importance.
        worst = {
            lang: (s.worst_rank[group][0].ravel() + 1 if kind == "top_fraction" else -s.lowest[group][0].ravel())
            for lang, s in scores.items()
        }
        width = next(iter(scores.values())).mean[group].shape[1]
        limits = [max(1, round(v * width)) if kind == "top_fraction" else -v for v in values]
        for language, own in worst.items():
            counts[language] += _at_most(own, limits)
            taken = _taken(worst, language, mode)
            if taken is not None:
                counts[language] -= _at_most(np.maximum(own, taken), limits)
    return counts


def _taken(worst: Mapping[str, np.ndarray], language: str, mode: str) -> np.ndarray | None:
    """From where on a neuron is taken away from a language's set; None where nothing is."""
    if mode == "minus_shared":
        return np.maximum.reduce(list(worst.values()))
    return worst[ENGLISH] if mode == "minus_english" and language != ENGLISH else None


def _at_most(values: np.ndarray, limits: Sequence[float]) -> np.ndarray:
    return np.searchsorted(np.sort(values), np.asarray(limits, values.dtype), side="right")


def importance_quantiles(scores: NeuronScores, quantiles: Sequence[float] = QUANTILES) -> dict[str, np.ndarray]:
    """Quantiles of the mean importance over each layer's neurons: {group: float64 [quantiles, layers]}."""
    return {g: np.quantile(np.asarray(m, np.float64), quantiles, axis=1) for g, m in scores.mean.items()}
