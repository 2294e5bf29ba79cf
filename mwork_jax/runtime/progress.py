"""Progress of long work on stderr: a bar on a terminal, plain lines elsewhere, both with the time left."""

from __future__ import annotations

import contextlib
import os
import sys
import time
from collections.abc import Callable, Iterator
from typing import Any

import jax

from mwork_jax.runtime.distributed import is_first

_SECONDS_BETWEEN_LINES = 10.0
_SECONDS_BETWEEN_FRAMES = 0.1
_ENOUGH = 0.02  # the share of the work after which its speed is known
_WIDTH, _LEAST_WIDTH = 30, 10  # of the bar
_NAME = 28  # characters of what is worked on
_COMPILED = "/jax/core/compile/backend_compile_duration"
_READ = "/jax/compilation_cache/cache_hits"


class Compilations:
    """How many programs XLA compiled, how many more were read as they had been compiled before, and the seconds that
    both took."""

    count = 0
    read = 0
    seconds = 0.0

    def __str__(self) -> str:
        kept = f", {self.read} more were kept from before" if self.read else ""
        return f"{self.count} programs compiled{kept} ({self.seconds:.0f} s), for every shape once"


@contextlib.contextmanager
def compilations() -> Iterator[Compilations]:
    """Counts the programs that are compiled, or read, within the block."""
    compiled = Compilations()

    def listen(event: str, duration_secs: float, **details: Any) -> None:
        if event == _COMPILED:
            compiled.count += 1
            compiled.seconds += duration_secs

    def listen_reads(event: str, **details: Any) -> None:
        if event == _READ:  # JAX counts these among the compiled ones too
            compiled.read += 1
            compiled.count -= 1

    jax.monitoring.register_event_duration_secs_listener(listen)
    jax.monitoring.register_event_listener(listen_reads)
    try:
        yield compiled
    finally:
        jax.monitoring.unregister_event_duration_listener(listen)
        jax.monitoring.unregister_event_listener(listen_reads)


class Progress:
    """Counts units of work towards a total. Units should take about the same time each, or the time left is a guess.

    The total is given here or, once it is known, to `expect`. The time left follows from the time that work took so
    far; work that was skipped, and the time that it took to find that out, do not count.
    """

    def __init__(self, total: float = 0.0, *, quiet: bool = False, clock: Callable[[], float] = time.monotonic):
        self._total, self._done = total, 0.0
        self._skipped = self._seconds = 0.0  # units that were not worked on; time that the others took
        self._clock = clock
        self._begin = self._last_unit = clock()
        self._shown: float | None = None
        self._what = self._beside = ""
        self._quiet = quiet or not is_first()
        self._terminal = not self._quiet and _on_terminal()

    def __enter__(self) -> Progress:
        return self

    def __exit__(self, *error: object) -> None:
        if self._terminal:
            self._draw()
            print(file=sys.stderr, flush=True)

    @property
    def total(self) -> float:
        """Units of work in all; 0 while they are not known."""
        return self._total

    @property
    def done(self) -> float:
        """Units of work that were done or skipped."""
        return self._done

    @property
    def worked(self) -> float:
        """Units of work that were done and not skipped."""
        return self._done - self._skipped

    def expect(self, units: float) -> None:
        """Announces that so many units of work come next. A larger total that was given at the beginning stands, so
        that one Progress can serve several pieces of work."""
        self._total = max(self._total, self._done + units)
        self._show()

    def describe(self, what: str) -> None:
        """Names the work that begins now."""
        self._what, self._beside = what, ""
        self._show(at_once=self._terminal)

    def add(self, units: float, *, free: bool = False) -> None:
        """Counts work as done; `free` work was there already and says nothing about speed."""
        now = self._clock()
        self._done += units
        if free:
            self._skipped += units
        else:
            self._seconds += now - self._last_unit
        self._last_unit = now
        self._show()

    def callback(self, each: float = 1.0) -> Callable[[int], None]:
        """A function that is told how many pieces are done so far, and counts `each` units for a piece."""
        before = 0

        def step(done: int) -> None:
            nonlocal before
            self.add(each * (done - before))
            before = done

        return step

    def speedometer(self) -> Callable[[int, int, float], None]:
        """A function that is told how many tokens there are so far, how many rows are under way and the share of the
        slots that have been full, which are shown beside the time left."""
        begin = self._clock()

        def tell(tokens: int, rows: int, full: float) -> None:
            seconds = self._clock() - begin
            speed = f"{tokens / seconds:,.0f} tokens/s, " if seconds > 0 else ""
            self._beside = f", {speed}{rows} rows, slots {full:.0%} full"
            self._show()

        return tell

    def share(self) -> float:
        """How much of the total is done, from 0 to 1."""
        return min(1.0, self._done / self._total) if self._total > 0 else 0.0

    def seconds_left(self) -> float | None:
        """How long the rest will take at the speed of the work so far; None while that is not known."""
        worked, to_work = self.worked, self._total - self._skipped
        if worked <= 0 or worked < _ENOUGH * to_work:
            return None
        return self._seconds / worked * max(0.0, self._total - self._done)

    def _show(self, at_once: bool = False) -> None:
        """Shows how far the work is, unless it was shown a moment ago."""
        if self._quiet:
            return
        pause = _SECONDS_BETWEEN_FRAMES if self._terminal else _SECONDS_BETWEEN_LINES
        before = self._begin if self._shown is None else self._shown
        # Lines begin with the first work that has a name: without one, a line would mean little.
        first = self._shown is None and bool(self._what)
        if at_once or first or self._clock() - before >= pause:
            self._draw() if self._terminal else self._line()

    def _draw(self) -> None:
        """The bar, over the one before."""
        self._shown = self._clock()
        left = self.seconds_left()
        times = f"{_interval(self._shown - self._begin)} so far, {'?' if left is None else _interval(left)} left"
        full, empty = ("█", " ") if (sys.stderr.encoding or "").lower().startswith("utf") else ("#", "-")
        before, after = f"{self._what:<{_NAME}.{_NAME}} {100 * self.share():3.0f}% |", f"| {times}"
        if len(before) + len(after) + len(self._beside) + _LEAST_WIDTH < _columns():
            after += self._beside
        # A line that the terminal breaks at its edge could not be drawn over.
        width = max(0, min(_WIDTH, _columns() - 1 - len(before) - len(after)))
        drawn = (full * round(width * self.share())).ljust(width, empty)
        print(f"\r{before}{drawn}{after}\x1b[K", end="", file=sys.stderr, flush=True)

    def _line(self) -> None:
        self._shown = self._clock()
        left = self.seconds_left()
        times = "" if left is None else f", about {_interval(left)} left"
        print(f"mwork: {100 * self.share():3.0f}% {self._what}{times}{self._beside}", file=sys.stderr, flush=True)


@contextlib.contextmanager
def while_it_lasts(line: str) -> Iterator[None]:
    """On a terminal, the line while the block runs, erased behind it: for work of some seconds without parts to count.
    Elsewhere nothing."""
    shown = is_first() and _on_terminal()
    if shown:
        print(f"\r{line[: _columns() - 1]}\x1b[K", end="", file=sys.stderr, flush=True)
    try:
        yield
    finally:
        if shown:
            print("\r\x1b[K", end="", file=sys.stderr, flush=True)


def _on_terminal() -> bool:
    """Whether standard error is one on which a line can be drawn over."""
    return sys.stderr.isatty() and os.environ.get("TERM") != "dumb"


def _columns() -> int:
    """How wide the terminal is."""
    try:
        return os.get_terminal_size(sys.stderr.fileno()).columns or 80
    except (OSError, ValueError):
        return 80


def _interval(seconds: float) -> str:
    """Seconds as 1:02:03, or 02:03 for less than an hour."""
    minutes, seconds = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{seconds:02}" if hours else f"{minutes:02}:{seconds:02}"
