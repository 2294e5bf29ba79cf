"""What a folder of `mwork paper` shows beside its results: a verdict on each statement of the paper, and the paper's
printed numbers beside the measured ones."""

from __future__ import annotations

from collections.abc import Iterator

from mwork_jax.evaluate.table_files import TABLES, Printed, TableSpec, slips
from mwork_jax.hypotheses import MARGIN, Verdict, verdicts
from mwork_jax.report.language_names import name_of
from mwork_jax.report.loaded_results import LoadedResults
from mwork_jax.report.table import Table
from mwork_jax.report.tables.cells import NONE, STAGE_TITLES, interval_text, p_text
from mwork_jax.report.tables.deltas import digits_of, sets_title
from mwork_jax.results import DeltaRow, TableResult

_NUMBERS = ("Eng", "n-Eng", "ΔEng", "Δn-Eng", "Δ")
_FIELDS = ("eng", "n_eng", "delta_eng", "delta_n_eng", "delta")
_SLIP = "!"
# Table 6 as printed: Mistral 7B, 400 documents, mean over four tasks, in points.
_TABLE_6 = {
    "Original": {"en": 41.1, "vi": 32.7, "th": 25.6, "ar": 21.7, "sw": 15.1},
    "Random": {"en": 40.8, "vi": 32.7, "th": 25.2, "ar": 21.2, "sw": 15.1},
    "Lang-Spec": {"en": 44.6, "vi": 34.9, "th": 28.5, "ar": 23.4, "sw": 16.9},
}


def paper_tables(loaded: LoadedResults) -> Iterator[Table]:
    """The verdicts, then every table with printed numbers; nothing where the folder is not of `mwork paper`."""
    if not loaded.is_paper:
        return
    yield verdict_table(verdicts(loaded.tables, loaded.tuning))
    for table in loaded.tables:
        if isinstance(table.table, int) and table.table in TABLES:
            yield printed_table(table, TABLES[table.table])
    if loaded.tuning is not None:
        columns = tuple(name_of(lang) for lang in _TABLE_6["Original"])
        rows = tuple((method, *(f"{score:.1f}" for score in scores.values())) for method, scores in _TABLE_6.items())
        note = "Points, mean over four tasks, 400 documents of each language; English: mean over the four tuned models."
        yield Table("printed-6", "Table 6 as printed, Mistral 7B", ("Method", *columns), rows, 1, note)


def verdict_table(found: tuple[Verdict, ...]) -> Table:
    """Each statement of the paper with its verdict, and the number of its weakest test."""
    rows, records = [], []
    for verdict in found:
        statement, evidence = verdict.statement, verdict.evidence
        digits = 3 if statement.table == 6 else 1
        rows.append(
            (
                statement.section,
                f"{statement.table}",
                statement.words,
                verdict.words,
                NONE if evidence is None else f"{evidence.value:+.{digits}f}",
                NONE if evidence is None else interval_text(evidence.ci95, digits),
                p_text(verdict.p),
                NONE if evidence is None or evidence.printed is None else f"{evidence.printed:+.1f}",
            )
        )
        records.append(
            {
                "section": statement.section,
                "table": statement.table,
                "statement": statement.words,
                "verdict": verdict.kind,
                "value": None if evidence is None else evidence.value,
                "ci95_low": None if evidence is None or evidence.ci95 is None else evidence.ci95[0],
                "ci95_high": None if evidence is None or evidence.ci95 is None else evidence.ci95[1],
                "p_holm": verdict.p,
                "clusters": None if evidence is None else evidence.clusters,
                "clusters_needed": verdict.needed,
                "printed": None if evidence is None else evidence.printed,
            }
        )
    columns = ("section", "table", "statement", "verdict", "number", "95% interval", "p", "printed")
    note = (
        "number: of the test that decides, the weakest of the statement's; printed: its mean over the paper's models. "
        "p: corrected over all statements (Holm), so that at most 5 % of studies in which nothing is true have one "
        f"that is supported. Statements of less than {MARGIN:g} points are decided by the interval alone. So many "
        "independent items: for a power of 80 %, from the variance measured here."
    )
    title = "What the paper says, and what this model's numbers say to it"
    return Table("verdicts", title, columns, tuple(rows), 4, note, tuple(records))


def printed_table(table: TableResult, spec: TableSpec) -> Table:
    """The rows of a table, each followed by those that the paper printed for its models; slips are marked."""
    wrong = {(slip.model, slip.row, f"delta_{slip.score}"): slip.change for slip in slips(spec)}
    digits = digits_of(table)
    rows, records = [], []
    for n, printed in enumerate(spec.rows):
        row = next((one for one in table.rows if _is_of(one, spec, n)), None)
        if row is None:
            continue
        off = tuple("✗" if one else "✓" for one in row.off)
        of_here = (getattr(row, name) for name in _FIELDS)
        rows.append((*off, sets_title(row), "here", *(_number(x, i, digits) for i, x in enumerate(of_here))))
        records.append({"row": n + 1, "model": "here", **{name: getattr(row, name) for name in _FIELDS}})
        for model, line in printed.printed.items():
            marks = (_SLIP if (model, n, name) in wrong else "" for name in _FIELDS)
            cells = (_number(x, i, 1) + mark for i, (x, mark) in enumerate(zip(_numbers(line), marks, strict=True)))
            rows.append(("", "", "", "", "", model, *cells))
            fitting = {f"{k[2]}_that_fits": v for k, v in wrong.items() if k[:2] == (model, n)}
            records.append({"row": n + 1, "model": model, **dict(zip(_FIELDS, _numbers(line), strict=True)), **fitting})
    slip_note = "".join(
        f" {_SLIP} a slip: with the original score of {slip.model}'s other rows, row {slip.row + 1} would read "
        f"{slip.change:+.1f}."
        for slip in slips(spec)
    )
    note = f"Points. ✗ = deactivated. Vicuna and Mistral: as printed, on the paper's data.{slip_note}"
    title = f"Table {table.table} beside the paper's: {table.stage}, {table.task_title}"
    columns = (*STAGE_TITLES, "Neuron", "model", *_NUMBERS)
    return Table(f"printed-{table.table}", title, columns, tuple(rows), 6, note, tuple(records))


def _is_of(row: DeltaRow, spec: TableSpec, n: int) -> bool:
    """Whether a measured row is the n-th of the paper's table."""
    s = spec.rows[n].setting
    return (*row.off, row.neurons, row.scale) == (s.under, s.s_attn, s.s_ffn, s.gen, spec.rows[n].neurons, 0.0)


def _numbers(line: Printed) -> tuple[float, ...]:
    return tuple(getattr(line, name) for name in _FIELDS)


def _number(value: float | None, place: int, digits: int) -> str:
    """A score, or a change with its sign."""
    return NONE if value is None else f"{value:.{digits}f}" if place < 2 else f"{value:+.{digits}f}"
