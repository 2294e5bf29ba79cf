"""The result cache: what was computed once for a key is never computed again, and no wrong number comes out of it.

A result is a file `KEY.json` in the folder `cache/`, named by the fingerprint of its key: one JSON object with

    format   "mwork-cache-1"
    key      everything that determines the result, as JSON: model, data, settings, version of the evaluator
    value    the result, as JSON
    sha256   the checksum of key and value

`NAME.journal` holds several such objects, {"format": ..., "entries": [...]}, while their files are being written: a
process that is killed meanwhile leaves the journal, and whoever opens the cache next finishes it. A file that is
damaged in any way, a changed digit in a value too, counts as missing, so that its result is computed again.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from mwork_jax.errors import InputError
from mwork_jax.runtime.distributed import agreed, is_first
from mwork_jax.runtime.files import read_json, remove_abandoned, write_json

CACHE_FOLDER = "cache"  # within an output folder
_FORMAT = "mwork-cache-1"

Key = Mapping[str, Any]  # of JSON values


def fingerprint(key: Any) -> str:
    """A name for any JSON value, the same wherever it is computed."""
    return hashlib.sha256(
        json.dumps(key, sort_keys=True, ensure_ascii=False).encode("utf-8", "surrogatepass")
    ).hexdigest()[:32]


class ResultCache:
    """A folder with one file per result, named by the fingerprint of everything that determines the result.

    Any number of processes may use one folder: files appear whole, and equal keys have equal values.
    """

    def __init__(self, folder: str | Path):
        """Finishes what a process that was killed while it wrote several results has left, and removes what it had
        only begun to write."""
        self.folder = Path(folder)
        if not is_first():
            return
        for journal in self.folder.glob("*.journal"):
            self._finish(journal)
        remove_abandoned(self.folder)

    def get_or_compute(self, key: Key, function: Callable[[], Any]) -> Any:
        """The value under the key, from the cache or else from `function`, whose value is put there.

        The value is JSON, and the same whether it was computed or read: tuples become lists. Every process of a run
        must call this; they agree, so that `function` is called in all of them or in none, and all get the value that
        the first process has.
        """
        known = agreed(partial(self._read, key))
        if known:
            return known[0]
        value = function()
        self.put(key, value)
        return agreed(partial(_as_json, value))

    def get(self, key: Key) -> Any | None:
        """The value put under an equal key, or None. A damaged file, or one of another key, counts as missing: its
        result is computed and written again."""
        return next(iter(self._read(key)), None)

    def has(self, key: Key) -> bool:
        """Whether something was put under the key, damaged since or not."""
        return self._path(key).exists()

    def put(self, key: Key, value: Any) -> None:
        """Keeps a JSON value. Raises ValueError for one that has NaN or infinity, TypeError for one that is no JSON."""
        self.put_all([(key, value)])

    def put_all(self, results: Sequence[tuple[Key, Any]]) -> None:
        """All of these results or, whenever the process is killed, none: what is missing afterwards does not depend on
        the moment. Of several processes of one run, the first writes."""
        if not results or not is_first():
            return
        entries = [_entry(key, value) for key, value in results]
        journal = self.folder / f"{fingerprint([entry['key'] for entry in entries])}.journal"
        write_json(journal, {"format": _FORMAT, "entries": entries})
        self._write(entries)
        journal.unlink(missing_ok=True)

    def _finish(self, journal: Path) -> None:
        """Writes the results of a journal as files. Of a damaged one nothing is written, and all its results are
        computed again: rounding depends on what is computed side by side."""
        try:
            body = read_json(journal)
            entries = body["entries"] if body["format"] == _FORMAT else []
            self._write(entries if all(map(_is_whole, entries)) else [])
        except (InputError, KeyError, TypeError):
            pass  # damaged, or finished and removed by another process
        journal.unlink(missing_ok=True)

    def _write(self, entries: Sequence[Mapping[str, Any]]) -> None:
        for entry in entries:
            write_json(self._path(entry["key"]), entry)

    def _read(self, key: Key) -> list[Any]:
        """[value], or nothing where there is none that can be trusted."""
        path = self._path(key)
        if not path.exists():
            return []
        try:
            entry = read_json(path)
        except InputError:
            return []
        return [entry["value"]] if _is_whole(entry) and entry["key"] == _as_json(dict(key)) else []

    def _path(self, key: Key) -> Path:
        return self.folder / f"{fingerprint(_as_json(dict(key)))}.json"


def _as_json(value: Any) -> Any:
    """The value as it comes back from a file."""
    return json.loads(json.dumps(value, allow_nan=False))


def _entry(key: Key, value: Any) -> dict[str, Any]:
    """A result as it is written."""
    body = _as_json({"key": dict(key), "value": value})
    return {"format": _FORMAT, **body, "sha256": _checksum(body)}


def _is_whole(entry: Any) -> bool:
    """Whether this is a result as it was written."""
    try:
        body = {"key": entry["key"], "value": entry["value"]}
        return entry["format"] == _FORMAT and isinstance(body["key"], dict) and entry["sha256"] == _checksum(body)
    except (KeyError, TypeError):
        return False


def _checksum(body: Mapping[str, Any]) -> str:
    """SHA-256 of key and value as JSON in one spelling; floats are spelled so that they are read back to the bit."""
    return hashlib.sha256(
        json.dumps(body, sort_keys=True, ensure_ascii=False).encode("utf-8", "surrogatepass")
    ).hexdigest()
