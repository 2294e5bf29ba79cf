"""Multiple choice by log-likelihood, with the way lengths are accounted for named."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from mwork_jax.errors import InputError

NORMALISATIONS = ("sum", "per_token", "per_byte")


def normalised(
    log_likelihoods: Sequence[float] | np.ndarray,
    normalisation: str,
    *,
    texts: Sequence[str] = (),
    tokens: Sequence[int] | np.ndarray = (),
) -> np.ndarray:
    """Scores [choices] that choices are compared by.

    log_likelihoods: [choices], nats, each summed over the choice's tokens. normalisation: "sum" leaves them,
    "per_token" divides by `tokens` [choices], "per_byte" by the UTF-8 length of `texts` [choices]. Raises InputError
    for any other name, and where the lengths do not fit.
    """
    total = np.asarray(log_likelihoods, np.float64)
    if normalisation not in NORMALISATIONS:
        raise InputError(f"normalisation {normalisation!r} is not known; choose {', '.join(NORMALISATIONS)}")
    if normalisation == "sum":
        return total
    lengths = np.asarray(tokens if normalisation == "per_token" else [len(text.encode()) for text in texts])
    if lengths.shape != total.shape or (lengths < 1).any():
        raise InputError(f"{normalisation}: each of the {total.size} choices needs a length of at least 1")
    return total / lengths


def choice_right(scores: Sequence[float] | np.ndarray, answer: int) -> float:
    """1 where the choice `answer` has the highest of the scores [choices], 1/n where n choices share it, else 0.

    Splitting a tie keeps a model that cannot tell the choices apart at chance, whatever their order.
    """
    scores = np.asarray(scores, np.float64)
    if np.isnan(scores).any() or not 0 <= answer < scores.size:
        raise InputError(f"choice {answer} of {scores.tolist()}: scores must be numbers and the answer one of them")
    best = scores == scores.max()
    return float(best[answer] / best.sum())
