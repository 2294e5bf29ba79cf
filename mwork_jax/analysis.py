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
from mwork_jax.select.modes import Mode

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
    if not isinstance(sets, Mapping):
        raise InputError(f"overlap: a {type(sets).__name__}, where {{language: NeuronSet}} is needed")
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


def similar_rows(values: np.ndarray) -> np.ndarray:
    """The order of the rows of values [rows, columns] that puts those of a similar pattern side by side: a hierarchical
    clustering by cosine distance (average linkage), whatever the rows' sizes. A row of zeros is like no other."""
    sizes = np.linalg.norm(values, axis=1, keepdims=True)
    directions = np.divide(values, sizes, out=np.zeros(values.shape), where=sizes > 0)
    return _clustered(directions @ directions.T)


def _clustered(similarity: np.ndarray) -> np.ndarray:
    """The order of rows that puts similar ones side by side. similarity [rows, rows]: 1 for rows that are alike."""
    from scipy.cluster.hierarchy import leaves_list, linkage, optimal_leaf_ordering  # half a second to import
    from scipy.spatial.distance import squareform

    if len(similarity) < 3:
        return np.arange(len(similarity))
    distance = np.maximum(1.0 - similarity, 0.0)
    np.fill_diagonal(distance, 0.0)
    condensed = squareform(distance, checks=False)
    return leaves_list(optimal_leaf_ordering(linkage(condensed, "average"), condensed))


def threshold_curves(
    scores: Mapping[str, NeuronScores],
    values: Sequence[float],
    kind: str = "top_fraction",
    mode: str | Mode = "minus_english",
) -> dict[str, np.ndarray]:
    """How many neurons `select_neurons` would find for each language under the rule `kind:value`, for every value:
    {language: int [values]}.

    Sorting each group once answers all values. kind: "top_fraction" or "epsilon"; mode as in selection. Raises
    InputError for others, and for languages that are not enough for the mode.
    """
    if kind not in THRESHOLD_KINDS:
        raise InputError(f"{kind!r:.40}: the kinds are {', '.join(THRESHOLD_KINDS)}")
    mode = Mode.of(mode)
    mode.check(scores)
    counts = {language: np.zeros(len(values), int) for language in scores}
    for group in GROUPS:
        # As "at most a limit" for both kinds: ranks below it, or minus the importance.
        worst = {
            lang: (s.worst_rank[group][0].ravel() + 1 if kind == "top_fraction" else -s.lowest[group][0].ravel())
            for lang, s in scores.items()
        }
        width = next(iter(scores.values())).mean[group].shape[1]
        limits = [max(1, round(v * width)) if kind == "top_fraction" else -v for v in values]
        nth = np.sort(np.stack(list(worst.values())), axis=0)  # row n: from which limit on n + 1 languages have it
        for language, own in worst.items():
            kept, taken = _kept_and_taken(worst, nth, language, mode)
            counts[language] += _at_most(np.maximum(own, kept), limits)
            if taken is not None:
                counts[language] -= _at_most(np.maximum(own, taken), limits)
    return counts


def _kept_and_taken(
    worst: Mapping[str, np.ndarray], nth: np.ndarray, language: str, mode: Mode
) -> tuple[np.ndarray, np.ndarray | None]:
    """From which limit on a neuron of a language's own counts, and from which on it is taken away again; None where
    nothing is."""
    own = worst[language]
    if mode.kind == "minus_english":
        return own, None if language == ENGLISH else worst[ENGLISH]
    if mode.kind == "minus_shared":
        return own, nth[-1]
    if mode.shared:
        return nth[mode.shared - 1], nth[mode.shared] if mode.exactly and mode.shared < len(nth) else None
    return own, None


def _at_most(values: np.ndarray, limits: Sequence[float]) -> np.ndarray:
    return np.searchsorted(np.sort(values), np.asarray(limits, values.dtype), side="right")


def importance_quantiles(scores: NeuronScores, quantiles: Sequence[float] = QUANTILES) -> dict[str, np.ndarray]:
    """Quantiles of the mean importance over each layer's neurons: {group: float64 [quantiles, layers]}."""
    return {g: np.quantile(np.asarray(m, np.float64), quantiles, axis=1) for g, m in scores.mean.items()}


@dataclass(frozen=True, eq=False)
class Routing:
    """Where a mixture of experts sends each language's tokens.

    shares: {language: float64 [layers, experts]}, of a token's places each expert has, so that a layer adds up to 1;
    divergence: float64 [layers, n, n], the Jensen-Shannon divergence of two languages in bits, from 0 (the same
    experts) to 1 (none in common), in the order of `languages`.
    """

    languages: tuple[str, ...]
    shares: Mapping[str, np.ndarray]
    divergence: np.ndarray


def routing(scores: Mapping[str, NeuronScores]) -> Routing:
    """The router's statistics of every language, from its scores. Raises InputError for scores of a model without
    experts, and for those of version 0.1, which do not have them."""
    shares = {}
    for language, own in scores.items():
        if own.routed is None:
            raise InputError(f"the scores of {language!r:.40} do not say where tokens went; make them anew")
        if not own.routed.shape[-1]:
            raise InputError(f"the scores of {language!r:.40} are of a model without experts")
        sent = own.routed.astype(np.float64)
        shares[language] = sent / sent.sum(axis=-1, keepdims=True)
    if not shares:
        raise InputError("routing: no scores; those of one language at least are needed")
    each = np.stack(list(shares.values()), axis=1)  # [layers, languages, experts]
    mean = (each[:, :, None] + each[:, None]) / 2
    divergence = _entropy(mean) - (_entropy(each)[:, :, None] + _entropy(each)[:, None]) / 2
    return Routing(tuple(shares), shares, np.maximum(divergence, 0.0))


def _entropy(shares: np.ndarray) -> np.ndarray:
    """In bits, over the last axis."""
    logs = np.log2(shares, out=np.zeros_like(shares), where=shares > 0)
    return -(shares * logs).sum(axis=-1)


def neurons_by_expert(neurons: NeuronSet, experts: int) -> np.ndarray:
    """How many feed-forward neurons of a set each expert has: int [layers, experts], a product counted once. Raises
    InputError where the neurons are not those of so many experts."""
    members = neurons.groups["ffn_up"] | neurons.groups["ffn_down"]
    if experts < 1 or members.shape[1] % experts:
        raise InputError(f"{members.shape[1]} feed-forward neurons in a layer are not those of {experts} experts")
    return members.reshape(len(members), experts, -1).sum(axis=-1)
