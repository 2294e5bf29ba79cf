"""What a stage will need on TPUs that are not here: memory, operations, communication, time."""

from mwork_jax.plan.chips import CHIPS, Slice
from mwork_jax.plan.models import NAMED, config_of
from mwork_jax.plan.plan import Plan, plan, smallest_that_fits
from mwork_jax.plan.stages import DEFAULTS, STAGES, Size, with_given
from mwork_jax.plan.text import as_record, plan_report, sweep_report

__all__ = [
    "CHIPS",
    "DEFAULTS",
    "NAMED",
    "STAGES",
    "Plan",
    "Size",
    "Slice",
    "as_record",
    "config_of",
    "plan",
    "plan_report",
    "smallest_that_fits",
    "sweep_report",
    "with_given",
]
