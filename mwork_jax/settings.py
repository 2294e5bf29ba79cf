"""What each command can be told, apart from the model, the documents and the neurons; every result records it."""

from __future__ import annotations

import math
from dataclasses import dataclass, field, replace
from typing import SupportsFloat

from mwork_jax.corpus import LANGUAGES
from mwork_jax.errors import InputError, whole_number
from mwork_jax.metrics import MIN_SEEDS
from mwork_jax.select.rules import DEFAULT_RULE


@dataclass(frozen=True)
class DetectSettings:
    """How neurons are scored. max_tokens: longer documents are cut. kept: how many of the weakest documents each neuron
    remembers, which bounds how tolerant a rule can be. include_bos: count the BOS position in the norms."""

    max_tokens: int = 512
    kept: int = 8
    include_bos: bool = False

    def __post_init__(self) -> None:
        _check_whole_numbers("detection", self, max_tokens=2, kept=1)


@dataclass(frozen=True)
class RunSettings:
    """How the whole loop runs. documents, held_out: per language, to find neurons on and to measure on. rule, mode: how
    neurons are selected. seeds: random sets per language. n1, n2: layers of the understanding and the generation stage,
    a quarter and an eighth of them where None."""

    languages: tuple[str, ...] = LANGUAGES
    documents: int = 32
    held_out: int = 8
    rule: str = DEFAULT_RULE
    mode: str = "minus_english"
    seeds: int = MIN_SEEDS
    n1: int | None = None
    n2: int | None = None
    max_tokens: int = 512

    def __post_init__(self) -> None:
        _check_whole_numbers("run", self, documents=0, held_out=0, seeds=0, n1=0, n2=0, max_tokens=2)

    def quick(self) -> RunSettings:
        """A first look in about a minute: few documents, two random seeds."""
        return replace(
            self, documents=min(self.documents, 12), held_out=min(self.held_out, 4), seeds=min(self.seeds, 2)
        )


@dataclass(frozen=True)
class TableSettings:
    """How one of Tables 2 to 5 runs. languages: English among them. items: per language, all where None. shots: worked
    examples before each item. seeds: random sets per language. chat: prompts go through the model's chat template. n1,
    n2: layers of the understanding and the generation stage; several of either make a grid."""

    languages: tuple[str, ...]
    items: int | None = None
    shots: int = 0
    seeds: int = MIN_SEEDS
    chat: bool = False
    n1: tuple[int, ...] = ()
    n2: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        _check_whole_numbers("table", self, items=0, shots=0, seeds=0)


@dataclass(frozen=True)
class LensSettings:
    """How a lens runs. top: tokens that count at each position. label_languages: beside those of the prompts."""

    top: int = 10
    max_tokens: int = 64
    labeller: str = "lingua"
    label_languages: tuple[str, ...] = ()
    example_tokens: int = 9


@dataclass(frozen=True)
class TuneSettings:
    """How neurons are tuned. The default rate helped Vietnamese in Gemma 3 270M, ten times more hurt it
    (docs/tuning.md).

    learning_rate: the highest; it rises over the share `warmup` of the steps and falls along a cosine. epochs: times
    that training sees every document; steps: fewer or exactly so many steps instead. batch: packed rows per step, in
    `accumulate` parts whose gradients are added up. max_tokens: length of a row; longer documents are cut.
    weight_decay, clip: of the selection alone. validation: share of the documents that are kept out of training and
    decide which step is best; validate_every: steps between validations, each with a checkpoint;
    patience: so many validations without a lower loss end the run. remat: layers are computed again in backward passes,
    which takes a third more time and keeps memory from growing with depth. seed: order of the documents.
    """

    learning_rate: float = 1e-4
    epochs: int = 3
    steps: int | None = None
    batch: int = 8
    accumulate: int = 1
    max_tokens: int = 512
    warmup: float = 0.05
    weight_decay: float = 0.0
    clip: float = 0.3
    validation: float = 0.1
    validate_every: int = 10
    patience: int = 3
    remat: bool = True
    seed: int = 0

    def __post_init__(self) -> None:
        _check_whole_numbers(
            "tuning", self, epochs=1, batch=1, accumulate=1, max_tokens=2, validate_every=1, patience=1, steps=1, seed=0
        )
        for name, low, high in (
            ("learning_rate", 0.0, math.inf), ("clip", 0.0, math.inf), ("weight_decay", -1e-9, math.inf),
            ("warmup", -1e-9, 1.0), ("validation", 0.0, 0.5),
        ):  # fmt: skip
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, SupportsFloat):
                raise InputError(f"tuning: {name} is {value!r:.40}; a number is needed")
            if not low < float(value) <= high or value == math.inf:
                raise InputError(f"tuning: {name} is {value}; it must be above {max(low, 0):g} and at most {high:g}")
        if self.batch % self.accumulate:
            raise InputError(f"tuning: a batch of {self.batch} rows does not split into {self.accumulate} equal parts")


@dataclass(frozen=True)
class EnhanceSettings:
    """How Table 6 runs. documents: numbers of documents to tune on. seeds: how many times each language's own neurons
    are tuned, and as many random ones, each time in another order of the documents; 0 for its own neurons once and no
    control. at_once: runs in one program. max_tokens: of the documents that are measured on."""

    documents: tuple[int, ...] = (400,)
    seeds: int = 1
    at_once: int = 8
    tune: TuneSettings = field(default_factory=TuneSettings)

    def __post_init__(self) -> None:
        _check_whole_numbers("tuning", self, seeds=0, at_once=1)


def _check_whole_numbers(where: str, settings: object, **least: int) -> None:
    """Raises InputError where one of these fields is no whole number or too small. A field may be None where that is
    its default."""
    for name, smallest in least.items():
        value = getattr(settings, name)
        if value is not None or getattr(type(settings), name) is not None:
            whole_number(f"{where}: {name}", value, smallest)
