"""Tensor names of checkpoints that were saved without their head, or as the text part of a larger model."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from mwork_jax.errors import InputError
from mwork_jax.load.source import SlicedSource, WeightSource

_USUAL = "model."
# What stands in front of a model's tensors instead, and of its head: nothing, where the head was left out (embedding
# models), and the two ways in which transformers has written the text part of models that read images.
_PREFIXES = {"": "", "language_model.model.": "language_model.", "model.language_model.": ""}
_EMBED, _HEAD = "embed_tokens.weight", "lm_head.weight"


def with_usual_names(source: WeightSource) -> WeightSource:
    """The source under the names that a causal language model of its own has: `model.layers.0. ...`. Raises InputError
    where it holds two models' tensors, each under a spelling of its own."""
    present = source.names()
    spelled = [prefix for prefix in (_USUAL, *_PREFIXES) if prefix + _EMBED in present]
    if len(spelled) > 1:
        both = " and ".join(prefix + _EMBED for prefix in spelled)
        raise InputError(f"{source.where}: {both} are both in the checkpoint; which one holds?")
    if not spelled or spelled[0] == _USUAL:
        return source
    prefix = spelled[0]
    stored = {}
    for name in present:
        if name == _PREFIXES[prefix] + _HEAD:
            stored[_HEAD] = name
        else:
            stored[_USUAL + name.removeprefix(prefix) if name.startswith(prefix) else name] = name
    if twice := sorted(present - set(stored.values())):
        raise InputError(f"{source.where}: {twice[0]} is in the checkpoint under another name too; which one holds?")
    return _SlicedRenamed(source, stored) if isinstance(source, SlicedSource) else _Renamed(source, stored)


class _Renamed:
    """A source under other names: {name: the name that it is stored under}."""

    def __init__(self, source: WeightSource, stored: Mapping[str, str]):
        self.where = source.where
        self._source, self._stored = source, stored

    def names(self) -> set[str]:
        return set(self._stored)

    def read(self, name: str, dtype: np.dtype | type = np.float32) -> np.ndarray:
        return self._source.read(self._stored[name], dtype)


class _SlicedRenamed(_Renamed):
    """The same of a source that gives parts."""

    def __init__(self, source: SlicedSource, stored: Mapping[str, str]):
        super().__init__(source, stored)
        self._sliced = source

    def shape(self, name: str) -> tuple[int, ...]:
        return self._sliced.shape(self._stored[name])

    def part(self, name: str, index: tuple[slice, ...]) -> np.ndarray:
        return self._sliced.part(self._stored[name], index)
