"""Forcing a language, and what it costs."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace

import msgspec

from mwork_jax.report.language_names import name_of
from mwork_jax.report.table import Table
from mwork_jax.report.tables.cells import NONE, flat
from mwork_jax.results import SteerChange, SteerResults, SteerRow


def steer_tables(steer: SteerResults) -> Iterator[Table]:
    """The best setting of each recipe beside its controls, and every setting."""
    on = f"Forcing a language, questions of {steer.task_title}"
    best = _steer_table("steering-best", f"{on}: the best setting of each recipe", steer.best, _STEER_NOTE)
    grid = _steer_table("steering-grid", f"{on}: every setting, on all prompts", steer.grid, "")
    for table in (best, grid):
        yield replace(table, records=tuple({**record, "items": steer.task_title} for record in table.records))


_STEER_NOTE = (
    "Chosen by score on the first half of the prompts, measured on the second. Forcing: sentences in the language "
    "wanted, percent; relevance: chrF with the reference; score: their harmonic mean; nats: loss of the reference "
    "answer per token; English: rise of the held-out English loss per token; repeats: what answers say again, percent. "
    "vs random: forcing beyond matched random neurons or vectors."
)


def _steer_table(name: str, title: str, rows: Sequence[SteerRow], note: str) -> Table:
    numbers = ("forcing", "Δ (95%)", "vs random", "relevance", "score", "nats", "English", "repeats", "items")
    shown = tuple(
        (
            name_of(row.prompt),
            name_of(row.language),
            steer_name(row),
            f"{100 * row.forcing:.0f}",
            _steer_change(row.beyond_original),
            _steer_change(row.beyond_random),
            f"{100 * row.relevance:.1f}",
            f"{100 * row.score:.1f}",
            f"{row.reference_loss:.2f}",
            f"{row.english_loss:+.3f}",
            f"{100 * row.repetition:.0f}",
            str(row.n_items),
        )
        for row in rows
    )
    records = tuple(flat(msgspec.to_builtins(row)) for row in rows)
    return Table(name, title, ("prompt", "wanted", "setting", *numbers), shown, 3, note, records)


def steer_name(row: SteerRow) -> str:
    """A setting in a few words."""
    if row.kind in ("original", "instruction"):
        return row.kind
    at = "" if row.layer is None else f", layer {row.layer}"
    return f"{row.recipe} {row.strength:g}{at}" + (", random" if row.kind == "random" else "")


def _steer_change(change: SteerChange | None) -> str:
    if change is None:
        return NONE
    interval = "" if change.ci95 is None else f" ({100 * change.ci95[0]:+.0f} to {100 * change.ci95[1]:+.0f})"
    return f"{100 * change.change:+.0f}{interval}"
