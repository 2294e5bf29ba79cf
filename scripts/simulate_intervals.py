"""How often intervals hold the truth and how often random neurons "differ", in simulated studies with known Delta.

    python scripts/simulate_intervals.py --studies 1000 --json

Items are parallel across languages (one id, one cluster) and questions share a passage. Beside the t interval of
`mwork_jax.metrics` stand three bootstraps of the same clusters and `old`, the percentile bootstrap of version 0.1,
which resampled the items of each language on their own. Seeds are fixed, so the figures are the same on every run.
"""

from __future__ import annotations

import argparse
import itertools
import json
import multiprocessing
import os
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, astuple, dataclass
from typing import Any

import numpy as np
from scipy.special import ndtr, ndtri

from mwork_jax.metrics import ENGLISH, Delta, PairedDifference, beyond_random, delta, holm

RESAMPLES = 999
CHUNK = 100  # studies at a time, which share the bootstraps' resamples
CLUSTERS = (8, 14, 30, 60)
CORRELATIONS = (0.0, 0.3, 0.8)
ROWS = 5  # of a table
_QUESTIONS = 4  # a passage
_TAILS = (0.025, 0.975)
Interval = tuple[np.ndarray, np.ndarray]


@dataclass(frozen=True)
class Design:
    """A kind of study.

    kind: "plain" (normal changes), "binary" (right or wrong before and after), "weights" (tokens per document, a
    document being a cluster, longer ones changing more), "skewed" (changes as skewed as an exponential distribution),
    "missing" (each language lacks every fourth passage, not the same ones). correlation: of the changes of one item in
    two languages.
    """

    kind: str
    clusters: int
    correlation: float
    languages: int = 9


@dataclass(frozen=True)
class Studies:
    """changes, weights: {language: [studies, items]}; groups: {language: ids [items]}; truth: the values of Delta_Eng
    and Delta_n-Eng that the studies estimate."""

    changes: Mapping[str, np.ndarray]
    weights: Mapping[str, np.ndarray] | None
    groups: Mapping[str, np.ndarray]
    truth: tuple[float, float]

    @property
    def others(self) -> list[str]:
        return [lang for lang in self.changes if lang != ENGLISH]

    def weight(self, language: str) -> np.ndarray:
        return np.ones_like(self.changes[language]) if self.weights is None else self.weights[language]

    def contrast(self, name: str) -> tuple[dict[str, float], float]:
        """{language: coefficient of its mean} and the true value of "delta" or "delta_n_eng"."""
        sign = {"delta": -1, "delta_n_eng": 1}[name]
        others = {lang: sign / len(self.others) for lang in self.others}
        english = {ENGLISH: 1.0} if name == "delta" else {}
        return english | others, len(english) * self.truth[0] + sign * self.truth[1]


def _effects(rng: np.random.Generator, shape: tuple[int, ...], correlation: float, skewed: bool = False) -> np.ndarray:
    """Effects of unit variance, half of it the passage's: [studies, languages, passages, questions]."""

    def drawn(*shape: int) -> np.ndarray:
        return rng.exponential(size=shape) - 1 if skewed else rng.normal(size=shape)

    def correlated(questions: int) -> np.ndarray:
        return np.sqrt(correlation) * drawn(shape[0], 1, shape[2], questions) + np.sqrt(1 - correlation) * drawn(
            *shape[:3], questions
        )

    return np.sqrt(0.5) * (correlated(1) + correlated(shape[3]))


def draw_studies(design: Design, number: int, rng: np.random.Generator) -> Studies:
    """Simulated changes. English changes less than the other languages, and correlates with them as they do."""
    names = [ENGLISH, *(f"l{i}" for i in range(design.languages))]
    questions = 1 if design.kind == "weights" else _QUESTIONS
    shape = (number, len(names), design.clusters, questions)
    means, weights = np.array([-0.1] + [-0.3] * design.languages), None
    scale = np.array([0.5] + [1.0] * design.languages)[None, :, None, None]
    if design.kind == "binary":
        changes, means = _answers(rng, shape, design.correlation)
    else:
        skewed = design.kind == "skewed"
        changes = means[None, :, None, None] + scale * _effects(rng, shape, design.correlation, skewed)
    if design.kind == "weights":
        lengths = _effects(rng, shape, 0.8)
        weights = np.exp(0.5 * lengths)
        changes += 0.3 * scale * lengths
        means = means + 0.3 * scale.ravel() * 0.5  # E[w z] / E[w] = 0.5 for w = exp(0.5 z), z standard normal

    def of(values: np.ndarray) -> dict[str, np.ndarray]:
        kept = [
            [g for g in range(design.clusters) if design.kind != "missing" or (g + i) % 4] for i in range(len(names))
        ]
        return {name: values[:, i, kept[i]].reshape(len(values), -1) for i, name in enumerate(names)}

    ids = np.broadcast_to(np.arange(design.clusters)[:, None], (1, *shape[1:]))
    return Studies(
        of(changes),
        None if weights is None else of(weights),
        {name: x[0] for name, x in of(ids).items()},
        (float(means[0]), float(means[1:].mean())),
    )


def _answers(rng: np.random.Generator, shape: tuple[int, ...], correlation: float) -> tuple[np.ndarray, np.ndarray]:
    """Right after minus right before, in -1, 0, 1, and its mean in each language; both depend on the same item."""
    item = _effects(rng, shape, correlation)
    before, after = (np.sqrt(0.8) * item + np.sqrt(0.2) * rng.normal(size=shape) for _ in range(2))
    share_before, share_after = 0.7, np.array([0.65] + [0.5] * (shape[1] - 1))
    right = (after < ndtri(share_after)[None, :, None, None]).astype(float)
    return right - (before < ndtri(share_before)), share_after - share_before


# Intervals. Each function takes studies and {language: coefficient}, and returns the ends [studies] of each interval.


def old(studies: Studies, contrast: Mapping[str, float], rng: np.random.Generator) -> Interval:
    """Percentile bootstrap that resamples the items of each language on their own, as version 0.1 did."""
    low, high = np.quantile(_old_resamples(studies, contrast, rng), _TAILS, axis=0)
    return low, high


def _old_resamples(studies: Studies, contrast: Mapping[str, float], rng: np.random.Generator) -> np.ndarray:
    """[resamples, studies]"""
    total = np.zeros((RESAMPLES, len(studies.changes[ENGLISH])))
    for lang, coefficient in contrast.items():
        change, weight = studies.changes[lang], studies.weight(lang)
        items = change.shape[1]
        counts = rng.multinomial(items, np.full(items, 1 / items), RESAMPLES).astype(float)
        total += coefficient * (counts @ (weight * change).T) / (counts @ weight.T)
    return total


@dataclass(frozen=True)
class _Resampled:
    """Contrasts [studies] and [resamples, studies] of resampled clusters, and the standard error of each."""

    value: np.ndarray
    error: np.ndarray
    values: np.ndarray
    errors: np.ndarray


def _resampled(studies: Studies, contrast: Mapping[str, float], rng: np.random.Generator) -> _Resampled:
    clusters = int(max(ids.max() for ids in studies.groups.values())) + 1
    every = np.ones((1, clusters))
    value, error = _of_counts(every, studies, contrast)
    counts = rng.multinomial(clusters, np.full(clusters, 1 / clusters), RESAMPLES).astype(float)
    values, errors = _of_counts(counts, studies, contrast)
    return _Resampled(value[0], error[0], values, errors)


def _sums(studies: Studies, contrast: Mapping[str, float], clusters: int) -> tuple[np.ndarray, np.ndarray]:
    """Sums of weight x change and of weight over each cluster: twice [languages, studies, clusters]."""
    indicators = {lang: np.eye(clusters)[studies.groups[lang]] for lang in contrast}
    tops = [(studies.weight(lang) * studies.changes[lang]) @ indicators[lang] for lang in contrast]
    return np.stack(tops), np.stack([studies.weight(lang) @ indicators[lang] for lang in contrast])


def _of_counts(counts: np.ndarray, studies: Studies, contrast: Mapping[str, float]) -> Interval:
    """Contrast and linearised standard error where cluster g counts [resamples, clusters] times."""
    clusters = counts.shape[1]
    tops, bottoms = _sums(studies, contrast, clusters)
    coefficients = np.array(list(contrast.values()))[:, None, None]
    weights = np.maximum(counts @ bottoms.transpose(0, 2, 1), 1e-9)  # [languages, resamples, studies]
    means = (counts @ tops.transpose(0, 2, 1)) / weights
    scaled = (coefficients / weights).transpose(2, 1, 0)
    influence = scaled @ tops.transpose(1, 0, 2)  # [studies, resamples, clusters]
    influence -= (scaled * means.transpose(2, 1, 0)) @ bottoms.transpose(1, 0, 2)
    variance = (counts * influence**2).sum(axis=-1).T * clusters / (clusters - 1)
    return (coefficients * means).sum(axis=0), np.sqrt(variance)


def _percentile(drawn: _Resampled) -> Interval:
    low, high = np.quantile(drawn.values, _TAILS, axis=0)
    return low, high


def _studentised(drawn: _Resampled) -> Interval:
    t = (drawn.values - drawn.value) / np.maximum(drawn.errors, 1e-12)
    low, high = np.quantile(t, _TAILS, axis=0)
    return drawn.value - high * drawn.error, drawn.value - low * drawn.error


def _bca(drawn: _Resampled, studies: Studies, contrast: Mapping[str, float]) -> Interval:
    """Bias-corrected and accelerated (Efron 1987), the acceleration from leaving out one cluster at a time."""
    clusters = int(max(ids.max() for ids in studies.groups.values())) + 1
    left_out, _ = _of_counts(1 - np.eye(clusters), studies, contrast)
    away = left_out.mean(axis=0) - left_out
    acceleration = (away**3).sum(axis=0) / (6 * (away**2).sum(axis=0) ** 1.5)
    below = (drawn.values < drawn.value).mean(axis=0)
    bias = ndtri(np.clip(below, 1 / RESAMPLES, 1 - 1 / RESAMPLES))
    ordered = np.sort(drawn.values, axis=0)
    ends = []
    for tail in _TAILS:
        shifted = bias + ndtri(tail)
        level = ndtr(bias + shifted / (1 - acceleration * shifted))
        place = np.clip(np.round(level * (RESAMPLES - 1)), 0, RESAMPLES - 1).astype(int)
        ends.append(np.take_along_axis(ordered, place[None], axis=0)[0])
    return ends[0], ends[1]


def bootstrap_intervals(studies: Studies, name: str, rng: np.random.Generator) -> dict[str, Interval]:
    """{method: interval} of "delta" or "delta_n_eng", by each of the bootstraps."""
    contrast, _ = studies.contrast(name)
    drawn = _resampled(studies, contrast, rng)
    return {
        "old": old(studies, contrast, rng),
        "percentile": _percentile(drawn),
        "bca": _bca(drawn, studies, contrast),
        "studentised": _studentised(drawn),
    }


def package_deltas(studies: Studies) -> Iterator[Delta]:
    """What the package says of each study."""
    for study in range(len(studies.changes[ENGLISH])):
        changes = {lang: x[study] for lang, x in studies.changes.items()}
        yield delta(
            {lang: np.zeros_like(x) for lang, x in changes.items()},
            {lang: {ENGLISH: changes[ENGLISH], lang: changes[lang]} for lang in studies.others},
            None if studies.weights is None else {lang: w[study] for lang, w in studies.weights.items()},
            studies.groups,
        )


def _ends(intervals: Iterable[tuple[float, float] | None]) -> Interval:
    """The ends of intervals; nan where there is none, which then holds nothing."""
    low, high = np.array([interval or (np.nan, np.nan) for interval in intervals]).T
    return low, high


def coverage(design: Design, number: int, seed: int = 0) -> list[dict[str, Any]]:
    """Share of studies whose interval holds the true Delta and Delta_n-Eng, and median widths, by method."""
    rng = np.random.default_rng([seed, *design.kind.encode(), design.clusters, round(100 * design.correlation)])
    tallies = {name: Tally() for name in ("delta", "delta_n_eng")}
    for start in range(0, number, CHUNK):
        studies = draw_studies(design, min(CHUNK, number - start), rng)
        ours = list(package_deltas(studies))
        for name, tally in tallies.items():
            both = bootstrap_intervals(studies, name, rng)
            both["t"] = _ends(getattr(one, f"{name}_ci95") for one in ours)
            tally.add(both, studies.contrast(name)[1])
    return [{**asdict(design), "of": name, "studies": number, **tally.shares()} for name, tally in tallies.items()]


class Tally:
    """Counts, by method, the intervals that hold the truth."""

    def __init__(self) -> None:
        self.holds: dict[str, list[np.ndarray]] = {}
        self.widths: dict[str, list[np.ndarray]] = {}

    def add(self, intervals: Mapping[str, Interval], truth: float) -> None:
        for method, (low, high) in intervals.items():
            self.holds.setdefault(method, []).append((low <= truth) & (truth <= high))
            self.widths.setdefault(method, []).append(high - low)

    def shares(self) -> dict[str, dict[str, float]]:
        return {
            "coverage": {method: float(np.concatenate(holds).mean()) for method, holds in self.holds.items()},
            "width": {method: float(np.nanmedian(np.concatenate(widths))) for method, widths in self.widths.items()},
        }


# Own neurons against random ones.


@dataclass(frozen=True)
class Comparison:
    """A kind of comparison with random sets.

    spread: standard deviation between sets of their mean effect on a language; half as large on English. own: "drawn"
    where the own set deviates from the mean effect of such sets as a random one does, "fixed" where it does not,
    "random" where a random set stands in its place.
    """

    clusters: int
    seeds: int
    spread: float
    correlation: float = 0.3
    languages: int = 9
    own: str = "drawn"


@dataclass(frozen=True)
class Compared:
    """own: {language: {scored: [studies, items]}}, random: the same with [studies, seeds, items]; what they have in
    common before deactivation is left out. truth: the difference of the two Deltas."""

    own: Mapping[str, Mapping[str, np.ndarray]]
    random: Mapping[str, Mapping[str, np.ndarray]]
    groups: Mapping[str, np.ndarray]
    truth: float

    def as_studies(self) -> Studies:
        """The differences to the mean over seeds, which is how version 0.1 compared them."""
        less = {
            lang: {at: self.own[lang][at] - self.random[lang][at].mean(axis=1) for at in runs}
            for lang, runs in self.own.items()
        }
        english = np.mean([runs[ENGLISH] for runs in less.values()], axis=0)
        changes = {ENGLISH: english, **{lang: runs[lang] for lang, runs in less.items()}}
        return Studies(changes, None, self.groups, (self.truth, 0.0))


def draw_comparisons(design: Comparison, number: int, rng: np.random.Generator) -> Compared:
    """Each set has a mean effect on a language and noise of its own on every item and passage, and all sets have what
    an item suffers from any of them. Own neurons hurt more, and each item in its own way, alike in all languages."""
    names = [f"l{i}" for i in range(design.languages)]
    shape = (number, design.languages, design.clusters, _QUESTIONS)
    any_set = _effects(rng, (number, design.languages + 1, *shape[2:]), 0.3)
    own_set = _effects(rng, (number, design.languages + 1, *shape[2:]), design.correlation)
    deviation = rng.normal(size=(number, design.languages, design.seeds + 1))
    if design.own == "fixed":
        deviation[..., 0] = 0
    more = 0.0 if design.own == "random" else 1.0
    own: dict[str, dict[str, np.ndarray]] = {}
    random: dict[str, dict[str, np.ndarray]] = {}
    for i, name in enumerate(names):
        own[name], random[name] = {}, {}
        for at, place, scale in ((ENGLISH, 0, 0.5), (name, i + 1, 1.0)):
            noise = _effects(rng, (number, design.seeds + 1, *shape[2:]), 0.0)
            effect = design.spread * deviation[:, i, :, None, None] + 0.5 * any_set[:, [place]] + 0.6 * noise - 0.1
            effect[:, 0] += more * (0.8 * own_set[:, place] - 0.4)
            effect = scale * effect.reshape(number, design.seeds + 1, -1)
            own[name][at], random[name][at] = effect[:, 0], effect[:, 1:]
    ids = np.repeat(np.arange(design.clusters), _QUESTIONS)
    return Compared(own, random, dict.fromkeys([ENGLISH, *names], ids), more * (0.4 - 0.5 * 0.4))


def package_comparisons(compared: Compared) -> Iterator[PairedDifference]:
    """What the package says of each study."""
    for study in range(len(next(iter(compared.own.values()))[ENGLISH])):
        own, random = (
            {lang: {at: x[study] for at, x in runs.items()} for lang, runs in side.items()}
            for side in (compared.own, compared.random)
        )
        yield beyond_random(own, random, groups=compared.groups)


def comparison_coverage(design: Comparison, number: int, seed: int = 0) -> dict[str, Any]:
    """Share of studies whose interval holds the true difference of Deltas."""
    rng = _generator(design, seed)
    tally = Tally()
    for start in range(0, number, CHUNK):
        compared = draw_comparisons(design, min(CHUNK, number - start), rng)
        studies = compared.as_studies()
        contrast, truth = studies.contrast("delta")
        ours = _ends(one.ci95 for one in package_comparisons(compared))
        tally.add({"old": old(studies, contrast, rng), "t": ours}, truth)
    return {**asdict(design), "studies": number, **tally.shares()}


def false_positives(design: Comparison, tables: int, seed: int = 0) -> dict[str, Any]:
    """Share of tables of ROWS rows with a "differs" (p < 0.05 after Holm's correction over the rows), with random
    neurons in place of the own ones."""
    rng = _generator(design, seed)
    p: dict[str, list[float]] = {"old": [], "t": []}
    for start in range(0, tables * ROWS, CHUNK):
        compared = draw_comparisons(design, min(CHUNK, tables * ROWS - start), rng)
        studies = compared.as_studies()
        drawn = _old_resamples(studies, studies.contrast("delta")[0], rng)
        side = np.minimum((drawn <= 0).sum(axis=0), (drawn >= 0).sum(axis=0))
        p["old"] += np.minimum(1, 2 * (side + 1) / (RESAMPLES + 1)).tolist()
        p["t"] += [1.0 if one.p is None else one.p for one in package_comparisons(compared)]
    differs = {
        method: float(np.mean([(holm(row) < 0.05).any() for row in np.reshape(values, (tables, ROWS))]))
        for method, values in p.items()
    }
    return {**asdict(design), "tables": tables, "differs": differs}


def _generator(design: Comparison, seed: int) -> np.random.Generator:
    numbers = [round(100 * x) for x in astuple(design)[:-1]]
    return np.random.default_rng([seed, *numbers, *design.own.encode()])


# The tables.


def designs(studies: int, tables: int) -> dict[str, list[tuple[Callable[..., Any], Any, int]]]:
    """{title: what to compute}."""
    kinds = ("plain", "binary", "weights", "skewed", "missing")
    comparisons = [Comparison(*each) for each in itertools.product(CLUSTERS, (5, 10), (0.1, 0.3))]
    comparisons += [Comparison(g, 5, 0.1, r) for g, r in itertools.product(CLUSTERS, (0.0, 0.8))]
    comparisons += [Comparison(g, s, 0.3, languages=1) for g, s in itertools.product(CLUSTERS, (5, 10))]
    comparisons += [Comparison(g, 5, 0.3, own="fixed") for g in CLUSTERS]
    false = [
        Comparison(g, 5, spread, languages=langs, own="random")
        for langs, g, spread in itertools.product((9, 1), CLUSTERS[:3], (0.0, 0.1, 0.3))
    ]
    return {
        "Delta and Delta_n-Eng": [
            (coverage, Design(*each), studies) for each in itertools.product(kinds, CLUSTERS, CORRELATIONS)
        ],
        "Beyond random": [(comparison_coverage, each, studies) for each in comparisons],
        "False positives": [(false_positives, each, tables) for each in false],
    }


def run(job: tuple[Callable[..., Any], Any, int]) -> list[dict[str, Any]]:
    function, design, number = job
    rows = function(design, number)
    return rows if isinstance(rows, list) else [rows]


def lines(title: str, rows: Sequence[Mapping[str, Any]]) -> Iterator[str]:
    """A table in Markdown: the design, then each method's coverage in percent (and median width over that of t)."""
    figures = ("coverage", "width", "differs")
    design = [name for name in rows[0] if name not in (*figures, "studies", "tables")]
    measure = "differs" if "differs" in rows[0] else "coverage"
    methods = list(rows[0][measure])
    widths = [m for m in methods if m != "t" and "width" in rows[0]]
    head = [*design, *(f"{m} %" for m in methods), *(f"width {m} / t" for m in widths)]
    yield f"\n{title}: {measure}\n"
    yield f"| {' | '.join(head)} |"
    yield f"|{' --- |' * len(head)}"
    for row in rows:
        values = [str(row[name]) for name in design]
        values += [f"{100 * row[measure][m]:.1f}" for m in methods]
        values += [f"{row['width'][m] / row['width']['t']:.2f}" for m in widths]
        yield f"| {' | '.join(values)} |"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--studies", type=int, default=1000, help="studies of each kind (default: 1000)")
    parser.add_argument("--tables", type=int, help="tables of each kind (default: twice the studies)")
    parser.add_argument("--processes", type=int, default=2, help="how many work at once (default: 2)")
    parser.add_argument("--only", choices=list(designs(1, 1)), help="one of the three parts (default: all)")
    parser.add_argument("--json", action="store_true", help="print one JSON object on stdout")
    args = parser.parse_args()
    results = {}
    os.environ["OPENBLAS_NUM_THREADS"] = "1"  # small matrices; read by the processes as they start
    with ProcessPoolExecutor(args.processes, multiprocessing.get_context("spawn")) as pool:
        for title, jobs in designs(args.studies, args.tables or 2 * args.studies).items():
            if args.only not in (None, title):
                continue
            rows = [row for rows in pool.map(run, jobs) for row in rows]
            results[title] = rows
            print("\n".join(lines(title, rows)), file=sys.stderr if args.json else sys.stdout, flush=True)
    if args.json:
        print(json.dumps(results))


if __name__ == "__main__":
    sys.exit(main())
