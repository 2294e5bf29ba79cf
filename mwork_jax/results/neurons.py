"""What `mwork neurons` writes: what single neurons read."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from mwork_jax.neurons import GROUPS
from mwork_jax.results.base import NeuronSetInfo, Provenance, Result, need
from mwork_jax.settings import NeuronSettings


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
class NeuronResults(Result):
    """What `mwork neurons` found. neurons: {language: its whole set}; readings: the neurons that were read, by layer,
    group and index."""

    kind: Literal["neurons"]
    provenance: Provenance[NeuronSettings]
    neurons: Mapping[str, NeuronSetInfo]
    readings: tuple[NeuronReading, ...]

    def __post_init__(self) -> None:
        need(self, "readings")
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
