"""MXFP4 (OCP Microscaling Formats 1.0, section 5.3): blocks of 32 numbers of four bits with a power of two each."""

from __future__ import annotations

import numpy as np

# What four bits stand for: a sign, two bits of exponent, one of mantissa (E2M1).
_VALUES = np.asarray([0, 0.5, 1, 1.5, 2, 3, 4, 6, -0.0, -0.5, -1, -1.5, -2, -3, -4, -6], np.float32)
_BIAS = 127  # of the scales' exponents; a scale of 255 is NaN


def from_mxfp4(blocks: np.ndarray, scales: np.ndarray) -> np.ndarray:
    """float32 [..., 32 * n] from blocks uint8 [..., n, 16], the lower four bits first, and scales uint8 [..., n].
    Exact in bfloat16 too: three bits of a number and a power of two."""
    pairs = np.stack([_VALUES[blocks & 15], _VALUES[blocks >> 4]], axis=-1)
    factors = np.where(scales == 255, np.nan, np.ldexp(1.0, scales.astype(np.int32) - _BIAS)).astype(np.float32)
    numbers = pairs.reshape(*blocks.shape[:-1], 32) * factors[..., None]
    return numbers.reshape(*blocks.shape[:-2], -1)
