"""Table 6: tuning a language's neurons."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence

import numpy as np

from mwork_jax.evaluate.evaluations import HELD_OUT_LOSS
from mwork_jax.metrics import ENGLISH, MIN_SEEDS
from mwork_jax.report.language_names import name_of, shown_name
from mwork_jax.report.names import slug
from mwork_jax.report.table import Table
from mwork_jax.report.tables.cells import NONE, interval_text, kind_title, record_of, score_of
from mwork_jax.report.tables.deltas import with_items_title
from mwork_jax.results import EnhanceResults, Interval, TuningRow, task_title


def tuning_tables(tuning: EnhanceResults) -> Iterator[Table]:
    """Table 6: each measure at each number of documents, before and after tuning."""
    for measure in measures(tuning):
        rows = [row for row in tuning.rows if row.task == measure]
        for count in sorted({row.documents for row in rows}):
            same, original = [row for row in rows if row.documents == count], tuning.original.get(measure, {})
            called = measure_title(tuning, measure)
            yield with_items_title(_tuning_table(original, same, called), called)


def measures(tuning: EnhanceResults) -> list[str]:
    """What models were measured on: the held-out loss, then tasks."""
    return list(dict.fromkeys(row.task for row in tuning.rows))


def measure_title(tuning: EnhanceResults, measure: str) -> str:
    """What a measure is to be called."""
    if measure == HELD_OUT_LOSS:
        return measure
    if measure not in tuning.items:
        return f"{shown_name(measure)} format, whose questions this file does not say"
    return task_title(shown_name(measure), tuning.items[measure].values())


def _tuning_table(original: Mapping[str, float], rows: Sequence[TuningRow], called: str) -> Table:
    measure, documents = rows[0].task, rows[0].documents
    digits = 3 if measure == HELD_OUT_LOSS else 1
    languages = list(dict.fromkeys(row.language for row in rows))
    before = (f"{original[lang]:.{digits}f}" if lang in original else NONE for lang in (ENGLISH, *languages))
    shown: list[tuple[str, ...]] = [("Original", *before, "")]
    for kind in ("random", "lang-spec"):
        of_kind = {row.language: row for row in rows if row.neurons == kind}
        if of_kind:
            shown += _tuned_rows(of_kind, languages, digits)
    note = (
        "change: from the original, with its 95% interval over items; beyond Random: how much more its own neurons "
        f"bring a language than as many random ones, with an interval where there are {MIN_SEEDS} seeds of each. Means "
        "over seeds; English and others over all tuned models."
    )
    title = f"Table 6: {called} ({score_of(measure)}, higher is better), {documents} documents per language"
    columns = ("Method", *map(name_of, (ENGLISH, *languages)), "others")
    name = f"table-6-{slug(measure)}-{documents}"
    return Table(name, title, columns, tuple(shown), 1, note, tuple(map(record_of, rows)))


def _tuned_rows(of_kind: Mapping[str, TuningRow], languages: Sequence[str], digits: int) -> Iterator[tuple[str, ...]]:
    """The scores of the models tuned in one way, {language: row}, their changes, and what lies beyond random."""

    def changes(values: Sequence[tuple[float, Interval | None] | None]) -> Iterator[str]:
        for value in values:
            if value is None:
                yield NONE
            else:
                interval = "" if value[1] is None else f" ({interval_text(value[1], digits)})"
                yield f"{value[0]:+.{digits}f}{interval}"

    rows = [of_kind.get(lang) for lang in languages]
    existing = list(of_kind.values())
    others = [row.delta_others for row in existing if row.delta_others is not None]
    scores = [f"{row.n_eng:.{digits}f}" if row else NONE for row in rows]
    yield (kind_title(existing[0].neurons), f"{_mean(row.eng for row in existing):.{digits}f}", *scores, "")
    english = f"{_mean(row.delta_eng for row in existing):+.{digits}f}"
    own = changes([(row.delta_n_eng, row.delta_n_eng_ci95) if row else None for row in rows])
    yield ("  change", english, *own, f"{_mean(others):+.{digits}f}" if others else "")
    beyond = [row.own_beyond_random if row else None for row in rows]
    if any(beyond):
        yield ("  beyond Random", "", *changes([(b.change, b.ci95) if b else None for b in beyond]), "")


def _mean(values: Iterable[float]) -> float:
    return float(np.mean(list(values)))
