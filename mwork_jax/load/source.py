"""What every checkpoint format must offer to be loaded."""

from __future__ import annotations

from typing import Protocol, runtime_checkable

import numpy as np


class WeightSource(Protocol):
    """A checkpoint that gives tensors by their Hugging Face PyTorch name, one at a time."""

    where: str  # shown in errors

    def names(self) -> set[str]:
        """All tensor names, as in a PyTorch checkpoint: `model.layers.0.self_attn.q_proj.weight`."""
        ...

    def read(self, name: str, dtype: np.dtype | type = np.float32) -> np.ndarray:
        """One tensor in PyTorch's orientation, [out, in]: in the float type it is stored in, quantised ones in
        `dtype`."""
        ...


@runtime_checkable
class TypedSource(WeightSource, Protocol):
    """A checkpoint that can say how it holds its weights without reading them."""

    def stored(self) -> str:
        """In words: "4-bit GGUF (Q4_0)", "BF16 safetensors". What has fewer bits than a float says how many."""
        ...


@runtime_checkable
class SlicedSource(WeightSource, Protocol):
    """A checkpoint that can also give parts of tensors, and reads nothing else for them."""

    def shape(self, name: str) -> tuple[int, ...]:
        """A tensor's shape, from the file's header."""
        ...

    def part(self, name: str, index: tuple[slice, ...]) -> np.ndarray:
        """The part of a tensor at `index`, slices with step 1, in the float type it is stored in."""
        ...
