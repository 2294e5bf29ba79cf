"""Checkpoints in a bucket, or wherever else fsspec reaches: `gs://…`, `s3://…`, `memory://…`.

A safetensors file begins with eight bytes, the length of its header, then the header as JSON, then the tensors. The
header gives the bytes of every tensor, so that a part of one is read without the rest of the file.
"""

from __future__ import annotations

import json
import struct
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from math import prod
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import ml_dtypes
import numpy as np

from mwork_jax.errors import InputError
from mwork_jax.load.hf_folder import FLOATS, INDEX, WHOLE, shard_names

_DTYPES = dict(zip(FLOATS, (np.float32, np.float16, ml_dtypes.bfloat16, np.float64), strict=True))
_LONGEST_HEADER = 100_000_000  # bytes, the limit of the safetensors library


def is_bucket(source: str) -> bool:
    """Whether a model's source is an address and not a path."""
    return "://" in source


@dataclass(frozen=True)
class _Stored:
    """Where a tensor is: its file, its first byte in the file, its dtype as safetensors names it, and its shape."""

    file: str
    begin: int
    dtype: str
    shape: tuple[int, ...]


class BucketFolder:
    """A model folder in Hugging Face layout at an address; a source of weights that gives parts."""

    def __init__(self, url: str):
        """Reads the headers of all weight files. Raises InputError where the address cannot be reached, a file is
        missing, cut short or damaged, or the library that reaches such addresses is not installed."""
        self.where = url.rstrip("/")
        self._files, self._root = _filesystem(self.where)
        self._sizes = self._listed()
        if INDEX in self._sizes:
            names = shard_names(self.json(INDEX), f"{self.where}/{INDEX}")
        elif WHOLE in self._sizes:
            names = [WHOLE]
        else:
            raise InputError(f"{self.where}: no weights; {WHOLE} (whole or in shards) is needed")
        missing = [name for name in names if name not in self._sizes]
        if missing:
            raise InputError(f"{self.where}: {INDEX} names files that are not there: {', '.join(missing)}")
        self._tensors = {tensor: at for name in names for tensor, at in self._header(name).items()}

    def names(self) -> set[str]:
        return set(self._tensors)

    def shape(self, name: str) -> tuple[int, ...]:
        return self._tensors[name].shape

    def read(self, name: str, dtype: np.dtype | type = np.float32) -> np.ndarray:  # stored as floats
        """One tensor as it is stored. Raises InputError where that is not a float type, or it cannot be read."""
        return self.part(name, (slice(None),) * len(self.shape(name)))

    def part(self, name: str, index: tuple[slice, ...]) -> np.ndarray:
        """Part of a tensor as it is stored. Of the file, the rows between the first and the last of the part are read,
        whole. Raises InputError as `read` does."""
        at = self._tensors[name]
        if at.dtype not in _DTYPES:
            raise InputError(f"{self.where}/{at.file}: {name} is stored as {at.dtype}; one of {', '.join(FLOATS)}")
        dtype = np.dtype(_DTYPES[at.dtype])
        if not at.shape:
            return np.frombuffer(self._bytes(at.file, at.begin, at.begin + dtype.itemsize), dtype)[0]
        first, last, _ = index[0].indices(at.shape[0])
        row = prod(at.shape[1:]) * dtype.itemsize
        stored = self._bytes(at.file, at.begin + first * row, at.begin + last * row)
        return np.frombuffer(stored, dtype).reshape(last - first, *at.shape[1:])[(slice(None), *index[1:])]

    def holds(self, name: str) -> bool:
        """Whether the folder has such a file."""
        return name in self._sizes

    def json(self, name: str) -> Any:
        """The value of a JSON file in the folder. Raises InputError where it is missing or not JSON."""
        if name not in self._sizes:
            raise InputError(f"{self.where}: no {name}; a model folder in Hugging Face layout has one")
        try:
            return json.loads(self._bytes(name))
        except ValueError:
            raise InputError(f"{self.where}/{name}: not valid JSON") from None

    @contextmanager
    def without_weights(self) -> Iterator[Path]:
        """A folder here with the small files, the tokenizer's among them, while the block lasts."""
        with TemporaryDirectory(prefix="mwork-") as folder:
            for name in self._sizes:
                if name.endswith((".json", ".model", ".jinja", ".txt")) and name != INDEX:
                    (Path(folder) / name).write_bytes(self._bytes(name))
            yield Path(folder)

    def _listed(self) -> dict[str, int]:
        """{file name: bytes}."""
        try:
            entries = self._files.ls(self._root, detail=True)
        except Exception as error:  # each filesystem raises kinds of its own
            raise _unreachable(self.where, error) from None
        files = (entry for entry in entries if entry["type"] == "file")
        return {entry["name"].rsplit("/", 1)[-1]: int(entry["size"]) for entry in files}

    def _header(self, file: str) -> dict[str, _Stored]:
        """{tensor: where it is} of one file."""
        try:
            (length,) = struct.unpack("<Q", self._bytes(file, 0, 8))
            if length > min(_LONGEST_HEADER, self._sizes[file] - 8):
                raise ValueError("the header is longer than the file")
            header = json.loads(self._bytes(file, 8, 8 + length))
            header.pop("__metadata__", None)
            tensors = {name: self._stored(file, 8 + length, entry) for name, entry in header.items()}
        except (ValueError, KeyError, TypeError, AttributeError, struct.error) as error:
            raise InputError(f"{self.where}/{file}: damaged or cut short ({error}); copy the file again") from None
        return tensors

    def _stored(self, file: str, data: int, entry: Mapping[str, Any]) -> _Stored:
        begin, end = entry["data_offsets"]
        shape = tuple(int(n) for n in entry["shape"])
        size = np.dtype(_DTYPES[entry["dtype"]]).itemsize if entry["dtype"] in _DTYPES else None
        if not 0 <= begin <= end <= self._sizes[file] - data:
            raise ValueError("a tensor lies outside the file")
        if size is not None and prod(shape) * size != end - begin:
            raise ValueError("a tensor is not as long as its shape says")
        return _Stored(file, data + begin, entry["dtype"], shape)

    def _bytes(self, file: str, begin: int | None = None, end: int | None = None) -> bytes:
        try:
            content = self._files.cat_file(f"{self._root}/{file}", start=begin, end=end)
        except Exception as error:  # each filesystem raises kinds of its own
            raise _unreachable(f"{self.where}/{file}", error) from None
        if begin is not None and end is not None and len(content) != end - begin:
            raise InputError(f"{self.where}/{file}: ends before byte {end}; copy the file again")
        return content


def _filesystem(url: str) -> tuple[Any, str]:
    """The file system of an address, and the folder's path in it."""
    import fsspec

    try:
        files, root = fsspec.core.url_to_fs(url)
    except ImportError as error:
        raise InputError(f"{url}: {error}") from None
    except Exception as error:
        raise _unreachable(url, error) from None
    return files, root.rstrip("/")


def _unreachable(where: str, error: Exception) -> InputError:
    reason = " ".join(str(error).split())[:160] or type(error).__name__
    return InputError(f"{where}: cannot be read ({type(error).__name__}: {reason})")
