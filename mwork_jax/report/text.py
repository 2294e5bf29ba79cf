"""Results as text for a terminal: the tables of `mwork run`, `evaluate`, `enhance`, `steer` and `lens`."""

from __future__ import annotations

import textwrap
from collections.abc import Mapping

from mwork_jax.evaluate.evaluations import HELD_OUT_LOSS
from mwork_jax.model.identity import ModelInfo
from mwork_jax.report.language_names import name_of
from mwork_jax.report.loaded_results import LoadedResults
from mwork_jax.report.names import one_line
from mwork_jax.report.paper_tables import paper_tables
from mwork_jax.report.tables.deltas import delta_table, digits_of, grid_tables, table_title
from mwork_jax.report.tables.lens import lens_sentence, lens_table
from mwork_jax.report.tables.losses import has_matrix, language_table, matrix_table
from mwork_jax.report.tables.steering import steer_tables
from mwork_jax.report.tables.tuning import tuning_tables
from mwork_jax.results import (
    DataInfo,
    EnhanceResults,
    LensResults,
    NeuronResults,
    RunResults,
    SteerResults,
    TableResult,
)

_KEPT = 0.95  # of the tuned change; a reader should know when less of it was measured
_PLAIN = str.maketrans({"Δ": "D", "✗": "x", "✓": ".", "±": "+-", "−": "-", "×": "x", "–": "-", "·": "*", "≈": "~"})


def run_report(run: RunResults) -> str:
    """The tables of a run as aligned text."""
    stages, settings = run.stages, run.provenance.settings
    first, last = stages.understanding, stages.layers - stages.generation
    head = (
        f"{_model(run.provenance.model)}\n"
        f"Rule {settings.rule}, mode {settings.mode}; {settings.documents} documents per language to find "
        f"neurons, {settings.held_out} others to measure.\n"
        f"Understanding: layers {_span(0, first)}, task-solving: {_span(first, last)}, "
        f"generation: {_span(last, stages.layers)}."
    )
    languages = (
        "Change of held-out loss, nats per token, when a language's own neurons are off: in the language (own) and in\n"
        "English (en); with as many random neurons off; and own/en with only one stage's neurons off."
    )
    deltas = (
        "Delta = ΔEng - Δn-Eng, in the layout of the paper's Tables 2 to 5. Score: minus nats per token, higher is\n"
        f"better; {settings.held_out} documents x {len(run.original)} languages."
    )
    table = delta_table(run.rows, 2)
    parts = [head, f"{languages}\n\n{language_table(run).text()}"]
    if has_matrix(run):
        matrix = matrix_table(run)
        parts.append(f"{matrix.title}.\n\n{matrix.text()}\n\n{textwrap.fill(matrix.note, 110)}")
    parts.append(f"{deltas}\n\n{table.text(left=0)}\n\n{textwrap.fill(table.note, 110)}")
    return "\n\n".join(parts)


def _model(model: ModelInfo) -> str:
    return f"{model.source} ({model.precision})"


def _lines(*lines: str) -> str:
    """Lines with names from files in them: each stays one line."""
    return "\n".join(map(one_line, lines))


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


def paper_report(loaded: LoadedResults) -> str:
    """The verdicts and the tables beside the paper's, then every table, tunings and the lens among them."""
    parts = []
    for table in paper_tables(loaded):
        parts.append(f"{table.title}\n\n{table.text()}\n\n{textwrap.fill(table.note, 110)}")
    run = [] if loaded.run is None else [run_report(loaded.run)]
    tuning = [] if loaded.tuning is None else [enhance_report(loaded.tuning)]
    lens = [] if loaded.lens is None else [lens_report(loaded.lens)]
    return "\n\n".join([*parts, *run, *map(table_report, (*loaded.tables, *loaded.grids)), *tuning, *lens])


def table_report(table: TableResult) -> str:
    """One of Tables 2 to 5 in the paper's layout, with intervals and the original scores; of a grid, Delta for every N1
    (down) and N2 (across), the highest marked."""
    return _grid_report(table) if table.kind == "grid" else _one_table_report(table)


def _one_table_report(table: TableResult) -> str:
    task, stages, provenance = table.task, table.stages, table.provenance
    original = ", ".join(
        f"{name_of(lang)} {scores[task.score]:.{digits_of(table)}f}" for lang, scores in table.original.items()
    )
    items = next(iter(provenance.data.values())).items
    split = f", N1 = {stages.understanding}, N2 = {stages.generation}" if stages else ""
    title = _lines(
        table_title(table),
        f"{items} items per language{split}",
        f"{_model(provenance.model)}; original: {original}",
    )
    digits = digits_of(table)
    shown = delta_table(table.rows, digits)
    return f"{title}\n\n{shown.text(left=0)}\n\n{textwrap.fill(shown.note, 110)}"


def _grid_report(grid: TableResult) -> str:
    title = _lines(
        f"{table_title(grid)}: Δ for N1 (down) and N2",
        "(across); * the highest of each setting",
    )
    return "\n\n".join([title, *(f"{table.title}\n{table.text(left=0)}" for table in grid_tables(grid))])


def lens_report(lens: LensResults) -> str:
    """The layer figure in numbers, and what it shows in a sentence."""
    title = (
        f"{_model(lens.provenance.model)}, logit lens: shares of the top {lens.provenance.settings.top} tokens at\n"
        "each layer, in percent: own language / English / not labelled. Layer 0 is the embeddings."
    )
    return f"{title}\n\n{lens_table(lens).text(left=0)}\n\n{textwrap.fill(lens_sentence(lens), 110)}"


def enhance_report(tuning: EnhanceResults) -> str:
    """Every measure at every number of documents, in the layout of Table 6."""
    model, tune, tables = tuning.provenance.model, tuning.provenance.settings.tune, list(tuning_tables(tuning))
    head = (
        f"{_model(model)}, tuned at learning rate {tune.learning_rate:g}, "
        f"up to {tune.epochs} epochs, {tune.batch} rows of {tune.max_tokens} tokens per step."
    )
    stopped = [name for name, run in tuning.runs.items() if run.diverged]
    if stopped:
        head += f"\nThe loss of {', '.join(stopped)} was no longer finite: the best values before that are measured."
    kept = min(run.kept for run in tuning.runs.values())
    if kept < _KEPT:
        head += (
            f"\nRounded to {model.dtype}, the models that are measured keep {100 * kept:.0f} % of what was "
            "tuned; --dtype float32 keeps all of it."
        )
    if HELD_OUT_LOSS in tuning.items:
        head += f"\n{textwrap.fill(_measured_on(tuning.items[HELD_OUT_LOSS]), 110)}"
    shown = (f"{table.title}\n\n{table.text()}" for table in tables)
    return "\n\n".join([head, *shown, textwrap.fill(tables[0].note, 110)])


def _measured_on(measured: Mapping[str, DataInfo]) -> str:
    """Which documents the held-out loss is of."""
    each = (f"{name_of(lang)} {data.items} ({one_line(data.origin)})" for lang, data in measured.items())
    return f"The held-out loss is of documents that nothing was tuned on: {', '.join(each)}."


def steer_report(steer: SteerResults) -> str:
    """The best setting of each recipe, beside its controls."""
    settings = steer.provenance.settings
    best, _ = steer_tables(steer)
    head = (
        f"{_model(steer.provenance.model)}, questions of {steer.task_title}, answers of at most "
        f"{settings.max_new_tokens} tokens; interventions act on: {settings.part}."
    )
    return f"{head}\n\n{best.title}\n\n{best.text(left=3)}\n\n{textwrap.fill(best.note, 110)}"


def neurons_report(results: NeuronResults) -> str:
    """The strongest neurons of each language, one line each: what they promote, and where they act most."""
    lines = [_model(results.provenance.model)]
    for language in results.provenance.settings.languages:
        own = [reading for reading in results.readings if language in reading.importance]
        own.sort(key=lambda reading: -(reading.importance[language] or 0.0))
        lines += [
            "",
            f"{name_of(language)}, {len(own)} neurons (layer/index, layers from 1: promoted | strongest token)",
        ]
        for reading in own:
            promoted = " ".join(token.token.strip() for token in (reading.promotes or ())[:5])
            did = reading.by_language.get(language)
            most = did.contexts[0] if did is not None and did.contexts else None
            at = "" if most is None else f" | {most.before[-24:]}[{most.token}]{most.after[:12]}"
            lines.append(one_line(f"  {reading.layer + 1}/{reading.index}: {promoted}{at}"))
    return "\n".join(lines)
