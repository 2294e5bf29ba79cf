"""One case of fuzzing: a valid folder, changed as a seed says, and what reading it comes to."""

from __future__ import annotations

import random
import tempfile
import time
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from mwork_jax.errors import InputError
from support.mutations import mutated
from support.readers import FORMATS, Files, write

_LONGEST = 2000  # characters of a message
_MEMORY = 200 << 20  # bytes that reading may take besides twice the files


@dataclass(frozen=True)
class Outcome:
    """refused: the message of the one error that is right. problem: what is wrong otherwise, "" where nothing is."""

    refused: str
    problem: str
    seconds: float
    memory: int  # bytes, how far the process grew


@cache
def samples(form: str) -> list[Files]:
    return FORMATS[form].samples()


def case(form: str, seed: int) -> Files:
    """The files of one case: the same for the same version of the samples and the mutator."""
    return changed(form, seed, samples(form))


def changed(form: str, seed: int, valid: Sequence[Files]) -> Files:
    """One of the valid folders, changed as the seed says."""
    rng = random.Random(f"{form} {seed}")
    files = rng.choice(valid)
    return {**files, **mutated(FORMATS[form].bad(files), rng)}


def outcome(form: str, files: Files) -> Outcome:
    """What reading these files comes to, in a folder of their own."""
    with tempfile.TemporaryDirectory(prefix="fuzz-") as parent:
        folder = Path(parent) / "case"
        folder.mkdir()
        write(files, folder)
        start, before = time.perf_counter(), _reset_peak()
        refused = problem = ""
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                FORMATS[form].read(folder)
        except InputError as error:
            refused = str(error)
            problem = _problem_of_message(refused)
        except (KeyboardInterrupt, SystemExit):
            raise
        except BaseException as error:  # a panic in Rust is one too
            problem = f"{type(error).__name__}: {' '.join(str(error).split())[:200]} ({_where(error)})"
        seconds, memory = time.perf_counter() - start, _peak() - before
        if not problem and memory > 2 * sum(map(len, files.values())) + _MEMORY:
            problem = f"{memory >> 20} MB of memory"
        return Outcome(refused, problem, seconds, memory)


def _problem_of_message(message: str) -> str:
    if not message.strip() or len(message) > _LONGEST:
        return f"a message of {len(message)} characters"
    return ""


def _where(error: BaseException) -> str:
    """The innermost line of the package that the error came through."""
    at, trace = "", error.__traceback__
    while trace is not None:
        name = trace.tb_frame.f_code.co_filename
        if "mwork_jax/" in name or not at:
            at = f"{name.rpartition('mwork_jax/')[2]}:{trace.tb_lineno}"
        trace = trace.tb_next
    return at


def _status(name: str) -> int:
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(name):
            return int(line.split()[1]) << 10
    return 0


def _reset_peak() -> int:
    """Bytes in use; from here on the peak is counted anew. 0 where the system does not say."""
    try:
        Path("/proc/self/clear_refs").write_text("5")
        return _status("VmRSS")
    except OSError:
        return 0


def _peak() -> int:
    try:
        return _status("VmHWM")
    except OSError:
        return 0
