"""Enhancement (section 4 of the paper): tuning nothing but a language's neurons."""

from mwork_jax.enhance.optimizer import selected_only, selection_in
from mwork_jax.enhance.tune import History, Tuned, TuningResult, TuningRun, fine_tune, fine_tune_many
from mwork_jax.settings import TuneSettings

__all__ = [
    "History",
    "TuneSettings",
    "Tuned",
    "TuningResult",
    "TuningRun",
    "fine_tune",
    "fine_tune_many",
    "selected_only",
    "selection_in",
]
