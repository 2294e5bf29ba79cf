"""The tables of a report: Delta in the paper's layout, languages, the lens, and what the analysis shows."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import astuple, replace

import msgspec
import numpy as np

from mwork_jax.analysis import QUANTILES, importance_quantiles, overlap, similar_rows, threshold_curves
from mwork_jax.evaluate.evaluations import HELD_OUT_LOSS
from mwork_jax.intervene.stages import StageSetting
from mwork_jax.lens.logit_lens import inner_layers
from mwork_jax.lens.pattern import MARGIN, Lead, Pattern, english_pattern
from mwork_jax.lens.vocabulary import REST
from mwork_jax.metrics import ENGLISH, MIN_SEEDS
from mwork_jax.neurons import GROUPS
from mwork_jax.report.language_names import name_of, shown_name
from mwork_jax.report.lm_eval import lm_eval_table
from mwork_jax.report.loaded_results import LoadedResults
from mwork_jax.report.names import slug
from mwork_jax.report.table import Table
from mwork_jax.results import (
    Change,
    DeltaRow,
    EnhanceResults,
    Interval,
    LanguageChange,
    LensResults,
    LensShares,
    RunResults,
    SetKind,
    SteerChange,
    SteerResults,
    SteerRow,
    TableResult,
    TuningRow,
    task_title,
)

STAGE_TITLES = ("Under", "S-ATTN", "S-FFN", "Gen")  # in the order of `DeltaRow.off`
ALIKE, DIFFERS, NONE = "≈", "differs", "–"
_LEVEL = 0.05  # of the corrected p
ROUND_FRACTIONS = (0.01, 0.02, 0.05, 0.1, 0.25, 0.5)
FRACTIONS = tuple(sorted({*ROUND_FRACTIONS, *(float(f"{f:.2g}") for f in np.geomspace(0.005, 0.5, 41))}))


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
        yield _called(
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


def table_name(table: TableResult) -> str:
    """The name of a table's file."""
    return f"{table.kind}-{table.table}-{slug(table.task.name)}"


def _called(table: Table, title: str) -> Table:
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
    return Table(name, title, columns, tuple(shown), 5, _delta_note(rows), tuple(map(_record, rows)))


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


def p_text(p: float | None) -> str:
    if p is None:
        return NONE
    return "<.001" if p < 0.001 else f"{p:.3f}".lstrip("0")


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
        table = Table(name, title, columns, shown, 1, note, tuple(map(_record, rows)))
        yield _called(table, grid.task_title)


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


# Columns of a CSV file that would not tell what they are.
_COLUMNS = {
    "under": "under_off", "s_attn": "s_attn_off", "s_ffn": "s_ffn_off", "gen": "gen_off",
    "understanding": "n1_layers", "generation": "n2_layers",
}  # fmt: skip


def _record(row: DeltaRow | TuningRow) -> dict[str, object]:
    """A result row as flat values."""
    return _flat(msgspec.to_builtins(row))


def _flat(row: Mapping[str, object]) -> dict[str, object]:
    """An interval as two values, a list as words, an object as its fields, with names that say what they are."""
    flat: dict[str, object] = {}
    for key, value in row.items():
        if key.endswith("ci95"):
            flat[f"{key}_low"], flat[f"{key}_high"] = value if isinstance(value, list | tuple) else (None, None)
        elif isinstance(value, Mapping):
            flat |= {f"{key}_{inner}": x for inner, x in _flat(value).items()}
        else:
            flat[_COLUMNS.get(key, key)] = " ".join(map(str, value)) if isinstance(value, list | tuple) else value
    return flat


def language_table(run: RunResults) -> Table:
    """A run's change of held-out loss by language."""
    seeds = run.provenance.settings.seeds
    columns = (
        "language",
        "neurons",
        "share",
        "own",
        "en",
        "× en",
        f"random ({seeds})",
        "× random",
        *STAGE_TITLES,
    )
    rows = tuple(_language_row(language, row) for language, row in run.languages.items())
    records = tuple(_language_record(language, row) for language, row in run.languages.items())
    title = "Change of held-out loss, nats per token, with a language's own neurons off"
    spread = ", mean and standard deviation over the sets" if seeds >= MIN_SEEDS else ", mean over the sets"
    note = (
        f"own: in the language itself; en: in English; random: with as many random neurons off{spread}; × en, "
        "× random: how many times those rises own is. Under to Gen: own/en with the neurons of one stage off."
    )
    return Table("loss-by-language", title, columns, rows, note=note, records=records)


def stage_changes(row: LanguageChange) -> tuple[Change, Change, Change, Change]:
    """In the order of STAGE_TITLES."""
    return row.under, row.s_attn, row.s_ffn, row.gen


def _language_row(language: str, row: LanguageChange) -> tuple[str, ...]:
    spread = f" ±{np.std(row.random.own, ddof=1):.2f}" if len(row.random.own) >= MIN_SEEDS else ""
    return (
        name_of(language),
        f"{row.neurons:,}",
        f"{100 * row.share:.2f}%",
        f"{row.everywhere.own:+.2f}",
        f"{row.everywhere.english:+.2f}",
        _ratio(row.own_to_english),
        f"{row.random.own_mean:+.2f}{spread}",
        _ratio(row.own_to_random),
        *(f"{change.own:+.2f}/{change.english:+.2f}" for change in stage_changes(row)),
    )


def _language_record(language: str, row: LanguageChange) -> dict[str, object]:
    changes = dict(
        zip(("everywhere", "under", "s_attn", "s_ffn", "gen"), (row.everywhere, *stage_changes(row)), strict=True)
    )
    record: dict[str, object] = {"language": language, "neurons": row.neurons, "share": row.share}
    for name, change in changes.items():
        record |= {f"{name}_{key}": value for key, value in _flat(msgspec.to_builtins(change)).items()}
    return record | {"random_own": row.random.own_mean, "random_english": row.random.english_mean}


def absolute_table(run: RunResults) -> Table:
    """The loss itself, not its change: per token and, as tokens are longer in some languages, per byte of the text."""
    rows, records = [], []
    for language, original in run.original.items():
        change = run.languages.get(language)
        own, random = (change.everywhere.own, change.random.own_mean) if change else (None, None)
        per_token = [original.nats_per_token + rise if rise is not None else None for rise in (0.0, own, random)]
        # The same tokens and bytes are measured under every set.
        bytes_per_token = original.nats_per_token / original.nats_per_byte if original.nats_per_byte else None
        per_byte = [None if x is None or not bytes_per_token else x / bytes_per_token for x in per_token]
        interval = change.everywhere.own_ci95 if change else None
        cells = [NONE if x is None else f"{x:.2f}" for x in per_token] + [interval_text(interval, 2)]
        rows.append((name_of(language), *cells, *(NONE if x is None else f"{x:.3f}" for x in per_byte)))
        names = [
            f"{what}_nats_per_{unit}" for unit in ("token", "byte") for what in ("original", "own_off", "random_off")
        ]
        values = dict(zip(names, (*per_token, *per_byte), strict=True))
        records.append({"language": language, **values, "bytes_per_token": bytes_per_token})
    columns = (
        "language",
        "original",
        "own off",
        "random off",
        "95% of the rise",
        "original/byte",
        "own off/byte",
        "random off/byte",
    )
    note = (
        "Nats per token, then per byte of UTF-8 text: tokens differ in length between languages, so that bytes alone "
        f"compare them. 95%: of own off less original, over clusters of documents; {NONE}: not measured."
    )
    title = "Held-out loss itself, with a language's own and with as many random neurons off everywhere"
    return Table("loss-absolute", title, columns, tuple(rows), 1, note, tuple(records))


def has_intervals(run: RunResults) -> bool:
    """Whether changes of single languages have intervals; those of older files have none."""
    return any(row.everywhere.own_ci95 for row in run.languages.values())


def stages_table(run: RunResults) -> Table:
    """Each language's rise in each stage, with its interval."""
    rows = tuple(
        (
            name_of(language),
            *(f"{c.own:+.2f} ({interval_text(c.own_ci95, 2)})" for c in (row.everywhere, *stage_changes(row))),
            f"{row.everywhere.english:+.2f} ({interval_text(row.everywhere.english_ci95, 2)})",
        )
        for language, row in run.languages.items()
    )
    records = tuple(_language_record(language, row) for language, row in run.languages.items())
    columns = ("language", "everywhere", *STAGE_TITLES, "English, everywhere")
    note = "In brackets: 95% intervals over clusters of documents, not corrected for their number."
    title = "Rise of each language's held-out loss, nats per token, by deactivated part"
    return Table("loss-intervals", title, columns, rows, 1, note, records)


def _ratio(times: float | None) -> str:
    return NONE if times is None else f"{times:.1f}"


def has_matrix(run: RunResults) -> bool:
    """Whether there is more to see than a single language's numbers."""
    return len(run.matrix) > 1


def matrix_order(run: RunResults) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """The matrix's rows, those of a similar pattern side by side, and its columns: languages without a row, then the
    others in the order of the rows, so that the diagonal is a language under its own neurons."""
    languages = tuple(run.matrix)
    rises = np.asarray([[run.matrix[off][lang].rise for lang in run.original] for off in languages])
    rows = tuple(languages[i] for i in similar_rows(rises))
    return rows, (*(lang for lang in run.original if lang not in run.matrix), *rows)


def matrix_table(run: RunResults) -> Table:
    """Rises of the held-out loss of every language (columns) under every language's neurons (rows)."""
    rows, columns = matrix_order(run)
    shown = tuple((name_of(off), *(f"{run.matrix[off][lang].rise:+.2f}" for lang in columns)) for off in rows)
    records = tuple(
        _flat({"off": off, "measured": lang, **msgspec.to_builtins(run.matrix[off][lang])})
        for off in rows
        for lang in columns
    )
    title = "Rise of the held-out loss, nats per token, by language switched off (rows) and measured (columns)"
    return Table("language-matrix", title, ("off", *map(name_of, columns)), shown, 1, matrix_note(run), records)


def matrix_note(run: RunResults) -> str:
    """Over how many documents the numbers are, how the rows are ordered, and why English may have no row."""
    cells = [(off, lang, cell.documents) for off, row in run.matrix.items() for lang, cell in row.items()]
    own = {n for off, lang, n in cells if lang in (ENGLISH, off)}
    others = {n for off, lang, n in cells if lang not in (ENGLISH, off)} or own
    over = f"over {_count(own)} held-out documents"
    if others != own:
        over += f" in the language itself and in English, over {_count(others)} in the others"
    note = f"Each row: one language's neurons are off everywhere. Means {over}. Similar rows are side by side."
    if ENGLISH not in run.matrix:
        note += (
            " English has no row: its set is everything that is activated for it, what all languages share included."
        )
    return f"{note} The CSV has 95% intervals."


def _count(numbers: Iterable[int]) -> str:
    low, high = min(numbers := sorted(numbers)), max(numbers)
    return str(low) if low == high else f"{low} to {high}"


def tuning_tables(tuning: EnhanceResults) -> Iterator[Table]:
    """Table 6: each measure at each number of documents, before and after tuning."""
    for measure in measures(tuning):
        rows = [row for row in tuning.rows if row.task == measure]
        for count in sorted({row.documents for row in rows}):
            same, original = [row for row in rows if row.documents == count], tuning.original.get(measure, {})
            called = measure_title(tuning, measure)
            yield _called(_tuning_table(original, same, called), called)


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


def score_of(measure: str) -> str:
    """What a measure counts; more is better."""
    return "minus nats per token" if measure == HELD_OUT_LOSS else "points"


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
    return Table(name, title, columns, tuple(shown), 1, note, tuple(map(_record, rows)))


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


def kind_title(neurons: SetKind) -> str:
    return {"random": "Random", "lang-spec": "Lang-Spec"}.get(neurons, neurons.capitalize())


def sets_title(row: DeltaRow) -> str:
    """Whose neurons a row switches off; what they are scaled by, where it does not."""
    title = kind_title(row.neurons)
    title += f" ({row.like})" if row.neurons == "random" and row.like != "lang-spec" else ""
    return f"{title} ×{row.scale:g}" if row.scale else title


def interval_text(interval: Interval | None, digits: int) -> str:
    if interval is None:
        return NONE
    low, high = interval
    return f"{low:+.{digits}f} to {high:+.{digits}f}"


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
    records = tuple(_flat(msgspec.to_builtins(row)) for row in rows)
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


def lens_shares(lens: LensResults, off: bool = False) -> dict[str, LensShares]:
    """{prompt language: its shares}, of the original model or with the language's own neurons off."""
    return {s.language: s for s in lens.shares if bool(s.neurons_off) == off}


def own_english_rest(lens: LensResults, shares: LensShares) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """By layer, the shares of the prompt's language, of English, and of what has no label: float64 [layers + 1] each.
    Zeros where a language is not among the columns."""
    columns, top = lens.labels.columns, np.asarray(shares.top_k)

    def share(*names: str) -> np.ndarray:
        return top[:, [columns.index(n) for n in names if n in columns]].sum(axis=1)

    return share(shares.language), share(ENGLISH), share(*REST)


def lens_table(lens: LensResults) -> Table:
    """Own language, English and unlabelled share by layer, for the prompts of each language, in percent."""
    parts = {lang: own_english_rest(lens, shares) for lang, shares in lens_shares(lens).items()}
    layers = len(next(iter(parts.values()))[0])
    rows = [
        (str(layer), *("/".join(f"{100 * part[layer]:.0f}" for part in shares) for shares in parts.values()))
        for layer in range(layers)
    ]
    top, columns = lens.provenance.settings.top, lens.labels.columns
    records = [
        {"prompt": s.language, "neurons_off": s.neurons_off, "layer": layer}
        | dict(zip(columns, s.top_k[layer], strict=True))
        for s in lens.shares
        for layer in range(layers)
    ]
    note = (
        f"Percent of the {top} tokens that each layer ranks first (logit lens): own language / English / not labelled "
        "(other scripts, words of several languages, no letters). Layer 0 is the embeddings. The CSV has every label."
    )
    names = tuple(name_of(lang) for lang in parts)
    return Table("languages-by-layer", "Languages by layer", ("layer", *names), tuple(rows), 1, note, tuple(records))


def lens_sentence(lens: LensResults) -> str:
    """What the layer figure shows, counted and not wished for."""
    shares = {lang: own_english_rest(lens, s) for lang, s in lens_shares(lens).items() if lang != ENGLISH}
    top = lens.provenance.settings.top
    if not shares or ENGLISH not in lens.labels.columns:
        return "The figure has no language beside English to compare with English."
    peaks = {lang: int(np.argmax(english)) for lang, (_, english, _) in shares.items()}
    leads = [lang for lang, (own, english, _) in shares.items() if english[peaks[lang]] > own[peaks[lang]]]
    last = len(next(iter(shares.values()))[0]) - 1
    heights = [100 * english[peaks[lang]] for lang, (_, english, _) in shares.items()]
    own_last = [100 * own[-1] for own, _, _ in shares.values()]
    blank = [100 * rest.mean() for _, _, rest in shares.values()]
    return (
        f"For prompts in {len(shares)} languages other than English, English has its largest share of the top {top} "
        f"tokens, {_range(heights)} %, in layers {_range(list(peaks.values()))} of {last}; there it outweighs the "
        f"prompt's own language in {len(leads)} of {len(shares)}. In the last layer {_range(own_last)} % are of the "
        f"prompt's language. On average {_range(blank)} % of the tokens carry no language's label. "
        f"{pattern_sentence(english_pattern(lens))}"
    )


def pattern_sentence(pattern: Pattern) -> str:
    """The verdict on Figure 1's pattern, and what it rests on or what it lacks."""
    shown, against, unsure = (pattern.with_finding(finding) for finding in ("shows it", "contradicts it", "undecided"))

    def of(languages: Sequence[str]) -> str:
        return f"{len(languages)} of {len(pattern.languages)} languages" + (
            f" ({', '.join(map(name_of, languages))})" if languages else ""
        )

    what = "The paper's Figure 1, English in the inner layers and the prompt's language at the end,"
    if pattern.kind == "no verdict":
        return f"No verdict on the paper's Figure 1; it would need {'; '.join(pattern.missing)}."
    if pattern.kind == "undecided":
        return f"{what} is undecided here: shown by {of(shown)}, contradicted by {of(against)}; {pattern.missing[0]}."
    verdict = {"holds": "holds here", "does not hold": "does not hold here", "differs": "differs between languages"}
    open_ = f", undecided in {of(unsure)}" if unsure else ""
    return f"{what} {verdict[pattern.kind]}: shown by {of(shown)}, contradicted by {of(against)}{open_}."


def pattern_table(lens: LensResults) -> Table:
    """What the verdict on Figure 1 rests on."""
    pattern = english_pattern(lens)

    def cells(lead: Lead) -> tuple[str, str]:
        interval = NONE if lead.ci95 is None else f"{100 * lead.ci95[0]:+.0f} to {100 * lead.ci95[1]:+.0f}"
        return f"{100 * lead.value:+.0f} ({interval})", p_text(lead.p_holm)

    rows = tuple(
        (name_of(lang), str(one.prompts), *cells(one.inside), *cells(one.end), one.finding)
        for lang, one in pattern.languages.items()
    )
    records = tuple(
        _flat({"language": lang, **msgspec.to_builtins(one), "finding": one.finding, "verdict": pattern.kind})
        for lang, one in pattern.languages.items()
    )
    depth = lens.provenance.model.layers
    inside = inner_layers(depth)
    note = (
        "Inside: English's share of the top tokens less that of the prompt's language, mean over layers "
        f"{inside[0]} to {inside[-1]} of {depth}; at the end: the language's less English's, last layer. Points, over "
        f"prompts, with 95% intervals; p: t tests against a lead of {100 * MARGIN:.0f} points, corrected over the "
        f"table (Holm). A language shows the pattern where both leads are above {100 * MARGIN:.0f}, contradicts it "
        "where one is below."
    )
    columns = ("language", "prompts", "English leads inside", "p", "the language leads at the end", "p", "Figure 1")
    return Table("figure-1-pattern", "Does the model go through English?", columns, rows, 1, note, records)


def _range(values: Sequence[float]) -> str:
    low, high = f"{min(values):.0f}", f"{max(values):.0f}"
    return low if low == high else f"{low} to {high}"


def counts_table(loaded: LoadedResults) -> Table:
    """Neurons by language and group."""
    rows, records = [], []
    for language, neurons in loaded.neurons.items():
        by_group = {g: int(n.sum()) for g, n in neurons.counts().items()}
        share = neurons.count() / neurons.total()
        cells = (f"{neurons.count():,}", f"{100 * share:.2f}%", *(f"{by_group[g]:,}" for g in GROUPS))
        rows.append((name_of(language), *cells))
        for group, counts in neurons.counts().items():
            records += [
                {"language": language, "group": group, "layer": layer + 1, "neurons": int(n)}
                for layer, n in enumerate(counts)
            ]
    note = "The CSV has every layer."
    columns = ("language", "neurons", "share", *GROUPS)
    return Table("neurons", f"Neurons, {loaded.rule}", columns, tuple(rows), 1, note, tuple(records))


def overlap_table(loaded: LoadedResults) -> Table:
    """Shared neurons and Jaccard index of each two languages."""
    shared = overlap(loaded.overlap_sets)
    rows, records = [], []
    for i, language in enumerate(shared.languages):
        pairs = [(int(shared.shared[i, j]), float(shared.jaccard[i, j])) for j in range(len(shared.languages))]
        rows.append((name_of(language), *(f"{n:,} ({100 * x:.0f}%)" for n, x in pairs)))
        records += [
            {"language": language, "other": other, "shared": n, "jaccard": x}
            for other, (n, x) in zip(shared.languages, pairs, strict=True)
        ]
    columns = ("language", *map(name_of, shared.languages))
    note = f"{loaded.overlap_note} Shared neurons, and in brackets the Jaccard index: shared over the union."
    return Table("overlap", "What languages share", columns, tuple(rows), 1, note, tuple(records))


def thresholds_table(loaded: LoadedResults) -> Table:
    """How many neurons other thresholds would find."""
    curves = threshold_curves(loaded.scores, FRACTIONS, mode=loaded.mode)
    rows = [
        (f"{100 * f:g}%", *(f"{curve[FRACTIONS.index(f)]:,}" for curve in curves.values())) for f in ROUND_FRACTIONS
    ]
    records = [
        {"top_fraction": f} | {lang: int(curve[i]) for lang, curve in curves.items()} for i, f in enumerate(FRACTIONS)
    ]
    columns = ("top fraction", *map(name_of, curves))
    title = f"Neurons found at other thresholds, mode {loaded.mode}"
    return Table("thresholds", title, columns, tuple(rows), 1, "The CSV has every threshold.", tuple(records))


def importance_table(loaded: LoadedResults) -> Table:
    """Median and 99.9th percentile of importance in each layer, averaged over the languages."""
    of_each = {lang: importance_quantiles(s) for lang, s in loaded.scores.items()}
    means = {group: np.mean([q[group] for q in of_each.values()], axis=0) for group in GROUPS}
    layers = range(next(iter(means.values())).shape[1])
    median, top = QUANTILES.index(0.5), QUANTILES.index(0.999)
    rows = [
        (str(layer + 1), *(f"{q[median, layer]:.3g} / {q[top, layer]:.3g}" for q in means.values())) for layer in layers
    ]
    records = [
        {"language": lang, "group": group, "layer": layer + 1}
        | {f"quantile_{q:g}": float(quantiles[group][i, layer]) for i, q in enumerate(QUANTILES)}
        for lang, quantiles in of_each.items()
        for group in GROUPS
        for layer in layers
    ]
    note = "Median / 99.9th percentile over a layer's neurons, averaged over the languages. The CSV has every language."
    return Table("importance", "Importance by layer", ("layer", *GROUPS), tuple(rows), 1, note, tuple(records))
