"""Writing files so that nobody ever sees half of one, and reading them so that errors teach."""

from __future__ import annotations

import contextlib
import csv
import errno
import functools
import hashlib
import io
import json
import os
import platform
import re
import secrets
import shutil
import stat
import struct
import tempfile
import threading
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import SafetensorError
from safetensors.numpy import save_file

from mwork_jax.errors import InputError
from mwork_jax.runtime.distributed import is_first

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None

_ABANDONED = 3600.0  # seconds since the last byte was written
_PART = re.compile(r"\..*\.mwork-([0-9a-f]{8})-(\d+)-[0-9a-f]{16}\.part")  # as `temporary_folder` names them
_LONGEST_STEM = 100  # bytes of a file's name that its temporary folder's name repeats: names have 255 at most
_MOST_DIGITS = 308  # a whole number of more is no float, and not one of the numbers that our files hold
_EXTREME = (
    f"JSON that cannot be read; it should be nested less deeply, its whole numbers have {_MOST_DIGITS} digits at most"
)
_LFS = b"version https://git-lfs"
_JSON_LINES = (".jsonl", ".ndjson", ".jsonlines")
_WRITTEN_TO = (
    "cache",
    "checkpoints",
    "figures",
    "labels",
    "model",
    "neurons",
    "samples",
    "scores",
)  # in an output folder
_SEPARATORS = {".csv": ",", ".tsv": "\t"}
_STATED_SEPARATOR = re.compile(r"sep=([,;|\t])\r?\n")
_SEMICOLONS = re.compile(r'[^\n,]*;?"?text"?(;[^\n,]*)?\r?\n')  # where numbers have commas, Excel writes these in .csv
_LONGEST_CELL = 2**31 - 1  # characters: the largest limit that the csv module takes on every system
_CELL_LIMIT = threading.Lock()
_PACKED = {b"\x1f\x8b": "gzip", b"PK\x03\x04": "zip (as .xlsx and .docx are)", b"PAR1": "Parquet", b"BZh": "bzip2"}
_PACKED |= {b"\xfd7zXZ": "xz", b"\x28\xb5\x2f\xfd": "zstd", b"%PDF": "PDF", b"ARROW1": "Arrow", b"SQLite": "SQLite"}
_HALF_A_PAIR = re.compile(r"\\u[dD][89a-fA-F]")


@contextlib.contextmanager
def atomic_path(path: str | Path) -> Iterator[Path]:
    """A temporary path that becomes `path` when the block ends well, and vanishes when it does not. Of several
    processes the first alone writes; what another would write vanishes."""
    path = Path(path)
    if not is_first():
        with tempfile.TemporaryDirectory(prefix="mwork-") as folder:
            yield Path(folder) / path.name
        return
    # In a folder of its own, because writers such as safetensors have temporary files themselves.
    with _naming(path), temporary_folder(path.parent, path.name) as folder:
        temporary = folder / path.name
        # The kernel applies the umask, which this process cannot read without changing it for its other threads.
        handle = os.open(temporary, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o666)
        mode = stat.S_IMODE(os.fstat(handle).st_mode)
        os.close(handle)
        yield temporary
        with open(temporary, "rb") as written:
            os.fsync(written.fileno())
        os.chmod(temporary, mode)  # safetensors puts a file of its own in the place of this one
        os.replace(temporary, path)


@contextlib.contextmanager
def _naming(path: Path) -> Iterator[None]:
    """Adds the path to an error of the system that names none, as that of a write to a full disk does not."""
    try:
        yield
    except OSError as error:
        if error.filename is None and error.errno is not None:
            raise OSError(error.errno, error.strerror, str(path)) from None
        raise


@contextlib.contextmanager
def temporary_folder(inside: str | Path, name: str) -> Iterator[Path]:
    """A new hidden folder for `name` in the folder `inside`, which is made where it is missing. It is removed at the
    end of the block or, where the process is killed, by whoever next writes to `inside`."""
    inside = Path(inside)
    inside.mkdir(parents=True, exist_ok=True)
    _remove_abandoned_once(inside.absolute())
    stem = name.encode()[:_LONGEST_STEM].decode(errors="ignore")
    folder = inside / f".{stem}.mwork-{_machine()}-{os.getpid()}-{secrets.token_hex(8)}.part"
    folder.mkdir()
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


@contextlib.contextmanager
def only_writer(folder: str | Path) -> Iterator[None]:
    """Within the block no other process gets into such a block for the same folder: InputError there. Of several
    processes of one run the first holds it for all. The system lets go of it where a process is killed. Without effect
    where there are no such locks: on Windows, and on some network disks."""
    folder = Path(folder)
    if not is_first() or fcntl is None:
        yield
        return
    folder.mkdir(parents=True, exist_ok=True)
    with open(folder / ".lock", "a") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise InputError(
                f"{folder}: another process is writing there; wait for it, or choose another folder"
            ) from None
        except OSError:
            pass  # a disk without locks
        yield


@functools.cache
def _machine() -> str:
    """A short name for what process ids are unique in: a machine since it was started, or a container on it."""
    parts = [platform.node()]
    with contextlib.suppress(OSError):
        parts.append(Path("/proc/sys/kernel/random/boot_id").read_text())
    with contextlib.suppress(OSError):
        parts.append(os.readlink("/proc/self/ns/pid"))
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()[:8]


def remove_abandoned(folder: str | Path) -> None:
    """Removes what killed processes of this package have left half written in `folder`: that whose process has ended,
    and what is so old that nobody can be writing it still. Files of others are left alone."""
    with contextlib.suppress(OSError):  # no such folder, or one that cannot be listed
        for path in sorted(Path(folder).iterdir()):
            match = _PART.fullmatch(path.name)
            if match and (_ended(match[1], int(match[2])) or time.time() - _last_written(path) > _ABANDONED):
                with contextlib.suppress(OSError):  # its writer has just finished, or it is another user's
                    shutil.rmtree(path) if path.is_dir() and not path.is_symlink() else path.unlink()


_remove_abandoned_once = functools.cache(remove_abandoned)  # once in this process for each folder that it writes to


def _ended(machine: str, process: int) -> bool:
    """Whether a process is known to have ended: of other machines, nothing is known."""
    if machine != _machine() or os.name != "posix":
        return False
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return True
    except (PermissionError, OverflowError):  # another user's; no process id
        return False
    return False


def _last_written(path: Path) -> float:
    """When the file, or the newest file within the folder, was written to; now where it has gone."""
    try:
        within = path.rglob("*") if path.is_dir() and not path.is_symlink() else ()
        return max(p.lstat().st_mtime for p in (path, *within))
    except OSError:
        return time.time()


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
            if len(metadata) > 1:
                _sort_metadata(temporary)
        except SafetensorError as error:  # its own kind of error for a full disk
            raise OSError(errno.EIO, str(error), str(path)) from None


def _sort_metadata(path: Path) -> None:
    """safetensors writes metadata in the order of a hash table, another one each time: equal files get equal bytes."""
    with open(path, "r+b") as file:
        (size,) = struct.unpack("<Q", file.read(8))
        header = json.loads(file.read(size))
        header = {name: dict(sorted(entry.items())) for name, entry in header.items()}
        text = json.dumps(header, ensure_ascii=False, separators=(",", ":")).encode()
        file.seek(8)
        file.write(text.ljust(size))


def checksum_of(header: Mapping[str, str], tensors: Mapping[str, np.ndarray]) -> str:
    """SHA-256 over everything that a file of tensors holds: header, names, dtypes, shapes, bytes."""
    digest = hashlib.sha256(json.dumps(dict(header), sort_keys=True).encode())
    for name in sorted(tensors):
        tensor = np.ascontiguousarray(tensors[name])
        digest.update(f"\n{name} {tensor.dtype.name} {tensor.shape}\n".encode())
        digest.update(tensor.reshape(-1).view(np.uint8).data)
    return digest.hexdigest()


def read_text(path: str | Path) -> str:
    """The file's text, without the mark that UTF-8 files of Windows begin with, which stands within a file too where
    several were put together. Raises InputError where it is missing, a folder, unreadable, not UTF-8 or holds NUL, as
    UTF-16 without a mark at its beginning does when it is read as UTF-8."""
    try:
        content = Path(path).read_bytes()  # once, as it may be a pipe
        _refuse_packed(content, path)
        text = io.TextIOWrapper(io.BytesIO(content), encoding="utf-8-sig").read().replace("\n\ufeff", "\n")
    except FileNotFoundError:
        raise InputError(f"{path}: no such file") from None
    except UnicodeDecodeError as error:
        raise InputError(f"{path}: not UTF-8 (byte {error.start}); save it as UTF-8") from None
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({error.strerror})") from None
    if "\0" in text:
        raise InputError(f"{path}: holds NUL characters; is it UTF-16? save it as UTF-8")
    return text


def _refuse_packed(content: bytes, path: str | Path) -> None:
    kind = next((kind for magic, kind in _PACKED.items() if content.startswith(magic)), None)
    if kind is not None:
        raise InputError(f"{path}: {kind}, where text is needed; unpack or convert it")


def read_json(path: str | Path) -> Any:
    """The value in a JSON file. Raises InputError where the file cannot be read, and as `parse_json` does."""
    return parse_json(read_text(path), str(path))


def parse_json(text: str, where: str) -> Any:
    """The value of a JSON text. Raises InputError, which begins with `where`, for what is not JSON and for what is,
    but cannot be right: NaN and infinity (also as 1e999), whole numbers of more than 308 digits, a name that an object
    has twice, half a surrogate pair, which no UTF-8 file can hold."""
    try:
        value = json.loads(
            text, parse_constant=_refused, parse_int=_whole, parse_float=_finite, object_pairs_hook=_object
        )
        if _HALF_A_PAIR.search(text):
            json.dumps(value, ensure_ascii=False).encode()
    except json.JSONDecodeError as error:
        line = f"line {error.lineno}: " if "\n" in text.strip() else ""
        raise InputError(f"{where}: not valid JSON ({line}{error.msg})") from None
    except UnicodeEncodeError as error:
        half = f"U+{ord(error.object[error.start]):04X}"
        raise InputError(f"{where}: half a surrogate pair ({half}) stands in a text; both halves are needed") from None
    except _Wrong as error:
        raise InputError(f"{where}: {error}") from None
    except (RecursionError, ValueError):
        raise InputError(f"{where}: {_EXTREME}") from None
    return value


class _Wrong(ValueError):
    """What is JSON, or read as such by Python, but cannot be right."""


def _refused(name: str) -> Any:
    raise _Wrong(f"{name} is not a number that JSON has; a finite number or null is needed")


def _whole(digits: str) -> int:
    if len(digits) > _MOST_DIGITS:
        raise ValueError(digits)
    return int(digits)


def _finite(digits: str) -> float:
    value = float(digits)
    if value in (float("inf"), float("-inf")):
        raise _Wrong(f"the number {digits:.40} is too large for a float")
    return value


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    value = dict(pairs)
    if len(value) < len(pairs):
        names = [name for name, _ in pairs]
        twice = next(name for name in names if names.count(name) > 1)
        raise _Wrong(f"{twice!r:.80} is twice in one object; which of the two holds cannot be known")
    return value


def read_jsonl(path: str | Path) -> list[tuple[int, dict]]:
    """(line number, object) for each line of a JSONL file that is not empty. Raises InputError as `read_json` does.

    Lines end in a line feed only: JSON strings may hold other separators, such as U+2028, as they are.
    """
    rows = []
    for number, line in enumerate(read_text(path).split("\n"), 1):
        if not line.strip():
            continue
        row = parse_json(line, f"{path}:{number}")
        if not isinstance(row, dict):
            raise InputError(f"{path}:{number}: a JSON object is needed on each line")
        rows.append((number, row))
    return rows


def refuse_pointer(path: str | Path) -> None:
    """Raises InputError for a file that Git LFS has left a pointer for, instead of its content."""
    try:
        with open(path, "rb") as file:
            begin = file.read(len(_LFS))
    except OSError:
        return  # whoever reads the file will say so
    if begin == _LFS:
        raise InputError(f"{path}: a Git LFS pointer, not the file itself; fetch it with `git lfs pull`")


def has_rows(path: str | Path) -> bool:
    """Whether `read_rows` reads such a file, by its suffix."""
    return Path(path).suffix.lower() in (*_JSON_LINES, ".json", *_SEPARATORS)


def read_rows(path: str | Path) -> list[tuple[str, dict]]:
    """(where it stands, row) for each row of a file of JSON lines (.jsonl, .ndjson, .jsonlines), of one JSON list
    (.json, which may also hold lines), or of a table with a line of names first (.csv, .tsv), whose values are strings.

    A string in a JSON list counts as {"text": string}. Raises InputError as `read_json` does, and for another form.
    """
    suffix = Path(path).suffix.lower()
    if suffix in _SEPARATORS:
        return _table_rows(path, _SEPARATORS[suffix])
    if suffix in _JSON_LINES or not read_text(path).lstrip().startswith("["):
        return [(f"{path}:{number}", row) for number, row in read_jsonl(path)]
    listed = [{"text": row} if isinstance(row, str) else row for row in read_json(path)]
    rows = [(f"{path}, entry {number}", row) for number, row in enumerate(listed, 1)]
    for where, row in rows:
        if not isinstance(row, dict):
            raise InputError(f"{where}: a JSON object or a string is needed in the list")
    return rows


@contextlib.contextmanager
def cells_of_any_length() -> Iterator[None]:
    """Within the block or the function, the csv module reads cells of more than its usual 131072 characters. Its limit
    is one for the whole process, so one thread at a time is in such a block, and blocks do not nest."""
    with _CELL_LIMIT:
        before = csv.field_size_limit(_LONGEST_CELL)
        try:
            yield
        finally:
            csv.field_size_limit(before)


@cells_of_any_length()
def _table_rows(path: str | Path, separator: str) -> list[tuple[str, dict]]:
    text = read_text(path)
    if stated := _STATED_SEPARATOR.match(text):  # by Excel, for itself
        text, separator = text[stated.end() :], stated[1]
    elif separator == "," and _SEMICOLONS.match(text):
        separator = ";"
    try:
        names, *rows = csv.reader(io.StringIO(text, newline=""), delimiter=separator, strict=True)
    except (csv.Error, ValueError) as error:
        reason = "is empty" if isinstance(error, ValueError) else str(error)
        raise InputError(f"{path}: not a table with names in its first line ({reason})") from None
    twice = next((name for name in names if name and names.count(name) > 1), None)
    if twice is not None:
        raise InputError(f"{path}, row 1: {twice!r:.80} names two columns; which of the two holds cannot be known")
    for number, row in enumerate(rows, 2):
        if row and len(row) != len(names):
            raise InputError(f"{path}, row {number}: {len(row)} values, where the first line has {len(names)} names")
    return [(f"{path}, row {number}", dict(zip(names, row, strict=True))) for number, row in enumerate(rows, 2) if row]


def refuse_links(folder: str | Path) -> None:
    """Raises InputError for a folder in which one that this package writes to is a link: what is written would lie
    elsewhere."""
    for path in (Path(folder) / name for name in _WRITTEN_TO):
        if path.is_symlink():
            raise InputError(f"{path}: a link, and what is written stays inside {folder}; remove the link")


def output_folder(path: str | Path) -> Path:
    """The path, if a folder is or can be made there and written to; else InputError. Makes nothing yet."""
    if not str(path).strip():
        raise InputError("the output folder has no name; is a variable of the shell not set? give one with --out")
    path = Path(path)
    refuse_links(path)
    existing = next(p for p in (path.absolute(), *path.absolute().parents) if p.exists())
    if existing.is_dir() and os.access(existing, os.W_OK | os.X_OK):
        return path
    reason = "no permission" if existing.is_dir() else f"{existing} is not a folder"
    raise InputError(f"{path}: cannot write there ({reason}); choose another output folder with --out")
