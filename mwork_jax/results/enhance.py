"""What `mwork enhance` writes: Table 6 and Figure 4."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

from mwork_jax.results.base import DataInfo, Interval, NeuronKind, Provenance, Result, need
from mwork_jax.settings import EnhanceSettings


@dataclass(frozen=True)
class TuningChange:
    """By how much a language's own neurons bring it more than as many random ones."""

    change: float
    ci95: Interval | None
    p: float | None


@dataclass(frozen=True)
class TuningRunInfo:
    """How one tuning went, losses in nats per token. kept: the share of the change that is left in the model's dtype;
    train: loss of each step; validation: (steps made, loss)."""

    neurons: int
    documents: int
    steps: int
    best_step: int
    validation_before: float
    validation_best: float
    diverged: bool
    kept: float
    train: tuple[float, ...]
    validation: tuple[tuple[int, float], ...]


@dataclass(frozen=True)
class TuningRow:
    """One language tuned in one way on so many documents (Table 6): scores after tuning, changes from the original,
    means over seeds. delta_others: mean change of the languages in `others`."""

    kind: Literal["tuning"]
    table: int
    task: str
    model: str
    neurons: NeuronKind
    language: str
    documents: int
    seeds: int
    eng: float
    n_eng: float
    delta_eng: float
    delta_n_eng: float
    delta: float
    delta_eng_ci95: Interval | None
    delta_n_eng_ci95: Interval | None
    delta_ci95: Interval | None
    p: float | None
    n_items: int
    n_clusters: int
    languages: tuple[str, ...]
    own_by_seed: tuple[float, ...]
    delta_others: float | None
    others: tuple[str, ...]
    own_beyond_random: TuningChange | None = None
    under: bool = False
    s_attn: bool = False
    s_ffn: bool = False
    gen: bool = False


@dataclass(frozen=True)
class EnhanceResults(Result):
    """What `mwork enhance` found. original: {measure: {language: score of the original}}; sizes: {measure: {language:
    items}}; runs: {name: how it went}; items: {measure: {language: the documents or items that it was measured on}},
    empty in older files."""

    kind: Literal["enhance"]
    provenance: Provenance[EnhanceSettings]
    original: Mapping[str, Mapping[str, float]]
    sizes: Mapping[str, Mapping[str, int]]
    runs: Mapping[str, TuningRunInfo]
    rows: tuple[TuningRow, ...]
    items: Mapping[str, Mapping[str, DataInfo]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        need(self, "runs", "rows")
