"""From neuron sets to rows in the layout of Tables 2 to 5: which sets are switched off, and what came of it.

A row switches off some parts of the workflow, with each language's own neurons or with random ones. English is measured
under every language's set, as in the paper. A random row has sets matched to those of its own row, layer by layer and
group by group, so "vs random" always means the same: by how much Delta is higher than with the matched random sets.
Without English there is no Delta: a row then says what becomes of the languages, and how much more they lose than with
matched random sets.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import reduce
from operator import and_, or_

import numpy as np

from mwork_jax.errors import InputError
from mwork_jax.evaluate.evaluations import Evaluation, ItemScores, TaskEvaluation
from mwork_jax.evaluate.runner import Condition, Measured
from mwork_jax.intervene.stages import EACH_STAGE, StageSetting, StageSplit
from mwork_jax.metrics import (
    ENGLISH,
    McNemar,
    PairedDifference,
    ScoresByLanguage,
    Spread,
    benjamini_hochberg,
    beyond_random,
    corrected,
    delta,
    mcnemar,
    paired_difference,
    runs_difference,
    spread,
)
from mwork_jax.neurons import NeuronSet
from mwork_jax.results import (
    BeyondRandom,
    DeltaRow,
    Difference,
    Interval,
    McNemarPair,
    RowChange,
    RowContrast,
    SeedSpread,
    SetKind,
)

ORIGINAL = "original"
# What a row can have beside Delta with its interval and p.
STATISTICS = ("beyond-random", "seed-spread", "by-language", "mcnemar")
_SAME_SETS: tuple[SetKind, ...] = ("shared", "union")  # one set for all languages, and so its random ones
_After = Mapping[str, Mapping[str, np.ndarray]]  # {language whose set is off: {language measured: points}}


@dataclass(frozen=True)
class RowSpec:
    """What a row switches off, and whose neurons those are. like: of random ones, the kind of set that they are matched
    to. scale: what the activations are multiplied by, 0 to switch them off."""

    setting: StageSetting
    neurons: SetKind
    like: SetKind = "lang-spec"
    scale: float = 0.0

    @property
    def is_random(self) -> bool:
        return self.neurons == "random"

    @property
    def matched(self) -> RowSpec:
        """The row of random sets that this one is compared with."""
        return RowSpec(self.setting, "random", self.neurons, self.scale)

    @property
    def of_sets(self) -> RowSpec:
        """What is done and to which sets, without anything that a kind of row adds."""
        return RowSpec(self.setting, self.neurons, self.like, self.scale)


@dataclass(frozen=True, eq=False)
class DeltaTable:
    """A table that can be measured. evaluations: English first, where there is
    any; neurons: {language: its set}, for all but English;
    seeds: random sets for each row that has them; statistics: of STATISTICS, what its rows have."""

    table: int | str
    task: str
    model: str
    evaluations: Mapping[str, Evaluation]
    neurons: Mapping[str, NeuronSet]
    seeds: int
    statistics: Sequence[str] = STATISTICS

    @property
    def others(self) -> tuple[str, ...]:
        """The languages but English."""
        return tuple(lang for lang in self.evaluations if lang != ENGLISH)


def conditions(table: DeltaTable, rows: Sequence[RowSpec], split: StageSplit) -> Iterator[Condition]:
    """The original model on every language, then each row's sets."""
    yield Condition(ORIGINAL, next(iter(table.neurons.values())).none(), tuple(table.evaluations))
    for row in rows:
        for language in table.others:
            measured = tuple(lang for lang in (ENGLISH, language) if lang in table.evaluations)
            kind = row.like if row.is_random else row.neurons
            own = row.setting.choose(set_of_kind(table, kind, language), split)
            sets = [own.random_like(seed) for seed in range(table.seeds)] if row.is_random else [own]
            for seed, neurons in enumerate(sets):
                yield Condition(condition_name(row, split, language, seed), neurons, measured)


def set_of_kind(table: DeltaTable, kind: SetKind, language: str) -> NeuronSet:
    """The set that a row takes for a language, from the sets of the table's languages. Raises InputError where a kind
    that compares languages has none to compare with."""
    own, others = table.neurons[language], [table.neurons[lang] for lang in table.others if lang != language]
    if kind == "lang-spec":
        return own
    if not others:
        raise InputError(f"neurons {kind!r} compare the sets of several languages; there is {language} alone")
    if kind == "shared":
        return reduce(and_, others, own)
    together = reduce(or_, others)
    return own - together if kind == "exclusive" else own | together


def condition_name(row: RowSpec, split: StageSplit, language: str, seed: int = 0) -> str:
    like = "" if row.like == "lang-spec" else f" like {row.like}"
    scaled = f" x {row.scale:g}" if row.scale else ""
    return f"{language} {row.neurons}{like} {parts_of(row)}{scaled} {split.understanding}/{split.generation} {seed}"


def parts_of(row: RowSpec) -> str:
    """The parts that a row switches off, as in under+gen."""
    return "+".join(part for part in EACH_STAGE if getattr(row.setting, part))


def delta_rows(
    table: DeltaTable, rows: Sequence[RowSpec], split: StageSplit, measured: Measured
) -> tuple[DeltaRow, ...]:
    """Every row from what was measured. p values are corrected by `corrected_rows`."""
    return tuple(_row(table, rows, row, split, measured) for row in rows)


def corrected_rows(rows: Sequence[DeltaRow]) -> tuple[DeltaRow, ...]:
    """Rows with p values corrected over them: Delta's and those of "beyond random" (Holm), McNemar's over rows,
    languages and sides (Benjamini and Hochberg)."""
    of_delta = corrected([row.p for row in rows])
    compared = iter(corrected([row.beyond_random.p for row in rows if row.beyond_random is not None]))
    tests = [test for row in rows for pair in row.mcnemar.values() for test in (pair.own, pair.english) if test]
    of_tests = iter(corrected([test.p for test in tests], benjamini_hochberg))

    def with_p(pair: McNemarPair) -> McNemarPair:
        own = replace(pair.own, p_bh=next(of_tests))
        return McNemarPair(own, pair.english and replace(pair.english, p_bh=next(of_tests)))

    return tuple(
        replace(
            row,
            p_holm=p,
            beyond_random=None if row.beyond_random is None else replace(row.beyond_random, p_holm=next(compared)),
            mcnemar={lang: with_p(pair) for lang, pair in row.mcnemar.items()},
        )
        for row, p in zip(rows, of_delta, strict=True)
    )


def _row(table: DeltaTable, rows: Sequence[RowSpec], row: RowSpec, split: StageSplit, measured: Measured) -> DeltaRow:
    before = {lang: e.points(measured[ORIGINAL][lang]) for lang, e in table.evaluations.items()}
    items = _Items.of(table)
    after = _after(table, row, split, measured)
    same_sets = (row.like if row.is_random else row.neurons) in _SAME_SETS
    means = _means(before, after, items, same_sets)
    of = {name: name in table.statistics for name in STATISTICS}
    beyond = None
    if of["beyond-random"] and table.seeds and not row.is_random and any(r.of_sets == row.matched for r in rows):
        beyond = _beyond(after, _after(table, row.matched, split, measured), items, same_sets)
    return DeltaRow(
        kind="delta",
        table=table.table,
        task=table.task,
        model=table.model,
        **asdict(row.setting),
        neurons=row.neurons,
        seeds=table.seeds if row.is_random else 0,
        eng=means.eng,
        n_eng=means.n_eng,
        delta_eng=means.delta_eng,
        delta_n_eng=means.delta_n_eng,
        delta=means.delta,
        delta_eng_ci95=means.delta_eng_ci95,
        delta_n_eng_ci95=means.delta_n_eng_ci95,
        delta_ci95=means.delta_ci95,
        p=means.p,
        n_items=sum(len(ids) for ids in items.groups.values()),
        n_clusters=means.n_clusters,
        languages=table.others,
        beyond_random=beyond,
        seed_spread=_seed_spread(before, after, items, table.seeds) if of["seed-spread"] and row.is_random else None,
        by_language={lang: _change(before, after[lang], items, lang) for lang in table.others if of["by-language"]},
        mcnemar=_mcnemar(table, row, split, measured) if of["mcnemar"] and not row.is_random else {},
        like=row.like,
        scale=row.scale,
        p_eng=means.p_eng,
        p_n_eng=means.p_n_eng,
    )


def row_contrasts(
    table: DeltaTable, rows: Sequence[RowSpec], pairs: Sequence[tuple[int, int]], split: StageSplit, measured: Measured
) -> tuple[RowContrast, ...]:
    """How rows differ from each other; pairs: (first, second), from 0."""
    items = _Items.of(table)

    def of(difference: PairedDifference) -> Difference:
        return Difference(difference.change, difference.ci95, difference.p)

    found = []
    for pair in pairs:
        first, second = (_after(table, rows[n], split, measured) for n in pair)
        same_sets = any((rows[n].like if rows[n].is_random else rows[n].neurons) in _SAME_SETS for n in pair)
        by = runs_difference(first, second, items.weights, items.groups, same_sets=same_sets)
        found.append(RowContrast(*pair, by.eng and of(by.eng), of(by.n_eng), by.delta and of(by.delta)))
    return tuple(found)


@dataclass(frozen=True, eq=False)
class _Items:
    """How much each item counts, and what it is about: {language: [items]}."""

    weights: Mapping[str, np.ndarray]
    groups: Mapping[str, Sequence[str]]

    @classmethod
    def of(cls, table: DeltaTable) -> _Items:
        evaluations = table.evaluations
        return cls(
            {lang: e.weights for lang, e in evaluations.items()}, {lang: e.item_ids for lang, e in evaluations.items()}
        )


@dataclass(frozen=True)
class _Means:
    """What a row says of all languages together; of English and Delta None where there is no English."""

    eng: float | None
    n_eng: float
    delta_eng: float | None
    delta_n_eng: float
    delta: float | None
    delta_eng_ci95: Interval | None
    delta_n_eng_ci95: Interval | None
    delta_ci95: Interval | None
    p: float | None
    n_clusters: int
    p_eng: float | None
    p_n_eng: float | None


def _means(before: ScoresByLanguage, after: _After, items: _Items, same_sets: bool) -> _Means:
    """Delta and its two sides; without English the change of the languages, whose p is then the row's."""
    if ENGLISH in before:
        both = delta(before, after, items.weights, items.groups, same_sets=same_sets)
        return _Means(
            both.eng, both.n_eng, both.delta_eng, both.delta_n_eng, both.delta,
            both.delta_eng_ci95, both.delta_n_eng_ci95, both.delta_ci95, both.p, both.n_clusters,
            both.p_eng, both.p_n_eng,
        )  # fmt: skip
    own = {lang: runs[lang] for lang, runs in after.items()}
    change = paired_difference(own, before, items.weights, items.groups, same_sets=same_sets)
    scores = [np.average(np.atleast_2d(own[lang]).mean(axis=0), weights=items.weights[lang]) for lang in own]
    return _Means(
        None, float(np.mean(scores)), None, change.change, None, None, change.ci95, None, change.p, change.n_clusters,
        None, change.p,
    )  # fmt: skip


def _beyond(own: _After, random: _After, items: _Items, same_sets: bool) -> BeyondRandom:
    """By how much Delta is higher than with random sets; without English, by how much more the languages lose."""
    if all(ENGLISH in runs for runs in own.values()):
        higher = beyond_random(own, random, items.weights, items.groups, same_sets=same_sets)
        return BeyondRandom(higher.change, higher.ci95, higher.p)
    ours, theirs = ({lang: runs[lang] for lang, runs in side.items()} for side in (own, random))
    lower = paired_difference(theirs, ours, items.weights, items.groups, single_draw=True, same_sets=same_sets)
    return BeyondRandom(lower.change, lower.ci95, lower.p)


def _after(table: DeltaTable, row: RowSpec, split: StageSplit, measured: Measured) -> _After:
    """What a row's sets leave: {language: {"en", where it is measured, and the language: points [items], [seeds, items]
    for random sets}}."""

    def points(language: str, scored: str, seed: int) -> np.ndarray:
        return table.evaluations[scored].points(measured[condition_name(row, split, language, seed)][scored])

    scored = {lang: [at for at in (ENGLISH, lang) if at in table.evaluations] for lang in table.others}
    if not row.is_random:
        return {lang: {at: points(lang, at, 0) for at in scored[lang]} for lang in table.others}
    return {
        lang: {at: np.stack([points(lang, at, seed) for seed in range(table.seeds)]) for at in scored[lang]}
        for lang in table.others
    }


def _change(before: ScoresByLanguage, after: ScoresByLanguage, items: _Items, language: str) -> RowChange:
    """The change of one language, and of English, with that language's neurons off; mean over seeds."""

    def change(at: str) -> PairedDifference | None:
        if at not in after:
            return None
        return paired_difference({at: after[at]}, {at: before[at]}, {at: items.weights[at]}, {at: items.groups[at]})

    own, english = change(language), change(ENGLISH)
    assert own is not None
    if english is None:
        return RowChange(own.change, None, own.ci95)
    return RowChange(own.change, english.change, own.ci95, english.ci95)


def _seed_spread(before: ScoresByLanguage, after: _After, items: _Items, seeds: int) -> SeedSpread:
    """Delta and its two sides over the random sets."""
    each = [
        _means(before, {lang: {at: x[seed] for at, x in runs.items()} for lang, runs in after.items()}, items, False)
        for seed in range(seeds)
    ]

    def over_sets(values: Sequence[float | None]) -> Spread | None:
        known = [value for value in values if value is not None]
        return spread(known) if known else None

    return SeedSpread(
        over_sets([one.delta_eng for one in each]),
        spread([one.delta_n_eng for one in each]),
        over_sets([one.delta for one in each]),
    )


def _mcnemar(table: DeltaTable, row: RowSpec, split: StageSplit, measured: Measured) -> dict[str, McNemarPair]:
    """Exact McNemar tests of each language and of English under its neurons; empty for a task without right and
    wrong."""

    def right(evaluation: Evaluation, scores: ItemScores) -> np.ndarray | None:
        return evaluation.right(scores) if isinstance(evaluation, TaskEvaluation) else None

    def test(language: str, scored: str) -> McNemar | None:
        evaluation = table.evaluations[scored]
        before = right(evaluation, measured[ORIGINAL][scored])
        after = right(evaluation, measured[condition_name(row, split, language)][scored])
        return None if before is None or after is None else mcnemar(before, after, evaluation.item_ids)

    has_english = ENGLISH in table.evaluations
    pairs = {lang: (test(lang, lang), test(lang, ENGLISH) if has_english else None) for lang in table.others}
    return {lang: McNemarPair(own, english) for lang, (own, english) in pairs.items() if own is not None}
