"""A loaded model as one value: its parameters, its configuration, its tokenizer, and what tells it from others."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from mwork_jax.config import ModelConfig
from mwork_jax.errors import InputError
from mwork_jax.model.decoder import Decoder
from mwork_jax.model.tokens import chat_prompt, encode
from mwork_jax.sharding import fetch, fetch_each


@dataclass(frozen=True)
class Model:
    """A loaded model: `decoder` (parameters, a pytree), its `config`, its `tokenizer` (or None), and where it came
    from.

    A pytree whose leaves are the parameters, so it can be an argument of jit, and grad with respect to it is a Model.
    """

    decoder: Decoder
    tokenizer: Any | None
    source: str

    @property
    def config(self) -> ModelConfig:
        return self.decoder.config

    def encode(self, document: str | np.ndarray, *, where: str = "document") -> np.ndarray:
        """A document as int32 [time]. Raises InputError for tokens outside the vocabulary."""
        tokens = encode(self.tokenizer, document, where=where)
        if tokens.size and not (tokens.min() >= 0 and tokens.max() < self.config.vocab_size):
            raise InputError(f"{where}: token {tokens.max()} is outside the vocabulary of {self.config.vocab_size}")
        return tokens

    def chat_prompt(self, text: str) -> str:
        """The text as a user's message in the model's chat template. Raises InputError where it has none."""
        return chat_prompt(self.tokenizer, text)

    @cached_property
    def identity(self) -> dict[str, object]:
        """The model's entry in results: where it came from, and its `key`."""
        return {"source": self.source, **self.key}

    @cached_property
    def key(self) -> dict[str, object]:
        """What tells two models apart, however their paths are spelled: shape, dtype, and fingerprints of the weights
        with the configuration and of the tokenizer (None without one). The first use reads every weight."""
        return {
            "family": self.config.family,
            "layers": self.config.num_layers,
            "hidden_size": self.config.hidden_size,
            "dtype": jnp.dtype(self.decoder.dtype).name,
            "weights": _fingerprint(self.decoder),
            "tokenizer": _tokenizer_fingerprint(self.tokenizer),
        }

    def is_of(self, identity: Mapping[str, object]) -> bool:
        """Whether an identity that results hold is this model's, wherever it came from."""
        return {name: value for name, value in identity.items() if name != "source"} == self.key


class _Static:
    """What a Model has besides its parameters, as jit compares it: tokenizers by identity, as they have no equality."""

    def __init__(self, tokenizer: Any | None, source: str):
        self.tokenizer, self.source = tokenizer, source

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _Static) and self.tokenizer is other.tokenizer and self.source == other.source

    def __hash__(self) -> int:
        return hash((id(self.tokenizer), self.source))


jax.tree_util.register_pytree_with_keys(
    Model,
    lambda model: (((jax.tree_util.GetAttrKey("decoder"), model.decoder),), _Static(model.tokenizer, model.source)),
    lambda static, children: Model(*children, static.tokenizer, static.source),
)


def _fingerprint(decoder: Decoder) -> str:
    """A short hash over the configuration and every byte of every parameter with its name, shape and dtype."""
    digest = hashlib.sha256(repr(decoder.config).encode())
    for path, leaf in jax.tree_util.tree_leaves_with_path(decoder):
        digest.update(f"{jax.tree_util.keystr(path)} {leaf.shape} {leaf.dtype.name}\n".encode())
        for part in fetch_each(leaf) if "layers" in jax.tree_util.keystr(path) else (fetch(leaf),):
            digest.update(np.ascontiguousarray(part).reshape(-1).view(np.uint8).data)
    return digest.hexdigest()[:16]


def _tokenizer_fingerprint(tokenizer: Any | None) -> str | None:
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
