"""Scores of single items, and what changes of them mean. Pure functions; higher is better."""

from mwork_jax.metrics.answer_language import (
    LINGUA,
    Identify,
    harmonic_mean,
    identifier,
    language_share,
    lingua_codes,
    main_language,
    repeated_share,
)
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
    RunsDifference,
    ScoresByLanguage,
    beyond_random,
    delta,
    paired_difference,
    runs_difference,
)
from mwork_jax.metrics.numbers import number_exact, number_readings, plain_number
from mwork_jax.metrics.significance import McNemar, Spread, benjamini_hochberg, corrected, holm, mcnemar, spread

__all__ = [
    "ENGLISH",
    "LINGUA",
    "MIN_SEEDS",
    "NORMALISATIONS",
    "Delta",
    "Identify",
    "McNemar",
    "PairedDifference",
    "RunsDifference",
    "ScoresByLanguage",
    "Spread",
    "answer_exact",
    "answer_f1",
    "benjamini_hochberg",
    "beyond_random",
    "choice_right",
    "chrf",
    "corrected",
    "delta",
    "harmonic_mean",
    "holm",
    "identifier",
    "language_share",
    "lingua_codes",
    "main_language",
    "mcnemar",
    "normalised",
    "number_exact",
    "number_readings",
    "paired_difference",
    "plain_number",
    "repeated_share",
    "rouge_l",
    "runs_difference",
    "spread",
    "squad_v11_exact",
    "squad_v11_f1",
]
