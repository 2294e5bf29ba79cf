"""Results in files, of whatever kind."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

from mwork_jax.errors import InputError
from mwork_jax.results.base import Result, of_this_version
from mwork_jax.results.detect import DetectResults
from mwork_jax.results.enhance import EnhanceResults
from mwork_jax.results.lens import LensResults
from mwork_jax.results.lm_eval import LmEvalResults
from mwork_jax.results.neurons import NeuronResults
from mwork_jax.results.run import RunResults
from mwork_jax.results.steer import SteerResults
from mwork_jax.results.tables import TablesResults
from mwork_jax.runtime.cache import fingerprint
from mwork_jax.runtime.files import read_json, write_json

AnyResults = (
    LmEvalResults
    | RunResults
    | TablesResults
    | EnhanceResults
    | LensResults
    | DetectResults
    | SteerResults
    | NeuronResults
)
_CLASSES: Mapping[str, type[Result]] = {
    "run": RunResults, "tables": TablesResults, "enhance": EnhanceResults, "lens": LensResults, "detect": DetectResults,
    "steer": SteerResults, "neurons": NeuronResults, "lm_eval": LmEvalResults,
}  # fmt: skip


_CHECKSUM = "checksum"  # of all other values of the file, beside them


def write_results(path: str | Path, results: Result) -> None:
    """Writes a result as JSON with a checksum, whole or not at all."""
    body = json.loads(json.dumps(results.to_json()))  # as it will be read: keys are texts
    write_json(path, {**body, _CHECKSUM: fingerprint(body)})


def read_results(path: str | Path) -> AnyResults:
    """The result in a file, of whatever kind. Raises InputError, one line, for a file that is missing, damaged, foreign
    or of version 0.1. One without a checksum, as files had none at first, is not verified."""
    body = dict(of_this_version(read_json(path), str(path)))
    written = body.pop(_CHECKSUM, None)
    kind = body.get("kind")
    if not isinstance(kind, str) or kind not in _CLASSES:
        raise InputError(f"{path}: damaged ('kind' should be one of {', '.join(_CLASSES)}, it is {kind!r:.40})")
    result = _CLASSES[kind].from_json(body, str(path))
    if written is not None and written != fingerprint(body):
        raise InputError(f"{path}: damaged (checksum should be that of its values)")
    return result  # type: ignore[return-value]
