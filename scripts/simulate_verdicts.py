"""How often `mwork paper` calls a statement of the paper supported, in studies in which nothing is true.

    python scripts/simulate_verdicts.py --studies 2000

Each study has Tables 1 to 5 with the paper's rows. No neurons do anything: a set, own or random, changes an item's
score by noise alone, some of which the items of a cluster share across languages. With `--size` every row of
language-specific neurons lowers the languages by so many points, and the shares are the power.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from mwork_jax.evaluate.delta_rows import (
    ORIGINAL,
    DeltaTable,
    condition_name,
    corrected_rows,
    delta_rows,
    row_contrasts,
)
from mwork_jax.evaluate.evaluations import ItemScores
from mwork_jax.evaluate.table_files import PACKAGED, TableSpec
from mwork_jax.hypotheses import Verdict, verdicts
from mwork_jax.intervene.stages import StageSplit
from mwork_jax.model.identity import ModelInfo
from mwork_jax.results import DataInfo, Provenance, TableResult, TaskInfo
from mwork_jax.settings import TableSettings

_SPLIT = StageSplit.default(8)
_MODEL = ModelInfo("simulated", "llama", 8, 16, "float32", "0" * 16, "0" * 16)
_LANGUAGES = ("en", "de", "zh", "th")


@dataclass(frozen=True)
class _Items:
    """Items whose scores are given; what a table asks of an evaluation and no more."""

    ids: tuple[str, ...]

    @property
    def item_ids(self) -> tuple[str, ...]:
        return self.ids

    @property
    def weights(self) -> np.ndarray:
        return np.ones(len(self.ids))

    def points(self, scores: ItemScores) -> np.ndarray:
        return np.asarray(scores["points"])


def simulated_table(
    spec: TableSpec, rng: np.random.Generator, clusters: int, each: int, seeds: int, size: float = 0.0
) -> TableResult:
    """A table of `clusters` x `each` items in four languages. size: by how many points a row of language-specific
    neurons lowers the languages, English not at all."""
    ids = tuple(str(n // each) for n in range(clusters * each))
    evaluations: Mapping[str, Any] = {lang: _Items(ids) for lang in _LANGUAGES}
    nothing: Any = None  # the sets are not looked at: what was measured under them is made up
    table = DeltaTable(
        spec.name,
        spec.task,
        "simulated",
        evaluations,
        dict.fromkeys(_LANGUAGES[1:], nothing),
        seeds,
        ("beyond-random",),
    )

    def scores(lang: str, shared: np.ndarray, lower: float = 0.0) -> dict[str, np.ndarray]:
        return {"points": before[lang] + shared + 10.0 * rng.standard_normal(len(ids)) - lower}

    before = {lang: 50 + 20 * rng.standard_normal(len(ids)) for lang in _LANGUAGES}
    measured: dict[str, Any] = {ORIGINAL: {lang: {"points": before[lang]} for lang in _LANGUAGES}}
    for row in spec.rows:
        for lang in _LANGUAGES[1:]:
            for seed in range(seeds if row.is_random else 1):
                lower, shared = 0.0 if row.is_random else size, np.repeat(5.0 * rng.standard_normal(clusters), each)
                measured[condition_name(row, _SPLIT, lang, seed)] = {
                    "en": scores("en", shared),
                    lang: scores(lang, shared, lower),
                }
    rows = corrected_rows(delta_rows(table, spec.rows, _SPLIT, measured))
    return TableResult(
        "table", _provenance(len(ids)), spec.name, spec.stage, TaskInfo(spec.task, 1, "points"), _SPLIT, {},
        {lang: {"points": float(before[lang].mean())} for lang in _LANGUAGES}, rows,
        row_contrasts(table, spec.rows, spec.contrasts, _SPLIT, measured),
    )  # fmt: skip


def _provenance(items: int) -> Provenance[TableSettings]:
    data = {lang: DataInfo("simulated", items, "0" * 32) for lang in _LANGUAGES}
    return Provenance(_MODEL, data, TableSettings(_LANGUAGES), {})


def studies(
    number: int, seed: int, *, clusters: int = 20, each: int = 2, seeds: int = 5, size: float = 0.0
) -> Iterator[Sequence[Verdict]]:
    """The verdicts of so many studies; each has a generator of its own, from `seed` and its number."""
    specs = [table for name, table in PACKAGED.items() if isinstance(name, int)]
    for n in range(number):
        rng = np.random.default_rng([seed, n])
        yield verdicts([simulated_table(spec, rng, clusters, each, seeds, size) for spec in specs])


def main() -> None:
    parser = argparse.ArgumentParser(
        description="How often mwork paper calls a statement supported where nothing is true."
    )
    parser.add_argument("--studies", type=int, default=2000)
    parser.add_argument("--seed", type=int, default=2402)
    parser.add_argument("--clusters", type=int, default=20)
    parser.add_argument("--size", type=float, default=0.0, help="points that own neurons take from the languages")
    args = parser.parse_args()
    any_supported = any_against = 0
    each: dict[str, int] = {}
    for found in studies(args.studies, args.seed, clusters=args.clusters, size=args.size):
        of = [v for v in found if v.p is not None]
        any_supported += any(v.kind == "supported" for v in of)
        any_against += any(v.kind == "contradicted" for v in of)
        for v in of:
            name = f"{v.statement.section}, Table {v.statement.table}: {v.statement.words}"
            each[name] = each.get(name, 0) + (v.kind == "supported")
    print(f"{args.studies} studies, {args.clusters} clusters, size {args.size:g}")
    print(f"some statement supported: {100 * any_supported / args.studies:.1f} %")
    print(f"some statement contradicted: {100 * any_against / args.studies:.1f} %")
    for name, count in each.items():
        print(f"  {100 * count / args.studies:5.1f} %  {name}")


if __name__ == "__main__":
    main()
