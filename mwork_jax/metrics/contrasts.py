"""Confidence intervals of contrasts: sums of coefficient x mean over items, where items come in clusters.

A contrast is sum_k c_k m_k; each m_k is a weighted mean over the items of one language, and of the mean over random
draws where the scores are of several random neuron sets. Delta, a paired difference and "beyond random" are contrasts.

Two things vary. **Clusters**: items with one id (a document in ten languages, the questions on one passage) are one
draw from the population. With u_i the weight of item i as a share of its language's weights, d_i the sum of the
contrast's scores of that item and m their mean, language l adds r_lg = sum over i in g of u_i (d_i - m) to cluster g,
the influence of g on the mean. The variance of the contrast is

    V_clusters = sum_g (sum_l r_lg / sqrt(1 - u_lg))^2,    u_lg = sum over i in g of u_i.

The square root is the CR2 correction of a mean (Bell and McCaffrey 2002): the residuals of a cluster that holds a large
share of the weights are too small, as it pulls the mean towards itself. With G clusters of equal weight this is
G / (G - 1) times the sum of squared influences (Cameron, Gelbach and Miller 2008), and where no two items share an id
it is the sum over languages of the variance of a mean.

**Draws**: a language's random sets are S independent draws, and those of other languages are independent of them. With
s_l^2 the variance over draws of language l's summands of the contrast,

    V_draws = sum_l s_l^2 / S,    V_both = sum_l sum_s sum_g z_lsg^2 / (S (S - 1)),
    V = V_clusters + max(0, V_draws - V_both),

where z_lsg is the corrected influence of cluster g on draw s, less its mean over the draws. V_clusters and V_draws both
hold the noise of single items under single draws, and V_both is that noise once (Cameron, Gelbach and Miller 2011; Owen
and Eckles 2012 describe the same excess in a bootstrap over both). Where a single set is compared with random ones as
if it were one more draw, the factor of s_l^2 and of V_both's squares is 1 + 1 / S in place of 1 / S: its own deviation
is averaged over no draws.

The interval is value +- t sqrt(V), and p is that of the t distribution at value / sqrt(V), so that p < 0.05 exactly
where the interval excludes 0. The degrees of freedom of V_clusters are Satterthwaite's (1946): G - 1 for G clusters of
equal weight that all languages share; Welch's where languages share none; see `_cluster_degrees`. Those of V_draws are
Welch's, S - 1 for one language. V takes the smaller of the two, as Cameron, Gelbach and Miller (2011) advise. Where one
language is compared and its sets hardly differ this is too careful; Satterthwaite's formula for V itself would give too
many where the draws happen to lie close together, and 8 % of such tables would have a false finding.

scripts/simulate_intervals.py compares this with bootstraps of clusters in studies with known Delta: with 8 and 14
clusters the percentile and BCa intervals are too narrow, and the studentised ones hold as this one does, but depend on
a random seed and are up to 13 % wider.
"""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from mwork_jax.errors import InputError

# The variance over fewer draws is itself a guess, and a t interval on it tells nothing.
MIN_SEEDS = 5
# A spread below this share of the scores is rounding, not variance.
_ROUNDING = 1e-9


@dataclass(frozen=True)
class Items:
    """The items of one language. shares [items]: their weights, summing to 1; clusters [items]: indices from 0."""

    shares: np.ndarray
    clusters: np.ndarray


@dataclass(frozen=True)
class Sample:
    """The items of all languages, and the number of different clusters among them."""

    items: Mapping[str, Items]
    n_clusters: int

    @property
    def n_items(self) -> int:
        return sum(len(items.shares) for items in self.items.values())


@dataclass(frozen=True)
class Term:
    """coefficient x the mean over a language's items of scores [items], or [draws, items] of random draws.

    draws: the name of the draws, None for [items]. Terms with one name are of the same random sets, draw by draw, so
    they have equally many; sets of other names are independent.
    """

    coefficient: float
    language: str
    scores: np.ndarray
    draws: Hashable | None = None

    @property
    def mean_over_draws(self) -> np.ndarray:
        """[items]"""
        return self.scores if self.draws is None else self.scores.mean(axis=0)


@dataclass(frozen=True)
class Estimate:
    """A contrast. ci95 and p are None where no interval can be had."""

    value: float
    ci95: tuple[float, float] | None
    p: float | None


def sample(
    sizes: Mapping[str, int],
    weights: Mapping[str, np.ndarray] | None = None,
    groups: Mapping[str, Sequence[Hashable] | np.ndarray] | None = None,
) -> Sample:
    """The items of each language of `sizes` {language: number of items}.

    weights: {language: [items]}, None for items alike. groups: {language: ids [items]}, equal ids being one cluster in
    whatever language; None makes every item a cluster of its own. Raises InputError for a missing language, another
    number of weights or ids than items, and weights that are not finite, negative or all 0.
    """
    clusters: dict[Hashable, int] = {}
    items = {}
    for language, size in sizes.items():
        ids = [(language, i) for i in range(size)] if groups is None else _ids(groups, language, size)
        try:
            numbered = np.array([clusters.setdefault(one, len(clusters)) for one in ids], np.intp)
        except TypeError:  # an id that is no key of a dictionary
            raise InputError(f"groups: the ids of {language!r} must be a list of names or numbers") from None
        items[language] = Items(_shares(weights, language, size), numbered)
    return Sample(items, len(clusters))


def _ids(groups: Mapping[str, Sequence[Hashable] | np.ndarray], language: str, size: int) -> Sequence[Hashable]:
    if language not in groups:
        raise InputError(f"groups: the ids of {language!r} are missing; one for each of its {size} items is needed")
    given = groups[language]
    ids = given.tolist() if isinstance(given, np.ndarray) else given
    if isinstance(ids, str):
        raise InputError(f"groups: the ids of {language!r} must be a list of names or numbers")
    if len(ids) != size:
        raise InputError(f"groups: {len(ids)} ids of {language!r}, which has {size} items; one for each is needed")
    return ids


def _shares(weights: Mapping[str, np.ndarray] | None, language: str, size: int) -> np.ndarray:
    if weights is None:
        return np.full(size, 1 / size)
    if language not in weights:
        raise InputError(f"weights: those of {language!r} are missing; one for each of its {size} items is needed")
    weight = np.asarray(weights[language], float)
    if weight.shape != (size,):
        shape = "x".join(map(str, weight.shape))
        raise InputError(f"weights: {shape or 1} of {language!r}, which has {size} items; one for each is needed")
    if not np.isfinite(weight).all() or (weight < 0).any() or not weight.sum() > 0:
        raise InputError(f"weights: those of {language!r} must be finite and not negative, and not all 0")
    return weight / weight.sum()


def estimate(terms: Sequence[Term], sample: Sample, *, single_draw: bool = False) -> Estimate:
    """The contrast of `terms`, its 95 % interval, and the two-sided p of its being 0.

    single_draw: the scores without draws are of one set that is compared as one more draw of the same kind, under each
    name of draws (the factor 1 + 1 / S above).

    No interval: a language with a single cluster (or one that holds all its weight), fewer than MIN_SEEDS draws, scores
    that are not finite, or the same value other than 0 in every cluster, which gives no variance to build one on.
    Where that same value is 0, as when nothing changed at all, the interval is (0, 0) and p is 1: no claim is made.
    """
    changes = _changes(terms)
    value = sum(float(sample.items[lang].shares @ change) for lang, change in changes.items())
    draws = _draws(terms)
    shares = np.stack([_by_cluster(sample, lang, sample.items[lang].shares) for lang in changes])
    single_cluster = (1 - shares < _ROUNDING).any()
    few_draws = any(number < MIN_SEEDS for number in draws.values())
    if single_cluster or few_draws or not np.isfinite(value):
        return Estimate(value, None, None)
    variance, degrees = _variance(terms, draws, shares, sample, single_draw)
    tiny = _ROUNDING * max(float(np.abs(term.coefficient * term.scores).max()) for term in terms)
    if variance <= tiny**2:
        return Estimate(0.0, (0.0, 0.0), 1.0) if abs(value) <= tiny else Estimate(value, None, None)
    from scipy.special import stdtr, stdtrit  # slow to import, and loading a model needs none of it

    error = float(np.sqrt(variance))
    half = float(stdtrit(degrees, 0.975)) * error
    return Estimate(value, (value - half, value + half), float(2 * stdtr(degrees, -abs(value) / error)))


def _changes(terms: Sequence[Term]) -> dict[str, np.ndarray]:
    """{language: the sum over its terms of coefficient x scores [items]}."""
    changes: dict[str, np.ndarray] = {}
    for term in terms:
        changes[term.language] = changes.get(term.language, 0) + term.coefficient * term.mean_over_draws
    return changes


def _draws(terms: Sequence[Term]) -> dict[Hashable, int]:
    """{name of draws: how many}."""
    return {term.draws: len(term.scores) for term in terms if term.draws is not None}


def _by_cluster(sample: Sample, language: str, values: np.ndarray) -> np.ndarray:
    """Sums over each cluster's items of one language: [..., items] -> [..., clusters]."""
    clusters, size = sample.items[language].clusters, sample.n_clusters
    flat = values.reshape(-1, values.shape[-1])
    bins = (np.arange(len(flat))[:, None] * size + clusters).ravel()
    sums = np.bincount(bins, weights=flat.ravel(), minlength=len(flat) * size)
    return sums.reshape(*values.shape[:-1], size)


def _influences(sample: Sample, language: str, values: np.ndarray) -> np.ndarray:
    """What each cluster adds to the mean of values [..., items] beyond its share of the weights: [..., clusters]."""
    shares = sample.items[language].shares
    return _by_cluster(sample, language, shares * (values - (values @ shares)[..., None]))


def _variance(
    terms: Sequence[Term], draws: Mapping[Hashable, int], shares: np.ndarray, sample: Sample, single_draw: bool
) -> tuple[float, float]:
    """Variance of the contrast and its degrees of freedom. shares: [languages, clusters], in the order of the terms."""
    changes = _changes(terms)
    influences = np.stack([_influences(sample, lang, change) for lang, change in changes.items()])
    corrections = 1 / np.sqrt(1 - shares)
    of_clusters = float(((corrections * influences).sum(axis=0) ** 2).sum())
    degrees = _cluster_degrees(influences, shares) if of_clusters > 0 else np.inf
    if not draws:
        return of_clusters, degrees
    corrections_of = dict(zip(changes, corrections, strict=True))
    of_draws, of_both = np.transpose(
        [
            (1 / number + single_draw)
            * np.array(_of_draws([term for term in terms if term.draws == name], corrections_of, sample))
            for name, number in draws.items()
        ]
    )
    variance = of_clusters + max(0.0, float(of_draws.sum() - of_both.sum()))
    if of_draws.sum() <= _ROUNDING**2 * of_clusters:  # equal sets
        return variance, degrees
    welch = of_draws.sum() ** 2 / (of_draws**2 / (np.array(list(draws.values())) - 1)).sum()
    return variance, float(min(degrees, welch))


def _of_draws(
    terms: Sequence[Term], corrections: Mapping[str, np.ndarray], sample: Sample
) -> tuple[np.floating, np.floating]:
    """Variance over the draws of terms of one name, and the part of it that is the noise of their clusters."""
    means, noise = np.zeros(len(terms[0].scores)), np.zeros((len(terms[0].scores), sample.n_clusters))
    for term in terms:
        means += term.coefficient * (term.scores @ sample.items[term.language].shares)
        apart = term.coefficient * (term.scores - term.mean_over_draws)
        noise += corrections[term.language] * _influences(sample, term.language, apart)
    return np.var(means, ddof=1), (noise**2).sum() / (len(means) - 1)


def _cluster_degrees(influences: np.ndarray, shares: np.ndarray) -> float:
    """Satterthwaite degrees of freedom of V_clusters (Bell and McCaffrey 2002): (tr K)^2 / tr(K^2).

    influences, shares: [languages, clusters]. K [clusters, clusters] is the covariance of the corrected influences of
    the clusters, were those of languages l and m in cluster g to have covariance S_lm sqrt(u_lg u_mg) and clusters to
    be independent; S is the estimate from the influences. Centring on the mean makes K full, but it is a diagonal plus
    a product of [clusters, 3 languages] matrices, so its traces take no [clusters, clusters] matrix.
    """
    roots = np.sqrt(shares)
    corrections = 1 / np.sqrt(1 - shares)
    covariance = (corrections * influences) @ (corrections * influences).T
    pulls = corrections * shares
    own = (covariance @ (corrections * roots)) * roots
    diagonal = (corrections * own).sum(axis=0)
    left = np.concatenate([-pulls, -own, (covariance * (roots @ roots.T)) @ pulls])
    right = np.concatenate([own, pulls, pulls])
    full = (left * right).sum(axis=0)
    product = right @ left.T
    square = (diagonal**2).sum() + 2 * (diagonal * full).sum() + (product * product.T).sum()
    return float((diagonal.sum() + full.sum()) ** 2 / square)
