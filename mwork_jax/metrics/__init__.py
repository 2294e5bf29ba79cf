"""Scores of single items, and what changes of them mean. Pure functions; higher is better."""

from mwork_jax.metrics.answers import (
    answer_exact,
    answer_f1,
    chrf,
    rouge_l,
    squad_v11_exact,
    squad_v11_f1,
)
from mwork_jax.metrics.choices import NORMALISATIONS, choice_right, normalised
from mwork_jax.metrics.contrasts import MIN_SEEDS
from mwork_jax.metrics.intervals import (
    ENGLISH,
    Delta,
    PairedDifference,
    beyond_random,
    delta,
    paired_difference,
)
from mwork_jax.metrics.numbers import number_exact, number_readings, plain_number
from mwork_jax.metrics.significance import McNemar, Spread, benjamini_hochberg, corrected, holm, mcnemar, spread

__all__ = [
    "ENGLISH",
    "MIN_SEEDS",
    "NORMALISATIONS",
    "Delta",
    "McNemar",
    "PairedDifference",
    "Spread",
    "answer_exact",
    "answer_f1",
    "benjamini_hochberg",
    "beyond_random",
    "choice_right",
    "chrf",
    "corrected",
    "delta",
    "holm",
    "mcnemar",
    "normalised",
    "number_exact",
    "number_readings",
    "paired_difference",
    "plain_number",
    "rouge_l",
    "spread",
    "squad_v11_exact",
    "squad_v11_f1",
]
