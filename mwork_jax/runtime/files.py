"""Writing files so that nobody ever sees half of one, and reading them so that errors teach."""

from __future__ import annotations

import contextlib
import errno
import json
import os
import tempfile
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import SafetensorError
from safetensors.numpy import save_file

from mwork_jax.errors import InputError
from mwork_jax.runtime.distributed import is_first

_ABANDONED = 3600.0  # seconds since the last byte was written
_EXTREME = "JSON that cannot be read; it should be nested less deeply, its numbers have fewer digits"


@contextlib.contextmanager
def atomic_path(path: str | Path) -> Iterator[Path]:
    """A temporary path beside `path` that becomes `path` when the block ends well, and vanishes when it does not. Of
    several processes the first alone writes; what another would write vanishes."""
    path = Path(path)
    if not is_first():
        with tempfile.TemporaryDirectory(prefix="mwork-") as folder:
            yield Path(folder) / path.name
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(prefix=f".{path.name}.", suffix=".part", dir=path.parent)
    os.close(handle)
    temporary = Path(name)
    try:
        yield temporary
        with open(temporary, "rb") as written:
            os.fsync(written.fileno())
        os.chmod(temporary, 0o666 & ~_umask())
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def remove_abandoned(folder: str | Path) -> None:
    """Removes temporary files of processes that were killed: those so old that nobody can be writing them still."""
    now = time.time()
    for path in Path(folder).glob(".*.part"):
        with contextlib.suppress(FileNotFoundError):  # its writer has just finished
            if now - path.stat().st_mtime > _ABANDONED:
                path.unlink()


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask


def write_text(path: str | Path, text: str) -> None:
    with atomic_path(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def write_json(path: str | Path, value: Any) -> None:
    """Writes JSON that any reader accepts: NaN and infinity raise ValueError instead of being written."""
    write_text(path, json.dumps(value, ensure_ascii=False, indent=1, allow_nan=False) + "\n")


def write_tensors(path: str | Path, tensors: Mapping[str, np.ndarray], metadata: Mapping[str, str]) -> None:
    """Writes a safetensors file. Raises OSError where it cannot be written, on a full disk too."""
    with atomic_path(path) as temporary:
        try:
            save_file(dict(tensors), temporary, metadata=dict(metadata))
        except SafetensorError as error:  # its own kind of error for a full disk
            raise OSError(errno.EIO, str(error), str(path)) from None


def read_text(path: str | Path) -> str:
    """The file's text. Raises InputError where it is missing, a folder, unreadable or not UTF-8."""
    try:
        return Path(path).read_text(encoding="utf-8-sig")
    except FileNotFoundError:
        raise InputError(f"{path}: no such file") from None
    except UnicodeDecodeError as error:
        raise InputError(f"{path}: not UTF-8 (byte {error.start}); save it as UTF-8") from None
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({error.strerror})") from None


def read_json(path: str | Path) -> Any:
    """The value in a JSON file. Raises InputError where the file cannot be read or is not JSON."""
    text = read_text(path)
    try:
        return json.loads(text)
    except json.JSONDecodeError as error:
        raise InputError(f"{path}: not valid JSON (line {error.lineno}: {error.msg})") from None
    except (RecursionError, ValueError):
        raise InputError(f"{path}: {_EXTREME}") from None


def read_jsonl(path: str | Path) -> list[tuple[int, dict]]:
    """(line number, object) for each line of a JSONL file that is not empty.

    Lines end in a line feed only: JSON strings may hold other separators, such as U+2028, as they are.
    """
    rows = []
    for number, line in enumerate(read_text(path).split("\n"), 1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except json.JSONDecodeError as error:
            raise InputError(f"{path}:{number}: not valid JSON ({error.msg})") from None
        except (RecursionError, ValueError):
            raise InputError(f"{path}:{number}: {_EXTREME}") from None
        if not isinstance(row, dict):
            raise InputError(f"{path}:{number}: a JSON object is needed on each line")
        rows.append((number, row))
    return rows


def output_folder(path: str | Path) -> Path:
    """The path, if a folder is or can be made there and written to; else InputError. Makes nothing yet."""
    path = Path(path)
    there = next(p for p in (path.absolute(), *path.absolute().parents) if p.exists())
    if there.is_dir() and os.access(there, os.W_OK | os.X_OK):
        return path
    reason = "no permission" if there.is_dir() else f"{there} is not a folder"
    raise InputError(f"{path}: cannot write there ({reason}); choose another output folder with --out")
