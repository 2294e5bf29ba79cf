"""Delta in the layout of the paper's Tables 2 to 5, and the grid of N1 and N2."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import astuple, replace

from mwork_jax.evaluate.evaluations import HELD_OUT_LOSS
from mwork_jax.intervene.stages import StageSetting
from mwork_jax.metrics import MIN_SEEDS
from mwork_jax.report.names import slug
from mwork_jax.report.table import Table
from mwork_jax.report.tables.cells import NONE, STAGE_TITLES, interval_text, kind_title, p_text, record_of, score_of
from mwork_jax.results import DeltaRow, TableResult

ALIKE, DIFFERS = "≈", "differs"
_LEVEL = 0.05  # of the corrected p


def table_name(table: TableResult) -> str:
    """The name of a table's file."""
    return f"{table.kind}-{table.table}-{slug(table.task.name)}"


def with_items_title(table: Table, title: str) -> Table:
    """The table with what its items are to be called beside the task in every record, for CSV and JSON."""
    records = tuple(
        {
            name: x
            for key, value in row.items()
            for name, x in ((key, value), *([("items", title)] if key == "task" else []))
        }
        for row in table.records
    )
    return replace(table, records=records)


def table_title(table: TableResult) -> str:
    what = ", ".join(dict.fromkeys(filter(None, (table.stage, table.task_title))))
    return f"Table {table.table}: {what} ({_unit_of(table)})"


def _unit_of(table: TableResult) -> str:
    return score_of(HELD_OUT_LOSS) if table.task.name == HELD_OUT_LOSS else f"{table.task.score}, points"


def digits_of(table: TableResult) -> int:
    """Decimals of a table's numbers."""
    return 2 if table.task.name == HELD_OUT_LOSS else 1


def delta_table(rows: Sequence[DeltaRow], digits: int, *, name: str = "delta", title: str = "Delta") -> Table:
    """Rows in the layout of the paper's Tables 2 to 5, with the interval of Delta, its p corrected over the rows, and
    how it compares with matched random sets."""
    numbers = ("Eng", "n-Eng", "ΔEng", "Δn-Eng", "Δ", "95% interval", "p", "vs random")
    shown = [
        (
            *("✗" if off else "✓" for off in row.off),
            sets_title(row),
            *(NONE if score is None else f"{score:.{digits}f}" for score in (row.eng, row.n_eng)),
            *(
                NONE if change is None else f"{change:+.{digits}f}"
                for change in (row.delta_eng, row.delta_n_eng, row.delta)
            ),
            interval_text(row.delta_n_eng_ci95 if row.delta is None else row.delta_ci95, digits),
            p_text(row.p_holm),
            _beyond_random_text(row, digits),
        )
        for row in rows
    ]
    columns = (*STAGE_TITLES, "Neuron", *numbers)
    return Table(name, title, columns, tuple(shown), 5, _delta_note(rows), tuple(map(record_of, rows)))


def _delta_note(rows: Sequence[DeltaRow]) -> str:
    """What the columns are, and how many independent items there are."""
    row = rows[0]
    languages = len(row.languages) + (row.delta is not None)
    items = f"{row.n_items} items in {languages} languages"
    if row.n_clusters < row.n_items:
        items += f", {row.n_clusters} clusters of parallel or related items"
    if row.delta is None:
        return (
            f"✗ = deactivated. Without English there is no Δ: interval and p are of Δn-Eng, over {items}; p corrected "
            f"over the rows (Holm). vs random: how much more the languages lose than with matched random sets off, and "
            f"its corrected p; {ALIKE}: not told apart from random; {NONE}: not measured."
        )
    note = (
        f"✗ = deactivated. Interval and p of Δ: over {items}; p corrected over the rows (Holm). vs random: how much "
        f"higher Δ is than with matched random sets off, and its corrected p; {ALIKE}: not told apart from random; "
        f"{NONE}: no random sets with the same parts off, or too few to tell."
    )
    return note + (
        f" With fewer than {MIN_SEEDS} random sets there is a mean and no interval."
        if any(0 < row.seeds < MIN_SEEDS for row in rows)
        else ""
    )


def _beyond_random_text(row: DeltaRow, digits: int) -> str:
    """How a row compares with random; for a random row, the spread over its seeds."""
    if row.neurons == "random":
        over = (row.seed_spread.delta or row.seed_spread.delta_n_eng) if row.seed_spread is not None else None
        return NONE if over is None or over.std is None else f"seeds ±{over.std:.{digits}f}"
    beyond = row.beyond_random
    if beyond is None:
        return NONE
    if beyond.p_holm is None:
        return f"{beyond.delta:+.{digits}f}"
    mark = f" {ALIKE}" if against_random(row) == ALIKE else ""
    return f"{beyond.delta:+.{digits}f} (p {p_text(beyond.p_holm)}){mark}"


def against_random(row: DeltaRow) -> str:
    """Whether a row's Delta (without English, what the languages lose) differs from that of matched random sets:
    "differs", "≈", or "–" where there is nothing to
    compare with or too little to tell."""
    if row.beyond_random is None or row.beyond_random.p_holm is None:
        return NONE
    return DIFFERS if row.beyond_random.p_holm < _LEVEL else ALIKE


def grid_tables(grid: TableResult) -> Iterator[Table]:
    """Delta for every N1 (down) and N2 (across), one table for each deactivated part; the highest is marked."""
    digits = digits_of(grid)
    for off, rows in grid_settings(grid).items():
        first, last = sorted({row.understanding or 0 for row in rows}), sorted({row.generation or 0 for row in rows})
        deltas = {row.effect for row in rows}
        best = max(deltas) if len(deltas) > 1 else None
        values = {
            (row.understanding, row.generation): f"{row.effect:+.{digits}f}{'*' if row.effect == best else ' '}"
            for row in rows
        }
        shown = tuple((str(n1), *(values.get((n1, n2), "") for n2 in last)) for n1 in first)
        name = f"{table_name(grid)}-{slug('-'.join(off))}"
        title = f"{grid.task_title}; off: {', '.join(off)}"
        note, columns = (
            f"{'Δ' if rows[0].delta is not None else 'What the languages lose'} in {_unit(grid)} for N1 (down) and N2 "
            "(across); * the highest.",
            ("N1", *(f"N2 = {n}" for n in last)),
        )
        table = Table(name, title, columns, shown, 1, note, tuple(map(record_of, rows)))
        yield with_items_title(table, grid.task_title)


def grid_settings(grid: TableResult) -> dict[tuple[str, ...], list[DeltaRow]]:
    """{which parts are off: its rows}."""
    settings: dict[tuple[str, ...], list[DeltaRow]] = {}
    for row in grid.rows:
        settings.setdefault(parts_off(row), []).append(row)
    return settings


def _unit(table: TableResult) -> str:
    return "nats per token" if table.task.name == HELD_OUT_LOSS else "points"


def parts_title(setting: StageSetting) -> str:
    """The titles of the parts of a setting, as in Under + Gen."""
    off = astuple(setting)
    return " + ".join(title for title, one in zip(STAGE_TITLES, off, strict=True) if one)


def parts_off(row: DeltaRow) -> tuple[str, ...]:
    """The titles of the parts that a row switches off."""
    return tuple(title for title, off in zip(STAGE_TITLES, row.off, strict=True) if off)


def sets_title(row: DeltaRow) -> str:
    """Whose neurons a row switches off; what they are scaled by, where it does not."""
    title = kind_title(row.neurons)
    title += f" ({row.like})" if row.neurons == "random" and row.like != "lang-spec" else ""
    return f"{title} ×{row.scale:g}" if row.scale else title
