"""A model of fastText that tells languages apart, as GlotLID does: its sizes are checked, and the library reads it.

The library trusts what a file says of its sizes, so a file that is cut short ends the process; the walk here finds that
first. The layout is that of fastText's `Model::loadModel`, version 12.
"""

from __future__ import annotations

import mmap
import struct
from collections.abc import Callable, Sequence
from functools import cache
from pathlib import Path
from typing import Any

from mwork_jax.errors import InputError

INSTALL = "pip install 'mwork-jax[identify]'"
_MAGIC, _VERSION = 793712314, 12
_ARGS = 12 * 4 + 8  # twelve numbers and a double
_CENTROIDS = 256
_LABEL = "__label__"


def fasttext_identifier(path: str | Path, languages: Sequence[str]) -> Callable[[str], str | None]:
    """Names the likeliest of ALL languages that the model knows, as the code of `languages` that it belongs to or, for
    another one, as its own. Labels may be codes of two or three letters, with a script (`deu_Latn`); the
    standard form of a language counts as the language (`arb`: ar, `cmn`: zh), its other forms as their own (`arz`).

    Raises InputError for a file that is no such model or is cut short, without the library, and for languages that the
    model does not know or cannot tell apart.
    """
    path = Path(path)
    codes = {label: _code(label.removeprefix(_LABEL)) for label in _labels(path)}
    by_code: dict[str, str] = {}
    for language in languages:
        code = _code(language)
        if code not in codes.values() or code in by_code:
            raise InputError(f"{path}: it does not know {language!r:.40} apart from the others")
        by_code[code] = language
    model = _loaded(path)

    def identify(sentence: str) -> str | None:
        labels, _ = model.predict(" ".join(sentence.split()), k=1)
        code = codes.get(labels[0]) if labels else None
        return None if code is None else by_code.get(code, code)

    return cache(identify)


@cache
def _loaded(path: Path) -> Any:
    """GlotLID takes 1.6 GB: once in a process."""
    try:
        import fasttext
    except ImportError as error:
        raise InputError(f"{path}: fastText is missing ({error}); {INSTALL}") from None
    try:
        return fasttext.load_model(str(path))
    except (ValueError, RuntimeError, MemoryError) as error:
        raise InputError(f"{path}: fastText cannot read it: {error}") from None


def _code(label: str) -> str:
    """The code of a language as ISO 639 has it, that of the whole where several count as one: zh for cmn_Hani."""
    try:
        from langcodes import standardize_tag
    except ImportError as error:
        raise InputError(f"langcodes is missing ({error}); {INSTALL}") from None
    language = label.replace("_", "-").split("-")[0]
    try:
        return standardize_tag(language, macro=True)
    except ValueError:  # no code at all
        return language


def _labels(path: Path) -> list[str]:
    """What the model tells apart. Raises InputError unless the file is as long as its sizes say."""
    try:
        with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content:
            return _Walk(content).labels()
    except OSError as error:
        raise InputError(f"{path}: {error.strerror or error}") from None
    except (ValueError, struct.error) as error:  # an empty file is one too
        raise InputError(f"{path}: not a whole model of fastText, version 12 ({error})") from None


class _Walk:
    """Goes through a model from front to back. Raises ValueError or struct.error where its sizes do not fit."""

    def __init__(self, content: mmap.mmap):
        self.content, self.at = content, 0

    def labels(self) -> list[str]:
        if self._next("ii") != (_MAGIC, _VERSION):
            raise ValueError("other first bytes")
        dimension = self._next("i")[0]
        self._skip(_ARGS - 4)
        labels = self._dictionary()
        quantised = self._matrix(None, dimension)
        self._matrix(quantised, dimension)
        if self.at != len(self.content):
            raise ValueError(f"{self.at} bytes by its sizes, {len(self.content)} in the file")
        return labels

    def _dictionary(self) -> list[str]:
        size, words, count, _, pruned = self._next("iiiqq")
        labels = []
        for _ in range(size):
            end = self.content.find(b"\0", self.at)
            if end < 0:
                raise ValueError("a word without an end")
            word = self.content[self.at : end]
            self.at = end + 1
            if self._next("qb")[1] == 1:
                labels.append(word.decode("utf-8", "replace"))
        if (size - len(labels), len(labels)) != (words, count) or not labels:
            raise ValueError(f"{size - len(labels)} words and {len(labels)} labels, {words} and {count} announced")
        self._skip(8 * max(0, pruned))
        return labels

    def _matrix(self, inner: bool | None, dimension: int) -> bool:
        """The first matrix, or the second where inner says whether the first one's rows are quantised."""
        quantised = bool(self._next("?")[0]) and inner is not False
        norms = quantised and bool(self._next("?")[0])
        rows, columns = self._next("qq")
        if rows < 1 or columns != dimension:
            raise ValueError(f"{rows} x {columns} numbers where vectors of {dimension} are needed")
        if not quantised:
            self._skip(4 * rows * columns)
            return False
        codes = self._next("i")[0]
        self._skip(codes)
        self._centroids(columns)
        if norms:
            self._skip(rows)
            self._centroids(1)
        return True

    def _centroids(self, dimension: int) -> None:
        if self._next("iiii")[0] != dimension:
            raise ValueError("codes of another length")
        self._skip(4 * dimension * _CENTROIDS)

    def _next(self, kinds: str) -> tuple[Any, ...]:
        size = struct.calcsize("<" + kinds)
        self._skip(size)
        return struct.unpack("<" + kinds, self.content[self.at - size : self.at])

    def _skip(self, size: int) -> None:
        if size < 0 or self.at + size > len(self.content):
            raise ValueError(f"{self.at + size} bytes by its sizes, {len(self.content)} in the file")
        self.at += size
