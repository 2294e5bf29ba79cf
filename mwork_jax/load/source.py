"""What every checkpoint format must offer to be loaded."""

from __future__ import annotations

from typing import Protocol

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
