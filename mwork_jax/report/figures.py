"""Plot functions: each draws on a matplotlib axis, so a paper or a notebook can use it alone; the page uses the same.

Colours are safe for colour-blind readers (after Okabe and Ito), and nothing is told by colour alone.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np

from mwork_jax.analysis import Overlap
from mwork_jax.intervene.stages import StageSplit
from mwork_jax.metrics import ENGLISH
from mwork_jax.neurons import GROUPS, NeuronSet
from mwork_jax.report.language_names import name_of, shown_name
from mwork_jax.report.tables import ALIKE, STAGE_TITLES, against_random, own_english_rest, parts_off, score_of
from mwork_jax.results import DeltaRow, LanguageChange, LensResults, LensShares, TuningRow

if TYPE_CHECKING:
    from matplotlib.axes import Axes

INK, MUTED, GRID, PAPER = "#1c1c22", "#5f5f6b", "#dcdce3", "#ffffff"
OWN, ENGLISH_COLOUR, OTHERS, REST_COLOUR, RANDOM = "#d55e00", "#0072b2", "#009e73", "#c9c9d2", "#7d7d8a"
LINES = (OWN, ENGLISH_COLOUR, OTHERS, "#cc79a7", "#b8860b", "#56b4e9", "#7a4fbf", "#8c564b", "#444450")
_STROKES = ("-", "--", "-.", ":")
STYLE = {
    "axes.edgecolor": MUTED,
    "axes.labelcolor": INK,
    "axes.linewidth": 0.7,
    "axes.spines.right": False,
    "axes.spines.top": False,
    "axes.axisbelow": True,
    "figure.facecolor": "none",
    "axes.facecolor": "none",
    "font.size": 9,
    "grid.color": GRID,
    "grid.linewidth": 0.6,
    "svg.fonttype": "none",
    "text.parse_math": False,
    "text.color": INK,
    "xtick.color": MUTED,
    "xtick.labelcolor": INK,
    "ytick.color": MUTED,
    "ytick.labelcolor": INK,
    "legend.frameon": False,
    "legend.fontsize": 8,
}


def plot_layer_languages(ax: Axes, lens: LensResults, shares: LensShares, split: StageSplit) -> None:
    """Figure 1 for the prompts of one language: stacked shares of its own tokens, English, the other languages and
    what has no label, by layer; 0 is the embeddings."""
    own, english, rest = (100 * part for part in own_english_rest(lens, shares))
    layers = np.arange(len(own))
    if shares.language == ENGLISH:
        parts = [(english, ENGLISH_COLOUR), (100 - english - rest, OTHERS), (rest, REST_COLOUR)]
    else:
        others = np.maximum(100 - own - english - rest, 0)
        parts = [(own, OWN), (english, ENGLISH_COLOUR), (others, OTHERS), (rest, REST_COLOUR)]
    ax.stackplot(layers, *(p for p, _ in parts), colors=[c for _, c in parts], linewidth=0.6, edgecolor=PAPER)
    ax.set(xlim=(0, layers[-1]), ylim=(0, 100), xlabel="layer", ylabel="% of top tokens")
    _whole_numbers(ax)
    _stages(ax, split, first=0)


def plot_neurons(ax: Axes, neurons: NeuronSet, split: StageSplit, full: float | None = None) -> None:
    """Where one language's neurons sit: the share of each layer and group, darker for more. full: the share drawn
    darkest (default: the set's largest)."""
    shares = neuron_shares(neurons)
    full = full or shares.max() or 1.0
    _squares(ax, shares / full, OWN)
    ax.set(ylim=(len(GROUPS) - 0.5, -0.5), xlim=(0.5, shares.shape[1] + 0.5), xlabel="layer")
    ax.set_yticks(range(len(GROUPS)), GROUPS)
    _whole_numbers(ax, nbins=7, min_n_ticks=3)
    ax.tick_params(length=0)
    _bare(ax)
    _stages(ax, split, first=1)


def neuron_shares(neurons: NeuronSet) -> np.ndarray:
    """The members' share of each group and layer: float64 [groups, layers]."""
    return np.stack([neurons.groups[g].mean(axis=1) for g in GROUPS])


def plot_overlap(ax: Axes, shared: Overlap) -> None:
    """Jaccard index of each two languages, in percent; similar languages are side by side."""
    count = len(shared.languages)
    shown = shared.jaccard.copy()
    np.fill_diagonal(shown, 0.0)
    _squares(ax, shown.T / (shown.max() or 1.0), ENGLISH_COLOUR, first=0)
    for i in range(count):
        for j in range(count):
            ax.text(j, i, "–" if i == j else f"{100 * shown[i, j]:.0f}", ha="center", va="center", fontsize=8)
    names = [name_of(lang) for lang in shared.languages]
    ax.set_xticks(range(count), names, rotation=45, ha="right", rotation_mode="anchor")
    ax.set_yticks(range(count), names)
    ax.set(xlim=(-0.5, count - 0.5), ylim=(count - 0.5, -0.5))
    ax.tick_params(length=0)
    ax.set_aspect("equal")
    _bare(ax)


def plot_thresholds(ax: Axes, values: Sequence[float], curves: Mapping[str, np.ndarray], current: float | None) -> None:
    """How many neurons each language has at every threshold, each line named at its highest point or end."""
    for i, (language, curve) in enumerate(curves.items()):
        stroke = _STROKES[i % len(_STROKES)]
        ax.plot(values, curve, color=LINES[i % len(LINES)], linestyle=stroke, linewidth=1.4, label=name_of(language))
    if current is not None:
        ax.axvline(current, color=MUTED, linewidth=0.8, linestyle=(0, (2, 2)))
        _above(ax, f"{100 * current:g}%", current)
    ax.set_xscale("log")
    ticks = [t for t in (0.01, 0.02, 0.05, 0.1, 0.2, 0.5) if min(values) <= t <= max(values)]
    ax.set_xticks(ticks, [f"{100 * t:g}%" for t in ticks])
    ax.minorticks_off()
    ax.set(xlabel="top fraction of each layer and group", ylabel="neurons", xlim=(min(values), max(values)))
    ax.set_ylim(bottom=0)
    ax.grid(axis="y")
    ax.legend(loc="upper left", ncols=2, handlelength=2.6, columnspacing=1.0)


def plot_importance(ax: Axes, quantiles: np.ndarray, split: StageSplit) -> None:
    """How importance is spread over the neurons of each layer: the middle 80 % as a band, the median, and the 99th and
    99.9th percentile. quantiles: float [5, layers], at 0.1, 0.5, 0.9, 0.99, 0.999."""
    layers = np.arange(1, quantiles.shape[1] + 1)
    low, middle, high, upper, top = np.maximum(quantiles, 1e-12)
    ax.fill_between(layers, low, high, color=ENGLISH_COLOUR, alpha=0.25, linewidth=0)
    ax.plot(layers, middle, color=ENGLISH_COLOUR, linewidth=1.4)
    ax.plot(layers, upper, color=OWN, linewidth=1.2, linestyle="--")
    ax.plot(layers, top, color=OWN, linewidth=1.2, linestyle=":")
    ax.set_yscale("log")
    ax.set(xlim=(1, layers[-1]), xlabel="layer", ylabel="Imp")
    _whole_numbers(ax)
    ax.grid(axis="y")
    _stages(ax, split, first=1)


def plot_losses(ax: Axes, languages: Mapping[str, LanguageChange]) -> None:
    """What switching a language's neurons off costs, in nats per token: the language (disc), English (diamond), and the
    language with as many random neurons off (bar)."""
    for y, row in enumerate(languages.values()):
        own, english, random = row.everywhere.own, row.everywhere.english, row.random.own_mean
        ax.plot([min(own, english, random), max(own, english, random)], [y, y], color=GRID, linewidth=2, zorder=1)
        ax.scatter(random, y, marker="|", s=70, color=RANDOM, linewidths=1.8, zorder=2)
        ax.scatter(english, y, marker="D", s=24, color=ENGLISH_COLOUR, zorder=3)
        ax.scatter(own, y, marker="o", s=38, color=OWN, zorder=4)
    ax.axvline(0, color=MUTED, linewidth=0.7)
    ax.set_yticks(range(len(languages)), [name_of(lang) for lang in languages])
    ax.set(ylim=(len(languages) - 0.4, -0.6), xlabel="rise of the loss, nats per token")
    ax.grid(axis="x")
    ax.tick_params(axis="y", length=0)
    ax.spines["left"].set_visible(False)


def plot_deltas(ax: Axes, rows: Sequence[DeltaRow]) -> None:
    """Delta of each row with its 95 % interval: discs for language-specific neurons, rings for random ones; ≈ marks a
    Delta that is not told apart from random."""
    for y, row in enumerate(rows):
        random = row.neurons == "random"
        colour = RANDOM if random else OWN
        if row.delta_ci95 is not None:
            ax.plot(row.delta_ci95, [y, y], color=colour, linewidth=1.6, solid_capstyle="butt", zorder=2)
        ax.scatter(row.delta, y, s=34, color=PAPER if random else colour, edgecolors=colour, linewidths=1.4, zorder=3)
        if against_random(row) == ALIKE:
            end = row.delta_ci95[1] if row.delta_ci95 else row.delta
            ax.annotate(ALIKE, (end, y), (4, 0), textcoords="offset points", va="center")
    ax.axvline(0, color=MUTED, linewidth=0.7)
    ax.set_yticks(range(len(rows)), [row_name(row) for row in rows])
    ax.set(ylim=(len(rows) - 0.4, -0.6), xlabel="Δ = ΔEng − Δn-Eng")
    ax.margins(x=0.08)
    ax.grid(axis="x")
    ax.tick_params(axis="y", length=0)
    ax.spines["left"].set_visible(False)


def plot_enhancement(ax: Axes, rows: Sequence[TuningRow]) -> None:
    """Figure 4: what tuning changed in the tuned languages against the number of documents, mean over the languages;
    faint lines are single ones. rows: those of one measure."""
    counts = sorted({row.documents for row in rows})
    for kind, name, colour, mark in (("lang-spec", "Lang-Spec", OWN, "o"), ("random", "Random", RANDOM, "s")):
        of_kind = [row for row in rows if row.neurons == kind]
        for language in dict.fromkeys(row.language for row in of_kind):
            line = sorted((r.documents, r.delta_n_eng) for r in of_kind if r.language == language)
            ax.plot(*zip(*line, strict=True), color=colour, linewidth=0.8, marker=".", markersize=3, alpha=0.35)
        means = [(n, [r.delta_n_eng for r in of_kind if r.documents == n]) for n in counts]
        shown = [(n, float(np.mean(values))) for n, values in means if values]
        if shown:
            ax.plot(*zip(*shown, strict=True), color=colour, linewidth=1.6, marker=mark, markersize=5, label=name)
    ax.axhline(0, color=MUTED, linewidth=0.7)
    ax.set_xticks(counts)
    ax.set_title(shown_name(rows[0].task), fontsize=9, loc="left")
    ax.set(xlabel="documents", ylabel=f"change, {score_of(rows[0].task)}")
    ax.margins(x=0.06)
    ax.grid(axis="y")
    ax.legend(loc="best")


def plot_grid(ax: Axes, rows: Sequence[DeltaRow]) -> None:
    """Delta of one setting for every N1 and N2, darker for higher; the highest in bold."""
    first = sorted({row.understanding or 0 for row in rows})
    last = sorted({row.generation or 0 for row in rows})
    values = np.full((len(first), len(last)), np.nan)
    for row in rows:
        values[first.index(row.understanding or 0), last.index(row.generation or 0)] = row.delta
    low, high = np.nanmin(values), np.nanmax(values)
    _squares(ax, np.nan_to_num((values - low) / (high - low or 1.0)), OWN, first=0)
    for (i, j), value in np.ndenumerate(values):
        if np.isfinite(value):
            weight = "bold" if value == high > low else "normal"
            ax.text(j, i, f"{value:+.1f}", ha="center", va="center", fontsize=8, weight=weight)
    ax.set_xticks(range(len(last)), map(str, last))
    ax.set_yticks(range(len(first)), map(str, first))
    ax.set(xlim=(-0.5, len(last) - 0.5), ylim=(len(first) - 0.5, -0.5), xlabel="N2", ylabel="N1")
    ax.tick_params(length=0)
    _bare(ax)


def row_name(row: DeltaRow) -> str:
    """Which parts a row switches off, in a few words."""
    off = parts_off(row)
    where = "everywhere" if len(off) == len(STAGE_TITLES) else " + ".join(off)
    return f"{where}, random" if row.neurons == "random" else where


def _squares(ax: Axes, strength: np.ndarray, colour: str, first: int = 1) -> None:
    """A grid of squares, one colour, stronger for more: strength [rows, columns] from 0 to 1."""
    from matplotlib.collections import PatchCollection
    from matplotlib.colors import to_rgba
    from matplotlib.patches import Rectangle

    corners = [(j + first - 0.47, i - 0.46) for i in range(strength.shape[0]) for j in range(strength.shape[1])]
    tints = [to_rgba(colour, 0.06 + 0.74 * float(s)) for s in strength.ravel()]
    ax.add_collection(PatchCollection([Rectangle(p, 0.94, 0.92) for p in corners], facecolors=tints, edgecolors="none"))


def _whole_numbers(ax: Axes, **limits: int) -> None:
    """Marks whole layers only along the axis. limits: as matplotlib's MaxNLocator takes them."""
    from matplotlib.ticker import AutoLocator

    locator = AutoLocator()
    locator.set_params(integer=True, **limits)
    ax.xaxis.set_major_locator(locator)


def _bare(ax: Axes) -> None:
    for spine in ax.spines.values():
        spine.set_visible(False)


def _stages(ax: Axes, split: StageSplit, first: int) -> None:
    """Marks where understanding ends (N1) and generation begins (N2), between two layers."""
    for name, place in (("N1", split.understanding + 0.5), ("N2", split.layers - split.generation + 0.5)):
        if first < place < split.layers:
            ax.axvline(place, color=INK, linewidth=0.9, linestyle=(0, (3, 2)))
            _above(ax, name, place)


def _above(ax: Axes, text: str, x: float) -> None:
    """A small label over the axis at a place along it."""
    coordinates = {"xycoords": ("data", "axes fraction"), "textcoords": "offset points"}
    ax.annotate(text, (x, 1), (0, 2), ha="center", fontsize=7.5, color=MUTED, **coordinates)
