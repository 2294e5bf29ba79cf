"""The tables of a report: Delta in the paper's layout, languages, the lens, and what the analysis shows."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence

import msgspec
import numpy as np

from mwork_jax.analysis import QUANTILES, importance_quantiles, overlap, threshold_curves
from mwork_jax.evaluate.evaluations import HELD_OUT_LOSS
from mwork_jax.lens.vocabulary import REST
from mwork_jax.metrics import ENGLISH, MIN_SEEDS
from mwork_jax.neurons import GROUPS
from mwork_jax.report.language_names import name_of
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
    NeuronKind,
    RunResults,
    TableResult,
    TuningRow,
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
    for table in loaded.tables:
        yield delta_table(table.rows, 1, name=table_name(table), title=table_title(table))
    for grid in loaded.grids:
        yield from grid_tables(grid)
    if loaded.tuning is not None:
        yield from tuning_tables(loaded.tuning)
    if loaded.lens is not None:
        yield lens_table(loaded.lens)
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


def table_title(table: TableResult) -> str:
    return f"Table {table.table}: {table.stage}, {table.task.name} ({table.task.score}, points)"


def delta_table(rows: Sequence[DeltaRow], digits: int, *, name: str = "delta", title: str = "Delta") -> Table:
    """Rows in the layout of the paper's Tables 2 to 5, with the interval of Delta, its p corrected over the rows, and
    how it compares with matched random sets."""
    numbers = ("Eng", "n-Eng", "ΔEng", "Δn-Eng", "Δ", "95% interval", "p", "vs random")
    shown = [
        (
            *("✗" if off else "✓" for off in row.off),
            kind_title(row.neurons),
            *(f"{score:.{digits}f}" for score in (row.eng, row.n_eng)),
            *(f"{change:+.{digits}f}" for change in (row.delta_eng, row.delta_n_eng, row.delta)),
            interval_text(row.delta_ci95, digits),
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
    languages = len(row.languages) + 1
    items = f"{row.n_items} items in {languages} languages"
    if row.n_clusters < row.n_items:
        items += f", {row.n_clusters} clusters of parallel or related items"
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
        spread = row.seed_spread.delta.std if row.seed_spread is not None else None
        return NONE if spread is None else f"seeds ±{spread:.{digits}f}"
    beyond = row.beyond_random
    if beyond is None:
        return NONE
    if beyond.p_holm is None:
        return f"{beyond.delta:+.{digits}f}"
    mark = f" {ALIKE}" if against_random(row) == ALIKE else ""
    return f"{beyond.delta:+.{digits}f} (p {p_text(beyond.p_holm)}){mark}"


def against_random(row: DeltaRow) -> str:
    """Whether a row's Delta differs from that of matched random sets: "differs", "≈", or "–" where there is nothing to
    compare with or too little to tell."""
    if row.beyond_random is None or row.beyond_random.p_holm is None:
        return NONE
    return DIFFERS if row.beyond_random.p_holm < _LEVEL else ALIKE


def grid_tables(grid: TableResult) -> Iterator[Table]:
    """Delta for every N1 (down) and N2 (across), one table for each deactivated part; the highest is marked."""
    for off, rows in grid_settings(grid).items():
        first, last = sorted({row.understanding or 0 for row in rows}), sorted({row.generation or 0 for row in rows})
        deltas = {row.delta for row in rows}
        best = max(deltas) if len(deltas) > 1 else None
        values = {
            (row.understanding, row.generation): f"{row.delta:+.1f}{'*' if row.delta == best else ' '}" for row in rows
        }
        shown = tuple((str(n1), *(values.get((n1, n2), "") for n2 in last)) for n1 in first)
        name = f"{table_name(grid)}-{slug('-'.join(off))}"
        title, note = f"Off: {', '.join(off)}", "Δ in points for N1 (down) and N2 (across); * the highest."
        yield Table(name, title, ("N1", *(f"N2 = {n}" for n in last)), shown, 1, note, tuple(map(_record, rows)))


def grid_settings(grid: TableResult) -> dict[tuple[str, ...], list[DeltaRow]]:
    """{which parts are off: its rows}."""
    settings: dict[tuple[str, ...], list[DeltaRow]] = {}
    for row in grid.rows:
        settings.setdefault(parts_off(row), []).append(row)
    return settings


def parts_off(row: DeltaRow) -> tuple[str, ...]:
    """The titles of the parts that a row switches off."""
    return tuple(title for title, off in zip(STAGE_TITLES, row.off, strict=True) if off)


def _record(row: DeltaRow | TuningRow) -> dict[str, object]:
    """A result row as flat values."""
    return _flat(msgspec.to_builtins(row))


def _flat(row: Mapping[str, object]) -> dict[str, object]:
    """An interval as two values, a list as words, an object as its fields."""
    flat: dict[str, object] = {}
    for key, value in row.items():
        if key.endswith("ci95"):
            flat[f"{key}_low"], flat[f"{key}_high"] = value if isinstance(value, list | tuple) else (None, None)
        elif isinstance(value, Mapping):
            flat |= {f"{key}_{inner}": x for inner, x in _flat(value).items()}
        else:
            flat[key] = " ".join(map(str, value)) if isinstance(value, list | tuple) else value
    return flat


def language_table(run: RunResults) -> Table:
    """A run's change of held-out loss by language."""
    seeds = run.provenance.settings.seeds
    columns = ("language", "neurons", "share", "own", "en", "times", f"random ({seeds})", "times", *STAGE_TITLES)
    rows = tuple(_language_row(language, row) for language, row in run.languages.items())
    records = tuple(_language_record(language, row) for language, row in run.languages.items())
    title = "Change of held-out loss, nats per token, with a language's own neurons off"
    spread = ", mean and standard deviation over the sets" if seeds >= MIN_SEEDS else ", mean over the sets"
    note = (
        f"own: in the language itself; en: in English; random: with as many random neurons off{spread}; times: how "
        "many times the rise of English, and of random. Under to Gen: own/en with the neurons of one stage off."
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
        record |= {f"{name}_own": change.own, f"{name}_english": change.english}
    return record | {"random_own": row.random.own_mean, "random_english": row.random.english_mean}


def _ratio(times: float | None) -> str:
    return NONE if times is None else f"{times:.1f}"


def tuning_tables(tuning: EnhanceResults) -> Iterator[Table]:
    """Table 6: each measure at each number of documents, before and after tuning."""
    for measure in measures(tuning):
        rows = [row for row in tuning.rows if row.task == measure]
        for count in sorted({row.documents for row in rows}):
            yield _tuning_table(tuning.original.get(measure, {}), [row for row in rows if row.documents == count])


def measures(tuning: EnhanceResults) -> list[str]:
    """What models were measured on: the held-out loss, then tasks."""
    return list(dict.fromkeys(row.task for row in tuning.rows))


def score_of(measure: str) -> str:
    """What a measure counts; more is better."""
    return "minus nats per token" if measure == HELD_OUT_LOSS else "points"


def _tuning_table(original: Mapping[str, float], rows: Sequence[TuningRow]) -> Table:
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
    title = f"Table 6: {measure} ({score_of(measure)}, higher is better), {documents} documents per language"
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


def kind_title(neurons: NeuronKind) -> str:
    return "Random" if neurons == "random" else "Lang-Spec"


def interval_text(interval: Interval | None, digits: int) -> str:
    if interval is None:
        return NONE
    low, high = interval
    return f"{low:+.{digits}f} to {high:+.{digits}f}"


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
    inside = [lang for lang in leads if 0 < peaks[lang] < last]
    returns = [lang for lang in inside if shares[lang][0][-1] > shares[lang][1][-1]]
    heights = [100 * english[peaks[lang]] for lang, (_, english, _) in shares.items()]
    own_last = [100 * own[-1] for own, _, _ in shares.values()]
    blank = [100 * rest.mean() for _, _, rest in shares.values()]
    verdict = (
        "this is the pattern of the paper's Figure 1"
        if len(returns) == len(shares)
        else "the pattern of the paper's Figure 1, English inside and the language at the end, holds for "
        + (", ".join(map(name_of, returns)) if returns else "none of them")
    )
    return (
        f"For prompts in {len(shares)} languages other than English, English has its largest share of the top {top} "
        f"tokens, {_range(heights)} %, in layers {_range(list(peaks.values()))} of {last}; there it outweighs the "
        f"prompt's own language in {len(leads)} of {len(shares)}. In the last layer {_range(own_last)} % are of the "
        f"prompt's language: {verdict}. On average {_range(blank)} % of the tokens carry no language's label."
    )


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
