"""What `mwork detect` writes."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from mwork_jax.results.base import Provenance, Result
from mwork_jax.settings import DetectSettings


@dataclass(frozen=True)
class ScoresInfo:
    """One language's scores: the file, documents and tokens."""

    file: str
    documents: int
    tokens: int


@dataclass(frozen=True)
class DetectResults(Result):
    """What `mwork detect` wrote: {language: its scores}."""

    kind: Literal["detect"]
    provenance: Provenance[DetectSettings]
    scores: Mapping[str, ScoresInfo]
