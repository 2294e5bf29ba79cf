"""The parts of the page: which figures and tables a folder's results allow, and the words around them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np

from mwork_jax.analysis import QUANTILES, importance_quantiles, overlap, threshold_curves
from mwork_jax.metrics import ENGLISH
from mwork_jax.report.figures import (
    neuron_shares,
    plot_deltas,
    plot_enhancement,
    plot_grid,
    plot_importance,
    plot_layer_languages,
    plot_losses,
    plot_neurons,
    plot_overlap,
    plot_thresholds,
)
from mwork_jax.report.language_names import full_name, name_of
from mwork_jax.report.loaded_results import LoadedResults
from mwork_jax.report.names import slug
from mwork_jax.report.svg import Drawing, draw
from mwork_jax.report.table import Table
from mwork_jax.report.tables import (
    FRACTIONS,
    all_tables,
    grid_settings,
    grid_tables,
    interval_text,
    lens_sentence,
    lens_shares,
    measures,
    own_english_rest,
    parts_off,
    table_name,
)
from mwork_jax.results import DeltaRow, EnhanceResults, LensExample, LensShares, RunResults, TableResult
from mwork_jax.select.rules import Rule

_PANEL, _WIDE = (3.5, 2.15), 4.1
GROUP_TITLES = {
    "attn_q": "Queries",
    "attn_k": "Keys",
    "attn_v": "Values",
    "ffn_up": "Feed-forward (up and down alike)",
}


@dataclass(frozen=True)
class Figure:
    """One or several drawings under one caption. key: (colour name of the theme, what it stands for)."""

    caption: str
    drawings: tuple[Drawing, ...]
    key: tuple[tuple[str, str], ...] = ()


@dataclass(frozen=True)
class Section:
    """A heading, what is to be said, figures, the tables with the data behind them, and examples as HTML is built by
    the page."""

    name: str
    title: str
    words: tuple[str, ...]
    figures: tuple[Figure, ...] = ()
    tables: tuple[Table, ...] = ()
    examples: tuple[LensExample, ...] = ()


def sections(loaded: LoadedResults) -> Iterator[Section]:
    """In the order of the page."""
    tables = {table.name: table for table in all_tables(loaded)}
    if loaded.run is not None:
        yield _run_section(loaded.run, tables)
    for table in loaded.tables:
        yield _task_section(table, tables)
    for grid in loaded.grids:
        yield _grid_section(grid)
    if loaded.tuning is not None:
        yield _tuning_section(loaded.tuning, tables)
    if loaded.lens is not None:
        yield _lens_section(loaded, tables)
    if loaded.neurons:
        yield _where_section(loaded, tables)
    if loaded.overlap_sets:
        yield _overlap_section(loaded, tables)
    if loaded.scores:
        yield _threshold_section(loaded, tables)
        yield _importance_section(loaded, tables)


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
        (_WIDE, 0.32 * len(languages) + 0.75),
        lambda ax: plot_losses(ax, languages),
    )
    words = (
        f"With its own neurons switched off, {name_of(worst)} loses most, "
        f"{languages[worst].everywhere.own:+.2f} nats per token; the same costs English "
        f"{languages[worst].everywhere.english:+.2f}.",
    )
    key = (
        ("own", "the language itself (disc)"),
        ("english", "English (diamond)"),
        ("random", "the language, random neurons off (bar)"),
    )
    figures = (
        Figure(
            "Each line is one language. The further right, the worse the model predicts held-out text.", (losses,), key
        ),
        _delta_figure("delta-held-out", rows, "Δ of the held-out loss by deactivated part", 2),
    )
    parts = (tables["loss-by-language"], tables["delta-held-out-loss"])
    return Section("loss", "What switching the neurons off costs", words, figures, parts)


def _delta_figure(name: str, rows: Sequence[DeltaRow], label: str, digits: int) -> Figure:
    drawing = draw(
        name,
        label,
        "; ".join(
            f"{'random' if r.neurons == 'random' else 'language-specific'} neurons off in {_off(r)}: Δ "
            f"{r.delta:+.{digits}f} ({interval_text(r.delta_ci95, digits)})"
            for r in rows
        ),
        (_WIDE, 0.32 * len(rows) + 0.75),
        lambda ax: plot_deltas(ax, rows),
    )
    caption = (
        "Δ = ΔEng − Δn-Eng: far to the right, the languages suffer and English does not. Lines: 95 % intervals. Rings: "
        "random neurons. ≈: not told apart from random."
    )
    return Figure(caption, (drawing,), (("own", "language-specific (disc)"), ("random", "random (ring)")))


def _off(row: DeltaRow) -> str:
    return " and ".join(parts_off(row)) or "no stage"


def _task_section(table: TableResult, tables: Mapping[str, Table]) -> Section:
    task, name = table.task, table_name(table)
    original = ", ".join(
        f"{name_of(lang)} {scores[task.score]:.1f}" for lang, scores in table.original.items() if task.score in scores
    )
    words = (f"Task {task.name}, scored by {task.score} in points. Original model: {original}.",)
    label = f"Δ on {task.name} by deactivated part"
    figure = _delta_figure(f"delta-{name}", table.rows, label, 1)
    return Section(name, f"Table {table.table}: {table.stage}", words, (figure,), (tables[name],))


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
        (tables["languages-by-layer"],),
        lens.examples,
    )


def _grid_section(grid: TableResult) -> Section:
    tables, drawings = tuple(grid_tables(grid)), []
    for table, (off, rows) in zip(tables, grid_settings(grid).items(), strict=True):
        best = max(rows, key=lambda row: row.delta)
        alt = f"Highest Δ {best.delta:+.1f} at N1 = {best.understanding}, N2 = {best.generation}."
        drawings.append(draw(table.name, " + ".join(off), alt, _PANEL, partial(plot_grid, rows=rows)))
    figure = Figure("Δ in points, by N1 (down) and N2 (across); one panel for each deactivated part.", tuple(drawings))
    title = f"Table {grid.table}, every N1 and N2: {grid.stage}"
    return Section(table_name(grid), title, (f"Task {grid.task.name}.",), (figure,), tables)


def _tuning_section(tuning: EnhanceResults, tables: Mapping[str, Table]) -> Section:
    caption = "Mean change over the tuned languages, by documents. Faint: each language."
    words = ("Only the selected neurons were trained; everything else is as it was. Higher is better.",)
    parts = tuple(t for name, t in tables.items() if name.startswith("table-6-"))
    return Section("tuning", "What tuning them brings", words, (Figure(caption, (tuning_figure(tuning),)),), parts)


def tuning_figure(tuning: EnhanceResults) -> Drawing:
    """Figure 4: one panel for each measure of `mwork enhance --sweep`."""
    alt = "; ".join(
        f"{r.task}, {name_of(r.language)}, {r.neurons} neurons, {r.documents} documents: {r.delta_n_eng:+.3g}"
        for r in tuning.rows
    )
    rows = ([row for row in tuning.rows if row.task == measure] for measure in measures(tuning))
    plots = [partial(plot_enhancement, rows=alike) for alike in rows]
    return draw("figure-4", "What tuning changed, by documents", alt, (_WIDE, 2.4), *plots)


_LABELS_NOTE = (
    "A token's language is chosen among those asked for, by script and then by its letters; a word of a language that "
    "is not among them may be taken for a similar one, so small shares mean little."
)
LENS_KEY = (
    ("own", "the prompt's language"),
    ("english", "English"),
    ("others", "the other languages"),
    ("rest", "not labelled"),
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
    drawings = []
    for language, neurons in sets.items():
        shares = neuron_shares(neurons)
        group, layer = np.unravel_index(int(shares.argmax()), shares.shape)
        most = f"{tuple(neurons.groups)[group]} of layer {layer + 1}, {100 * shares.max():.1f} %"
        plot = partial(plot_neurons, neurons=neurons, split=loaded.split, full=full)
        alt = f"{neurons.count()} neurons; the largest share is in {most}."
        drawings.append(
            draw(f"neurons-{slug(language)}", f"{full_name(language)}: {neurons.count():,}", alt, (3.5, 1.75), plot)
        )
    split = loaded.split
    caption = (
        f"Share of each layer and group that is the language's own; the darkest square is {100 * full:.1f} %. "
        f"Understanding is up to N1 (layer {split.understanding}), generation from N2 on (the last {split.generation})."
    )
    words = (f"Rule {loaded.rule}, mode {loaded.mode}.",)
    return Section("where", "Where the neurons sit", words, (Figure(caption, tuple(drawings)),), (tables["neurons"],))


def _overlap_section(loaded: LoadedResults, tables: Mapping[str, Table]) -> Section:
    shared = overlap(loaded.overlap_sets)
    upper = np.triu_indices(len(shared.languages), 1)
    best = int(np.argmax(shared.jaccard[upper]))
    pair = [name_of(shared.languages[int(axis[best])]) for axis in upper]
    most = f"{pair[0]} and {pair[1]} share most: {100 * shared.jaccard[upper][best]:.0f} % of what either has."
    size = 0.42 * len(shared.languages) + 1.3
    drawing = draw(
        "overlap",
        "Jaccard index of each two languages, percent",
        most,
        (size, size),
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
