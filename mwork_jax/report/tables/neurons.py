"""Counts, overlap, thresholds and importance of neurons."""

from __future__ import annotations

import numpy as np

from mwork_jax.analysis import QUANTILES, importance_quantiles, overlap, threshold_curves
from mwork_jax.neurons import GROUPS
from mwork_jax.report.language_names import name_of
from mwork_jax.report.loaded_results import LoadedResults
from mwork_jax.report.table import Table

ROUND_FRACTIONS = (0.01, 0.02, 0.05, 0.1, 0.25, 0.5)
FRACTIONS = tuple(sorted({*ROUND_FRACTIONS, *(float(f"{f:.2g}") for f in np.geomspace(0.005, 0.5, 41))}))


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
