"""What each command can be told, apart from the model, the documents and the neurons; every result records it."""

from __future__ import annotations

import math
from dataclasses import dataclass, field, replace
from typing import SupportsFloat

from mwork_jax.corpus import LANGUAGES
from mwork_jax.errors import InputError, whole_number
from mwork_jax.metrics import MIN_SEEDS
from mwork_jax.neurons import FFN_GROUPS
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
    a quarter and an eighth of them where None. matrix_documents: of those held out, how many every language's set is
    measured on in the languages other than its own and English; 0 for no matrix. random_stages: random sets are
    switched off in each stage too, not everywhere alone."""

    languages: tuple[str, ...] = LANGUAGES
    documents: int = 32
    held_out: int = 8
    rule: str = DEFAULT_RULE
    mode: str = "minus_english"
    seeds: int = MIN_SEEDS
    n1: int | None = None
    n2: int | None = None
    max_tokens: int = 512
    matrix_documents: int = 2
    random_stages: bool = False

    def __post_init__(self) -> None:
        _check_whole_numbers(
            "run", self, documents=0, held_out=0, seeds=0, n1=0, n2=0, max_tokens=2, matrix_documents=0
        )

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
class PaperSettings:
    """How the paper is repeated on a model. languages: English among them; parts: of `paper.PARTS`. items: of each
    table and language, all where None; budget: seconds for everything, from which the items of each table follow.
    documents, held_out: per language, to find neurons on and to measure the loss on; tuning: numbers of documents of
    Table 6, empty for those of the paper that there are. rule: how neurons are selected. seeds: random sets of each
    row, and tunings. n1, n2: layers of the understanding and the generation stage; the grid has its own."""

    languages: tuple[str, ...]
    parts: tuple[str, ...]
    items: int | None = None
    budget: float | None = None
    documents: int = 32
    held_out: int = 8
    tuning: tuple[int, ...] = ()
    rule: str = DEFAULT_RULE
    seeds: int = MIN_SEEDS
    shots: int = 0
    chat: bool = False
    n1: int | None = None
    n2: int | None = None
    max_tokens: int = 512

    def __post_init__(self) -> None:
        _check_whole_numbers(
            "paper", self, items=1, documents=1, held_out=1, seeds=1, shots=0, n1=0, n2=0, max_tokens=2
        )

    @property
    def run(self) -> RunSettings:
        """How neurons are found and the held-out loss is measured."""
        return RunSettings(
            languages=self.languages, documents=self.documents, held_out=self.held_out, rule=self.rule,
            seeds=self.seeds, n1=self.n1, n2=self.n2, max_tokens=self.max_tokens, matrix_documents=0,
        )  # fmt: skip

    def table(self, languages: tuple[str, ...], items: int | None = None) -> TableSettings:
        """How a table is measured."""
        n1, n2 = (() if n is None else (n,) for n in (self.n1, self.n2))
        return TableSettings(languages, items, self.shots, self.seeds, self.chat, n1, n2)


@dataclass(frozen=True)
class LmEvalSettings:
    """How tasks of lm-evaluation-harness run. tasks: their names, or those of groups. languages: whose neurons are off;
    off: which parts of them, all or as in under+gen. seeds: random sets per language. items: the first so many of each
    task, all where None. shots: worked examples, the task's own number where None. chat: prompts go through the model's
    chat template. n1, n2: layers of the understanding and the generation stage."""

    tasks: tuple[str, ...]
    languages: tuple[str, ...] = ()
    off: str = "all"
    seeds: int = MIN_SEEDS
    items: int | None = None
    shots: int | None = None
    chat: bool = False
    n1: int | None = None
    n2: int | None = None

    def __post_init__(self) -> None:
        _check_whole_numbers("lm-eval", self, seeds=0, items=1, shots=0, n1=0, n2=0)


@dataclass(frozen=True)
class SteerSettings:
    """How steering is measured. languages: to be written; prompts: those of the prompts. recipes: names; strengths: of
    each, the recipe's own where empty; layers: where vectors are added, a quarter, half and three quarters up where
    empty. part: of the text on which interventions act. task: whose questions are asked, `items` of them; answers have
    at most max_new_tokens. documents, held_out: per language, to find neurons and means on, and English ones to measure
    damage on. rule, mode: how neurons are selected. seeds: random controls of each best setting.
    identifier: who tells languages apart, lingua or the file of a fastText model."""

    languages: tuple[str, ...]
    prompts: tuple[str, ...] = ("en",)
    recipes: tuple[str, ...] = ("diffmean",)
    strengths: tuple[float, ...] = ()
    layers: tuple[int, ...] = ()
    part: str = "all"
    task: str = "mgsm"
    items: int | None = None
    max_new_tokens: int = 32
    documents: int = 32
    held_out: int = 8
    rule: str = DEFAULT_RULE
    mode: str = "minus_shared"
    seeds: int = MIN_SEEDS
    max_tokens: int = 512
    identifier: str = "lingua"

    def __post_init__(self) -> None:
        _check_whole_numbers("steer", self, items=2, max_new_tokens=1, documents=1, held_out=1, seeds=1, max_tokens=2)
        if not all(math.isfinite(strength) for strength in self.strengths):
            raise InputError(f"steer: strengths {', '.join(map(str, self.strengths))}; finite numbers are needed")


@dataclass(frozen=True)
class LensSettings:
    """How a lens runs. top: tokens that count at each position. label_languages: beside those of the prompts."""

    top: int = 10
    max_tokens: int = 64
    labeller: str = "lingua"
    label_languages: tuple[str, ...] = ()
    example_tokens: int = 9


@dataclass(frozen=True)
class NeuronSettings:
    """How neurons are read. languages: whose sets; groups: of which groups; top: so many of each language and group,
    those of the highest mean importance. contexts: tokens with the largest activations in each language, with `before`
    and `after` other tokens around them. tokens: so many that a neuron promotes, and so many that it suppresses.
    documents: per language. max_tokens: longer documents are cut. layers: from 0, of these alone; all where empty."""

    languages: tuple[str, ...]
    groups: tuple[str, ...] = FFN_GROUPS
    top: int = 20
    contexts: int = 5
    tokens: int = 10
    documents: int | None = None
    max_tokens: int = 512
    before: int = 16
    after: int = 8
    layers: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        _check_whole_numbers("neurons", self, top=1, contexts=1, tokens=1, documents=1, max_tokens=2, before=0, after=0)


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
