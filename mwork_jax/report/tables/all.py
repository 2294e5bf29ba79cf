"""Every table of a report, in the order of the page."""

from __future__ import annotations

from collections.abc import Iterator

from mwork_jax.lens.pattern import english_pattern
from mwork_jax.report.lm_eval import lm_eval_table
from mwork_jax.report.loaded_results import LoadedResults
from mwork_jax.report.table import Table
from mwork_jax.report.tables.deltas import (
    delta_table,
    digits_of,
    grid_tables,
    table_name,
    table_title,
    with_items_title,
)
from mwork_jax.report.tables.lens import lens_table, pattern_table
from mwork_jax.report.tables.losses import (
    absolute_table,
    has_intervals,
    has_matrix,
    language_table,
    matrix_table,
    stages_table,
)
from mwork_jax.report.tables.neurons import counts_table, importance_table, overlap_table, thresholds_table
from mwork_jax.report.tables.steering import steer_tables
from mwork_jax.report.tables.tuning import tuning_tables


def all_tables(loaded: LoadedResults) -> Iterator[Table]:
    """Every table that a folder's results allow, in the order of the page."""
    if loaded.run is not None:
        deltas = "Δ = ΔEng − Δn-Eng, held-out loss (minus nats per token, higher is better)"
        yield delta_table(loaded.run.rows, 2, name="delta-held-out-loss", title=deltas)
        yield language_table(loaded.run)
        yield absolute_table(loaded.run)
        if has_intervals(loaded.run):
            yield stages_table(loaded.run)
        if has_matrix(loaded.run):
            yield matrix_table(loaded.run)
    for table in loaded.tables:
        yield with_items_title(
            delta_table(table.rows, digits_of(table), name=table_name(table), title=table_title(table)),
            table.task_title,
        )
    for grid in loaded.grids:
        yield from grid_tables(grid)
    if loaded.lm_eval is not None:
        yield lm_eval_table(loaded.lm_eval)
    if loaded.tuning is not None:
        yield from tuning_tables(loaded.tuning)
    if loaded.steer is not None:
        yield from steer_tables(loaded.steer)
    if loaded.lens is not None:
        yield lens_table(loaded.lens)
        if english_pattern(loaded.lens).languages:
            yield pattern_table(loaded.lens)
    if loaded.neurons:
        yield counts_table(loaded)
    if loaded.overlap_sets:
        yield overlap_table(loaded)
    if loaded.scores:
        yield thresholds_table(loaded)
        yield importance_table(loaded)
