"""Writes that fail: within a folder, the n-th operation of a process that changes files fails as a full disk, a broken
one or a removed folder would make it."""

from __future__ import annotations

import builtins
import contextlib
import errno
import io
import os
import shutil
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

FULL, BROKEN, READ_ONLY, REMOVED = "full", "broken", "read-only", "removed"
KINDS = (FULL, BROKEN, READ_ONLY, REMOVED)
_ERRORS = {FULL: errno.ENOSPC, BROKEN: errno.EIO, READ_ONLY: errno.EROFS}
_CREATES = os.O_CREAT | os.O_WRONLY | os.O_RDWR


class Writes:
    """How many operations there have been; the one that fails, and how."""

    def __init__(self, folder: Path, fails: int, kind: str):
        self.folder, self.fails, self.kind, self.count = folder.absolute(), fails, kind, 0
        self._lock = threading.Lock()

    def concerns(self, path: object) -> bool:
        if not isinstance(path, str | os.PathLike):
            return False
        return self.folder in (whole := Path(os.fspath(path)).absolute()).parents or whole == self.folder

    def fail_now(self) -> bool:
        """Counts one operation; whether it is the one that fails. A removed folder is removed now."""
        with self._lock:
            self.count += 1
            now = self.count == self.fails
        if now and self.kind == REMOVED:
            shutil.rmtree(self.folder, ignore_errors=True)
            return False
        return now

    def error(self, path: object) -> OSError:
        code = _ERRORS[self.kind]
        return OSError(code, os.strerror(code), str(path))


class _HalfWritten(io.StringIO):
    """A text file of which half is written before the disk is full."""

    def __init__(self, path: Any, writes: Writes, open_file: Callable[..., Any]):
        super().__init__()
        self._path, self._writes, self._open = path, writes, open_file

    def write(self, text: str) -> int:
        with self._open(self._path, "w", encoding="utf-8") as file:
            file.write(text[: len(text) // 2])
        raise self._writes.error(self._path)


@contextlib.contextmanager
def failing(folder: Path, fails: int, kind: str = FULL) -> Iterator[Writes]:
    """Within the block, operation number `fails` (from 1; 0: none) on files of `folder` fails. Gives the count."""
    writes = Writes(folder, fails, kind)
    before = {"open": io.open, "os_open": os.open, "replace": os.replace, "mkdir": os.mkdir}

    def opened(path: Any, mode: str = "r", *args: Any, **options: Any) -> Any:
        if set(mode) & set("wxa+") and writes.concerns(path) and writes.fail_now():
            if writes.kind == FULL and "b" not in mode:
                return _HalfWritten(path, writes, before["open"])
            raise writes.error(path)
        return before["open"](path, mode, *args, **options)

    def os_opened(path: Any, flags: int, *args: Any, **options: Any) -> int:
        if flags & _CREATES and writes.concerns(path) and writes.fail_now():
            raise writes.error(path)
        return before["os_open"](path, flags, *args, **options)

    def counted(name: str) -> Callable[..., None]:
        def operation(path: Any, *args: Any, **options: Any) -> None:
            if writes.concerns(path) and writes.fail_now():
                raise writes.error(path)
            before[name](path, *args, **options)

        return operation

    try:
        builtins.open = io.open = opened
        os.open, os.replace, os.mkdir = os_opened, counted("replace"), counted("mkdir")
        yield writes
    finally:
        builtins.open = io.open = before["open"]
        os.open, os.replace, os.mkdir = before["os_open"], before["replace"], before["mkdir"]
