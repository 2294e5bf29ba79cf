"""Is a change more than chance? Exact McNemar for paired accuracies, correction over a table's cells, seeds' spread."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from mwork_jax.errors import InputError


@dataclass(frozen=True)
class McNemar:
    """lost, gained: items that were right before only and after only. p: two-sided, exact."""

    lost: int
    gained: int
    p: float


def mcnemar(before: Sequence[float] | np.ndarray, after: Sequence[float] | np.ndarray) -> McNemar:
    """Exact McNemar test of two accuracies on the same items (McNemar 1947, with the binomial distribution).

    before, after: [items], 1 for right and 0 for wrong. Items that did not change say nothing, so p is the binomial
    test of `lost` in `lost + gained` at one half, and 1 where nothing changed. Raises InputError for other scores
    (an F1, a shared tie) and where the numbers of items differ.
    """
    before, after = np.asarray(before, float), np.asarray(after, float)
    if before.shape != after.shape or before.ndim != 1 or not before.size:
        raise InputError(f"McNemar's test needs the same items twice, not {before.size} before and {after.size} after")
    if not (np.isin(before, (0, 1)).all() and np.isin(after, (0, 1)).all()):
        raise InputError("McNemar's test needs scores of 0 and 1; use the bootstrap interval of delta for others")
    lost, gained = int((before > after).sum()), int((before < after).sum())
    from scipy import stats  # slow to import, and loading a model needs none of it

    p = float(stats.binomtest(lost, lost + gained).pvalue) if lost + gained else 1.0
    return McNemar(lost, gained, p)


def holm(p_values: Sequence[float] | np.ndarray) -> np.ndarray:
    """Adjusted p values [cells] that hold the chance of any false finding (Holm 1979)."""
    p = _checked(p_values)
    order = np.argsort(p, kind="stable")
    factors = np.arange(p.size, 0, -1)
    adjusted = np.empty_like(p)
    adjusted[order] = np.minimum(1.0, np.maximum.accumulate(p[order] * factors))
    return adjusted


def benjamini_hochberg(p_values: Sequence[float] | np.ndarray) -> np.ndarray:
    """Adjusted p values [cells] that hold the expected share of false loaded (Benjamini and Hochberg 1995)."""
    from scipy import stats  # slow to import, and loading a model needs none of it

    p = _checked(p_values)
    return np.asarray(stats.false_discovery_control(p, method="bh")) if p.size else p


def _checked(p_values: Sequence[float] | np.ndarray) -> np.ndarray:
    p = np.asarray(p_values, np.float64)
    if p.ndim != 1 or not ((p >= 0) & (p <= 1)).all():
        raise InputError("p values must be a list of numbers from 0 to 1")
    return p


@dataclass(frozen=True)
class Spread:
    """One result over random seeds. std: of the sample (n - 1), None for a single seed."""

    mean: float
    std: float | None
    low: float
    high: float
    seeds: int


def spread(values: Sequence[float] | np.ndarray) -> Spread:
    """Mean, standard deviation, lowest and highest of [seeds] values. Raises InputError where there are none."""
    values = np.asarray(values, np.float64)
    if values.ndim != 1 or not values.size:
        raise InputError("the spread over seeds needs the result of at least one seed")
    std = float(values.std(ddof=1)) if values.size > 1 else None
    return Spread(float(values.mean()), std, float(values.min()), float(values.max()), values.size)
