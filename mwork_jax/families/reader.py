"""Attributes of a `config.json`, each read with its type checked."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from numbers import Integral, Real
from typing import TypeGuard

from mwork_jax.errors import InputError

MOST_LAYERS = 10_000  # a damaged number would ask for more memory than there is

ACTIVATIONS = {"silu": "silu", "swish": "silu", "gelu_pytorch_tanh": "gelu_tanh", "gelu": "gelu"}


class Reader:
    """Reads the attributes of a config.json. Every method raises InputError, naming the attribute and what it should
    be, where it is missing or of another type."""

    def __init__(self, values: Mapping[str, object], where: str):
        self.values, self.where = values, where

    def refusal(self, name: str, needed: str) -> InputError:
        """The error for an attribute's value: what it is, and what is needed."""
        return InputError(f"{self.where}: {name} is {self.values.get(name)!r:.80}; {needed} is needed")

    def count(self, name: str, *, if_null: int | None = None, minimum: int = 1, most: int = 1 << 31) -> int:
        value = self.values.get(name)
        if value is None and if_null is not None:
            return if_null
        if not _is_whole(value) or not minimum <= value <= most:
            up_to = f" up to {most}" if _is_whole(value) and value > most else ""
            raise self.refusal(name, f"a positive whole number{up_to}" if minimum else f"a whole number from 0{up_to}")
        return int(value)

    def number(self, name: str) -> float:
        value = self.values.get(name)
        if not _is_number(value) or not 0 < value < 1e300:  # NaN is not either
            raise self.refusal(name, "a positive number")
        return float(value)

    def number_or_none(self, name: str) -> float | None:
        return None if self.values.get(name) is None else self.number(name)

    def numbers(self, name: str) -> tuple[float, ...]:
        """A list of positive numbers."""
        value = self.values.get(name)
        listed = [float(x) for x in value if _is_number(x) and 0 < x < 1e300] if isinstance(value, list) else []
        if not isinstance(value, list) or len(listed) < len(value):
            raise self.refusal(name, "a list of positive numbers")
        return tuple(listed)

    def flag(self, name: str) -> bool:
        value = self.values.get(name)
        if not isinstance(value, bool):
            raise self.refusal(name, "true or false")
        return value

    def ids(self, name: str) -> tuple[int, ...]:
        """Token ids: none, one or a list."""
        value = self.values.get(name)
        listed: Sequence[object] = value if isinstance(value, (list, tuple)) else [] if value is None else [value]
        ids = [int(i) for i in listed if _is_whole(i) and i >= 0]
        if len(ids) < len(listed):
            raise self.refusal(name, "a token id, a list of token ids or null")
        return tuple(ids)

    def activation(self, name: str, known: Mapping[str, str] = ACTIVATIONS) -> str:
        """An activation function by Hugging Face's name, as `ModelConfig` names it. known: {the one: the other}."""
        value = self.values.get(name)
        if not isinstance(value, str) or value not in known:
            raise InputError(
                f"{self.where}: activation {value!r:.80} is not supported; {name} can be {', '.join(known)}"
            )
        return known[value]

    def table(self, name: str) -> Mapping[str, object]:
        """A nested object; empty where it is null or absent."""
        value = self.values.get(name)
        if value is not None and not isinstance(value, Mapping):
            raise self.refusal(name, "an object or null")
        return value or {}


def _is_whole(value: object) -> TypeGuard[int]:
    return isinstance(value, Integral) and not isinstance(value, bool)


def _is_number(value: object) -> TypeGuard[float]:
    return isinstance(value, Real) and not isinstance(value, bool)
