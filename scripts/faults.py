"""Runs every command on a tiny model while something fails, and checks what is left.

    python scripts/faults.py --kills 30

For each command: every operation that changes files in its output folder fails once as on a full disk (half is written
first), on a broken one, on a read-only one, and by the folder's being removed meanwhile; the command runs in a folder
that is too small, for what libraries write (a tmpfs, which needs the right to mount one); it is killed at random
moments; the clock goes back; two run in one folder at once. Right is one line and exit status 2 (or nothing at all
where the operation did not matter), and the bytes of an undisturbed run from the same command repeated. Prints a
table of counts; what went wrong goes to standard error.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import itertools
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from unittest import mock

TESTS = Path(__file__).parent.parent / "tests"
sys.path[:0] = [str(TESTS), str(TESTS.parent)]
os.environ.setdefault("JAX_PLATFORMS", "cpu")

_SMALL = ("64k", "512k", "1500k")  # sizes of the folders that are too small
_LIMIT = 300  # seconds for one command
# Each command writes to the folder called like it; what it begins with there is a copy of another's.
BEGINS_WITH = {"select": "detect", "report": "run", "neurons": "run"}
_ALWAYS_NEW = ("checkpoints", "paper.json")  # Orbax writes times of day there; a plan has measured seconds


def commands() -> dict[str, list[str]]:
    """What is run, in this order: later ones read what earlier ones wrote."""
    model = ["--model", "model", "--dtype", "float32"]
    texts = [part for name in ("en", "de") for part in ("--corpus", f"{name}={name}.jsonl")]
    data = ["--data", "en=en.jsonl", "de=de.jsonl", "--languages", "en,de", "--documents", "4", "--held-out", "2"]
    table = ["--table", "4", "--languages", "en,de", "--items", "2", "--seeds", "1"]
    paper = ["--corpus", "en=en.jsonl", "de=de.jsonl", "--documents", "4", "--held-out", "2", "--tables", "4"]
    paper += ["--items", "2", "--seeds", "1"]
    run = ["--max-tokens", "16", "--seeds", "1", "--rule", "top_fraction:0.4"]  # so that each language has neurons
    tuning = ["--language", "de", "--corpus", "de.jsonl", "--documents", "4", "--epochs", "1", "--batch", "2"]
    steering = ["--languages", "de", "--items", "2", "--strengths", "1", "--layers", "1", "--documents", "3"]
    steering += ["--held-out", "1", "--max-new-tokens", "2", "--seeds", "1", "--rule", "top_fraction:0.2"]
    return {
        "detect": ["detect", *model, *texts, "--max-tokens", "16", "--out", "detect"],
        "select": ["select", "select", "--rule", "top_fraction:0.2"],
        "run": ["run", *model, *data, *run, "--out", "run"],
        "report": ["report", "report"],
        "lens": ["lens", *model, *texts, "--languages", "en,de", "--labeller", "scripts", "--out", "lens"],
        "neurons": ["neurons", "neurons", "--dtype", "float32", "--top", "3", "--contexts", "2"],
        "evaluate": ["evaluate", *model, "--neurons", "run", *table, "--out", "evaluate"],
        "paper": ["paper", *model, *paper, "--max-tokens", "16", "--out", "paper"],
        "steer": ["steer", *model, *texts, *steering, "--max-tokens", "16", "--out", "steer"],
        "enhance": ["enhance", *model, "--neurons", "run", *tuning, "--max-tokens", "32", "--out", "enhance"],
    }


@dataclass
class Count:
    """Of one command and one kind of fault: how often it was tried, and what went wrong."""

    tried: int = 0
    wrong: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class Ended:
    """How a command ended: its status, what it wrote to standard error, and what came out of it instead."""

    status: int
    errors: str
    raised: str = ""

    def problem(self) -> str:
        """What is wrong with the end of a command to which something happened; "" for nothing."""
        if self.raised or "Traceback" in self.errors:
            return self.raised or self.errors.strip().splitlines()[-1]
        if self.status == 0:
            return ""
        lines = [line for line in self.errors.splitlines() if line.strip()]
        if self.status != 2 or not lines or not lines[-1].startswith("mwork: "):
            return f"status {self.status}, {lines[-1:]}"
        return ""


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--command", action="append", choices=list(commands()), help="repeatable; default: all")
    parser.add_argument("--kills", type=int, default=10, metavar="N", help="of each command (default: 10)")
    parser.add_argument("--writes", type=int, default=0, metavar="N", help="so many of each command's (default: all)")
    parser.add_argument("--seed", type=int, default=0, help="of the moments of the kills (default: 0)")
    args = parser.parse_args()
    print("| command | fault | tried | wrong |\n|---|---|---|---|")
    wrong = 0
    with tempfile.TemporaryDirectory(prefix="faults-") as folder, contextlib.chdir(folder):
        _make_inputs()
        for name, command in commands().items():
            whole = _undisturbed(name, command)
            if name not in (args.command or commands()):
                continue
            for kind, trials in _faults(name, command, args, random.Random(args.seed)).items():
                count = _counted(name, command, whole, kind, trials)
                print(f"| {name} | {kind} | {count.tried} | {len(count.wrong)} |", flush=True)
                wrong += len(count.wrong)
    return int(wrong > 0)


def _make_inputs() -> None:
    from support.readers import save_model_with_text

    Path("model").mkdir()
    save_model_with_text(Path("model"), longest=2048)
    for seed, language in enumerate(("en", "de")):
        draw = random.Random(seed)
        texts = ["".join(draw.choices("abcdefgh ", k=14)) + "x" for _ in range(8)]
        Path(f"{language}.jsonl").write_text("".join(f'{{"text": "{text}"}}\n' for text in texts))


def _undisturbed(name: str, command: list[str]) -> Mapping[str, bytes]:
    _prepare(name)
    ended = _run(command)
    if ended.status != 0:
        raise SystemExit(f"{name} fails undisturbed: {ended}")
    return _contents(Path(name))


def _prepare(name: str) -> None:
    shutil.rmtree(name, ignore_errors=True)
    if name in BEGINS_WITH:
        shutil.copytree(BEGINS_WITH[name], name)


def _contents(folder: Path) -> dict[str, bytes]:
    paths = (p for p in sorted(folder.rglob("*")) if p.is_file())
    names = {p.relative_to(folder).as_posix(): p for p in paths}
    return {name: p.read_bytes() for name, p in names.items() if not name.startswith(_ALWAYS_NEW)}


def _run(command: list[str]) -> Ended:
    """The command in this process, which looks for what others left half written as a new process does."""
    from mwork_jax.cli import main as mwork
    from mwork_jax.runtime import files

    files._remove_abandoned_once.cache_clear()

    errors = io.StringIO()
    with contextlib.redirect_stderr(errors), contextlib.redirect_stdout(io.StringIO()):
        try:
            return Ended(mwork(command), errors.getvalue())
        except Exception as error:
            return Ended(1, errors.getvalue(), f"{type(error).__name__}: {' '.join(str(error).split())[:150]}")


def _started(command: list[str]) -> subprocess.Popen[str]:
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path[:2])}
    line = [sys.executable, "-m", "mwork_jax.cli", *command]
    return subprocess.Popen(line, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True, env=environment)


Trial = Callable[[], Ended]


def _faults(name: str, command: list[str], args: argparse.Namespace, draw: random.Random) -> dict[str, list[Trial]]:
    """Kind of fault -> trials, each of which runs the command while something happens."""
    from support.failing import KINDS, failing

    _prepare(name)
    with failing(Path(name), 0) as writes:
        _run(command)

    numbers = range(1, writes.count + 1)
    if args.writes and args.writes < writes.count:
        numbers = sorted(draw.sample(numbers, args.writes))

    def at(number: int, kind: str) -> Ended:
        with failing(Path(name), number, kind):
            return _run(command)

    trials: dict[str, list[Trial]] = {kind: [lambda n=number, k=kind: at(n, k) for number in numbers] for kind in KINDS}
    trials["too small"] = [lambda s=size: _on_small_disk(name, command, s) for size in _SMALL]
    trials["clock goes back"] = [lambda: _back_in_time(command)]
    trials["two at once"] = [lambda: _twice(command)]
    begun = time.monotonic()
    _started(command).communicate(timeout=_LIMIT)
    whole = time.monotonic() - begun
    trials["killed"] = [lambda t=draw.uniform(0.2, 1.0) * whole: _killed(command, t) for _ in range(args.kills)]
    return trials


def _on_small_disk(name: str, command: list[str], size: str) -> Ended:
    """In a process of its own, as libraries keep what they could not write."""
    Path(name).mkdir(exist_ok=True)
    kept = _contents(Path(name))
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", name], capture_output=True)
    if mounted.returncode != 0:
        return Ended(0, "")
    try:
        for path, content in kept.items():
            (Path(name) / path).parent.mkdir(parents=True, exist_ok=True)
            (Path(name) / path).write_bytes(content)
        process = _started(command)
        errors = process.communicate(timeout=_LIMIT)[1]
        return Ended(process.returncode, errors)
    except OSError:
        return Ended(0, "")  # too small for what the command begins with
    finally:
        subprocess.run(["umount", name], check=True)


def _back_in_time(command: list[str]) -> Ended:
    now = time.time()
    with mock.patch("time.time", side_effect=(now - 1000.0 * i for i in itertools.count())):
        return _run(command)


def _twice(command: list[str]) -> Ended:
    ends = [(process, process.communicate(timeout=_LIMIT)[1]) for process in [_started(command), _started(command)]]
    worst, errors = max(ends, key=lambda end: end[0].returncode or 0)
    return Ended(worst.returncode, errors)


def _killed(command: list[str], after: float) -> Ended:
    process = _started(command)
    try:
        errors = process.communicate(timeout=after)[1]
        return Ended(process.returncode, errors)
    except subprocess.TimeoutExpired:
        process.send_signal(signal.SIGKILL)
        process.communicate()
        return Ended(0, "")


def _counted(name: str, command: list[str], whole: Mapping[str, bytes], kind: str, trials: list[Trial]) -> Count:
    count = Count()
    for number, trial in enumerate(trials, 1):
        _prepare(name)
        problem = trial().problem()
        if not problem and (left := list(Path(".").rglob("*.part"))) and kind not in ("killed", "removed"):
            problem = f"{left[0].name} is left"
        if not problem:
            if kind == "removed" and name in BEGINS_WITH:  # what it reads was removed too
                _prepare(name)
            again = _run(command)
            problem = f"repeated: {again}" if again.status != 0 else _difference(whole, _contents(Path(name)))
        count.tried += 1
        if problem:
            count.wrong.append(problem)
            print(f"{name}, {kind} {number}: {problem}", file=sys.stderr, flush=True)
    return count


def _difference(whole: Mapping[str, bytes], again: Mapping[str, bytes]) -> str:
    for path in sorted(whole.keys() | again.keys()):
        if whole.get(path) != again.get(path):
            kind = "missing" if path not in again else "too many" if path not in whole else "other bytes"
            return f"repeated, {path}: {kind}"
    return ""


if __name__ == "__main__":
    sys.exit(main())
