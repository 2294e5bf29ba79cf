"""What a stage will need on TPUs and GPUs that are not here: memory, operations, communication, time."""

from mwork_jax.plan.check import check_report, measure, slice_here
from mwork_jax.plan.chips import CHIPS, Slice
from mwork_jax.plan.models import NAMED, config_of
from mwork_jax.plan.plan import Plan, most_masks, plan, smallest_that_fits
from mwork_jax.plan.stages import DEFAULTS, STAGES, Size, with_given
from mwork_jax.plan.text import as_record, plan_report, price_of, sweep_report

__all__ = [
    "CHIPS",
    "DEFAULTS",
    "NAMED",
    "STAGES",
    "Plan",
    "Size",
    "Slice",
    "as_record",
    "check_report",
    "config_of",
    "measure",
    "most_masks",
    "plan",
    "plan_report",
    "price_of",
    "slice_here",
    "smallest_that_fits",
    "sweep_report",
    "with_given",
]
