"""The tables of a report: Delta in the paper's layout, languages, the lens, and what the atlas knows."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from mwork_jax.analysis import QUANTILES, importance_quantiles, overlap, threshold_curves
from mwork_jax.evaluate.evaluations import HELD_OUT_LOSS
from mwork_jax.lens.vocabulary import REST
from mwork_jax.metrics import ENGLISH
from mwork_jax.neurons import GROUPS
from mwork_jax.report.language_names import name_of
from mwork_jax.report.loaded_results import LoadedResults
from mwork_jax.report.table import Table

STAGES = ("under", "s_attn", "s_ffn", "gen")
STAGE_TITLES = ("Under", "S-ATTN", "S-FFN", "Gen")
ALIKE, DIFFERS = "≈", "differs"
_LEVEL = 0.05  # of the corrected p
ROUND_FRACTIONS = (0.01, 0.02, 0.05, 0.1, 0.25, 0.5)
FRACTIONS = tuple(sorted({*ROUND_FRACTIONS, *(float(f"{f:.2g}") for f in np.geomspace(0.005, 0.5, 41))}))


def all_tables(loaded: LoadedResults) -> Iterator[Table]:
    """Every table that a folder's loaded allow, in the order of the page."""
    run = loaded.run
    if run is not None:
        deltas = "Δ = ΔEng − Δn-Eng, held-out loss (minus nats per token, higher is better)"
        yield delta_table(run["rows"], 2, name="delta-held-out-loss", title=deltas)
        yield language_table(run)
    for table in loaded.tables:
        task = table["task"]
        title = f"Table {table['table']}: {table['stage']}, {task['name']} ({task['score']}, points)"
        yield delta_table(table["rows"], 1, name=f"table-{table['table']}-{task['name']}", title=title)
    for grid in loaded.grids:
        yield from grid_tables(grid)
    if loaded.study is not None:
        yield from tuning_tables(loaded.study)
    if loaded.lens is not None:
        yield lens_table(loaded.lens)
    if loaded.neurons:
        yield counts_table(loaded)
    if loaded.shared_basis:
        yield overlap_table(loaded)
    if loaded.scores:
        yield thresholds_table(loaded)
        yield importance_table(loaded)


def delta_table(rows: Sequence[Mapping[str, Any]], digits: int, *, name: str = "delta", title: str = "Delta") -> Table:
    """Rows in the layout of the paper's Tables 2 to 5, with the interval of Delta, its p where it was corrected over
    the rows, and how it compares with random."""
    corrected = all("p_holm" in row for row in rows)
    numbers = ("Eng", "n-Eng", "ΔEng", "Δn-Eng", "Δ", "95% interval", *["p"] * corrected, "vs random")
    shown = [
        (
            *("✗" if row[stage] else "✓" for stage in STAGES),
            _neuron(row),
            *(f"{row[score]:.{digits}f}" for score in ("eng", "n_eng")),
            *(f"{row[score]:+.{digits}f}" for score in ("delta_eng", "delta_n_eng", "delta")),
            _interval(row["delta_ci95"], digits),
            *([_p(row["p_holm"])] if corrected else []),
            _beyond_random(row, rows, digits),
        )
        for row in rows
    ]
    note = _delta_note(rows, corrected)
    columns = (*STAGE_TITLES, "Neuron", *numbers)
    return Table(name, title, columns, tuple(shown), 5, note, tuple(map(_record, rows)))


def _delta_note(rows: Sequence[Mapping[str, Any]], corrected: bool) -> str:
    items = f" over {rows[0]['n_items']} items" if "n_items" in rows[0] else ""
    note = f"✗ = deactivated. Interval{' and p' if corrected else ''} of Δ: paired bootstrap{items}"
    if corrected:
        return (
            f"{note}; p corrected over the rows (Holm). vs random: how much higher Δ is than with as many random "
            f"neurons off in the same parts; {ALIKE}: not told apart from random (p of .05 or more; where no random "
            "row has the same parts, intervals that meet)."
        )
    return (
        f"{note}. {ALIKE}: the interval meets that of random neurons (in the same parts where the table has such a "
        "row, else everywhere), so Δ is not told apart from random."
    )


def _p(p: float) -> str:
    return "<.001" if p < 0.001 else f"{p:.3f}".lstrip("0")


def _beyond_random(row: Mapping[str, Any], rows: Sequence[Mapping[str, Any]], digits: int) -> str:
    """How a row compares with random; for a random row, the spread over its seeds."""
    if row["neurons"] == "random":
        spread = row.get("seed_spread", {}).get("delta", {}).get("std")
        return "–" if spread is None else f"seeds ±{spread:.{digits}f}"
    mark, other = against_random(row, rows), row.get("beyond_random")
    if other is None:
        return mark
    return f"{other['delta']:+.{digits}f} (p {_p(other['p_holm'])})" + (f" {ALIKE}" if mark == ALIKE else "")


def against_random(row: Mapping[str, Any], rows: Sequence[Mapping[str, Any]]) -> str:
    """Whether a row's Delta differs from that of random neurons: "differs", "≈", or "–" where there is nothing to
    compare with. Decided by the paired test where the row has one, else by whether the intervals meet."""
    if "beyond_random" in row:
        return ALIKE if row["beyond_random"]["p_holm"] >= _LEVEL else DIFFERS
    randoms = [r for r in rows if r["neurons"] == "random"]
    same = [r for r in randoms if all(r[s] == row[s] for s in STAGES)] or [
        r for r in randoms if all(r[s] for s in STAGES)
    ]
    if row["neurons"] == "random" or not same:
        return "–"
    (low, high), (random_low, random_high) = row["delta_ci95"], same[0]["delta_ci95"]
    return ALIKE if low <= random_high and random_low <= high else DIFFERS


def grid_tables(grid: Mapping[str, Any]) -> Iterator[Table]:
    """Delta for every N1 (down) and N2 (across), one table for each deactivated part; the highest is marked."""
    for off, rows in grid_settings(grid).items():
        first, last = (sorted({row[name] for row in rows}) for name in ("understanding", "generation"))
        deltas = {row["delta"] for row in rows}
        best = max(deltas) if len(deltas) > 1 else None
        cells = {
            (r["understanding"], r["generation"]): f"{r['delta']:+.1f}{'*' if r['delta'] == best else ' '}"
            for r in rows
        }
        shown = tuple((str(n1), *(cells.get((n1, n2), "") for n2 in last)) for n1 in first)
        name = f"grid-{grid['table']}-{slug(grid['task']['name'])}-{slug('-'.join(off))}"
        title, note = f"Off: {', '.join(off)}", "Δ in points for N1 (down) and N2 (across); * the highest."
        yield Table(name, title, ("N1", *(f"N2 = {n}" for n in last)), shown, 1, note, tuple(map(_record, rows)))


def grid_settings(grid: Mapping[str, Any]) -> dict[tuple[str, ...], list[Mapping[str, Any]]]:
    """{which parts are off: its rows}."""
    settings: dict[tuple[str, ...], list[Mapping[str, Any]]] = {}
    for row in grid["rows"]:
        off = tuple(title for stage, title in zip(STAGES, STAGE_TITLES, strict=True) if row[stage])
        settings.setdefault(off, []).append(row)
    return settings


def _record(row: Mapping[str, Any]) -> dict[str, Any]:
    """A result row as flat values: an interval as two, a list as words, an object as its fields."""
    flat: dict[str, Any] = {}
    for key, value in row.items():
        if key.endswith("ci95"):
            flat[f"{key}_low"], flat[f"{key}_high"] = value
        elif isinstance(value, Mapping):
            flat |= {f"{key}_{inner}": x for inner, x in _record(value).items()}
        else:
            flat[key] = " ".join(map(str, value)) if isinstance(value, list | tuple) else value
    return flat


def language_table(results: Mapping[str, Any]) -> Table:
    """A run's change of held-out loss by language."""
    seeds = results["made_by"]["settings"]["seeds"]
    columns = ("language", "neurons", "share", "own", "en", "times", f"random ({seeds})", "times", *STAGE_TITLES)
    rows, records = [], []
    for language, row in results["languages"].items():
        everywhere, random = row["everywhere"], row["random"]
        rows.append(
            (
                name_of(language),
                f"{row['neurons']:,}",
                f"{100 * row['share']:.2f}%",
                f"{everywhere['own']:+.2f}",
                f"{everywhere['english']:+.2f}",
                _ratio(row.get("own_to_english")),
                f"{random['own_mean']:+.2f} ±{_spread(random['own']):.2f}",
                _ratio(row.get("own_to_random")),
                *(f"{row[s]['own']:+.2f}/{row[s]['english']:+.2f}" for s in STAGES),
            )
        )
        changes = {f"{k}_{at}": row[k][at] for k in ("everywhere", *STAGES) for at in ("own", "english")}
        random_means = {f"random_{at}": random[f"{at}_mean"] for at in ("own", "english")}
        size = {"language": language, "neurons": row["neurons"], "share": row["share"]}
        records.append(size | changes | random_means)
    title = "Change of held-out loss, nats per token, with a language's own neurons off"
    note = (
        "own: in the language itself; en: in English; random: with as many random neurons off, mean and spread over "
        "seeds; times: how many times the rise of English, and of random. Under to Gen: own/en with the neurons of one "
        "stage off."
    )
    return Table("loss-by-language", title, columns, tuple(rows), note=note, records=tuple(records))


def _spread(values: Sequence[float]) -> float:
    """Standard deviation over seeds; 0 for a single one."""
    mean = sum(values) / len(values)
    return (sum((v - mean) ** 2 for v in values) / max(1, len(values) - 1)) ** 0.5


def _ratio(times: float | None) -> str:
    return "–" if times is None else f"{times:.1f}"


def tuning_tables(study: Mapping[str, Any]) -> Iterator[Table]:
    """Table 6: each measure at each number of documents, before and after tuning."""
    for task in measures(study):
        rows = [row for row in study["rows"] if row["task"] == task]
        for count in sorted({row["documents"] for row in rows}):
            yield _tuning_table(study["original"].get(task, {}), [row for row in rows if row["documents"] == count])


def measures(study: Mapping[str, Any]) -> list[str]:
    """What a study measured: the held-out loss, then tasks."""
    return list(dict.fromkeys(row["task"] for row in study["rows"]))


def score_of(measure: str) -> str:
    """What a measure counts; more is better."""
    return "minus nats per token" if measure == HELD_OUT_LOSS else "points"


def _tuning_table(original: Mapping[str, float], rows: Sequence[Mapping[str, Any]]) -> Table:
    task, documents = rows[0]["task"], rows[0]["documents"]
    digits = 3 if task == HELD_OUT_LOSS else 1
    languages = list(dict.fromkeys(row["language"] for row in rows))
    before = (f"{original[lang]:.{digits}f}" if lang in original else "–" for lang in (ENGLISH, *languages))
    shown: list[tuple[str, ...]] = [("Original", *before, "")]
    for kind in ("random", "lang-spec"):
        of_kind = {row["language"]: row for row in rows if row["neurons"] == kind}
        if of_kind:
            shown += _tuned_rows(of_kind, languages, digits)
    note = (
        "change: from the original, with its 95% interval, paired over items; beyond Random: how much more its own "
        "neurons bring a language than as many random ones. Means over seeds; English and others over all tuned models."
    )
    title = f"Table 6: {task} ({score_of(task)}, higher is better), {documents} documents per language"
    columns = ("Method", *map(name_of, (ENGLISH, *languages)), "others")
    name = f"table-6-{slug(task)}-{documents}"
    return Table(name, title, columns, tuple(shown), 1, note, tuple(map(_record, rows)))


def _tuned_rows(of_kind: Mapping[str, Mapping[str, Any]], languages: Sequence[str], digits: int) -> Iterator[Any]:
    """The scores of the models tuned in one way, {language: row}, their changes, and what lies beyond random."""

    def cells(changes: Sequence[tuple[float, Sequence[float]] | None]) -> Iterator[str]:
        for change in changes:
            yield f"{change[0]:+.{digits}f} ({_interval(change[1], digits)})" if change else "–"

    rows = [of_kind.get(lang) for lang in languages]
    there = list(of_kind.values())
    others = [row["delta_others"] for row in there if row.get("delta_others") is not None]
    scores = [f"{row['n_eng']:.{digits}f}" if row else "–" for row in rows]
    yield (_neuron(there[0]), f"{_mean(row['eng'] for row in there):.{digits}f}", *scores, "")
    changes = [(row["delta_n_eng"], row["delta_n_eng_ci95"]) if row else None for row in rows]
    english = f"{_mean(row['delta_eng'] for row in there):+.{digits}f}"
    yield ("  change", english, *cells(changes), f"{_mean(others):+.{digits}f}" if others else "")
    beyond = [row.get("own_beyond_random") if row else None for row in rows]
    if any(beyond):
        yield ("  beyond Random", "", *cells([(b["change"], b["ci95"]) if b else None for b in beyond]), "")


def _mean(values: Iterable[float]) -> float:
    return float(np.mean(list(values)))


def slug(text: str) -> str:
    """A file's name for a measure's."""
    return "".join(sign if sign.isalnum() else "-" for sign in text.lower())


def _neuron(row: Mapping[str, Any]) -> str:
    return "Random" if row["neurons"] == "random" else "Lang-Spec"


def _interval(interval: Sequence[float], digits: int) -> str:
    low, high = interval
    return f"{low:+.{digits}f} to {high:+.{digits}f}"


def lens_shares(lens: Mapping[str, Any], off: bool = False) -> dict[str, Mapping[str, Any]]:
    """{prompt language: its shares}, of the original model or with the language's own neurons off."""
    return {s["language"]: s for s in lens["shares"] if bool(s["neurons_off"]) == off}


def own_english_rest(lens: Mapping[str, Any], shares: Mapping[str, Any]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """By layer, the shares of the prompt's language, of English, and of what has no label: float64 [layers + 1] each.
    Zeros where a language is not among the columns."""
    columns, top = lens["labels"]["columns"], np.asarray(shares["top_k"])

    def share(*names: str) -> np.ndarray:
        return top[:, [columns.index(n) for n in names if n in columns]].sum(axis=1)

    return share(shares["language"]), share(ENGLISH), share(*REST)


def lens_table(lens: Mapping[str, Any]) -> Table:
    """Own language, English and unlabelled share by layer, for the prompts of each language, in percent."""
    parts = {lang: own_english_rest(lens, shares) for lang, shares in lens_shares(lens).items()}
    layers = len(next(iter(parts.values()))[0])
    rows = [
        (str(layer), *("/".join(f"{100 * part[layer]:.0f}" for part in shares) for shares in parts.values()))
        for layer in range(layers)
    ]
    top, columns = lens["settings"]["top"], lens["labels"]["columns"]
    records = [
        {"prompt": s["language"], "neurons_off": s["neurons_off"], "layer": layer}
        | dict(zip(columns, s["top_k"][layer], strict=True))
        for s in lens["shares"]
        for layer in range(layers)
    ]
    note = (
        f"Percent of the {top} tokens that each layer ranks first (logit lens): own language / English / not labelled "
        "(other scripts, words of several languages, no letters). Layer 0 is the embeddings. The CSV has every label."
    )
    names = tuple(name_of(lang) for lang in parts)
    return Table("languages-by-layer", "Languages by layer", ("layer", *names), tuple(rows), 1, note, tuple(records))


def lens_sentence(lens: Mapping[str, Any]) -> str:
    """What the layer figure shows, counted and not wished for."""
    shares = {lang: own_english_rest(lens, s) for lang, s in lens_shares(lens).items() if lang != ENGLISH}
    top = lens["settings"]["top"]
    if not shares or ENGLISH not in lens["labels"]["columns"]:
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
    found = overlap(loaded.shared_basis)
    rows, records = [], []
    for i, language in enumerate(found.languages):
        pairs = [(int(found.shared[i, j]), float(found.jaccard[i, j])) for j in range(len(found.languages))]
        rows.append((name_of(language), *(f"{n:,} ({100 * x:.0f}%)" for n, x in pairs)))
        records += [
            {"language": language, "other": other, "shared": n, "jaccard": x}
            for other, (n, x) in zip(found.languages, pairs, strict=True)
        ]
    columns = ("language", *map(name_of, found.languages))
    note = f"{loaded.basis_note} Shared neurons, and in brackets the Jaccard index: shared over the union."
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
