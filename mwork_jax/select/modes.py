"""Modes: the neurons that a language keeps, of those that are activated for it (section 3.1 of the paper)."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass

import numpy as np

from mwork_jax.detect.scores import NeuronScores, check_comparable
from mwork_jax.errors import InputError, whole_number
from mwork_jax.metrics import ENGLISH
from mwork_jax.neurons import GROUPS, NeuronSet
from mwork_jax.select.lape import lape_neurons
from mwork_jax.select.rules import DEFAULT_RULE, Rule, activated

MODES = ("minus_english", "minus_shared", "all")
_SHARED_BY = "shared_by"
MODE_FORMS = f"{', '.join(MODES)}, {_SHARED_BY}:N (by at least N languages), {_SHARED_BY}:=N (by exactly N)"


@dataclass(frozen=True)
class Mode:
    """What a language keeps of the neurons that are activated for it.

    minus_english: those that English does not have (Tables 2 to 6); English keeps all. minus_shared: those that not all
    languages have (the authors' code). all: every one (Table 1). shared_by: those that at least `shared` of the
    languages have, itself among them, or exactly so many where `exactly`.
    """

    kind: str
    shared: int = 0
    exactly: bool = False

    def __post_init__(self) -> None:
        if self.kind == _SHARED_BY:
            whole_number(f"mode {_SHARED_BY}: N", self.shared, 1)
        elif self.kind not in MODES or self.shared or self.exactly:
            raise InputError(f"mode {self.kind!r:.80} is not one of {MODE_FORMS}")

    @classmethod
    def parse(cls, text: str) -> Mode:
        """Reads one of MODES, `shared_by:N` or `shared_by:=N`. Raises InputError for anything else, and for an N that
        is no whole number from 1 on."""
        kind, _, rest = text.partition(":") if isinstance(text, str) else ("", "", "")
        digits = rest.removeprefix("=")
        if kind == _SHARED_BY and digits.isascii() and digits.isdecimal() and len(digits) < 10:
            return cls(kind, int(digits), rest.startswith("="))
        if text not in MODES:
            raise InputError(f"mode {text!r:.80} is not one of {MODE_FORMS}, N a whole number")
        return cls(text)

    @classmethod
    def of(cls, mode: str | Mode) -> Mode:
        """The mode, parsed where it is a text."""
        return mode if isinstance(mode, Mode) else cls.parse(mode)

    def is_possible(self, languages: Collection[str]) -> bool:
        """Whether these languages are those that the mode needs."""
        if self.kind == "minus_english":
            return ENGLISH in languages
        return len(languages) >= (2 if self.kind == "minus_shared" else self.shared)

    def check(self, languages: Collection[str]) -> None:
        """Raises InputError where these languages are not those that the mode needs."""
        if not self.is_possible(languages):
            needed = {"minus_english": f"scores of {ENGLISH!r}", "minus_shared": "at least two languages"}
            wanted = needed.get(self.kind, f"at least {self.shared} languages")
            raise InputError(f"mode {self} needs {wanted}; there are {', '.join(languages)}")

    def __str__(self) -> str:
        return f"{self.kind}:{'=' * self.exactly}{self.shared}" if self.kind == _SHARED_BY else self.kind


def is_english_alike(rule: str | Rule, mode: str | Mode) -> bool:
    """Whether English's set comes about as those of the other languages do. In mode minus_english it is everything that
    is activated for English, what all languages share among it."""
    return Rule.of(rule).kind == "lape" or Mode.of(mode).kind != "minus_english"


def select_neurons(
    scores: Mapping[str, NeuronScores], rule: str | Rule = DEFAULT_RULE, mode: str | Mode = "minus_english"
) -> dict[str, NeuronSet]:
    """The neurons specific to each language: {language: NeuronSet}.

    mode: `minus_english` takes the neurons of English away from every other language (Tables 2 to 6; under "en" is
    English's whole set); `minus_shared` takes away what all the languages given share (the authors' code); `all` takes
    nothing away (the paper's Table 1); `shared_by:N` keeps what at least N of the languages given share, `shared_by:=N`
    what exactly N share (for N = 1: everything, and what only one language has). The rule lape compares the languages
    itself, and no mode takes anything away from its neurons. Raises InputError for an unknown mode, too few languages
    for it, or scores of different models.
    """
    mode = Mode.of(mode)
    if not isinstance(scores, Mapping):
        raise InputError(f"scores are a {type(scores).__name__}; {{language: NeuronScores}} is needed")
    if not scores:
        raise InputError("no scores to select from")
    for language, given in scores.items():
        if not isinstance(given, NeuronScores):
            raise InputError(f"the scores of {language!r:.40} are a {type(given).__name__}; NeuronScores are needed")
    rule = Rule.of(rule)
    if rule.kind == "lape":
        return lape_neurons(scores, rule)
    mode.check(scores)
    check_comparable(scores)
    active = {language: activated(s, rule) for language, s in scores.items()}
    sharing = {g: np.sum([own.groups[g] for own in active.values()], axis=0) for g in GROUPS}
    return {language: _kept(language, active, sharing, mode) for language in active}


def _kept(language: str, active: Mapping[str, NeuronSet], sharing: Mapping[str, np.ndarray], mode: Mode) -> NeuronSet:
    """What a language keeps of its activated set. sharing: {group: how many languages have each neuron, int [layers,
    width]}."""
    own = active[language]
    if mode.kind == "minus_english" and language != ENGLISH:
        kept = (own - active[ENGLISH]).groups
    elif mode.kind == "minus_shared":
        kept = {g: members & (sharing[g] < len(active)) for g, members in own.groups.items()}
    elif mode.kind == _SHARED_BY:
        enough = np.equal if mode.exactly else np.greater_equal
        kept = {g: members & enough(sharing[g], mode.shared) for g, members in own.groups.items()}
    else:
        kept = own.groups
    return NeuronSet(kept, {**own.provenance, "language": language, "mode": str(mode)})
