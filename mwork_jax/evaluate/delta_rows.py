"""From neuron sets to rows in the layout of Tables 2 to 5: which sets are switched off, and what came of it.

A row switches off some parts of the workflow, with each language's own neurons or with random ones. English is measured
under every language's set, as in the paper. A random row has sets matched to those of its own row, layer by layer and
group by group, so "vs random" always means the same: by how much Delta is higher than with the matched random sets.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace

import numpy as np

from mwork_jax.evaluate.evaluations import Evaluation, ItemScores, TaskEvaluation
from mwork_jax.evaluate.runner import Condition, Measured
from mwork_jax.intervene.stages import StageSetting, StageSplit
from mwork_jax.metrics import (
    ENGLISH,
    McNemar,
    benjamini_hochberg,
    beyond_random,
    corrected,
    delta,
    mcnemar,
    spread,
)
from mwork_jax.neurons import NeuronSet
from mwork_jax.results import BeyondRandom, Change, DeltaRow, McNemarPair, NeuronKind, SeedSpread

ORIGINAL = "original"


@dataclass(frozen=True)
class RowSpec:
    """What a row switches off, and whether the neurons are a language's own or random ones."""

    setting: StageSetting
    neurons: NeuronKind

    @property
    def is_random(self) -> bool:
        return self.neurons == "random"


@dataclass(frozen=True, eq=False)
class DeltaTable:
    """A table that can be measured. evaluations: English first; neurons: {language: its set}, for all but English;
    seeds: random sets for each row that has them."""

    table: int | str
    task: str
    model: str
    evaluations: Mapping[str, Evaluation]
    neurons: Mapping[str, NeuronSet]
    seeds: int

    @property
    def others(self) -> tuple[str, ...]:
        """The languages but English."""
        return tuple(lang for lang in self.evaluations if lang != ENGLISH)


def conditions(table: DeltaTable, rows: Sequence[RowSpec], split: StageSplit) -> Iterator[Condition]:
    """The original model on every language, then each row's sets."""
    yield Condition(ORIGINAL, next(iter(table.neurons.values())).none(), tuple(table.evaluations))
    for row in rows:
        for language in table.others:
            own = row.setting.choose(table.neurons[language], split)
            sets = [own.random_like(seed) for seed in range(table.seeds)] if row.is_random else [own]
            for seed, neurons in enumerate(sets):
                yield Condition(condition_name(row, split, language, seed), neurons, (ENGLISH, language))


def condition_name(row: RowSpec, split: StageSplit, language: str, seed: int = 0) -> str:
    off = "+".join(part for part, is_off in asdict(row.setting).items() if is_off)
    return f"{language} {row.neurons} {off} {split.understanding}/{split.generation} {seed}"


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
    tests = [test for row in rows for pair in row.mcnemar.values() for test in (pair.own, pair.english)]
    of_tests = iter(corrected([test.p for test in tests], benjamini_hochberg))

    def with_p(test: McNemar) -> McNemar:
        return replace(test, p_bh=next(of_tests))

    return tuple(
        replace(
            row,
            p_holm=p,
            beyond_random=None if row.beyond_random is None else replace(row.beyond_random, p_holm=next(compared)),
            mcnemar={lang: McNemarPair(with_p(pair.own), with_p(pair.english)) for lang, pair in row.mcnemar.items()},
        )
        for row, p in zip(rows, of_delta, strict=True)
    )


def _row(table: DeltaTable, rows: Sequence[RowSpec], row: RowSpec, split: StageSplit, measured: Measured) -> DeltaRow:
    before = {lang: e.points(measured[ORIGINAL][lang]) for lang, e in table.evaluations.items()}
    weights = {lang: e.weights for lang, e in table.evaluations.items()}
    groups = {lang: e.item_ids for lang, e in table.evaluations.items()}
    after = _after(table, row, split, measured)
    result = delta(before, after, weights, groups)
    matched = RowSpec(row.setting, "random")
    beyond = None
    if not row.is_random and table.seeds and any((r.setting, r.neurons) == (row.setting, "random") for r in rows):
        difference = beyond_random(after, _after(table, matched, split, measured), weights, groups)
        beyond = BeyondRandom(difference.change, difference.ci95, difference.p)
    return DeltaRow(
        kind="delta",
        table=table.table,
        task=table.task,
        model=table.model,
        **asdict(row.setting),
        neurons=row.neurons,
        seeds=table.seeds if row.is_random else 0,
        eng=result.eng,
        n_eng=result.n_eng,
        delta_eng=result.delta_eng,
        delta_n_eng=result.delta_n_eng,
        delta=result.delta,
        delta_eng_ci95=result.delta_eng_ci95,
        delta_n_eng_ci95=result.delta_n_eng_ci95,
        delta_ci95=result.delta_ci95,
        p=result.p,
        n_items=result.n_items,
        n_clusters=result.n_clusters,
        languages=result.languages,
        beyond_random=beyond,
        seed_spread=_seed_spread(before, after, weights, table.seeds) if row.is_random else None,
        by_language={lang: _change(before, after[lang], weights, lang) for lang in table.others},
        mcnemar={} if row.is_random else _mcnemar(table, row, split, measured),
    )


def _after(table: DeltaTable, row: RowSpec, split: StageSplit, measured: Measured) -> dict[str, dict[str, np.ndarray]]:
    """What a row's sets leave: {language: {"en" and the language: points [items], [seeds, items] for random sets}}."""

    def points(language: str, scored: str, seed: int) -> np.ndarray:
        return table.evaluations[scored].points(measured[condition_name(row, split, language, seed)][scored])

    if not row.is_random:
        return {lang: {at: points(lang, at, 0) for at in (ENGLISH, lang)} for lang in table.others}
    return {
        lang: {at: np.stack([points(lang, at, seed) for seed in range(table.seeds)]) for at in (ENGLISH, lang)}
        for lang in table.others
    }


def _change(
    before: Mapping[str, np.ndarray], after: Mapping[str, np.ndarray], weights: Mapping[str, np.ndarray], language: str
) -> Change:
    """The change of one language, and of English, with that language's neurons off; mean over seeds."""
    own, english = (
        float(np.average(np.atleast_2d(after[at]).mean(axis=0) - before[at], weights=weights[at]))
        for at in (language, ENGLISH)
    )
    return Change(own, english)


def _seed_spread(
    before: Mapping[str, np.ndarray],
    after: Mapping[str, Mapping[str, np.ndarray]],
    weights: Mapping[str, np.ndarray],
    seeds: int,
) -> SeedSpread:
    """Delta and its two sides over the random sets."""
    each = [
        delta(before, {lang: {at: x[seed] for at, x in runs.items()} for lang, runs in after.items()}, weights)
        for seed in range(seeds)
    ]
    return SeedSpread(
        spread([one.delta_eng for one in each]),
        spread([one.delta_n_eng for one in each]),
        spread([one.delta for one in each]),
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

    pairs = {lang: (test(lang, lang), test(lang, ENGLISH)) for lang in table.others}
    return {
        lang: McNemarPair(own, english)
        for lang, (own, english) in pairs.items()
        if own is not None and english is not None
    }
