"""What `mwork evaluate --lm-eval` found, as a table and as text."""

from __future__ import annotations

import textwrap
from collections.abc import Iterable

import msgspec
import numpy as np

from mwork_jax.report.table import Table
from mwork_jax.results import LmEvalResults, LmEvalRow, LmEvalScore

_NOTE = (
    "Original: the metric as lm-evaluation-harness gives it, and its standard error. The others: by how much it "
    "changes with a language's own neurons off, and with as many random ones off (mean over seeds)."
)


def lm_eval_table(results: LmEvalResults) -> Table:
    """A row for each metric of each task: the original model's value, and what each condition changes."""
    columns = list(dict.fromkeys((row.under, row.neurons, row.setting) for row in results.rows[1:]))
    columns = [column for column in columns if column[0] != "original"]
    rows = []
    for task in results.tasks:
        of_task = [row for row in results.rows if row.task == task]
        original = next(row for row in of_task if row.under == "original")
        for score in original.scores:
            name = score.metric if score.filter == "none" else f"{score.metric}, {score.filter}"
            changes = (_change(of_task, column, score) for column in columns)
            error = "" if score.stderr is None else f" ±{score.stderr:.3f}"
            rows.append((task, name, str(results.tasks[task].items), f"{score.value:.4g}{error}", *changes))
    heads = ("task", "metric", "items", "original", *(_head(*column) for column in columns))
    records = tuple(_records(results))
    title = f"lm-evaluation-harness {results.provenance.versions.get('lm-eval', '')}".rstrip()
    return Table("lm-eval", title, heads, tuple(rows), 2, _NOTE, records)


def lm_eval_report(results: LmEvalResults) -> str:
    """The table as aligned text."""
    model, settings, table = results.provenance.model, results.provenance.settings, lm_eval_table(results)
    off = ", ".join(f"{lang} {own.count} of {own.total}" for lang, own in results.neurons.items())
    head = f"{model.source} ({model.precision}). Off: {settings.off}; neurons: {off or 'none'}"
    note = textwrap.fill(table.note, 110)
    return f"{head}; {settings.seeds} random sets each.\n\n{table.title}\n\n{table.text()}\n\n{note}"


def _head(under: str, neurons: str, setting: str) -> str:
    what = {"own": "", "random": "random"}.get(under, setting)
    return " ".join(part for part in (neurons, what) if part)


def _change(rows: Iterable[LmEvalRow], column: tuple[str, str, str], score: LmEvalScore) -> str:
    values = [
        one.value
        for row in rows
        if (row.under, row.neurons, row.setting) == column
        for one in row.scores
        if (one.metric, one.filter) == (score.metric, score.filter)
    ]
    return f"{np.mean(values) - score.value:+.3g}" if values else ""


def _records(results: LmEvalResults) -> Iterable[dict[str, object]]:
    for row in results.rows:
        about = {name: value for name, value in msgspec.to_builtins(row).items() if name != "scores"}
        yield from ({**about, **msgspec.to_builtins(score)} for score in row.scores)
