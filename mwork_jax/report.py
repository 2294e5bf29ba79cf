"""Results as tables that people read: the change of loss by language, and Delta in the paper's layout."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

NAMES = {
    "ar": "Arabic",
    "de": "German",
    "en": "English",
    "es": "Spanish",
    "fr": "French",
    "id": "Indonesian",
    "it": "Italian",
    "ja": "Japanese",
    "ru": "Russian",
    "sw": "Swahili",
    "th": "Thai",
    "tr": "Turkish",
    "vi": "Vietnamese",
    "zh": "Chinese",
}
_STAGES = ("under", "s_attn", "s_ffn", "gen")
_STAGE_TITLES = ("Under", "S-ATTN", "S-FFN", "Gen")
_PLAIN = str.maketrans({"Δ": "D", "✗": "x", "✓": ".", "±": "+-", "−": "-", "×": "x", "–": "-", "·": "*"})


def text_report(results: Mapping[str, Any]) -> str:
    """Both tables as aligned text."""
    made = results["made_by"]
    stages, settings = made["stages"], made["settings"]
    first, last = stages["understanding"], stages["layers"] - stages["generation"]
    head = (
        f"{made['model']['source']} ({made['model']['dtype']})\n"
        f"Rule {settings['rule']}, mode {settings['mode']}; {settings['documents']} documents per language to find "
        f"neurons, {settings['held_out']} others to measure.\n"
        f"Understanding: layers {_span(0, first)}, task-solving: {_span(first, last)}, "
        f"generation: {_span(last, stages['layers'])}."
    )
    return "\n\n".join([head, _language_table(results), _delta_table(results["rows"])])


def _span(start: int, stop: int) -> str:
    """Layers start <= layer < stop as people count them."""
    return f"{start + 1}-{stop}" if start < stop else "none"


def printable(text: str, encoding: str | None) -> str:
    """The text with its few special signs replaced where the terminal cannot show them."""
    try:
        text.encode(encoding or "ascii")
    except (UnicodeEncodeError, LookupError):
        return text.translate(_PLAIN).encode("ascii", "replace").decode()
    return text


def _language_table(results: Mapping[str, Any]) -> str:
    seeds = results["made_by"]["settings"]["seeds"]
    rows: list[list[str]] = [
        [
            "language",
            "neurons",
            "share",
            "own",
            "en",
            "times",
            f"random ({seeds})",
            "times",
            *(t for t in _STAGE_TITLES),
        ],
    ]
    for language, row in results["languages"].items():
        everywhere, random = row["everywhere"], row["random"]
        rows.append(
            [
                NAMES.get(language, language),
                f"{row['neurons']:,}",
                f"{100 * row['share']:.2f}%",
                f"{everywhere['own']:+.2f}",
                f"{everywhere['english']:+.2f}",
                _ratio(row["own_to_english"]),
                f"{random['own_mean']:+.2f} ±{_spread(random['own']):.2f}",
                _ratio(row["own_to_random"]),
                *(f"{row[s]['own']:+.2f}/{row[s]['english']:+.2f}" for s in _STAGES),
            ]
        )
    title = (
        "Change of held-out loss, nats per token, when a language's own neurons are off: in the language (own) and in\n"
        "English (en); with as many random neurons off; and own/en with only one stage's neurons off."
    )
    return f"{title}\n\n{_aligned(rows, left=1)}"


def table_report(table: Mapping[str, Any]) -> str:
    """One of Tables 2 to 5 in the paper's layout, with intervals and the original scores."""
    task, stages = table["task"], table["stages"]
    score = task["score"]
    original = ", ".join(f"{NAMES.get(lang, lang)} {scores[score]:.1f}" for lang, scores in table["original"].items())
    items = next(iter(table["data"].values()))["items"]
    title = (
        f"Table {table['table']}: {table['stage']}, {task['name']} ({score}, points), {items} items per language, "
        f"N1 = {stages['understanding']}, N2 = {stages['generation']}\n"
        f"{table['model']['source']} ({table['model']['dtype']}); original: {original}"
    )
    notes = (
        "Intervals and p of Δ: paired bootstrap over items; p corrected over the rows (Holm). Beyond random: how much\n"
        "higher Δ is than with as many random neurons off in the same parts."
    )
    return f"{title}\n\n{_rows_in_the_paper_s_layout(table['rows'], 1)}\n\n{notes}"


def grid_report(table: Mapping[str, Any]) -> str:
    """Delta of a table's rows for every N1 (down) and N2 (across), the highest marked."""
    title = (
        f"Table {table['table']}: {table['stage']}, {table['task']['name']}, Δ in points for N1 (down) and N2\n"
        "(across); * the highest of each setting"
    )
    settings: dict[tuple[bool, ...], list[Mapping[str, Any]]] = {}
    for row in table["rows"]:
        settings.setdefault(tuple(row[stage] for stage in _STAGES), []).append(row)
    return "\n\n".join([title, *(_grid(off, rows) for off, rows in settings.items())])


def _grid(off: tuple[bool, ...], rows: Sequence[Mapping[str, Any]]) -> str:
    first, last = (sorted({row[name] for row in rows}) for name in ("understanding", "generation"))
    best = max(row["delta"] for row in rows)
    cells = {
        (row["understanding"], row["generation"]): f"{row['delta']:+.1f}{'*' if row['delta'] == best else ' '}"
        for row in rows
    }
    table = [["N1", *(f"N2 = {n2}" for n2 in last)], *([str(n1), *(cells[n1, n2] for n2 in last)] for n1 in first)]
    parts = [title for title, is_off in zip(_STAGE_TITLES, off, strict=True) if is_off]
    return f"Off: {', '.join(parts)}\n{_aligned(table, left=0)}"


def _delta_table(rows: Sequence[Mapping[str, Any]]) -> str:
    title = (
        "Delta = ΔEng - Δn-Eng, in the layout of the paper's Tables 2 to 5 (✗ = deactivated). Score: minus nats per\n"
        f"token, higher is better. Intervals: paired bootstrap over {rows[0]['n_items']} documents."
    )
    return f"{title}\n\n{_rows_in_the_paper_s_layout(rows, 2)}"


def _rows_in_the_paper_s_layout(rows: Sequence[Mapping[str, Any]], digits: int) -> str:
    corrected = all("p_holm" in row for row in rows)
    head = [*_STAGE_TITLES, "Neuron", "Eng", "n-Eng", "ΔEng", "Δn-Eng", "Δ", "95% interval"]
    table: list[list[str]] = [head + ["p", "beyond random"] * corrected]
    for row in rows:
        low, high = row["delta_ci95"]
        table.append(
            [
                *("✗" if row[stage] else "✓" for stage in _STAGES),
                "Random" if row["neurons"] == "random" else "Lang-Spec",
                *(f"{row[name]:.{digits}f}" for name in ("eng", "n_eng")),
                *(f"{row[name]:+.{digits}f}" for name in ("delta_eng", "delta_n_eng", "delta")),
                f"{low:+.{digits}f} to {high:+.{digits}f}",
                *([_p(row["p_holm"]), _beyond_random(row, digits)] if corrected else []),
            ]
        )
    return _aligned(table, left=0)


def _p(p: float) -> str:
    return "<.001" if p < 0.001 else f"{p:.3f}".lstrip("0")


def _beyond_random(row: Mapping[str, Any], digits: int) -> str:
    """How much higher than its random row's Delta, with the corrected p; for a random row, the spread over seeds."""
    if "seed_spread" in row:
        std = row["seed_spread"]["delta"]["std"]
        return "" if std is None else f"seeds ±{std:.{digits}f}"
    other = row.get("beyond_random")
    return "" if other is None else f"{other['delta']:+.{digits}f} (p {_p(other['p_holm'])})"


def _spread(values: Sequence[float]) -> float:
    """Standard deviation over seeds; 0 for a single one."""
    mean = sum(values) / len(values)
    return (sum((v - mean) ** 2 for v in values) / max(1, len(values) - 1)) ** 0.5


def _ratio(times: float | None) -> str:
    return "–" if times is None else f"{times:.1f}"


def _aligned(rows: Sequence[Sequence[str]], left: int) -> str:
    """Columns padded to their widest cell, the first `left` columns to the left and the others to the right."""
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    lines = [
        "  ".join(c.ljust(w) if i < left else c.rjust(w) for i, (c, w) in enumerate(zip(row, widths, strict=True)))
        for row in rows
    ]
    return "\n".join(
        [lines[0].rstrip(), "-" * (sum(widths) + 2 * len(widths) - 2), *(line.rstrip() for line in lines[1:])]
    )
