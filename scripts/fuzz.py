"""Reads files that were changed at random, in every format that the package reads, and counts what goes wrong.

    python scripts/fuzz.py --cases 10000 --format gguf

A case is a valid folder of which one file is changed in one place to three, as its number says. Right is that it is
read, or refused with one message. Wrong is any other error, a crash, more than a minute, or more memory than twice the
files and 200 MB. Cases run in processes of their own, so that a crash costs one of them. Prints a table; a case
of each kind that goes wrong is named on standard error, kept in a folder (`--keep`), and comes back with `--seed NUMBER
--cases 1`. After `--minutes` of a format, and when it is interrupted, it prints the counts that it has reached.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import queue
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import NamedTuple

TESTS = Path(__file__).parent.parent / "tests"
sys.path[:0] = [str(TESTS), str(TESTS.parent)]

_LIMIT = 60  # seconds for one case
_START = 300  # seconds until a process has read the valid files
_ADDRESSES = 32 << 30  # bytes of address space of a process: what asks for more fails at once
_SHARE = 500  # cases of one process, so that one that grows is replaced


class Count(NamedTuple):
    """The cases of one format."""

    cases: int
    read: int
    refused: int
    wrong: dict[int, str]  # number of the case -> what went wrong
    slowest: float  # seconds
    most: int  # bytes


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cases", type=int, default=1000, metavar="N", help="of each format (default: 1000)")
    parser.add_argument("--format", action="append", metavar="F", help="repeatable; default: every format")
    parser.add_argument("--seed", type=int, default=0, metavar="S", help="number of the first case (default: 0)")
    parser.add_argument("--minutes", type=float, metavar="M", help="of each format at most (default: no limit)")
    parser.add_argument("--workers", type=int, default=os.cpu_count(), metavar="W", help="processes at a time")
    parser.add_argument("--keep", type=Path, metavar="FOLDER", help="where cases that go wrong are kept")
    parser.add_argument("--serve", help=argparse.SUPPRESS)
    parser.add_argument("--samples", type=Path, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.serve:
        return _serve(args.serve, args.seed, args.cases, args.samples)
    from support.readers import FORMATS

    if unknown := set(args.format or ()) - FORMATS.keys():
        parser.error(f"no format {', '.join(sorted(unknown))}; there are {', '.join(FORMATS)}")
    print("| format | cases | read | refused | wrong | slowest, s | most memory, MB |\n|---|---|---|---|---|---|---|")
    wrong, interrupted = 0, threading.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda *_: interrupted.set())
    for form in args.format or FORMATS:
        if interrupted.is_set():
            break
        end = None if args.minutes is None else time.monotonic() + 60 * args.minutes
        count = _fuzzed(form, args, partial(_stopped, interrupted, end))
        numbers = (count.cases, count.read, count.refused, len(count.wrong))
        print(f"| {form} | {' | '.join(map(str, numbers))} | {count.slowest:.1f} | {count.most >> 20} |", flush=True)
        wrong += len(count.wrong)
    return int(wrong > 0)


def _stopped(interrupted: threading.Event, end: float | None) -> bool:
    return interrupted.is_set() or (end is not None and time.monotonic() > end)


def _fuzzed(form: str, args: argparse.Namespace, stopped: Callable[[], bool]) -> Count:
    last = args.seed + args.cases
    shares = [(begin, min(_SHARE, last - begin)) for begin in range(args.seed, last, _SHARE)]
    with tempfile.TemporaryDirectory(prefix="samples-") as folder, ThreadPoolExecutor(args.workers) as pool:
        _make_samples(form, Path(folder))
        shared = pool.map(lambda share: list(_share(form, Path(folder), share[0], share[1], stopped)), shares)
        results = [result for share in shared for result in share]
    wrong = {number: problem for number, _, problem, _, _ in results if problem}
    for problem, times in Counter(wrong.values()).most_common():
        first = next(number for number, text in wrong.items() if text == problem)
        print(f"{form} {first}, {times} times: {problem}", file=sys.stderr, flush=True)
        if args.keep is not None:
            _keep(form, first, args.keep)
    refused = sum(bool(text) and not problem for _, text, problem, _, _ in results)
    return Count(
        len(results),
        len(results) - refused - len(wrong),
        refused,
        wrong,
        max((seconds for *_, seconds, _ in results), default=0),
        max((memory for *_, memory in results), default=0),
    )


def _make_samples(form: str, folder: Path) -> None:
    """The valid folders, made once for all processes: models of every family take a minute."""
    from support.fuzzing import samples
    from support.readers import write

    with open(os.devnull, "w") as nowhere, contextlib.redirect_stderr(nowhere):  # libraries tell of every file
        made = samples(form)
    for number, files in enumerate(made):
        write(files, folder / f"{number:03}")


def _keep(form: str, number: int, folder: Path) -> None:
    from support.fuzzing import case
    from support.readers import write

    write(case(form, number), folder / form / str(number))


Result = tuple[int, str, str, float, int]  # number of the case, refused, problem, seconds, memory


def _share(form: str, samples: Path, begin: int, count: int, stopped: Callable[[], bool]) -> Iterator[Result]:
    """The results of cases begin to begin + count - 1, or of fewer once it is stopped. A process that dies or hangs
    leaves the case that it was at as a wrong one, and another goes on behind it."""
    at, end = begin, begin + count
    while at < end and not stopped():
        for result in _served(form, samples, at, end - at):
            yield result
            at = result[0] + 1
            if stopped():
                return


def _served(form: str, samples: Path, begin: int, count: int) -> Iterator[Result]:
    command = [sys.executable, __file__, "--serve", form, "--samples", str(samples)]
    command += ["--seed", str(begin), "--cases", str(count)]
    environment = {**os.environ, "JAX_PLATFORMS": "cpu", "TOKENIZERS_PARALLELISM": "false", "HF_HUB_OFFLINE": "1"}
    # A session of its own: an interrupted terminal stops this process, and this one ends that one.
    process = subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True, env=environment, start_new_session=True
    )
    lines: queue.Queue[str] = queue.Queue()
    assert process.stdout is not None
    reader = threading.Thread(target=lambda out=process.stdout: [*map(lines.put, out), lines.put("")], daemon=True)
    reader.start()
    at, limit = begin - 1, _START
    try:
        while True:
            try:
                line = lines.get(timeout=limit)
            except queue.Empty:
                yield at + 1, "", f"hangs: more than {limit} s", float(limit), 0
                return
            if not line:
                break
            at, *rest = json.loads(line)
            limit = _LIMIT
            if rest:
                yield (at, *rest)
        if at < begin + count - 1:
            yield at + 1, "", f"the process ended with {process.wait()}", 0.0, 0
    finally:
        process.kill()
        process.wait()


def _serve(form: str, begin: int, count: int, samples: Path) -> int:
    import resource

    from support.fuzzing import changed, outcome
    from support.readers import contents

    out = os.fdopen(os.dup(1), "w")
    os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
    made = [contents(folder) for folder in sorted(samples.iterdir())]
    for files in made:  # whatever is loaded once is loaded before memory is measured
        outcome(form, files)
    resource.setrlimit(resource.RLIMIT_AS, (_ADDRESSES, _ADDRESSES))
    print(json.dumps([begin - 1]), file=out, flush=True)
    for number in range(begin, begin + count):
        result = outcome(form, changed(form, number, made))
        line = [number, result.refused, result.problem, result.seconds, result.memory]
        print(json.dumps(line), file=out, flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
