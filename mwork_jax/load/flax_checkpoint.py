"""The older checkpoints of Hugging Face's Flax models: `flax_model.msgpack`, whole or in shards.

The format is flax's msgpack: nested maps of parameter names, arrays as extension type 1 (shape, dtype, bytes). It is
data only, decoding it runs no code.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgpack
import numpy as np
from flax.serialization import msgpack_restore

from mwork_jax.errors import InputError
from mwork_jax.load.hf_folder import shard_names
from mwork_jax.runtime.files import read_json

_WHOLE = "flax_model.msgpack"
_INDEX = "flax_model.msgpack.index.json"
_FLOATS = ("float32", "float16", "bfloat16")
# What Flax calls a weight -> whether PyTorch has it the other way round. All are called `weight` there.
_LEAVES = {"kernel": True, "embedding": False, "weight": False}


class FlaxCheckpoint:
    """The weights of a folder with `flax_model.msgpack` or its shards (a WeightSource). Held in memory as stored."""

    def __init__(self, folder: str | Path):
        """Reads every file. Raises InputError where one is missing, cut short, or not a Flax checkpoint."""
        folder = Path(folder)
        self.where = str(folder)
        self._arrays: dict[str, np.ndarray] = {}
        for path in _paths(folder):
            for name, array in _arrays(path):
                if name in self._arrays:
                    raise InputError(f"{path}: {name} is in another file of this checkpoint too")
                self._arrays[name] = array

    @staticmethod
    def holds(folder: Path) -> bool:
        """Whether the folder has a checkpoint of this kind."""
        return (folder / _INDEX).is_file() or (folder / _WHOLE).is_file()

    def names(self) -> set[str]:
        """Tensor names as in a PyTorch checkpoint."""
        return set(self._arrays)

    def read(self, name: str, dtype: np.dtype | type = np.float32) -> np.ndarray:  # stored as floats
        """One tensor, [out, in], in the dtype it is stored in. Raises KeyError for a name not in `names()`."""
        return self._arrays[name]


def _paths(folder: Path) -> list[Path]:
    if not (folder / _INDEX).is_file():
        return [folder / _WHOLE]
    paths = [folder / name for name in shard_names(read_json(folder / _INDEX), str(folder / _INDEX))]
    missing = [path.name for path in paths if not path.is_file()]
    if missing:
        raise InputError(f"{folder}: {_INDEX} names files that are not there: {', '.join(missing)}")
    return paths


def _arrays(path: Path) -> Iterator[tuple[str, np.ndarray]]:
    """Every array of one file under its PyTorch name, transposed where PyTorch has it so (a view, no copy)."""
    for keys, array in _leaves(_restore(path), ()):
        *parents, leaf = keys
        name = ".".join(keys)
        if not isinstance(array, np.ndarray) or array.dtype.name not in _FLOATS:
            kind = array.dtype.name if isinstance(array, np.ndarray) else type(array).__name__
            raise InputError(f"{path}: {name} is {kind}; an array of {', '.join(_FLOATS)} is needed")
        if leaf not in _LEAVES:
            yield name, array
            continue
        if _LEAVES[leaf] and array.ndim != 2:
            raise InputError(f"{path}: {name} has shape {array.shape}; a kernel has two dimensions, [in, out]")
        yield ".".join([*parents, "weight"]), array.T if _LEAVES[leaf] else array


def _leaves(tree: Any, keys: tuple[str, ...]) -> Iterator[tuple[tuple[str, ...], Any]]:
    if not isinstance(tree, dict):
        yield keys, tree
        return
    for key, value in tree.items():
        yield from _leaves(value, (*keys, str(key)))


def _restore(path: Path) -> dict[str, Any]:
    try:
        tree = msgpack_restore(path.read_bytes())
    except FileNotFoundError:
        raise InputError(f"{path}: no such file") from None
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({error.strerror})") from None
    except (ValueError, TypeError, AttributeError, LookupError, AssertionError, msgpack.UnpackException) as error:
        reason = str(error).splitlines()[0][:120] if str(error) else type(error).__name__
        raise InputError(
            f"{path}: not a Flax checkpoint, or cut short ({reason}); download or copy the file again"
        ) from None
    if not isinstance(tree, dict) or not tree:
        raise InputError(f"{path}: holds {type(tree).__name__}, not a map of parameters; is it a Flax checkpoint?")
    return tree
