"""What switching neurons off does to the held-out loss of every language."""

from __future__ import annotations

from collections.abc import Iterable

import msgspec
import numpy as np

from mwork_jax.analysis import similar_rows
from mwork_jax.metrics import ENGLISH, MIN_SEEDS
from mwork_jax.report.language_names import name_of
from mwork_jax.report.table import Table
from mwork_jax.report.tables.cells import NONE, STAGE_TITLES, flat, interval_text
from mwork_jax.results import Change, LanguageChange, RunResults


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
        record |= {f"{name}_{key}": value for key, value in flat(msgspec.to_builtins(change)).items()}
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
        flat({"off": off, "measured": lang, **msgspec.to_builtins(run.matrix[off][lang])})
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
