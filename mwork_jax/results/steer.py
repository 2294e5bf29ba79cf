"""What `mwork steer` writes."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from mwork_jax.results.base import Interval, NeuronSetInfo, Provenance, Result, need, task_title
from mwork_jax.settings import SteerSettings


@dataclass(frozen=True)
class SteerChange:
    """A difference of forcing, from what it is compared with. ci95 and p None where they cannot be had."""

    change: float
    ci95: Interval | None
    p: float | None


@dataclass(frozen=True)
class SteerRow:
    """Answers to prompts in one language, wanted in another, under one setting.

    kind: "steered" by a recipe; "original" without one; "instruction": without one, asked in words; "random": means
    over matched random neurons or vectors. layer: of a recipe that adds a vector. forcing: the share of the answers'
    sentences in the language wanted; relevance: chrF with the reference answer, 0 to 1; score: their harmonic mean.
    reference_loss: nats per token of the reference; english_loss: rise of the held-out English loss, nats per token;
    repetition: the share of an answer that it has written before. beyond_original: forcing less that of the original;
    beyond_random: less that of the random controls."""

    kind: Literal["steered", "original", "instruction", "random"]
    prompt: str
    language: str
    recipe: str | None
    strength: float | None
    layer: int | None
    forcing: float
    relevance: float
    score: float
    reference_loss: float
    english_loss: float
    repetition: float
    n_items: int
    seeds: int = 0
    beyond_original: SteerChange | None = None
    beyond_random: SteerChange | None = None


@dataclass(frozen=True)
class SteerResults(Result):
    """What `mwork steer` found. grid: every setting, on all prompts; best: for each recipe, language and language of
    the prompts, the setting with the highest score on the first half of the prompts, measured on the second half, with
    the original, the instruction and random controls beside it. neurons: {language: its set}. examples: {language of
    the prompts: {setting: the first answer}}."""

    kind: Literal["steer"]
    provenance: Provenance[SteerSettings]
    neurons: Mapping[str, NeuronSetInfo]
    grid: tuple[SteerRow, ...]
    best: tuple[SteerRow, ...]
    examples: Mapping[str, Mapping[str, str]]

    def __post_init__(self) -> None:
        need(self, "grid", "best")

    @property
    def task_title(self) -> str:
        """What the questions are to be called."""
        questions = (data for name, data in self.provenance.data.items() if name.endswith(" prompts"))
        return task_title(self.provenance.settings.task, questions)
