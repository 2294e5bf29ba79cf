"""The parts of the page: which figures and tables a folder's results allow, and the words around them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Literal, NamedTuple

import numpy as np

from mwork_jax.analysis import QUANTILES, importance_quantiles, overlap, threshold_curves
from mwork_jax.metrics import ENGLISH
from mwork_jax.report.figures import (
    neuron_shares,
    plot_deltas,
    plot_enhancement,
    plot_forcing_matrix,
    plot_grid,
    plot_importance,
    plot_layer_languages,
    plot_losses,
    plot_matrix,
    plot_neurons,
    plot_overlap,
    plot_steering,
    plot_thresholds,
)
from mwork_jax.report.language_names import full_name, name_of
from mwork_jax.report.loaded_results import LoadedResults
from mwork_jax.report.names import slug
from mwork_jax.report.neurons_page import FILE, fragment
from mwork_jax.report.paper_tables import paper_tables
from mwork_jax.report.svg import Drawing, draw
from mwork_jax.report.table import Table
from mwork_jax.report.tables.all import all_tables
from mwork_jax.report.tables.cells import interval_text
from mwork_jax.report.tables.deltas import digits_of, grid_settings, grid_tables, parts_off, table_name
from mwork_jax.report.tables.lens import lens_sentence, lens_shares, own_english_rest
from mwork_jax.report.tables.losses import has_matrix, matrix_note, matrix_order
from mwork_jax.report.tables.neurons import FRACTIONS
from mwork_jax.report.tables.steering import steer_name
from mwork_jax.report.tables.tuning import measure_title, measures
from mwork_jax.results import (
    HELD_OUT_LOSS,
    AnyResults,
    DeltaRow,
    EnhanceResults,
    LensExample,
    LensShares,
    RunResults,
    SteerResults,
    TableResult,
)
from mwork_jax.select.rules import Rule

_PANEL, _WIDE = (3.5, 2.15), 4.1
_NEURONS = {"lang-spec": "language-specific"}
GROUP_TITLES = {
    "attn_q": "Queries",
    "attn_k": "Keys",
    "attn_v": "Values",
    "ffn_up": "Feed-forward (up and down alike)",
}


class Mark(NamedTuple):
    """An entry of a figure's key: a colour's name in the theme, what it stands for, and its shape."""

    colour: str
    words: str
    shape: Literal["square", "disc", "ring", "diamond", "bar", "scale"] = "square"


@dataclass(frozen=True)
class Figure:
    """One or several drawings under one caption."""

    caption: str
    drawings: tuple[Drawing, ...]
    key: tuple[Mark, ...] = ()


@dataclass(frozen=True)
class Section:
    """A heading, what is to be said, figures, the tables with the data behind them, examples as HTML is built by the
    page, (address, what it says) of other pages, and the command that made it, empty where it was not one."""

    name: str
    title: str
    words: tuple[str, ...]
    figures: tuple[Figure, ...] = ()
    tables: tuple[Table, ...] = ()
    examples: tuple[LensExample, ...] = ()
    links: tuple[tuple[str, str], ...] = ()
    command: tuple[str, ...] = ()


def sections(loaded: LoadedResults) -> Iterator[Section]:
    """In the order of the page."""
    tables = {table.name: table for table in all_tables(loaded)}
    yield from _paper_sections(loaded)
    if loaded.run is not None:
        yield _made_by(loaded.run, _run_section(loaded.run, tables))
        if has_matrix(loaded.run):
            yield _made_by(loaded.run, _matrix_section(loaded.run, tables))
    for table in loaded.tables:
        yield _made_by(table, _task_section(table, tables))
    for grid in loaded.grids:
        yield _made_by(grid, _grid_section(grid))
    if loaded.lm_eval is not None:
        yield _made_by(loaded.lm_eval, _lm_eval_section(tables))
    if loaded.tuning is not None:
        yield _made_by(loaded.tuning, _tuning_section(loaded.tuning, tables))
    if loaded.steer is not None:
        yield _made_by(loaded.steer, _steer_section(loaded.steer, tables))
    if loaded.lens is not None:
        yield _made_by(loaded.lens, _lens_section(loaded, tables))
    of_scores = loaded.run or loaded.detect
    if loaded.neurons:
        yield _made_by(loaded.run, _where_section(loaded, tables))
    if loaded.overlap_sets:
        yield _made_by(of_scores, _overlap_section(loaded, tables))
    if loaded.scores:
        yield _made_by(of_scores, _threshold_section(loaded, tables))
        yield _made_by(of_scores, _importance_section(loaded, tables))


def _paper_sections(loaded: LoadedResults) -> Iterator[Section]:
    """The verdicts, and the paper's numbers beside those measured, of a folder of `mwork paper`."""
    found = list(paper_tables(loaded))
    if found:
        words = "Each statement is one or several tests, named beforehand; docs/paper.md says how they decide."
        yield Section("paper", "What the paper says", (words,), (), (found[0],))
        yield Section("printed", "Beside the paper's numbers", (), (), tuple(found[1:]))


def _made_by(results: AnyResults | TableResult | None, section: Section) -> Section:
    return replace(section, command=() if results is None else results.provenance.command)


def _run_section(run: RunResults, tables: Mapping[str, Table]) -> Section:
    languages, rows = run.languages, run.rows
    worst = max(languages, key=lambda lang: languages[lang].everywhere.own)
    alt = "; ".join(
        f"{name_of(lang)}: own {r.everywhere.own:+.2f}, English {r.everywhere.english:+.2f}, random "
        f"{r.random.own_mean:+.2f}"
        for lang, r in languages.items()
    )
    losses = draw(
        "losses",
        "Rise of the held-out loss with a language's own neurons off",
        f"Nats per token. {alt}.",
        (_WIDE, 0.42 * len(languages) + 0.75),
        lambda ax: plot_losses(ax, languages),
    )
    words = (
        f"With its own neurons switched off, {name_of(worst)} loses most, "
        f"{languages[worst].everywhere.own:+.2f} nats per token; the same costs English "
        f"{languages[worst].everywhere.english:+.2f}.",
        *_without_controls(rows),
    )
    key = (
        Mark("own", "the language itself", "disc"),
        Mark("english", "English", "diamond"),
        Mark("random", "the language, random neurons off", "bar"),
    )
    figures = (
        Figure(_losses_caption(run), (losses,), key),
        _delta_figure("delta-held-out", rows, "Δ of the held-out loss by deactivated part", 2),
    )
    names = ("loss-by-language", "loss-absolute", "loss-intervals", "delta-held-out-loss")
    parts = tuple(tables[name] for name in names if name in tables)
    return Section("loss", "What switching the neurons off costs", words, figures, parts)


def _without_controls(rows: Sequence[DeltaRow]) -> Iterator[str]:
    """Says which rows have no random sets to compare with, and how to get them."""
    controlled = {row.off for row in rows if row.neurons == "random"}
    alone = [_off(row) for row in rows if row.neurons != "random" and row.off not in controlled]
    if alone:
        yield (
            f"No random sets were measured for {', '.join(alone)}; mwork run --random-stages in the same folder adds "
            "them."
        )


def _losses_caption(run: RunResults) -> str:
    measured = any(row.everywhere.own_ci95 for row in run.languages.values())
    lines = "Lines: 95 % intervals over clusters of documents; of random, from the lowest to the highest set. "
    without = "Lines: of random, from the lowest to the highest set. "
    return f"The further right, the worse the model predicts held-out text. {lines if measured else without}".strip()


def _matrix_section(run: RunResults, tables: Mapping[str, Table]) -> Section:
    rows, columns = matrix_order(run)
    rises = np.asarray([[run.matrix[off][lang].rise for lang in columns] for off in rows])
    highest = [columns[i] for i in rises.argmax(axis=1)]
    first = sum(most == off for off, most in zip(rows, highest, strict=True))
    elsewhere = {(off, lang): run.matrix[off][lang].rise for off in rows for lang in columns if lang != off}
    (off, hurt), most = max(elsewhere.items(), key=lambda cell: cell[1])
    words = (
        f"Each language's neurons were switched off in turn, and every language measured: the language itself loses "
        f"most in {first} of {len(rows)} rows. The most that one set costs another language is {most:+.2f} nats per "
        f"token, {name_of(hurt)} under the neurons of {name_of(off)}.",
    )
    alt = "; ".join(
        f"{name_of(off)} off: {name_of(off)} {run.matrix[off][off].rise:+.2f}, the others at most "
        f"{max(run.matrix[off][lang].rise for lang in columns if lang != off):+.2f}"
        for off in rows
    )
    drawing = draw(
        "language-matrix",
        "Rise of each language's held-out loss with each language's neurons off",
        f"Nats per token. {alt}.",
        _squares_size(rows, columns),
        lambda ax: plot_matrix(ax, rows, columns, rises),
    )
    figures = (Figure(f"Nats per token. {matrix_note(run)}", (drawing,)),)
    return Section("matrix", "What each set costs each language", words, figures, (tables["language-matrix"],))


def _squares_size(rows: Sequence[str], columns: Sequence[str]) -> tuple[float, float]:
    """Inches for a figure of squares with the names of languages beside and below them, however long they are."""
    names = 0.4 + max(0.9, 0.075 * max(len(name_of(language)) for language in (*rows, *columns)))
    return 0.42 * len(columns) + names, 0.42 * len(rows) + names


def _delta_figure(name: str, rows: Sequence[DeltaRow], label: str, digits: int) -> Figure:
    drawing = draw(
        name,
        label,
        "; ".join(
            f"{_NEURONS.get(r.neurons, r.neurons)} neurons off in {_off(r)}: Δ "
            f"{r.effect:+.{digits}f} ({interval_text(r.effect_ci95, digits)})"
            for r in rows
        ),
        (_WIDE, 0.32 * len(rows) + 0.75),
        lambda ax: plot_deltas(ax, rows),
    )
    what = (
        "Δ = ΔEng − Δn-Eng: far to the right, the languages suffer and English does not."
        if all(row.delta is not None for row in rows)
        else "−Δn-Eng, as there is no English: far to the right, the languages suffer."
    )
    caption = f"{what} Lines: 95 % intervals. Rings: random neurons. ≈: not told apart from random."
    key = (Mark("own", "language-specific", "disc"), Mark("random", "random", "ring"))
    return Figure(caption, (drawing,), key)


def _off(row: DeltaRow) -> str:
    return " and ".join(parts_off(row)) or "no stage"


def _task_section(table: TableResult, tables: Mapping[str, Table]) -> Section:
    task, name = table.task, table_name(table)
    original = ", ".join(
        f"{name_of(lang)} {scores[task.score]:.{digits_of(table)}f}"
        for lang, scores in table.original.items()
        if task.score in scores
    )
    unit = "" if task.name == HELD_OUT_LOSS else " in points"
    words = (f"Task: {table.task_title}, scored by {task.score}{unit}. Original model: {original}.",)
    label = f"Δ on {table.task_title} by deactivated part"
    figure = _delta_figure(f"delta-{name}", table.rows, label, digits_of(table))
    return Section(name, f"Table {table.table}: {table.stage or table.task_title}", words, (figure,), (tables[name],))


def _lens_section(loaded: LoadedResults, tables: Mapping[str, Table]) -> Section:
    lens = loaded.lens
    assert lens is not None
    figures = []
    for off, caption in (
        (
            False,
            "The original model. Each panel: prompts in one language; what share of each layer's top tokens is of "
            "which language. Layer 0 is the embeddings.",
        ),
        (True, "The same prompts with the language's own neurons switched off."),
    ):
        shares = lens_shares(lens, off)
        if shares:
            drawings = tuple(_lens_drawing(loaded, lang, s, "-off" if off else "") for lang, s in shares.items())
            figures.append(Figure(caption, drawings, LENS_KEY))
    return Section(
        "layers",
        "Languages by layer",
        (lens_sentence(lens), _LABELS_NOTE),
        tuple(figures),
        tuple(tables[name] for name in ("languages-by-layer", "figure-1-pattern") if name in tables),
        lens.examples,
    )


def _grid_section(grid: TableResult) -> Section:
    tables, drawings = tuple(grid_tables(grid)), []
    deltas = [row.effect for row in grid.rows]
    ends = min(deltas), max(deltas)
    for table, (off, rows) in zip(tables, grid_settings(grid).items(), strict=True):
        best = max(rows, key=lambda row: row.effect)
        alt = f"Highest Δ {best.effect:+.{digits_of(grid)}f} at N1 = {best.understanding}, N2 = {best.generation}."
        drawings.append(draw(table.name, " + ".join(off), alt, _PANEL, partial(plot_grid, rows=rows, ends=ends)))
    figure = Figure("Δ, by N1 (down) and N2 (across); one panel for each deactivated part.", tuple(drawings))
    title = f"Table {grid.table}, every N1 and N2: {grid.stage or grid.task_title}"
    return Section(table_name(grid), title, (f"Task: {grid.task_title}.",), (figure,), tables)


def _tuning_section(tuning: EnhanceResults, tables: Mapping[str, Table]) -> Section:
    caption = "Mean change over the tuned languages, by documents. Faint: each language."
    words = ("Only the selected neurons were trained; everything else is as it was. Higher is better.",)
    parts = tuple(t for name, t in tables.items() if name.startswith("table-6-"))
    return Section("tuning", "What tuning them brings", words, (Figure(caption, (tuning_figure(tuning),)),), parts)


def tuning_figure(tuning: EnhanceResults) -> Drawing:
    """Figure 4: one panel for each measure of `mwork enhance --sweep`."""
    alt = "; ".join(
        f"{measure_title(tuning, r.task)}, {name_of(r.language)}, {r.neurons} neurons, {r.documents} documents: "
        f"{r.delta_n_eng:+.3g}"
        for r in tuning.rows
    )
    plots = [
        partial(plot_enhancement, rows=[r for r in tuning.rows if r.task == name], title=measure_title(tuning, name))
        for name in measures(tuning)
    ]
    return draw("figure-4", "What tuning changed, by documents", alt, (_WIDE, 2.4), *plots)


def _lm_eval_section(tables: Mapping[str, Table]) -> Section:
    words = ("Tasks, prompts, filters and metrics are those of lm-evaluation-harness.",)
    return Section("lm-eval", "Tasks of lm-evaluation-harness", words, tables=(tables["lm-eval"],))


def _steer_section(steer: SteerResults, tables: Mapping[str, Table]) -> Section:
    """What forces a language, and at what cost."""
    pairs = dict.fromkeys((row.prompt, row.language) for row in steer.grid)
    drawings = []
    for prompt, language in pairs:
        rows = [row for row in steer.grid if (row.prompt, row.language) == (prompt, language)]
        best = max(rows, key=lambda row: row.score)
        alt = f"Highest score {100 * best.score:.1f} with {steer_name(best)}, forcing {100 * best.forcing:.0f} %."
        label = f"{name_of(prompt)} to {name_of(language)}"
        size = (3.5, 2.2 + 0.17 * len({(row.recipe, row.layer) for row in rows}))
        drawings.append(
            draw(f"steering-{slug(prompt)}-{slug(language)}", label, alt, size, partial(plot_steering, rows=rows))
        )
    figures = [Figure("Forcing against the cost in English, over the strengths.", tuple(drawings))]
    if len({prompt for prompt, _ in pairs}) > 1:
        figures.append(Figure("Forcing, percent, by the prompts' language (down).", tuple(_matrices(steer))))
    words = (
        f"Answers wanted in another language than the prompt's, to questions of {steer.task_title}. Every recipe's "
        "setting is chosen on the first half of the prompts and measured on the second.",
    )
    parts = tables["steering-best"], tables["steering-grid"]
    return Section("steering", "Forcing a language", words, tuple(figures), parts)


def _matrices(steer: SteerResults) -> Iterator[Drawing]:
    """The best setting of each recipe, by the language of the prompts and the one wanted."""
    steered = [row for row in steer.best if row.kind == "steered"]
    for recipe in dict.fromkeys(row.recipe for row in steered):
        rows = [row for row in steered if row.recipe == recipe]
        alt = "; ".join(f"{row.prompt} to {row.language} {100 * row.forcing:.0f} %" for row in rows)
        name = f"forcing-{slug(str(recipe))}"
        yield draw(name, str(recipe), alt, _PANEL, partial(plot_forcing_matrix, rows=rows))


_LABELS_NOTE = (
    "A token's language is chosen among those asked for, by script and then by its letters; a word of a language that "
    "is not among them may be taken for a similar one, so small shares mean little."
)
LENS_KEY = (
    Mark("own", "the prompt's language"),
    Mark("english", "English"),
    Mark("others", "the other languages"),
    Mark("rest", "not labelled"),
)


def _lens_drawing(loaded: LoadedResults, language: str, shares: LensShares, suffix: str) -> Drawing:
    lens = loaded.lens
    assert lens is not None
    own, english, rest = own_english_rest(lens, shares)
    layers = [
        f"layer {i}: own {100 * own[i]:.0f} %, English {100 * english[i]:.0f} %, not labelled {100 * rest[i]:.0f} %"
        for i in sorted({0, len(own) // 2, len(own) - 1})
    ]
    plot = partial(plot_layer_languages, lens=lens, shares=shares, split=loaded.split)
    return draw(
        f"languages-by-layer-{slug(language)}{suffix}", full_name(language), "; ".join(layers) + ".", _PANEL, plot
    )


def _where_section(loaded: LoadedResults, tables: Mapping[str, Table]) -> Section:
    sets = {lang: s for lang, s in loaded.neurons.items() if lang != ENGLISH} or loaded.neurons
    full = max(float(neuron_shares(s).max()) for s in sets.values()) or 1.0
    drawings, read = [], (loaded.folder / FILE).is_file()
    for language, neurons in sets.items():
        shares, address = neuron_shares(neurons), partial(fragment, language) if read else None
        group, layer = np.unravel_index(int(shares.argmax()), shares.shape)
        most = f"{tuple(neurons.groups)[group]} of layer {layer + 1}, {100 * shares.max():.1f} %"
        plot = partial(plot_neurons, neurons=neurons, split=loaded.split, full=full, address=address)
        alt = f"{neurons.count()} neurons; the largest share is in {most}."
        drawings.append(
            draw(f"neurons-{slug(language)}", f"{full_name(language)}: {neurons.count():,}", alt, (3.5, 1.75), plot)
        )
    split = loaded.split
    caption = (
        f"Share of each layer and group that is the language's own; the strongest square is {100 * full:.1f} %. "
        f"Understanding is up to N1 (layer {split.understanding}), generation from N2 on (the last {split.generation})."
    )
    words = (f"Rule {loaded.rule}, mode {loaded.mode}.",)
    links = tuple((fragment(lang), f"What neurons of {name_of(lang)} read") for lang in sets) if read else ()
    figures = (Figure(caption, tuple(drawings)),)
    return Section("where", "Where the neurons sit", words, figures, (tables["neurons"],), links=links)


def _overlap_section(loaded: LoadedResults, tables: Mapping[str, Table]) -> Section:
    shared = overlap(loaded.overlap_sets)
    upper = np.triu_indices(len(shared.languages), 1)
    best = int(np.argmax(shared.jaccard[upper]))
    pair = [name_of(shared.languages[int(axis[best])]) for axis in upper]
    highest = float(shared.jaccard[upper][best])
    most = f"{pair[0]} and {pair[1]} share most: {100 * highest:.0f} % of what either has."
    if not highest:
        most = "No two of these languages share a neuron."
    drawing = draw(
        "overlap",
        "Jaccard index of each two languages, percent",
        most,
        _squares_size(shared.languages, shared.languages),
        lambda ax: plot_overlap(ax, shared),
    )
    caption = f"{loaded.overlap_note} Similar languages are side by side (average linkage). In percent."
    return Section("overlap", "What languages share", (most,), (Figure(caption, (drawing,)),), (tables["overlap"],))


def _threshold_section(loaded: LoadedResults, tables: Mapping[str, Table]) -> Section:
    curves = threshold_curves(loaded.scores, FRACTIONS, mode=loaded.mode)
    if loaded.mode == "minus_english":
        curves = {lang: curve for lang, curve in curves.items() if lang != ENGLISH}
    rule = Rule.parse(loaded.rule)
    current = rule.value if rule.kind == "top_fraction" else None
    alt = "; ".join(
        f"{name_of(lang)}: most at {100 * FRACTIONS[int(np.argmax(c))]:.2g} %, {c.max()} neurons"
        for lang, c in curves.items()
    )
    plot = partial(plot_thresholds, values=FRACTIONS, curves=curves, current=current)
    drawing = draw("thresholds", "Neurons found at every threshold", alt + ".", (_WIDE, 2.9), plot)
    caption = (
        "How many neurons are among the top fraction of their layer and group for every document of a language, mode "
        f"{loaded.mode}. From the order statistics of one pass."
    )
    words = ("Another threshold needs no new pass over the documents.",)
    return Section("thresholds", "Other thresholds", words, (Figure(caption, (drawing,)),), (tables["thresholds"],))


def _importance_section(loaded: LoadedResults, tables: Mapping[str, Table]) -> Section:
    of_each = [importance_quantiles(s) for s in loaded.scores.values()]
    drawings = []
    for group, title in GROUP_TITLES.items():
        quantiles = np.mean([q[group] for q in of_each], axis=0)
        median, highest = quantiles[QUANTILES.index(0.5)], quantiles[QUANTILES.index(0.999)]
        spread = highest / np.maximum(median, 1e-12)
        alt = (
            f"Median {median.min():.2g} to {median.max():.2g}; the 99.9th percentile is {spread.min():.0f} "
            f"to {spread.max():.0f} times the median of its layer."
        )
        plot = partial(plot_importance, quantiles=quantiles, split=loaded.split)
        drawings.append(draw(f"importance-{group}", title, alt, _PANEL, plot))
    caption = (
        "Mean importance over a language's documents: quantiles over a layer's neurons, averaged over the languages. "
        "Band: the middle 80 %; line: median; dashed: 99th, dotted: 99.9th percentile. Queries and keys are measured "
        "on the attention weights, the others on the block's output, so their scales differ."
    )
    figures, data = (Figure(caption, tuple(drawings)),), (tables["importance"],)
    return Section("importance", "How importance is spread", (), figures, data)
