"""What `mwork evaluate` writes: rows in the layout of Tables 2 to 5, and of the grid of N1 and N2."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

from mwork_jax.intervene.stages import StageSplit
from mwork_jax.metrics import McNemar, Spread
from mwork_jax.results.base import (
    BeyondRandom,
    Difference,
    Interval,
    NeuronSetInfo,
    Provenance,
    Result,
    SetKind,
    need,
    task_title,
)
from mwork_jax.settings import TableSettings


@dataclass(frozen=True)
class RowChange:
    """`Change` of one row, where English may not be measured: None then."""

    own: float
    english: float | None
    own_ci95: Interval | None = None
    english_ci95: Interval | None = None


@dataclass(frozen=True)
class McNemarPair:
    """The tests of the language itself and of English, where that is measured, under the language's neurons."""

    own: McNemar
    english: McNemar | None


@dataclass(frozen=True)
class SeedSpread:
    """Delta and its two sides over the random sets; without English, the change of the languages alone."""

    delta_eng: Spread | None
    delta_n_eng: Spread
    delta: Spread | None


@dataclass(frozen=True)
class DeltaRow:
    """One row in the layout of Tables 2 to 5. under, s_attn, s_ffn, gen: True where that part is switched off. eng,
    n_eng: scores with neurons off, higher is better; deltas: minus the original. seeds: random sets, 0 for a language's
    own. Intervals and p are None where they cannot be had; without English so are eng, delta_eng and delta, and p is of
    delta_n_eng. understanding, generation: N1 and N2 in a grid. like: of a
    random row, the kind of set that it is matched to. scale: what the neurons' activations are multiplied by, 0 for
    neurons that are off. p_eng, p_n_eng: of delta_eng and delta_n_eng alone, not corrected."""

    kind: Literal["delta"]
    table: int | str
    task: str
    model: str
    under: bool
    s_attn: bool
    s_ffn: bool
    gen: bool
    neurons: SetKind
    seeds: int
    eng: float | None
    n_eng: float
    delta_eng: float | None
    delta_n_eng: float
    delta: float | None
    delta_eng_ci95: Interval | None
    delta_n_eng_ci95: Interval | None
    delta_ci95: Interval | None
    p: float | None
    n_items: int
    n_clusters: int
    languages: tuple[str, ...]
    p_holm: float | None = None
    beyond_random: BeyondRandom | None = None
    seed_spread: SeedSpread | None = None
    by_language: Mapping[str, RowChange] = field(default_factory=dict)
    mcnemar: Mapping[str, McNemarPair] = field(default_factory=dict)
    understanding: int | None = None
    generation: int | None = None
    like: SetKind = "lang-spec"
    scale: float = 0.0
    p_eng: float | None = None
    p_n_eng: float | None = None

    @property
    def off(self) -> tuple[bool, bool, bool, bool]:
        """Which parts are switched off: understanding, attention and feed-forward of task-solving, generation."""
        return self.under, self.s_attn, self.s_ffn, self.gen

    @property
    def effect(self) -> float:
        """Delta; without English, what the languages lose."""
        return -self.delta_n_eng if self.delta is None else self.delta

    @property
    def effect_ci95(self) -> Interval | None:
        """The interval of `effect`."""
        if self.delta is not None or self.delta_n_eng_ci95 is None:
            return self.delta_ci95
        low, high = self.delta_n_eng_ci95
        return -high, -low


@dataclass(frozen=True)
class RowContrast:
    """By how much one row's scores are above another's, paired over items: in English, in the other languages, and
    Delta. first, second: rows from 0; eng and delta are None without English."""

    first: int
    second: int
    eng: Difference | None
    n_eng: Difference
    delta: Difference | None


@dataclass(frozen=True)
class TaskInfo:
    """A task, its version, and the score that tables show. title: how to call results on these items, which may be
    the project's own in the task's format; empty in older files, where `TableResult.task_title` knows it too."""

    name: str
    version: int
    score: str
    title: str = ""


@dataclass(frozen=True)
class TableResult(Result):
    """One of Tables 2 to 5 or another one (table: its name), or the grid of N1 and N2 over it. stages: None in a grid.
    original: {language: {score: points}}, of held-out loss {"nats_per_token": ..}. neurons: {language: the set that was
    switched off}."""

    kind: Literal["table", "grid"]
    provenance: Provenance[TableSettings]
    table: int | str
    stage: str
    task: TaskInfo
    stages: StageSplit | None
    neurons: Mapping[str, NeuronSetInfo]
    original: Mapping[str, Mapping[str, float]]
    rows: tuple[DeltaRow, ...]
    contrasts: tuple[RowContrast, ...] = ()

    def __post_init__(self) -> None:
        need(self, "original", "rows")
        if any(row.table != self.table for row in self.rows):
            raise ValueError("rows should be of the table itself")
        if any(not 0 <= n < len(self.rows) for one in self.contrasts for n in (one.first, one.second)):
            raise ValueError("contrasts should be of rows that are there")
        if any(self.task.score not in scores for scores in self.original.values()):
            raise ValueError("original should have the task's score for every language")
        of_grid = [None not in (row.understanding, row.generation) for row in self.rows]
        if self.kind == "grid" and not (self.stages is None and all(of_grid)):
            raise ValueError("a grid has N1 and N2 (understanding, generation) in every row, and no stages of its own")
        if self.kind == "table" and (self.stages is None or any(of_grid)):
            raise ValueError("a table has stages of its own, and no N1 and N2 in its rows")

    @property
    def task_title(self) -> str:
        """What the items are to be called, from where they are from."""
        return task_title(self.task.name, self.provenance.data.values())

    @property
    def identity(self) -> tuple[str, int | str, str]:
        """What there is one of in a folder."""
        return self.kind, self.table, self.task.name


@dataclass(frozen=True)
class TablesResults(Result):
    """All tables of a folder that `mwork evaluate` wrote, and their rows; provenance: of the newest of them."""

    kind: Literal["tables"]
    provenance: Provenance[TableSettings]
    tables: tuple[TableResult, ...]
    rows: tuple[DeltaRow, ...]

    def __post_init__(self) -> None:
        need(self, "tables")
        if self.rows != tuple(row for table in self.tables for row in table.rows):
            raise ValueError("rows should be those of the tables, in their order")

    @classmethod
    def of(cls, tables: Sequence[TableResult]) -> TablesResults:
        """Tables in one file, the newest last."""
        rows = tuple(row for table in tables for row in table.rows)
        return cls("tables", tables[-1].provenance, tuple(tables), rows)
