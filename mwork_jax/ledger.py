"""Finished work, content-addressed: what was computed once for the same key is never computed again, and nothing is
half-written."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from mwork_jax.errors import InputError
from mwork_jax.files import read_json, write_json


def fingerprint(key: Any) -> str:
    """A name for any JSON value, the same wherever it is computed."""
    return hashlib.sha256(json.dumps(key, sort_keys=True, ensure_ascii=False).encode()).hexdigest()[:32]


class Ledger:
    """A folder with one file per finished cell, named by the fingerprint of everything that determines the cell."""

    def __init__(self, folder: str | Path):
        self.folder = Path(folder)

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

    def put(self, key: Mapping[str, Any], value: Any) -> None:
        write_json(self._path(key), {"key": dict(key), "value": value})

    def _path(self, key: Mapping[str, Any]) -> Path:
        return self.folder / f"{fingerprint(key)}.json"
