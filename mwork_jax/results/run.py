"""What `mwork run` writes: held-out losses with neurons off, language by language."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

from mwork_jax.intervene.stages import StageSplit
from mwork_jax.results.base import Change, Interval, NeuronSetInfo, Provenance, Result, need
from mwork_jax.results.tables import DeltaRow
from mwork_jax.settings import RunSettings


@dataclass(frozen=True)
class OriginalLoss:
    """Held-out loss of the original model in one language; per byte: None where the text is not known."""

    nats_per_token: float
    nats_per_byte: float | None


@dataclass(frozen=True)
class RandomChange:
    """Rises of the loss with random sets off, one number per seed, and their means."""

    own: tuple[float, ...]
    english: tuple[float, ...]
    own_mean: float
    english_mean: float


@dataclass(frozen=True)
class LanguageChange:
    """Rises of the held-out loss, nats per token, with one language's neurons off: everywhere, in each stage, and with
    random ones off. own_to_english, own_to_random: how many times the other rise, None where that is no rise."""

    neurons: int
    share: float
    everywhere: Change
    under: Change
    s_attn: Change
    s_ffn: Change
    gen: Change
    random: RandomChange
    own_to_english: float | None
    own_to_random: float | None


@dataclass(frozen=True)
class LossRise:
    """By how much a language's held-out loss rises, nats per token, over its first so many held-out documents. ci95:
    over clusters of documents, None where it cannot be had."""

    rise: float
    ci95: Interval | None
    documents: int


@dataclass(frozen=True)
class RunResults(Result):
    """What `mwork run` found. neurons: {language: the set that was switched off}; original: {language: loss of the
    original}; languages: {language: its changes}; rows: of the Delta table. matrix: {language whose set is off
    everywhere: {each language of `original`: the rise of its loss}}, empty where it was not measured; without a row for
    English where its set did not come about as the others did."""

    kind: Literal["run"]
    provenance: Provenance[RunSettings]
    stages: StageSplit
    neurons: Mapping[str, NeuronSetInfo]
    original: Mapping[str, OriginalLoss]
    languages: Mapping[str, LanguageChange]
    rows: tuple[DeltaRow, ...]
    matrix: Mapping[str, Mapping[str, LossRise]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        need(self, "original", "languages", "rows")
        if not set(self.matrix) <= set(self.original):
            raise ValueError("matrix should have rows of the languages of original alone")
        if any(set(row) != set(self.original) for row in self.matrix.values()):
            raise ValueError("matrix should have every language of original in each row, and no other")
