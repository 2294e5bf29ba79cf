"""Is a change more than chance? Exact McNemar for paired accuracies, correction over many tests, spread over seeds."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass

import numpy as np

from mwork_jax.errors import InputError
from mwork_jax.metrics.contrasts import MIN_SEEDS


@dataclass(frozen=True)
class McNemar:
    """lost, gained: items that were right before only and after only. p: two-sided, exact for independent items.
    ignores_clusters: some items belong together (questions on one passage), so p is too small. p_bh: corrected over
    the tests of a table (Benjamini and Hochberg), None where it was not."""

    lost: int
    gained: int
    p: float
    ignores_clusters: bool = False
    p_bh: float | None = None


def mcnemar(
    before: Sequence[float] | np.ndarray,
    after: Sequence[float] | np.ndarray,
    groups: Sequence[Hashable] | np.ndarray | None = None,
) -> McNemar:
    """Exact McNemar test of two accuracies on the same items (McNemar 1947, with the binomial distribution).

    before, after: [items], 1 for right and 0 for wrong. Items that did not change say nothing, so p is the binomial
    test of `lost` in `lost + gained` at one half, and 1 where nothing changed. groups: ids [items], None for items that
    are all independent. The test takes every item for independent in any case; the result tells whether an id comes
    twice. Raises InputError for other scores (an F1, a shared tie) and where the numbers of items or ids differ.
    """
    before, after = np.asarray(before, float), np.asarray(after, float)
    if before.shape != after.shape or before.ndim != 1 or not before.size:
        raise InputError(f"McNemar's test needs the same items twice, not {before.size} before and {after.size} after")
    if not (np.isin(before, (0, 1)).all() and np.isin(after, (0, 1)).all()):
        raise InputError("McNemar's test needs scores of 0 and 1; use the interval of delta for others")
    ids = [] if groups is None else list(groups.tolist() if isinstance(groups, np.ndarray) else groups)
    if groups is not None and len(ids) != before.size:
        raise InputError(f"McNemar's test: {len(ids)} ids of {before.size} items; one for each is needed")
    lost, gained = int((before > after).sum()), int((before < after).sum())
    from scipy import stats  # slow to import, and loading a model needs none of it

    p = float(stats.binomtest(lost, lost + gained).pvalue) if lost + gained else 1.0
    return McNemar(lost, gained, p, ignores_clusters=len(set(ids)) < len(ids))


def holm(p_values: Sequence[float] | np.ndarray) -> np.ndarray:
    """Adjusted p values [tests] that hold the chance of any false finding (Holm 1979)."""
    p = _checked(p_values)
    order = np.argsort(p, kind="stable")
    factors = np.arange(p.size, 0, -1)
    adjusted = np.empty_like(p)
    adjusted[order] = np.minimum(1.0, np.maximum.accumulate(p[order] * factors))
    return adjusted


def benjamini_hochberg(p_values: Sequence[float] | np.ndarray) -> np.ndarray:
    """Adjusted p values [tests] that hold the expected share of false findings (Benjamini and Hochberg 1995)."""
    from scipy import stats  # slow to import

    p = _checked(p_values)
    return np.asarray(stats.false_discovery_control(p, method="bh")) if p.size else p


def corrected(
    p_values: Sequence[float | None], correction: Callable[[Sequence[float]], np.ndarray] = holm
) -> list[float | None]:
    """`holm` or `benjamini_hochberg` over tests of which some have no p: those stay None and are not counted.

    A test without a p can never be a finding, so it takes no share of the error that a correction allows (Tarone 1990).
    """
    adjusted = iter(correction([p for p in p_values if p is not None]).tolist())
    return [None if p is None else next(adjusted) for p in p_values]


def _checked(p_values: Sequence[float] | np.ndarray) -> np.ndarray:
    p = np.asarray(p_values, np.float64)
    if p.ndim != 1 or not ((p >= 0) & (p <= 1)).all():
        raise InputError("p values must be a list of numbers from 0 to 1")
    return p


@dataclass(frozen=True)
class Spread:
    """One result over random seeds. std: of the sample (n - 1), None below MIN_SEEDS (5) seeds. low, high: lowest and
    highest, which are facts about the seeds run, whatever their number, and no interval."""

    mean: float
    std: float | None
    low: float
    high: float
    seeds: int


def spread(values: Sequence[float] | np.ndarray) -> Spread:
    """Mean, standard deviation, lowest and highest of [seeds] values. Raises InputError where there are none.

    Of 2 to 4 seeds there is no standard deviation, as it would be read as an interval and is hardly known: that of 4
    normal values is off by a factor of two or more in one case in seven.
    """
    values = np.asarray(values, np.float64)
    if values.ndim != 1 or not values.size:
        raise InputError("the spread over seeds needs the result of at least one seed")
    std = float(values.std(ddof=1)) if values.size >= MIN_SEEDS else None
    return Spread(float(values.mean()), std, float(values.min()), float(values.max()), values.size)
