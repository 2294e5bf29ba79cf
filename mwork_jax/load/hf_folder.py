"""Checkpoints in a folder as Hugging Face writes them: safetensors, whole or in shards."""

from __future__ import annotations

import json
import math
from collections import Counter
from pathlib import Path, PurePath
from typing import Any

import ml_dtypes  # registers bfloat16 with numpy, which safetensors then uses
import numpy as np
from safetensors import SafetensorError, safe_open

from mwork_jax.errors import InputError
from mwork_jax.runtime.files import read_json, refuse_pointer

WHOLE = "model.safetensors"
INDEX = "model.safetensors.index.json"
_LONGEST_NAME = 255  # bytes, on any file system
_FLOAT8 = {"F8_E4M3": ml_dtypes.float8_e4m3fn, "F8_E5M2": ml_dtypes.float8_e5m2}
FLOATS = ("F32", "F16", "BF16", "F64")  # as safetensors names them


class SafetensorsFolder:
    """The weights of a folder with `model.safetensors`, or with shards and `model.safetensors.index.json`."""

    def __init__(self, folder: str | Path):
        """Opens every file and reads its header. Raises InputError where one is missing, cut short or damaged."""
        folder = Path(folder)
        self.where = str(folder)
        self._file_of: dict[str, Path] = {}
        self._files = {path: _open(path) for path in self._paths(folder)}
        for path, handle in self._files.items():
            for name in handle.keys():  # noqa: SIM118  not a dictionary
                if name in self._file_of:
                    both = f"{self._file_of[name].name} and {path.name}"
                    raise InputError(f"{folder}: {name} is in two files, {both}; which one holds?")
                self._file_of[name] = path

    @staticmethod
    def holds(folder: Path) -> bool:
        return (folder / INDEX).is_file() or (folder / WHOLE).is_file()

    @staticmethod
    def _paths(folder: Path) -> list[Path]:
        if not (folder / INDEX).is_file():
            return [folder / WHOLE]
        paths = [folder / name for name in shard_names(read_json(folder / INDEX), str(folder / INDEX))]
        if (folder / WHOLE).is_file() and folder / WHOLE not in paths:
            raise InputError(
                f"{folder}: two sets of weights, {WHOLE} and the files that {INDEX} names; remove the one that is stale"
            )
        missing = [path.name for path in paths if not path.is_file()]
        if missing:
            raise InputError(f"{folder}: {INDEX} names files that are not there: {', '.join(missing)}")
        return paths

    def names(self) -> set[str]:
        return set(self._file_of)

    def read(self, name: str, dtype: np.dtype | type = np.float32) -> np.ndarray:  # stored as floats
        """One tensor as it is stored. Raises InputError where that is not a float type: whole numbers are a quantised
        weight without its scale."""
        self._check(name)
        return self._files[self._file_of[name]].get_tensor(name)

    def as_stored(self, name: str) -> np.ndarray:
        """One tensor of any type, as it is stored: for those who know what its numbers mean."""
        path = self._file_of[name]
        stored = self._files[path].get_slice(name).get_dtype()
        return _float8(path, name, _FLOAT8[stored]) if stored in _FLOAT8 else self._files[path].get_tensor(name)

    def stored(self) -> str:
        """The type of most weights: "BF16 safetensors"; "4-bit MXFP4 safetensors" for packed ones."""
        weights: Counter[str] = Counter()
        for name, path in self._file_of.items():
            entry = self._files[path].get_slice(name)
            weights[entry.get_dtype()] += math.prod(entry.get_shape())
        kind = max(weights, key=lambda kind: weights[kind]) if weights else "no"
        return f"{'8-bit ' if kind in _FLOAT8 else ''}{'4-bit MXFP4' if kind == 'U8' else kind} safetensors"

    def shape(self, name: str) -> tuple[int, ...]:
        return tuple(self._files[self._file_of[name]].get_slice(name).get_shape())

    def part(self, name: str, index: tuple[slice, ...]) -> np.ndarray:
        """Part of a tensor as it is stored; nothing else of the file is read. Raises InputError as `read` does."""
        self._check(name)
        return self._files[self._file_of[name]].get_slice(name)[index]

    def _check(self, name: str) -> None:
        path = self._file_of[name]
        stored = self._files[path].get_slice(name).get_dtype()
        if stored not in FLOATS:
            raise InputError(f"{path}: {name} is stored as {stored}; one of {', '.join(FLOATS)} is needed")


def shard_names(index: Any, where: str) -> list[str]:
    """The files that a checkpoint's index names, sorted. Raises InputError where it names none, or one elsewhere."""
    shards = index.get("weight_map") if isinstance(index, dict) else None
    if not isinstance(shards, dict) or not shards:
        raise InputError(f"{where}: no 'weight_map' that says which shard holds which tensor")
    for tensor, name in shards.items():
        if not isinstance(name, str) or not _stays_inside(name):
            raise InputError(f"{where}: {tensor} is in {name!r:.80}; the name of a file here is needed")
    return sorted(set(shards.values()))


def _stays_inside(name: str) -> bool:
    """Whether a shard's name is a file of the checkpoint's folder (links are followed: the Hub's cache has them)."""
    path = PurePath(name)
    is_name = bool(path.name) and len(path.name.encode()) <= _LONGEST_NAME and "\0" not in name
    return is_name and not path.is_absolute() and ".." not in path.parts


def _open(path: Path):  # noqa: ANN202  safetensors does not export the handle's type
    refuse_pointer(path)
    try:
        return safe_open(path, framework="numpy")
    except (SafetensorError, OSError) as error:
        reason = str(error).splitlines()[0]
        raise InputError(f"{path}: damaged or cut short ({reason}); download or copy the file again") from None


def _float8(path: Path, name: str, dtype: type) -> np.ndarray:
    """A tensor of eight-bit floats, for which safetensors has no NumPy type: its bytes out of the file, whose header
    has been checked."""
    with path.open("rb") as file:
        length = int.from_bytes(file.read(8), "little")
        entry = json.loads(file.read(length))[name]
        begin, end = entry["data_offsets"]
        file.seek(8 + length + begin)
        return np.frombuffer(file.read(end - begin), dtype).reshape(entry["shape"])
