"""Weights in floats of eight bits with scales, as their products: exact in float32.

Two ways of writing them: transformers' `fp8` (`weight` and `weight_scale_inv`, one for a block of rows and columns, or
one for all) and compressed-tensors' floats (`weight` and `weight_scale`, one for each row, or one for all). Scales of
activations, which such a model would round as it runs, are not used: what is here computes with the weights' floats.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from mwork_jax.errors import InputError
from mwork_jax.load.source import SlicedSource, WeightSource

_SCALES = ("_scale_inv", "_scale")  # behind a weight's name
_BLOCK = 128, 128  # rows and columns with one scale, where a quantization_config does not say
_OF_ACTIVATIONS = (".activation_scale", ".input_scale", ".k_scale", ".v_scale")


def with_float8(source: WeightSource, hf: Mapping[str, object]) -> WeightSource:
    """The source with weights of eight bits times their scales; as it is where there is none. hf: the config.json,
    whose quantization_config has the size of the blocks."""
    present = source.names()
    weights = [name for name in present if name.endswith(".weight")]
    scales = {name: name + scale for name in weights for scale in _SCALES if name + scale in present}
    if not scales:
        return source
    quantisation = hf.get("quantization_config")
    block = quantisation.get("weight_block_size") if isinstance(quantisation, Mapping) else None
    kind = _SlicedScaled if isinstance(source, SlicedSource) else _Scaled
    return kind(source, scales, _block_size(block, source.where))  # pyright: ignore[reportArgumentType]


def _block_size(block: object, where: str) -> tuple[int, int]:
    if block is None:
        return _BLOCK
    if isinstance(block, list) and len(block) == 2 and all(type(n) is int and n > 0 for n in block):
        return block[0], block[1]
    raise InputError(f"{where}: weight_block_size is {block!r:.40}; two positive whole numbers or null")


class _Scaled:
    """A source some of whose weights have scales: {weight: its scales}."""

    def __init__(self, source: WeightSource, scales: Mapping[str, str], block: tuple[int, int]):
        self.where = source.where
        self._source, self._scales, self._block = source, scales, block

    def stored(self) -> str:
        return "8-bit floats with scales"

    def names(self) -> set[str]:
        return {
            name for name in self._source.names() - set(self._scales.values()) if not name.endswith(_OF_ACTIVATIONS)
        }

    def read(self, name: str, dtype: np.dtype | type = np.float32) -> np.ndarray:
        if name not in self._scales:
            return self._source.read(name, dtype)
        stored = getattr(self._source, "as_stored", self._source.read)
        weight, scale = stored(name), np.asarray(stored(self._scales[name]), np.float32)
        if not weight.dtype.name.startswith("float8"):
            raise InputError(
                f"{self.where}: {self._scales[name]} scales {name}, which is stored as {weight.dtype.name}, not as "
                "floats of eight bits; give the checkpoint in float32, float16 or bfloat16"
            )
        return weight.astype(np.float32) * self._spread(name, scale, weight.shape)

    def _spread(self, name: str, scale: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
        """Scales in a shape that broadcasts to the weight's: one for all, for each row, or for each block."""
        if scale.size == 1:
            return scale.reshape(())
        if scale.shape == shape[:1] or scale.shape == (*shape[:1], 1):
            return scale.reshape(-1, 1)
        rows, columns = self._block
        if len(shape) == 2 and scale.shape == (-(-shape[0] // rows), -(-shape[1] // columns)):
            return np.repeat(np.repeat(scale, rows, 0), columns, 1)[: shape[0], : shape[1]]
        raise InputError(
            f"{self.where}: {self._scales[name]} is {list(scale.shape)}, which does not fit {name} {list(shape)} "
            f"in blocks of {rows} x {columns}"
        )


class _SlicedScaled(_Scaled):
    """The same of a source that gives parts; a weight with scales is read whole."""

    def __init__(self, source: SlicedSource, scales: Mapping[str, str], block: tuple[int, int]):
        super().__init__(source, scales, block)
        self._sliced = source

    def shape(self, name: str) -> tuple[int, ...]:
        return self._sliced.shape(name)

    def part(self, name: str, index: tuple[slice, ...]) -> np.ndarray:
        return self.read(name)[index] if name in self._scales else self._sliced.part(name, index)
