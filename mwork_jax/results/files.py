"""Results in files, of whatever kind."""

from __future__ import annotations

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


def write_results(path: str | Path, results: Result) -> None:
    """Writes a result as JSON, whole or not at all."""
    write_json(path, results.to_json())


def read_results(path: str | Path) -> AnyResults:
    """The result in a file, of whatever kind. Raises InputError, one line, for a file that is missing, damaged, foreign
    or of version 0.1."""
    body = of_this_version(read_json(path), str(path))
    kind = body.get("kind")
    if not isinstance(kind, str) or kind not in _CLASSES:
        raise InputError(f"{path}: damaged ('kind' should be one of {', '.join(_CLASSES)}, it is {kind!r:.40})")
    return _CLASSES[kind].from_json(body, str(path))  # type: ignore[return-value]
