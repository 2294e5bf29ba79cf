"""Checkpoints of tuning, with Orbax: the trainable part, the optimizer, the step and what they belong to.

The frozen weights are not in them, so they are megabytes. The order of the documents follows from the seed, so the step
is the position in the data too.
"""

from __future__ import annotations

import errno
import functools
import logging
import os
from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import jax

from mwork_jax.enhance.train import State
from mwork_jax.errors import InputError
from mwork_jax.runtime.files import only_writer

_KEPT = 2  # the newest ones


@dataclass(frozen=True)
class Losses:
    """How far tuning has come, in nats per token: train [step][run]; validation, (after so many steps, [run])."""

    train: list[list[float]] = field(default_factory=list)
    validation: list[tuple[int, list[float]]] = field(default_factory=list)


class Checkpoints:
    """A folder with the newest checkpoints of one piece of work; usable in a `with` block."""

    def __init__(self, folder: str | Path, identity: Mapping[str, object]):
        """identity: what the work is determined by, as JSON: base model, neuron sets, documents, settings."""
        from orbax.checkpoint import v1 as ocp  # slow to import, and only tuning with checkpoints needs it

        self.folder, self._identity = Path(folder).absolute(), dict(identity)
        _log_no_tracebacks()
        self._block = ExitStack()
        self._block.enter_context(only_writer(self.folder))  # a new saver removes what another has half written
        policies, preserved = ocp.training.save_decision_policies, ocp.training.preservation_policies
        try:
            self._saver = ocp.training.Checkpointer(
                str(self.folder),
                # Orbax's own policies do not fit the types that its Checkpointer asks for.
                save_decision_policy=policies.FixedIntervalPolicy(1),  # pyright: ignore[reportArgumentType]
                preservation_policy=preserved.LatestN(_KEPT),  # pyright: ignore[reportArgumentType]
                cleanup_tmp_directories=True,
            )
        except BaseException:
            self._block.close()
            raise

    def __enter__(self) -> Checkpoints:
        return self

    def __exit__(self, kind: type[BaseException] | None, *error: object) -> None:
        try:
            self._saver.close()
        except Exception as failure:
            if kind is None:
                raise _cannot_write(self.folder, failure) from None
        finally:
            self._block.close()

    @property
    def begun(self) -> bool:
        """Whether there is a checkpoint."""
        return self._saver.latest is not None

    def save(self, step: int, state: State, losses: Losses) -> None:
        """Begins to write the state after `step` steps; training goes on meanwhile. Raises InputError where an earlier
        one could not be written."""
        work = {"state": state, "work": {"identity": self._identity, "history": asdict(losses)}}
        try:
            self._saver.save_checkpointables_async(step, work)
        except Exception as failure:  # Orbax and TensorStore raise many kinds for a disk that is full
            raise _cannot_write(self.folder, failure) from None

    def latest(self, like: State) -> tuple[int, State, Losses] | None:
        """(step, state, losses) of the newest checkpoint, or None where there is none.

        Raises InputError where it is of another model, neuron set, corpus or settings, or cannot be read.
        """
        newest = self._saver.latest
        if newest is None:
            return None
        try:
            work = self._saver.load_checkpointables(newest.step, {"work": None})["work"]
            self._check(work["identity"])
            abstract = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding), like)
            state = self._saver.load_checkpointables(newest.step, {"state": abstract})["state"]
        except InputError:
            raise
        except Exception as failure:
            reason = " ".join(str(failure).split())[:160]
            raise InputError(f"{self.folder}: checkpoint {newest.step} cannot be read ({reason}); remove it") from None
        validation = [(int(step), list(losses)) for step, losses in work["history"]["validation"]]
        return newest.step, State(*state), Losses(list(work["history"]["train"]), validation)

    def _check(self, theirs: Mapping[str, object]) -> None:
        for name, own in self._identity.items():
            if theirs.get(name) != own:
                raise InputError(
                    f"{self.folder}: its checkpoints are of another {_NAMES.get(name, name)} "
                    f"({_difference(theirs.get(name), own)}); choose another output folder, or remove this one"
                )


_NAMES = {"model": "base model", "runs": "neuron set or corpus"}


def _difference(theirs: Any, own: Any) -> str:
    """The first thing that differs, in a few words."""
    if isinstance(theirs, dict) and isinstance(own, dict):
        for name in sorted(theirs.keys() | own.keys()):
            if theirs.get(name) != own.get(name):
                return f"{name}: {_difference(theirs.get(name), own.get(name))}"
    if isinstance(theirs, list) and isinstance(own, list) and len(theirs) == len(own):
        return next(_difference(a, b) for a, b in zip(theirs, own, strict=True) if a != b)
    return f"{theirs!r:.60} there, {own!r:.60} here"


@functools.cache
def _log_no_tracebacks() -> None:
    """Keeps Orbax from logging, with a traceback from each of its threads, what it raises as well. For the rest of the
    process: threads of a saver that failed are heard of after it is closed."""
    logging.getLogger("absl").addFilter(lambda record: not (record.exc_info and "orbax" in Path(record.pathname).parts))


def _cannot_write(folder: Path, failure: Exception) -> InputError:
    text = " ".join(str(failure).split())
    reasons = (os.strerror(code) for code in (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES, errno.EIO))
    reason = next((reason for reason in reasons if reason in text), text[:160] or type(failure).__name__)
    return InputError(f"{folder}: a checkpoint cannot be written ({reason}); the one before is kept")
