"""A loaded model as one value: its parameters, its configuration, its tokenizer, and what tells it from others."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from mwork_jax.config import ModelConfig
from mwork_jax.errors import InputError
from mwork_jax.model.decoder import Decoder
from mwork_jax.model.identity import ModelInfo, fingerprint_of_tokenizer, fingerprint_of_weights
from mwork_jax.model.tokens import AddedTokens, added_tokens, chat_prompt, encode, shared_prefix_length


@dataclass(frozen=True)
class Model:
    """A loaded model: `decoder` (parameters, a pytree), its `config`, its `tokenizer` (or None), and where it came
    from: the `source` that it was loaded by and, from the Hub, the commit (`revision`). ignored_in_answers: what its
    generation_config.json asks for that `generate` leaves out, such as penalties. stored: as in `ModelInfo`. memory:
    bytes of a device that weights and rows may take; None for what is there.

    A pytree whose leaves are the parameters, so it can be an argument of jit, and grad with respect to it is a Model.
    """

    decoder: Decoder
    tokenizer: Any | None
    source: str
    revision: str | None = None
    ignored_in_answers: tuple[str, ...] = ()
    stored: str | None = None
    memory: int | None = None

    @property
    def config(self) -> ModelConfig:
        return self.decoder.config

    def encode(self, document: str | np.ndarray, *, where: str = "document") -> np.ndarray:
        """A document as int32 [time]. Raises InputError for tokens outside the vocabulary."""
        tokens = encode(self.tokenizer, document, where=where)
        if tokens.size and not (tokens.min() >= 0 and tokens.max() < self.config.vocab_size):
            raise InputError(f"{where}: token {tokens.max()} is outside the vocabulary of {self.config.vocab_size}")
        return tokens

    def encode_prompt(self, prompt: str | np.ndarray, *, where: str = "prompt") -> np.ndarray:
        """What something is to follow, as int32 [time]: as `encode`, without what the tokenizer puts behind a text. An
        end token that stands in the text itself stays."""
        tokens = self.encode(prompt, where=where)
        behind = len(self._added_tokens.behind) if isinstance(prompt, str) else 0
        return tokens[: tokens.size - behind]

    @cached_property
    def in_front(self) -> tuple[int, ...]:
        """The tokens that a text begins with before its own: those that the tokenizer really puts there or, where it
        puts none, the configuration's BOS, with which documents of tokens may begin."""
        bos = self.config.bos_id
        return self._added_tokens.before or (() if bos is None else (bos,))

    def added_in_front(self, tokens: np.ndarray) -> int:
        """How many of the tokens, int [time], that a document begins with are not the document's own."""
        return shared_prefix_length(tokens, np.asarray(self.in_front, np.int32))

    @cached_property
    def _added_tokens(self) -> AddedTokens:
        return added_tokens(self.tokenizer)

    def chat_prompt(self, text: str) -> str:
        """The text as a user's message in the model's chat template. Raises InputError where it has none."""
        return chat_prompt(self.tokenizer, text)

    @cached_property
    def info(self) -> ModelInfo:
        """Which model this is, as results have it. The first use reads every weight."""
        config = self.config
        return ModelInfo(
            source=self.source,
            family=config.family,
            layers=config.num_layers,
            hidden_size=config.hidden_size,
            dtype=self._dtype,
            weights=fingerprint_of_weights(self.decoder),
            tokenizer=fingerprint_of_tokenizer(self.tokenizer),
            revision=self.revision,
            stored=self.stored,
        )

    @property
    def _dtype(self) -> str:
        """What the matrices are read in, and that they are kept as whole numbers, where they are."""
        name = jnp.dtype(self.decoder.dtype).name
        return f"int8, read in {name}" if self.decoder.int8 else name

    @property
    def key(self) -> dict[str, object]:
        """What tells two models apart, however their paths are spelled: shape, dtype, and fingerprints of the weights
        with the configuration and of the tokenizer (None without one). The first use reads every weight."""
        return self.info.key


class _Static:
    """What a Model has besides its parameters, as jit compares it: tokenizers by identity, as they have no equality."""

    def __init__(self, model: Model):
        self.tokenizer = model.tokenizer
        self.rest = model.source, model.revision, model.ignored_in_answers, model.stored, model.memory

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _Static) and self.tokenizer is other.tokenizer and self.rest == other.rest

    def __hash__(self) -> int:
        return hash((id(self.tokenizer), self.rest))


def _from_leaves(static: _Static, children: Iterable[Any]) -> Model:
    (decoder,) = children
    return Model(decoder, static.tokenizer, *static.rest)


jax.tree_util.register_pytree_with_keys(
    Model,
    lambda model: (((jax.tree_util.GetAttrKey("decoder"), model.decoder),), _Static(model)),
    _from_leaves,
)
