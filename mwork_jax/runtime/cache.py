"""Finished work, content-addressed: what was computed once for the same key is never computed again, and nothing is
half-written."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from mwork_jax.errors import InputError
from mwork_jax.runtime.distributed import is_first
from mwork_jax.runtime.files import read_json, remove_abandoned, write_json


def fingerprint(key: Any) -> str:
    """A name for any JSON value, the same wherever it is computed."""
    return hashlib.sha256(
        json.dumps(key, sort_keys=True, ensure_ascii=False).encode("utf-8", "surrogatepass")
    ).hexdigest()[:32]


class ResultCache:
    """A folder with one file per finished cell, named by the fingerprint of everything that determines the cell.

    Any number of processes may use one folder: files appear whole, and equal keys have equal values.
    """

    def __init__(self, folder: str | Path):
        """Finishes what a process that was killed while it wrote several cells has left, and removes what it had only
        begun to write."""
        self.folder = Path(folder)
        if not is_first():
            return
        for journal in self.folder.glob("*.journal"):
            self._write(journal)
        remove_abandoned(self.folder)

    def get(self, key: Mapping[str, Any]) -> Any | None:
        """The value put under an equal key, or None. A damaged file, or one of another key, counts as not there: it is
        computed and written again."""
        path = self._path(key)
        if not path.exists():
            return None
        try:
            cell = read_json(path)
            return cell["value"] if cell["key"] == json.loads(json.dumps(dict(key))) else None
        except (InputError, KeyError, TypeError):
            return None

    def has(self, key: Mapping[str, Any]) -> bool:
        """Whether something was put under the key, damaged since or not."""
        return self._path(key).exists()

    def put(self, key: Mapping[str, Any], value: Any) -> None:
        self.put_all([(key, value)])

    def put_all(self, cells: Sequence[tuple[Mapping[str, Any], Any]]) -> None:
        """All of these cells or, whenever the process is killed, none: what is missing afterwards does not depend on
        the moment. Of several processes of one run, the first writes."""
        if not cells or not is_first():
            return
        journal = self.folder / f"{fingerprint([dict(key) for key, _ in cells])}.journal"
        write_json(journal, [{"key": dict(key), "value": value} for key, value in cells])
        self._write(journal)

    def _write(self, journal: Path) -> None:
        """The cells of a journal as files; then the journal is not needed any more."""
        try:
            for cell in read_json(journal):
                write_json(self._path(cell["key"]), cell)
        except (InputError, KeyError, TypeError):
            pass  # damaged, or finished and removed by another process
        journal.unlink(missing_ok=True)

    def _path(self, key: Mapping[str, Any]) -> Path:
        return self.folder / f"{fingerprint(dict(key))}.json"
