"""From scores to Delta (section 3.2): pure functions over arrays of per-item scores, higher being better."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np

from mwork_jax.errors import InputError

ENGLISH = "en"
_RESAMPLES = 2000


@dataclass(frozen=True)
class Delta:
    """What a deactivation does to English and to the other languages, with 95 % bootstrap intervals over items.

    eng, n_eng: the scores after deactivation; delta_eng, delta_n_eng: minus the originals, negative = worse;
    delta = delta_eng - delta_n_eng: high where the deactivation spares English and hurts the languages; p: of delta
    being 0, two-sided, from the same resamples (1 where a language has a single item, which cannot be resampled).
    """

    eng: float
    n_eng: float
    delta_eng: float
    delta_n_eng: float
    delta: float
    delta_eng_ci95: tuple[float, float]
    delta_n_eng_ci95: tuple[float, float]
    delta_ci95: tuple[float, float]
    p: float
    n_items: int
    languages: tuple[str, ...]


def delta(
    original: Mapping[str, np.ndarray],
    deactivated: Mapping[str, Mapping[str, np.ndarray]],
    weights: Mapping[str, np.ndarray] | None = None,
    *,
    seed: int = 0,
) -> Delta:
    """Delta = Delta_Eng - Delta_n-Eng of one deactivation setting.

    original: {language: scores [items]}, English ("en") included. deactivated: for each other language l, whose own
    neurons were off, {"en": scores of English in that run, l: scores of l}; the items are the same and in the same
    order as in `original`.
    weights: {language: weight of each item}, for means that are not over items alike (tokens, for a loss per token).
    Delta_n-Eng averages over the languages; Delta_Eng averages English's change over the same runs. The intervals
    resample items, an item keeping its scores before and after (a paired bootstrap) and English's items being the same
    in all runs. Raises InputError where a language or English is missing or the numbers of items differ.
    """
    languages = tuple(deactivated)
    _check(original, deactivated)
    weight = {
        lang: np.ones(len(original[lang])) if weights is None else np.asarray(weights[lang], float)
        for lang in (ENGLISH, *languages)
    }
    # English's change, averaged over the runs item by item: averaging and resampling commute.
    english = np.mean([np.asarray(deactivated[lang][ENGLISH], float) for lang in languages], axis=0)
    change = {ENGLISH: english - np.asarray(original[ENGLISH], float)}
    change |= {
        lang: np.asarray(deactivated[lang][lang], float) - np.asarray(original[lang], float) for lang in languages
    }

    def of_items(*items: np.ndarray, axis: int = -1) -> np.ndarray:
        eng = _weighted_mean(change[ENGLISH], weight[ENGLISH], items[0])
        n_eng = np.mean(
            [_weighted_mean(change[lang], weight[lang], i) for lang, i in zip(languages, items[1:], strict=True)],
            axis=0,
        )
        return np.stack([eng, n_eng, eng - n_eng])

    every = [np.arange(len(original[lang])) for lang in (ENGLISH, *languages)]
    point = of_items(*every)
    (low, high), p = _bootstrap(every, of_items, seed, point)
    after = {lang: np.average(np.asarray(deactivated[lang][lang], float), weights=weight[lang]) for lang in languages}
    return Delta(
        eng=float(np.average(english, weights=weight[ENGLISH])),
        n_eng=float(np.mean(list(after.values()))),
        delta_eng=float(point[0]),
        delta_n_eng=float(point[1]),
        delta=float(point[2]),
        delta_eng_ci95=(float(low[0]), float(high[0])),
        delta_n_eng_ci95=(float(low[1]), float(high[1])),
        delta_ci95=(float(low[2]), float(high[2])),
        p=p,
        n_items=sum(len(i) for i in every),
        languages=languages,
    )


def _bootstrap(
    items: list[np.ndarray], statistic: Callable[..., np.ndarray], seed: int, point: np.ndarray
) -> tuple[tuple[np.ndarray, np.ndarray], float]:
    """95 % percentile interval over resampled items, and the two-sided p of the last statistic being 0; the point
    itself and 1 where there is only one item to resample."""
    if any(len(i) < 2 for i in items):
        return (point, point), 1.0
    from scipy import stats  # slow to import, and loading a model needs none of it

    found = stats.bootstrap(
        items, statistic, n_resamples=_RESAMPLES, vectorized=True, method="percentile", rng=np.random.default_rng(seed)
    )
    drawn = found.bootstrap_distribution[-1]
    side = min((drawn <= 0).sum(), (drawn >= 0).sum())
    p = min(1.0, 2 * (side + 1) / (_RESAMPLES + 1))
    return (found.confidence_interval.low, found.confidence_interval.high), float(p)


def _weighted_mean(values: np.ndarray, weights: np.ndarray, items: np.ndarray) -> np.ndarray:
    """Mean over the last axis of an index array: [..., items] -> [...]."""
    chosen = weights[items]
    return (values[items] * chosen).sum(axis=-1) / chosen.sum(axis=-1)


def _check(original: Mapping[str, np.ndarray], deactivated: Mapping[str, Mapping[str, np.ndarray]]) -> None:
    if not deactivated or ENGLISH in deactivated:
        raise InputError("deactivated: one entry for each language other than 'en' is needed, and at least one")
    for language, runs in deactivated.items():
        for scored in (ENGLISH, language):
            if scored not in original or scored not in runs:
                raise InputError(
                    f"scores of {scored!r} are missing, before or after deactivating the neurons of {language!r}"
                )
            before, after = len(original[scored]), len(runs[scored])
            if before != after or not before:
                raise InputError(
                    f"{scored!r} has {before} items before and {after} after deactivating the neurons of {language!r}"
                )
