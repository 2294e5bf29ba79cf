"""What all results share: provenance, changes with their intervals, JSON and back."""

from __future__ import annotations

import platform
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, fields, is_dataclass
from importlib.metadata import PackageNotFoundError, version
from typing import Generic, Literal, Self, TypeVar

import msgspec

from mwork_jax.corpus import BUILT_IN
from mwork_jax.errors import InputError
from mwork_jax.model.identity import ModelInfo
from mwork_jax.neurons import NeuronSet
from mwork_jax.version import __version__

FORMAT = "mwork-results-2"
FORMATS_OF_0_1 = ("mwork-results-1", "mwork-lens-1")
ROUNDING = 1e-4  # by how much a share that was computed in float32 may leave 0 to 1
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
        need(self, "data")


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
class Difference:
    """A difference with its 95 % interval and p, None where they cannot be had."""

    change: float
    ci95: Interval | None
    p: float | None


class Result:
    """What all kinds of results share: one provenance, JSON and back."""

    def to_json(self) -> dict[str, object]:
        """The result as JSON values."""
        return {"format": FORMAT, **msgspec.to_builtins(self)}

    @classmethod
    def from_json(cls, value: object, where: str) -> Self:
        """The result that `to_json` described. Raises InputError, one line that names `where` and the field, for a
        value that is not one."""
        body = {name: inner for name, inner in of_this_version(value, where).items() if name != "format"}
        try:
            result = msgspec.convert(body, cls)
        except (msgspec.ValidationError, OverflowError, RecursionError) as error:
            raise InputError(f"{where}: damaged ({' '.join(str(error).split()):.200})") from None
        _check_values(result, body, where, "$")
        return result


def of_this_version(value: object, where: str) -> Mapping[str, object]:
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


def need(result: object, *names: str) -> None:
    """Raises ValueError for fields of a result that are empty; what shows results counts on them."""
    for name in names:
        if not getattr(result, name):
            raise ValueError(f"{name} should have something in it")


def versions() -> dict[str, str]:
    """The versions of Python and of the packages that decide what comes out."""
    known = {"mwork-jax": __version__, "python": platform.python_version()}
    for package in _PACKAGES:
        try:
            known[package] = version(package)
        except PackageNotFoundError:
            known[package] = "unknown"
    return known
