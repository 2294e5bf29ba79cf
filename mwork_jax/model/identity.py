"""Which model: what results, scores and neuron sets say of the model that they were made with."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from typing import Any

import jax
import msgspec
import numpy as np

from mwork_jax.errors import InputError
from mwork_jax.model.decoder import Decoder
from mwork_jax.sharding import fetch, fetch_each


@dataclass(frozen=True)
class ModelInfo:
    """Which model. source: the path or name that it was loaded by; weights, tokenizer: fingerprints (tokenizer None
    without one); revision: the commit on the Hub, where it came from there; stored: how the file holds the weights, as
    in "4-bit GGUF (Q4_0)", where that is known.

    Two are equal in `key` where they are one model in one dtype, from wherever it was loaded.
    """

    source: str
    family: str
    layers: int
    hidden_size: int
    dtype: str
    weights: str
    tokenizer: str | None
    revision: str | None = None
    stored: str | None = None

    def __post_init__(self) -> None:
        if self.layers < 1 or self.hidden_size < 1:
            raise ValueError("layers and hidden_size should be 1 or more")

    @property
    def key(self) -> dict[str, object]:
        """What tells two models apart, however their paths are spelled, as JSON."""
        return {name: value for name, value in asdict(self).items() if name not in ("source", "revision", "stored")}

    @property
    def precision(self) -> str:
        """The dtype that was computed in, and what the weights were before."""
        if self.stored is None:
            return self.dtype
        return f"{self.dtype}, {'dequantised ' if '-bit ' in self.stored else ''}from {self.stored}"

    def is_same_as(self, other: ModelInfo) -> bool:
        """Whether both are one model. In two dtypes the weights are rounded differently and have two fingerprints, so
        there the source decides."""
        if self.dtype == other.dtype:
            return self.key == other.key
        return self._without_weights() == other._without_weights()

    def _without_weights(self) -> ModelInfo:
        return replace(self, dtype="", weights="", revision=None, stored=None)

    def __str__(self) -> str:
        return f"{self.source} (weights {self.weights})"


def model_of(provenance: Mapping[str, object], where: str) -> ModelInfo | None:
    """The model that scores, a neuron set or a delta were made with; None where they do not say. Raises InputError,
    naming where, for an entry that describes no model."""
    described = provenance.get("model")
    try:
        return None if described is None else msgspec.convert(described, ModelInfo)
    except msgspec.ValidationError as error:
        raise InputError(f"{where}: damaged (its model: {error})") from None


def fingerprint_of_weights(decoder: Decoder) -> str:
    """A short hash over the configuration and every byte of every parameter with its name, shape and dtype."""
    digest = hashlib.sha256(repr(decoder.config).encode())
    for path, leaf in jax.tree_util.tree_leaves_with_path(decoder):
        digest.update(f"{jax.tree_util.keystr(path)} {leaf.shape} {leaf.dtype.name}\n".encode())
        for part in fetch_each(leaf) if "layers" in jax.tree_util.keystr(path) else (fetch(leaf),):
            digest.update(np.ascontiguousarray(part).reshape(-1).view(np.uint8).data)
    return digest.hexdigest()[:16]


def fingerprint_of_tokenizer(tokenizer: Any | None) -> str | None:
    """A short hash over what decides which tokens a text becomes: vocabulary, merges, special tokens, what goes around
    a text."""
    if tokenizer is None:
        return None
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is not None:
        text = backend.to_str()
        # Truncation and padding stand before the added tokens, and every call of the tokenizer sets them anew.
        described = text[max(0, text.find('"added_tokens"')) :]
    else:
        vocabulary = tokenizer.get_vocab() if hasattr(tokenizer, "get_vocab") else {}
        around = [int(token) for token in tokenizer("a")["input_ids"]]
        described = json.dumps([type(tokenizer).__qualname__, sorted(vocabulary.items()), around])
    special = sorted((name, str(token)) for name, token in getattr(tokenizer, "special_tokens_map", {}).items())
    return hashlib.sha256(f"{described}\n{special}".encode("utf-8", "surrogatepass")).hexdigest()[:16]
