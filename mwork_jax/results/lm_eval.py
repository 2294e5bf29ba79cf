"""What `mwork evaluate --lm-eval` writes."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

from mwork_jax.results.base import ConditionKind, NeuronSetInfo, Provenance, Result, need
from mwork_jax.settings import LmEvalSettings


@dataclass(frozen=True)
class LmEvalTask:
    """A task or group of lm-evaluation-harness as it ran: the version it says, the kind of output ("group" of a group),
    worked examples, items, and for each metric whether higher is better, where the task says so."""

    version: str
    output_type: str
    shots: int
    items: int
    higher_is_better: Mapping[str, bool] = field(default_factory=dict)


@dataclass(frozen=True)
class LmEvalScore:
    """One of a task's metrics after one of its filters, as the harness gives it; stderr: None where it gives none."""

    metric: str
    filter: str
    value: float
    stderr: float | None = None


@dataclass(frozen=True)
class LmEvalRow:
    """A task under one condition. under: the original model, a language's own neurons off, as many random ones off, or
    an intervention; neurons: the language whose; setting: which parts are off, or the intervention's name; seed: of
    random neurons."""

    task: str
    under: ConditionKind
    neurons: str
    setting: str
    seed: int | None
    scores: tuple[LmEvalScore, ...]


@dataclass(frozen=True)
class LmEvalResults(Result):
    """What `mwork evaluate --lm-eval` found. tasks: {name: how it ran}, groups among them; neurons: {language: the set
    that was switched off}; rows: every task under every condition, the original first. The provenance's data are those
    of each task, with a fingerprint of what the model was asked."""

    kind: Literal["lm_eval"]
    provenance: Provenance[LmEvalSettings]
    tasks: Mapping[str, LmEvalTask]
    neurons: Mapping[str, NeuronSetInfo]
    rows: tuple[LmEvalRow, ...]

    def __post_init__(self) -> None:
        need(self, "tasks", "rows")
        if self.rows[0].under != "original":
            raise ValueError("rows should begin with the original model")
        if not {row.task for row in self.rows} <= set(self.tasks):
            raise ValueError("rows should be of the tasks alone")
