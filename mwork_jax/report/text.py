"""Results as text for a terminal: the tables of `mwork run`, `evaluate`, `enhance` and `lens`."""

from __future__ import annotations

import textwrap
from collections.abc import Mapping
from typing import Any

from mwork_jax.report.language_names import name_of
from mwork_jax.report.tables import delta_table, grid_tables, language_table, lens_sentence, lens_table, tuning_tables

_KEPT = 0.95  # of the tuned change; a reader should know when less of it was measured
_PLAIN = str.maketrans({"Δ": "D", "✗": "x", "✓": ".", "±": "+-", "−": "-", "×": "x", "–": "-", "·": "*", "≈": "~"})


def text_report(results: Mapping[str, Any]) -> str:
    """Both tables of a run as aligned text."""
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
    languages = (
        "Change of held-out loss, nats per token, when a language's own neurons are off: in the language (own) and in\n"
        "English (en); with as many random neurons off; and own/en with only one stage's neurons off."
    )
    rows = results["rows"]
    deltas = (
        "Delta = ΔEng - Δn-Eng, in the layout of the paper's Tables 2 to 5 (✗ = deactivated). Score: minus nats per\n"
        f"token, higher is better. Intervals: paired bootstrap over {rows[0]['n_items']} documents."
    )
    tables = (f"{languages}\n\n{language_table(results).text()}", f"{deltas}\n\n{delta_table(rows, 2).text(left=0)}")
    return "\n\n".join([head, *tables])


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


def table_report(table: Mapping[str, Any]) -> str:
    """One of Tables 2 to 5 in the paper's layout, with intervals and the original scores."""
    task, stages = table["task"], table["stages"]
    score = task["score"]
    original = ", ".join(f"{name_of(lang)} {scores[score]:.1f}" for lang, scores in table["original"].items())
    items = next(iter(table["data"].values()))["items"]
    title = (
        f"Table {table['table']}: {table['stage']}, {task['name']} ({score}, points), {items} items per language, "
        f"N1 = {stages['understanding']}, N2 = {stages['generation']}\n"
        f"{table['model']['source']} ({table['model']['dtype']}); original: {original}"
    )
    shown = delta_table(table["rows"], 1)
    return f"{title}\n\n{shown.text(left=0)}\n\n{textwrap.fill(shown.note, 110)}"


def grid_report(grid: Mapping[str, Any]) -> str:
    """Delta of a table's rows for every N1 (down) and N2 (across), the highest marked."""
    title = (
        f"Table {grid['table']}: {grid['stage']}, {grid['task']['name']}, Δ in points for N1 (down) and N2\n"
        "(across); * the highest of each setting"
    )
    return "\n\n".join([title, *(f"{table.title}\n{table.text(left=0)}" for table in grid_tables(grid))])


def lens_report(lens: Mapping[str, Any]) -> str:
    """The layer figure in numbers, and what it shows in a sentence."""
    top = lens["settings"]["top"]
    title = (
        f"{lens['model']['source']} ({lens['model']['dtype']}), logit lens: shares of the top {top} tokens at each\n"
        "layer, in percent: own language / English / not labelled. Layer 0 is the embeddings."
    )
    return f"{title}\n\n{lens_table(lens).text(left=0)}\n\n{lens_sentence(lens)}"


def enhance_report(study: Mapping[str, Any]) -> str:
    """Every measure at every number of documents, in the layout of Table 6."""
    made, tables = study["made_by"], list(tuning_tables(study))
    tune = made["settings"]["tune"]
    head = (
        f"{made['model']['source']} ({made['model']['dtype']}), tuned at learning rate {tune['learning_rate']:g}, "
        f"up to {tune['epochs']} epochs, {tune['batch']} rows of {tune['max_tokens']} tokens per step."
    )
    stopped = [name for name, run in study["runs"].items() if run["diverged"]]
    if stopped:
        head += f"\nThe loss of {', '.join(stopped)} was no longer finite: the best values before that are measured."
    kept = min(run["kept"] for run in study["runs"].values())
    if kept < _KEPT:
        head += (
            f"\nRounded to {made['model']['dtype']}, the models that are measured keep {100 * kept:.0f} % of what was "
            "tuned; --dtype float32 keeps all of it."
        )
    shown = (f"{table.title}\n\n{table.text()}" for table in tables)
    return "\n\n".join([head, *shown, textwrap.fill(tables[0].note, 110)])
