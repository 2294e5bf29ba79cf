"""The metadata of a GGUF file below its architecture's name, each entry read with its type checked."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Protocol

import numpy as np

from mwork_jax.errors import InputError
from mwork_jax.families.reader import MOST_LAYERS

SLIDING_WINDOW, SLIDING_PATTERN = "attention.sliding_window", "attention.sliding_window_pattern"


class OpenGGUF(Protocol):
    """A GGUF file: the key -> value of its metadata, and its tensors by name."""

    where: str
    metadata: dict[str, Any]

    @property
    def tensors(self) -> Mapping[str, object]: ...

    def array(self, name: str, dtype: np.dtype | type = np.float32) -> np.ndarray: ...


class GGUFMetadata:
    """Reads a file's metadata by the names that follow `general.architecture`. Every method raises InputError, naming
    the entry and what it should be, where it is missing or of another type."""

    def __init__(self, file: OpenGGUF, arch: str):
        self.where, self.arch = file.where, arch
        self._file = file

    def raw(self, key: str, default: Any = None) -> Any:
        """An entry as it is."""
        return self._file.metadata.get(f"{self.arch}.{key}", default)

    def get(self, key: str, default: Any = None) -> Any:
        """One number or switch. A list with one and the same number for every layer counts as that number."""
        value = self.raw(key, default)
        if isinstance(value, np.ndarray) and value.dtype != bool and value.size and (value == value[0]).all():
            return value[0].item()
        if isinstance(value, (str, list, np.ndarray)):
            raise InputError(f"{self.where}: '{self.arch}.{key}' is {value!r:.80}; one number is needed")
        return value

    def text(self, key: str, default: str) -> str:
        value = self.raw(key, default)
        if not isinstance(value, str):
            raise InputError(f"{self.where}: '{self.arch}.{key}' is {value!r:.80}; a text is needed")
        return value

    def need(self, key: str) -> Any:
        value = self.get(key)
        if value is None:
            raise InputError(f"{self.where}: metadata '{self.arch}.{key}' is missing")
        return value

    def count(self, key: str) -> int:
        value = self.need(key)
        if type(value) is not int or value <= 0:
            raise InputError(f"{self.where}: '{self.arch}.{key}' is {value!r:.80}; a positive whole number is needed")
        return value

    def window(self) -> int | None:
        """The sliding window; None where there is none, which some converters write as 0."""
        return self.count(SLIDING_WINDOW) if self.get(SLIDING_WINDOW) else None

    def layers(self) -> int:
        layers = self.count("block_count")
        if layers > MOST_LAYERS:
            raise InputError(f"{self.where}: '{self.arch}.block_count' is {layers}; it is {MOST_LAYERS} at most")
        return layers

    def heads(self) -> int:
        return self.count("attention.head_count")

    def kv_heads(self) -> int:
        grouped = self.get("attention.head_count_kv")
        return self.count("attention.head_count_kv") if grouped else self.heads()

    def hidden_per_head(self) -> int:
        return self.count("embedding_length") // self.heads()

    def head_dim(self) -> int:
        size = self.get("attention.key_length", self.hidden_per_head())
        if type(size) is not int or size <= 0:
            raise InputError(f"{self.where}: the head size is {size!r:.80}; a positive whole number is needed")
        return size

    def rope_theta(self) -> float:
        return self.get("rope.freq_base", 10000.0)  # what llama.cpp takes where it is missing

    def layer_types(self, period: int) -> list[str]:
        """Per layer, "sliding_attention" or "full_attention": one flag for each layer, or a number n for which every
        n-th sees all (0: none does). period: the architecture's own n, which converters leave out."""
        layers, pattern = self.layers(), self.raw(SLIDING_PATTERN, period)
        if isinstance(pattern, np.ndarray):
            slides = [bool(flag) for flag in pattern]
        elif type(pattern) is int and pattern >= 0:
            slides = [not pattern or (i + 1) % pattern != 0 for i in range(layers)]
        else:
            raise InputError(f"{self.where}: '{self.arch}.{SLIDING_PATTERN}' is {pattern!r:.80}")
        return ["sliding_attention" if slide else "full_attention" for slide in slides]

    def has(self, tensor: str) -> bool:
        return tensor in self._file.tensors

    def biases(self) -> dict[str, object]:
        """Whether attention and feed-forward have biases, by those of the first layer: no entry says it."""
        return {"attention_bias": self.has("blk.0.attn_q.bias"), "mlp_bias": self.has("blk.0.ffn_up.bias")}

    def vector(self, tensor: str) -> np.ndarray:
        """A tensor with one axis, float64: the shortest decimals that give its float32 numbers, as in config.json."""
        if not self.has(tensor):
            raise InputError(f"{self.where}: {tensor} is missing")
        array = self._file.array(tensor).astype(np.float32)
        if array.ndim != 1:
            raise InputError(f"{self.where}: {tensor} has shape {array.shape}; one row of numbers is needed")
        return np.asarray([float(str(number)) for number in array])

    def per_layer(self, key: str) -> np.ndarray:
        """An entry with a number for each layer, or one for all, that has no architecture before its name: float32
        [layers]."""
        value, layers = self._file.metadata.get(key), self.layers()
        if value is None:
            raise InputError(f"{self.where}: metadata {key!r} is missing")
        numbers = np.asarray(value)
        if numbers.dtype.kind not in "iuf" or numbers.shape not in ((), (layers,)):
            raise InputError(f"{self.where}: metadata {key!r} is {value!r:.80}; {layers} numbers are needed")
        return np.broadcast_to(numbers.astype(np.float32), (layers,))
