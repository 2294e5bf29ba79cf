"""What `mwork lens` writes: Figure 1."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from mwork_jax.results.base import ROUNDING, Provenance, Result
from mwork_jax.settings import LensSettings


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
class LensResults(Result):
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
                if any(not -ROUNDING <= share <= 1 + ROUNDING for row in table for share in row):
                    raise ValueError(f"the shares of {shares.language!r:.20} are not all from 0 to 1")
        for example in self.examples:
            positions = len(example.tokens)
            if len(example.layers) != layers or any(len(row) != positions for row in example.layers):
                raise ValueError(
                    f"the example of {example.language!r:.20} is not {layers} rows of {positions} positions"
                )
            if any(not 0 <= token.probability <= 1 + ROUNDING for row in example.layers for token in row):
                raise ValueError(f"the probabilities of {example.language!r:.20} are not all from 0 to 1")
