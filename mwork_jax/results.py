"""What the commands write: typed results, and the only place that knows what results.json looks like.

Every kind of result has a class of its own, an explicit `kind`, and one `Provenance`. A file is checked against its
class as a whole when it is read, so whoever holds a result may use every field of it.
"""

from __future__ import annotations

import platform
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, fields, is_dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Generic, Literal, Self, TypeVar

import msgspec

from mwork_jax.corpus import BUILT_IN
from mwork_jax.errors import InputError
from mwork_jax.intervene.stages import StageSplit
from mwork_jax.metrics import McNemar, Spread
from mwork_jax.model.identity import ModelInfo
from mwork_jax.neurons import GROUPS, NeuronSet
from mwork_jax.runtime.cache import fingerprint
from mwork_jax.runtime.files import read_json, write_json
from mwork_jax.settings import (
    DetectSettings,
    EnhanceSettings,
    LensSettings,
    LmEvalSettings,
    NeuronSettings,
    RunSettings,
    SteerSettings,
    TableSettings,
)
from mwork_jax.version import __version__

FORMAT = "mwork-results-2"
FORMATS_OF_0_1 = ("mwork-results-1", "mwork-lens-1")
_ROUNDING = 1e-4  # by how much a share that was computed in float32 may leave 0 to 1
_TOO_LARGE = 1e30  # far beyond any score, loss or count, and sums and products of such numbers are still finite
_PACKAGES = ("jax", "flax", "numpy", "scipy", "transformers")

Interval = tuple[float, float]  # its lower and its upper end
NeuronKind = Literal["random", "lang-spec"]
# Whose neurons a row of a table switches off: matched random ones; each language's own; those that the sets of all the
# table's languages share; a language's own that no other one's set has; those of any of the sets.
SetKind = Literal["random", "lang-spec", "shared", "exclusive", "union"]
ConditionKind = Literal["original", "own", "random", "steered"]
S = TypeVar("S")


@dataclass(frozen=True)
class DataInfo:
    """One language's documents or items: where from, how many, a fingerprint of their content; revision: of a data set
    on the Hub."""

    origin: str
    items: int
    fingerprint: str
    revision: str | None = None

    @property
    def is_built_in(self) -> bool:
        """Whether they are the project's own, which come with it."""
        return self.origin.startswith(f"{BUILT_IN}, ")


HELD_OUT_LOSS = "held-out loss"  # its name beside the tasks: minus nats per token, so that higher is better
OWN_QUESTIONS = "the project's own questions, not a benchmark"


def task_title(task: str, data: Iterable[DataInfo]) -> str:
    """How results on these items are to be called: a benchmark's name stands for its own items alone."""
    if task == HELD_OUT_LOSS:
        return task
    return f"{task} format, {OWN_QUESTIONS}" if any(one.is_built_in for one in data) else task


@dataclass(frozen=True)
class Provenance(Generic[S]):
    """What made a result. data: {language: documents or items}. command: as it was typed, empty where a result was made
    from Python. seed: what every random choice began with."""

    model: ModelInfo
    data: Mapping[str, DataInfo]
    settings: S
    versions: Mapping[str, str]
    command: tuple[str, ...] = ()
    seed: int = 0

    def __post_init__(self) -> None:
        _need(self, "data")


@dataclass(frozen=True)
class NeuronSetInfo:
    """A neuron set that was switched off or tuned: how many, and how it was found, where the set says so."""

    fingerprint: str
    count: int
    total: int
    rule: str | None = None
    mode: str | None = None
    corpus: str | None = None
    documents: int | None = None

    @classmethod
    def of(cls, neurons: NeuronSet) -> NeuronSetInfo:
        known: dict[str, object] = {}
        for name, kind in (("rule", str), ("mode", str), ("corpus", str), ("documents", int)):
            value = neurons.provenance.get(name)
            known[name] = value if isinstance(value, kind) else None
        return cls(neurons.fingerprint, neurons.count(), neurons.total(), **known)  # type: ignore[arg-type]


@dataclass(frozen=True)
class BeyondRandom:
    """By how much a row's Delta is higher than with matched random sets off; without English, by how much more the
    languages lose. ci95 and p None where there are too few
    items or seeds; p_holm: corrected over the rows of the table."""

    delta: float
    ci95: Interval | None
    p: float | None
    p_holm: float | None = None


@dataclass(frozen=True)
class Change:
    """What switching a language's neurons off does to the language itself and to English; *_ci95: over clusters of
    items, None where it cannot be had, or was not written yet."""

    own: float
    english: float
    own_ci95: Interval | None = None
    english_ci95: Interval | None = None


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
class Difference:
    """A difference with its 95 % interval and p, None where they cannot be had."""

    change: float
    ci95: Interval | None
    p: float | None


@dataclass(frozen=True)
class RowContrast:
    """By how much one row's scores are above another's, paired over items: in English, in the other languages, and
    Delta. first, second: rows from 0; eng and delta are None without English."""

    first: int
    second: int
    eng: Difference | None
    n_eng: Difference
    delta: Difference | None


class _Result:
    """What all kinds of results share: one provenance, JSON and back."""

    def to_json(self) -> dict[str, object]:
        """The result as JSON values."""
        return {"format": FORMAT, **msgspec.to_builtins(self)}

    @classmethod
    def from_json(cls, value: object, where: str) -> Self:
        """The result that `to_json` described. Raises InputError, one line that names `where` and the field, for a
        value that is not one."""
        body = {name: inner for name, inner in _of_this_version(value, where).items() if name != "format"}
        try:
            result = msgspec.convert(body, cls)
        except (msgspec.ValidationError, OverflowError, RecursionError) as error:
            raise InputError(f"{where}: damaged ({' '.join(str(error).split()):.200})") from None
        _check_values(result, body, where, "$")
        return result


def _of_this_version(value: object, where: str) -> Mapping[str, object]:
    """The value, if it is a result of this format. Raises InputError for one of version 0.1 and for all else."""
    form = value.get("format") if isinstance(value, Mapping) else None
    if form in FORMATS_OF_0_1:
        raise InputError(
            f"{where}: written by version 0.1, whose intervals took parallel items for independent; run the command "
            "again, with another output folder"
        )
    if not isinstance(value, Mapping) or form != FORMAT:
        raise InputError(f"{where}: not a result of this project (its 'format' should be {FORMAT!r})")
    return value


def _check_values(result: object, value: object, where: str, path: str) -> None:
    """Raises InputError for what a conversion lets through: fields that the class does not have, as a newer version's
    or a foreign file's; numbers that are not finite or so large that no figure could hold them."""
    if is_dataclass(result) and isinstance(value, Mapping):
        known = {f.name for f in fields(result)}
        for name, inner in value.items():
            if name not in known:
                raise InputError(f"{where}: {path}.{name!r:.40} is not known; was it written by a newer version?")
            _check_values(getattr(result, name), inner, where, f"{path}.{name}")
            _check_range(name, getattr(result, name), where, f"{path}.{name}")
    elif isinstance(result, Mapping) and isinstance(value, Mapping):
        for name, inner in value.items():
            _check_values(result[name], inner, where, f"{path}[{name!r:.40}]")
    elif isinstance(result, tuple) and isinstance(value, Sequence):
        for i, (one, inner) in enumerate(zip(result, value, strict=True)):
            _check_values(one, inner, where, f"{path}[{i}]")
    elif isinstance(result, int | float) and not abs(result) < _TOO_LARGE:
        raise InputError(f"{where}: damaged ({path} is not a finite number below {_TOO_LARGE:g})")


def _check_range(name: str, value: object, where: str, path: str) -> None:
    """Raises InputError for a number that a field of this name cannot have."""
    if name.endswith("ci95") and isinstance(value, tuple):
        wrong, right = value[0] > value[1], "the lower end first"
    elif name in ("p", "p_holm", "p_bh", "share", "active") and isinstance(value, float):
        wrong, right = not 0 <= value <= 1, "from 0 to 1"
    elif name.startswith("n_") or name in ("count", "total", "items", "documents", "neurons", "seeds"):
        wrong, right = isinstance(value, int) and value < 0, "0 or more"
    else:
        return
    if wrong:
        raise InputError(f"{where}: damaged ({path} is {value!r:.60}; it should be {right})")


def _need(result: object, *names: str) -> None:
    """Raises ValueError for fields of a result that are empty; what shows results counts on them."""
    for name in names:
        if not getattr(result, name):
            raise ValueError(f"{name} should have something in it")


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
class RunResults(_Result):
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
        _need(self, "original", "languages", "rows")
        if not set(self.matrix) <= set(self.original):
            raise ValueError("matrix should have rows of the languages of original alone")
        if any(set(row) != set(self.original) for row in self.matrix.values()):
            raise ValueError("matrix should have every language of original in each row, and no other")


@dataclass(frozen=True)
class TaskInfo:
    """A task, its version, and the score that tables show. title: how to call results on these items, which may be
    the project's own in the task's format; empty in older files, where `TableResult.task_title` knows it too."""

    name: str
    version: int
    score: str
    title: str = ""


@dataclass(frozen=True)
class TableResult(_Result):
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
        _need(self, "original", "rows")
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
class TablesResults(_Result):
    """All tables of a folder that `mwork evaluate` wrote, and their rows; provenance: of the newest of them."""

    kind: Literal["tables"]
    provenance: Provenance[TableSettings]
    tables: tuple[TableResult, ...]
    rows: tuple[DeltaRow, ...]

    def __post_init__(self) -> None:
        _need(self, "tables")
        if self.rows != tuple(row for table in self.tables for row in table.rows):
            raise ValueError("rows should be those of the tables, in their order")

    @classmethod
    def of(cls, tables: Sequence[TableResult]) -> TablesResults:
        """Tables in one file, the newest last."""
        rows = tuple(row for table in tables for row in table.rows)
        return cls("tables", tables[-1].provenance, tuple(tables), rows)


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
class EnhanceResults(_Result):
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
        _need(self, "runs", "rows")


@dataclass(frozen=True)
class LabelsInfo:
    """How the vocabulary was labelled: languages and the labels for none; counts: entries of each."""

    columns: tuple[str, ...]
    counts: Mapping[str, int]


@dataclass(frozen=True)
class LensShares:
    """Shares of the labels among each layer's top tokens, for the prompts of one language: [layers + 1][columns], of
    the top k and of the first alone. neurons_off: how many of the language's own neurons were off. english_lead: for
    each prompt, by how much English's share of the top k is above that of the prompt's language, its mean over the
    inner half of the layers and in the last layer; empty for English, without English, and in older files."""

    language: str
    neurons_off: int
    positions: int
    top_k: tuple[tuple[float, ...], ...]
    top_1: tuple[tuple[float, ...], ...]
    english_lead: tuple[tuple[float, float], ...] = ()


@dataclass(frozen=True)
class LensToken:
    """The token that a layer ranks first at one position, its label and probability."""

    token: str
    label: str
    probability: float


@dataclass(frozen=True)
class LensExample:
    """The beginning of one prompt, and what each layer would say next: [layers + 1][positions]."""

    language: str
    tokens: tuple[str, ...]
    layers: tuple[tuple[LensToken, ...], ...]


@dataclass(frozen=True)
class LensResults(_Result):
    """What `mwork lens` found (Figure 1)."""

    kind: Literal["lens"]
    provenance: Provenance[LensSettings]
    labels: LabelsInfo
    shares: tuple[LensShares, ...]
    examples: tuple[LensExample, ...]

    def __post_init__(self) -> None:
        columns, layers = len(self.labels.columns), self.provenance.model.layers + 1
        if all(shares.neurons_off for shares in self.shares):
            raise ValueError("shares should have something of the original model in it")
        for shares in self.shares:
            for table in (shares.top_k, shares.top_1):
                if len(table) != layers or any(len(row) != columns for row in table):
                    raise ValueError(
                        f"the shares of {shares.language!r:.20} are not {layers} rows of {columns} columns"
                    )
                if any(not -_ROUNDING <= share <= 1 + _ROUNDING for row in table for share in row):
                    raise ValueError(f"the shares of {shares.language!r:.20} are not all from 0 to 1")
        for example in self.examples:
            positions = len(example.tokens)
            if len(example.layers) != layers or any(len(row) != positions for row in example.layers):
                raise ValueError(
                    f"the example of {example.language!r:.20} is not {layers} rows of {positions} positions"
                )
            if any(not 0 <= token.probability <= 1 + _ROUNDING for row in example.layers for token in row):
                raise ValueError(f"the probabilities of {example.language!r:.20} are not all from 0 to 1")


@dataclass(frozen=True)
class ScoresInfo:
    """One language's scores: the file, documents and tokens."""

    file: str
    documents: int
    tokens: int


@dataclass(frozen=True)
class DetectResults(_Result):
    """What `mwork detect` wrote: {language: its scores}."""

    kind: Literal["detect"]
    provenance: Provenance[DetectSettings]
    scores: Mapping[str, ScoresInfo]


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
class SteerResults(_Result):
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
        _need(self, "grid", "best")

    @property
    def task_title(self) -> str:
        """What the questions are to be called."""
        questions = (data for name, data in self.provenance.data.items() if name.endswith(" prompts"))
        return task_title(self.provenance.settings.task, questions)


@dataclass(frozen=True)
class NeuronContext:
    """A token at which a neuron's activation is among the largest of a language: its value, the document's number and
    the token's position in it, both from 0, and the text around it."""

    value: float
    document: int
    position: int
    before: str
    token: str
    after: str


@dataclass(frozen=True)
class NeuronActivity:
    """What a neuron does on one language's documents. active: the share of their tokens with act(gate) > 0 (LAPE), None
    for queries, keys and values. contexts: the largest activation first."""

    active: float | None
    contexts: tuple[NeuronContext, ...]


@dataclass(frozen=True)
class TokenWeight:
    """A token, and what a unit of activation adds to its logit before the final norm divides by a length."""

    token: str
    weight: float


@dataclass(frozen=True)
class NeuronReading:
    """One neuron. groups: those of the sets that it is in, both of the feed-forward where it is in both; layer, index:
    from 0. importance: {language whose set it is in: its mean importance there, None where there are no scores}.
    promotes, suppresses: the tokens whose logits a positive activation raises and lowers most, None for queries, keys
    and values, which write nothing to the residual stream themselves. by_language: {language of the documents: ...}."""

    groups: tuple[str, ...]
    layer: int
    index: int
    importance: Mapping[str, float | None]
    promotes: tuple[TokenWeight, ...] | None
    suppresses: tuple[TokenWeight, ...] | None
    by_language: Mapping[str, NeuronActivity]


@dataclass(frozen=True)
class NeuronResults(_Result):
    """What `mwork neurons` found. neurons: {language: its whole set}; readings: the neurons that were read, by layer,
    group and index. Its file has their `checksum` beside these fields."""

    kind: Literal["neurons"]
    provenance: Provenance[NeuronSettings]
    neurons: Mapping[str, NeuronSetInfo]
    readings: tuple[NeuronReading, ...]

    def __post_init__(self) -> None:
        _need(self, "readings")
        layers, languages = self.provenance.model.layers, set(self.provenance.data)
        for reading in self.readings:
            if not (0 <= reading.layer < layers and reading.index >= 0):
                raise ValueError(f"layer {reading.layer} and index {reading.index} should be in the model")
            if not reading.groups or not set(reading.groups) <= set(GROUPS):
                raise ValueError(f"groups should be some of {', '.join(GROUPS)}")
            if set(reading.by_language) != languages:
                raise ValueError("by_language should have every language of the provenance's data, and no other")
            if not (reading.importance and set(reading.importance) <= set(self.neurons)):
                raise ValueError("importance should have languages of neurons, one at least")
            if (reading.promotes is None) != (reading.suppresses is None):
                raise ValueError("promotes and suppresses should both have tokens, or neither")

    def to_json(self) -> dict[str, object]:
        """The result as JSON values, with its checksum."""
        body = super().to_json()
        return {**body, "checksum": fingerprint(body)}

    @classmethod
    def from_json(cls, value: object, where: str) -> Self:
        """As of every result; also refuses, with InputError, one whose values are not those of its checksum."""
        body = dict(_of_this_version(value, where))
        written = body.pop("checksum", None)
        result = super().from_json(body, where)
        if written is None:
            raise InputError(f"{where}: damaged (missing required field `checksum`)")
        if written != result.to_json()["checksum"]:
            raise InputError(f"{where}: damaged (checksum should be that of its values)")
        return result


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
class LmEvalResults(_Result):
    """What `mwork evaluate --lm-eval` found. tasks: {name: how it ran}, groups among them; neurons: {language: the set
    that was switched off}; rows: every task under every condition, the original first. The provenance's data are those
    of each task, with a fingerprint of what the model was asked."""

    kind: Literal["lm_eval"]
    provenance: Provenance[LmEvalSettings]
    tasks: Mapping[str, LmEvalTask]
    neurons: Mapping[str, NeuronSetInfo]
    rows: tuple[LmEvalRow, ...]

    def __post_init__(self) -> None:
        _need(self, "tasks", "rows")
        if self.rows[0].under != "original":
            raise ValueError("rows should begin with the original model")
        if not {row.task for row in self.rows} <= set(self.tasks):
            raise ValueError("rows should be of the tasks alone")


AnyResults = (
    LmEvalResults
    | RunResults
    | TablesResults
    | EnhanceResults
    | LensResults
    | DetectResults
    | SteerResults
    | NeuronResults
)
_CLASSES: Mapping[str, type[_Result]] = {
    "run": RunResults, "tables": TablesResults, "enhance": EnhanceResults, "lens": LensResults, "detect": DetectResults,
    "steer": SteerResults, "neurons": NeuronResults, "lm_eval": LmEvalResults,
}  # fmt: skip


def versions() -> dict[str, str]:
    """The versions of Python and of the packages that decide what comes out."""
    known = {"mwork-jax": __version__, "python": platform.python_version()}
    for package in _PACKAGES:
        try:
            known[package] = version(package)
        except PackageNotFoundError:
            known[package] = "unknown"
    return known


def write_results(path: str | Path, results: _Result) -> None:
    """Writes a result as JSON, whole or not at all."""
    write_json(path, results.to_json())


def read_results(path: str | Path) -> AnyResults:
    """The result in a file, of whatever kind. Raises InputError, one line, for a file that is missing, damaged, foreign
    or of version 0.1."""
    body = _of_this_version(read_json(path), str(path))
    kind = body.get("kind")
    if not isinstance(kind, str) or kind not in _CLASSES:
        raise InputError(f"{path}: damaged ('kind' should be one of {', '.join(_CLASSES)}, it is {kind!r:.40})")
    return _CLASSES[kind].from_json(body, str(path))  # type: ignore[return-value]
