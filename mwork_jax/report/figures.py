"""Plot functions: each draws on a matplotlib axis, so a paper or a notebook can use it alone; the page uses the same.

Colours are safe for colour-blind readers (after Okabe and Ito), and nothing is told by colour alone.
"""

from __future__ import annotations

import textwrap
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np

from mwork_jax.analysis import Overlap
from mwork_jax.intervene.stages import StageSplit
from mwork_jax.metrics import ENGLISH
from mwork_jax.neurons import GROUPS, NeuronSet
from mwork_jax.report.language_names import name_of, shown_name
from mwork_jax.report.tables.cells import STAGE_TITLES, score_of
from mwork_jax.report.tables.deltas import ALIKE, against_random, parts_off, sets_title
from mwork_jax.report.tables.lens import own_english_rest
from mwork_jax.results import DeltaRow, LanguageChange, LensResults, LensShares, SteerRow, TuningRow

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.axis import Axis

INK, MUTED, GRID, PAPER = "#1c1c22", "#5f5f6b", "#dcdce3", "#ffffff"
OWN, ENGLISH_COLOUR, OTHERS, REST_COLOUR, RANDOM = "#d55e00", "#0072b2", "#009e73", "#c9c9d2", "#7d7d8a"
LINES = (OWN, ENGLISH_COLOUR, OTHERS, "#cc79a7", "#b8860b", "#56b4e9", "#7a4fbf", "#8c564b", "#444450")
LANE = 0.27  # between the marks of one language, in rows
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


def plot_neurons(
    ax: Axes,
    neurons: NeuronSet,
    split: StageSplit,
    full: float | None = None,
    address: Callable[[str, int], str] | None = None,
) -> None:
    """Where one language's neurons sit: the share of each layer and group, stronger for more. full: the share drawn
    strongest (default: the set's largest). address: where a square of a group and layer (from 1) leads; those without
    neurons lead nowhere."""
    shares = neuron_shares(neurons)
    full = full or float(shares.max()) or 1.0
    _squares(ax, shares / full, OWN)
    if address is not None:
        squares = [(GROUPS[i], j + 1, share) for (i, j), share in np.ndenumerate(shares)]
        ax.collections[-1].set_urls([address(group, layer) if share else None for group, layer, share in squares])
    ax.set(ylim=(len(GROUPS) - 0.5, -0.5), xlim=(0.5, shares.shape[1] + 0.5), xlabel="layer")
    ax.set_yticks(range(len(GROUPS)), GROUPS)
    _whole_numbers(ax, nbins=7, min_n_ticks=3)
    ax.tick_params(length=0)
    _bare(ax)
    _stages(ax, split, first=1)
    _colour_bar(ax, OWN, "0", f"{100 * full:.2g}%")


def neuron_shares(neurons: NeuronSet) -> np.ndarray:
    """The members' share of each group and layer: float64 [groups, layers]."""
    return np.stack([neurons.groups[g].mean(axis=1) for g in GROUPS])


def plot_overlap(ax: Axes, shared: Overlap) -> None:
    """Jaccard index of each two languages, in percent; similar languages are side by side."""
    shown = shared.jaccard.copy()
    np.fill_diagonal(shown, 0.0)
    _languages_by_languages(
        ax,
        shared.languages,
        shared.languages,
        shown,
        lambda own, other, value: "–" if own == other else f"{100 * value:.0f}",
        ENGLISH_COLOUR,
    )
    if (most := 100 * float(shown.max(initial=0.0))) > 0:
        _colour_bar(ax, ENGLISH_COLOUR, "0", f"{most:.2g}%")


def plot_matrix(ax: Axes, rows: Sequence[str], columns: Sequence[str], rises: np.ndarray) -> None:
    """Rise of each language's loss (columns) with each language's neurons off (rows), stronger for more; a language
    under its own neurons in bold. rises: float64 [rows, columns], nats per token."""
    _languages_by_languages(ax, rows, columns, rises, lambda _off, _measured, rise: _signed(rise), OWN)
    ax.set(xlabel="measured", ylabel="neurons off")
    for text in ax.texts:
        column, row = text.get_position()
        text.set_fontweight("bold" if columns[round(column)] == rows[round(row)] else "normal")
    if (most := float(rises.max())) > 0:
        _colour_bar(ax, OWN, "0" if rises.min() >= 0 else "0 or less", f"{most:.3g}")


def _signed(value: float) -> str:
    """With its sign, and so few digits that it stays in its square."""
    digits = 2 if abs(value) < 9.995 else 1 if abs(value) < 99.95 else 0
    return f"{value:+.{digits}f}" if abs(value) < 1e4 else f"{value:+.0e}"


def _languages_by_languages(
    ax: Axes,
    rows: Sequence[str],
    columns: Sequence[str],
    values: np.ndarray,
    shown: Callable[[str, str, float], str],
    colour: str,
) -> None:
    """A square for each two languages, stronger for a higher value, with a number in it. values: [rows, columns].
    shown: from a square's row, column and value to what stands in it."""
    _squares(ax, np.maximum(values, 0.0) / max(values.max(), np.finfo(float).tiny), colour, first=0)
    for i, row in enumerate(rows):
        for j, column in enumerate(columns):
            ax.text(j, i, shown(row, column, float(values[i, j])), ha="center", va="center", fontsize=8)
    ax.set_xticks(range(len(columns)), list(map(name_of, columns)), rotation=45, ha="right", rotation_mode="anchor")
    ax.set_yticks(range(len(rows)), list(map(name_of, rows)))
    ax.set(xlim=(-0.5, len(columns) - 0.5), ylim=(len(rows) - 0.5, -0.5))
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
    _plain_numbers(ax.yaxis)
    ax.set(xlim=(1, layers[-1]), xlabel="layer", ylabel="Imp")
    _whole_numbers(ax)
    ax.grid(axis="y")
    _stages(ax, split, first=1)


def plot_losses(ax: Axes, languages: Mapping[str, LanguageChange]) -> None:
    """What switching a language's neurons off costs, in nats per token, on three lines for each language, so that no
    mark hides another: the language (disc), English (diamond), and the language with as many random neurons off (bar).
    Through a mark: its 95 % interval; through the bar: from the lowest to the highest random set."""
    for y, row in enumerate(languages.values()):
        random = row.random
        for at, value, ends, mark, size, colour in (
            (y - LANE, row.everywhere.own, row.everywhere.own_ci95, "o", 30, OWN),
            (y, row.everywhere.english, row.everywhere.english_ci95, "D", 18, ENGLISH_COLOUR),
            (y + LANE, random.own_mean, (min(random.own), max(random.own)) if random.own else None, "|", 36, RANDOM),
        ):
            ax.plot([0, value], [at, at], color=GRID, linewidth=1.2, zorder=1)
            if ends is not None:
                ax.plot(ends, [at, at], color=colour, linewidth=1.2, solid_capstyle="butt", zorder=2)
            ax.scatter(value, at, marker=mark, s=size, color=colour, linewidths=1.8 if mark == "|" else 0.5, zorder=3)
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
        interval = row.effect_ci95
        if interval is not None:
            ax.plot(interval, [y, y], color=colour, linewidth=1.6, solid_capstyle="butt", zorder=2)
        ax.scatter(row.effect, y, s=34, color=PAPER if random else colour, edgecolors=colour, linewidths=1.4, zorder=3)
        if against_random(row) == ALIKE:
            end = interval[1] if interval else row.effect
            ax.annotate(ALIKE, (end, y), (4, 0), textcoords="offset points", va="center")
    ax.axvline(0, color=MUTED, linewidth=0.7)
    has_english = all(row.delta is not None for row in rows)
    ax.set_yticks(range(len(rows)), [row_name(row) for row in rows])
    ax.set(ylim=(len(rows) - 0.4, -0.6), xlabel="Δ = ΔEng − Δn-Eng" if has_english else "−Δn-Eng, without English")
    ax.margins(x=0.08)
    ax.grid(axis="x")
    ax.tick_params(axis="y", length=0)
    ax.spines["left"].set_visible(False)


def plot_enhancement(ax: Axes, rows: Sequence[TuningRow], title: str | None = None) -> None:
    """Figure 4: what tuning changed in the tuned languages against the number of documents, mean over the languages;
    faint lines are single ones. rows: those of one measure. title: what that is to be called, its name by default."""
    counts = sorted({row.documents for row in rows})
    for kind, name, colour, mark, face in (
        ("random", "Random", RANDOM, "s", "none"),  # larger and hollow: a disc on the same place is seen inside it
        ("lang-spec", "Lang-Spec", OWN, "o", OWN),
    ):
        of_kind = [row for row in rows if row.neurons == kind]
        for language in dict.fromkeys(row.language for row in of_kind):
            line = sorted((r.documents, r.delta_n_eng) for r in of_kind if r.language == language)
            ax.plot(*zip(*line, strict=True), color=colour, linewidth=0.8, alpha=0.35)
        means = [(n, [r.delta_n_eng for r in of_kind if r.documents == n]) for n in counts]
        shown = [(n, float(np.mean(values))) for n, values in means if values]
        if shown:
            size = 8 if face == "none" else 4
            ax.plot(
                *zip(*shown, strict=True), color=colour, linewidth=1.6, marker=mark, markersize=size,
                markerfacecolor=face, label=name,
            )  # fmt: skip
    ax.axhline(0, color=MUTED, linewidth=0.7)
    ax.set_xticks(counts)
    ax.set_title(textwrap.fill(title or shown_name(rows[0].task), 44), fontsize=9, loc="left")
    ax.set(xlabel="documents", ylabel=f"change, {score_of(rows[0].task)}")
    ax.margins(x=0.06)
    ax.grid(axis="y")
    ax.legend(loc="best")


def plot_steering(ax: Axes, rows: Sequence[SteerRow]) -> None:
    """Forcing against what it costs in English, a line over the strengths of each recipe and layer; up and to the left
    is better. rows: of one language wanted and one of the prompts."""
    lines = dict.fromkeys((row.recipe, row.layer) for row in rows)
    for number, (recipe, layer) in enumerate(lines):
        own = [row for row in rows if (row.recipe, row.layer) == (recipe, layer)]
        points = [(row.english_loss, 100 * row.forcing) for row in sorted(own, key=lambda row: row.strength or 0.0)]
        label = f"{recipe}" if layer is None else f"{recipe}, layer {layer}"
        stroke = _STROKES[number // len(LINES) % len(_STROKES)]
        ax.plot(
            *zip(*points, strict=True), color=LINES[number % len(LINES)], linestyle=stroke, marker="o", markersize=3,
            linewidth=1.2, label=label,
        )  # fmt: skip
    ax.axvline(0, color=MUTED, linewidth=0.7)
    ax.set_xscale("symlog", linthresh=0.1)
    _plain_numbers(ax.xaxis)
    ax.set(xlabel="rise of the English loss, nats per token", ylabel="forcing, %", ylim=(-4, 104))
    ax.grid(axis="both")
    # Below, one under the other: beside the axis they would make a phone's figure too small to read.
    ax.legend(loc="upper left", bbox_to_anchor=(-0.02, -0.24), handlelength=2.6)


def plot_forcing_matrix(ax: Axes, rows: Sequence[SteerRow]) -> None:
    """Forcing by the language of the prompts (down) and the one wanted (across), stronger for more. rows: one for each
    pair."""
    down, across = (list(dict.fromkeys(getattr(row, name) for row in rows)) for name in ("prompt", "language"))
    values = np.full((len(down), len(across)), np.nan)
    for row in rows:
        values[down.index(row.prompt), across.index(row.language)] = row.forcing
    _squares(ax, np.nan_to_num(values), OWN, first=0)
    for (i, j), value in np.ndenumerate(values):
        if np.isfinite(value):
            ax.text(j, i, f"{100 * value:.0f}", ha="center", va="center", fontsize=8)
    ax.set_xticks(range(len(across)), map(name_of, across), rotation=45, ha="right")
    ax.set_yticks(range(len(down)), map(name_of, down))
    ax.set(xlim=(-0.5, len(across) - 0.5), ylim=(len(down) - 0.5, -0.5))
    ax.tick_params(length=0)
    _bare(ax)
    _colour_bar(ax, OWN, "0", "100%")


def plot_grid(ax: Axes, rows: Sequence[DeltaRow], ends: tuple[float, float] | None = None) -> None:
    """Delta of one setting for every N1 and N2, stronger for higher; the highest in bold. ends: what is drawn faintest
    and strongest, as in the other panels of a figure (default: the lowest and the highest)."""
    first = sorted({row.understanding or 0 for row in rows})
    last = sorted({row.generation or 0 for row in rows})
    values = np.full((len(first), len(last)), np.nan)
    for row in rows:
        values[first.index(row.understanding or 0), last.index(row.generation or 0)] = row.effect
    lowest, highest = float(np.nanmin(values)), float(np.nanmax(values))
    low, high = ends or (lowest, highest)
    _squares(ax, np.nan_to_num((values - low) / (high - low or 1.0)), OWN, first=0)
    for (i, j), value in np.ndenumerate(values):
        if np.isfinite(value):
            weight = "bold" if value == highest > lowest else "normal"
            ax.text(j, i, f"{value:+.1f}", ha="center", va="center", fontsize=8, weight=weight)
    ax.set_xticks(range(len(last)), map(str, last))
    ax.set_yticks(range(len(first)), map(str, first))
    ax.set(xlim=(-0.5, len(last) - 0.5), ylim=(len(first) - 0.5, -0.5), xlabel="N2", ylabel="N1")
    ax.tick_params(length=0)
    _bare(ax)
    if high > low:
        _colour_bar(ax, OWN, f"{low:+.1f}", f"{high:+.1f}")


def row_name(row: DeltaRow) -> str:
    """Which parts a row switches off, in a few words."""
    off = parts_off(row)
    where = "everywhere" if len(off) == len(STAGE_TITLES) else " + ".join(off)
    kind = "" if row.neurons == "lang-spec" else f", {sets_title(row).lower()}"
    return f"{where}{kind or (f', ×{row.scale:g}' if row.scale else '')}"


def _squares(ax: Axes, strength: np.ndarray, colour: str, first: int = 1) -> None:
    """A grid of squares, one colour, stronger for more: strength [rows, columns] from 0 to 1."""
    from matplotlib.collections import PatchCollection
    from matplotlib.patches import Rectangle

    corners = [(j + first - 0.47, i - 0.46) for i in range(strength.shape[0]) for j in range(strength.shape[1])]
    tints = _tints(strength, colour)
    ax.add_collection(PatchCollection([Rectangle(p, 0.94, 0.92) for p in corners], facecolors=tints, edgecolors="none"))


def _tints(strength: np.ndarray, colour: str) -> list[tuple[float, float, float, float]]:
    """The colour, more of it for more; what is under it shines through, so on paper more is darker and on a dark page
    brighter."""
    from matplotlib.colors import to_rgba

    return [to_rgba(colour, 0.06 + 0.74 * float(s)) for s in strength.ravel()]


def _colour_bar(ax: Axes, colour: str, low: str, high: str) -> None:
    """Beside a grid of squares: which value the faintest and the strongest stand for."""
    from matplotlib.collections import PatchCollection
    from matplotlib.patches import Rectangle

    steps = 7
    bar = ax.inset_axes((1.03, 0, 0.035, 1))
    squares = [Rectangle((0, i + 0.04), 1, 0.92) for i in range(steps)]
    tints = _tints(np.linspace(0, 1, steps), colour)
    bar.add_collection(PatchCollection(squares, facecolors=tints, edgecolors="none"))
    bar.set(xlim=(0, 1), ylim=(0, steps), xticks=[])
    bar.yaxis.tick_right()
    bar.set_yticks((0.5, steps - 0.5), (low, high))
    bar.tick_params(length=0, labelsize=8)
    _bare(bar)


def _plain_numbers(axis: Axis) -> None:
    """Ticks of a logarithmic axis as numbers, at 1, 2 and 5 of a decade where few decades are shown. matplotlib's own
    are formulas, which stay unread in an SVG whose text is text."""
    from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

    axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axis.set_minor_formatter(NullFormatter())
    if axis.get_scale() == "log":
        axis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0), numticks=8))


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
