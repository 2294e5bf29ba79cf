"""Progress of long work on stderr: a bar on a terminal, plain lines elsewhere, both with the time left."""

from __future__ import annotations

import contextlib
import os
import sys
import time
from collections.abc import Callable, Iterator
from typing import Any

import jax
from tqdm import tqdm

from mwork_jax.runtime.distributed import is_first

_SECONDS_BETWEEN_LINES = 10.0
_COMPILED = "/jax/core/compile/backend_compile_duration"


class Compilations:
    """How many programs XLA compiled."""

    count = 0


@contextlib.contextmanager
def compilations() -> Iterator[Compilations]:
    """Counts the programs that are compiled within the block."""
    compiled = Compilations()

    def listen(event: str, duration: float, **details: Any) -> None:
        compiled.count += event == _COMPILED

    jax.monitoring.register_event_duration_secs_listener(listen)
    try:
        yield compiled
    finally:
        jax.monitoring.unregister_event_duration_listener(listen)


class Progress:
    """Counts units of work towards a total. Units should take about the same time each, or the time left is a guess."""

    def __init__(self, total: float, *, quiet: bool = False):
        self.total, self.done = total, 0.0
        self._quiet = quiet = quiet or not is_first()
        self._begin = self._last = time.monotonic()
        self._skipped = 0.0
        self._what = ""
        self._bar = None
        if not quiet and sys.stderr.isatty() and os.environ.get("TERM") != "dumb":
            layout = "{desc} {percentage:3.0f}% |{bar:30}| {elapsed} so far, {remaining} left"
            plain = not (sys.stderr.encoding or "").lower().startswith("utf")
            self._bar = tqdm(total=total, file=sys.stderr, bar_format=layout, ascii=plain, dynamic_ncols=True)

    def __enter__(self) -> Progress:
        return self

    def __exit__(self, *error: object) -> None:
        if self._bar is not None:
            self._bar.close()

    def describe(self, what: str) -> None:
        """Names the work that begins now."""
        self._what = what
        if self._bar is not None:
            self._bar.set_description_str(f"{what:<28.28}")
        elif not self._quiet and self._due():
            self._line()

    def add(self, units: float, *, free: bool = False) -> None:
        """Counts work as done; `free` work was found finished and says nothing about speed."""
        self.done += units
        if free:
            self._skipped += units
        if self._bar is not None:
            if free:
                self._bar.initial += units
            self._bar.update(units)
        elif not self._quiet and self._due():
            self._line()

    def callback(self, each: float = 1.0) -> Callable[[int], None]:
        """A function that is told how many pieces are done so far, and counts `each` units for a piece."""
        before = 0

        def step(done: int) -> None:
            nonlocal before
            self.add(each * (done - before))
            before = done

        return step

    def _due(self) -> bool:
        return self.done == 0 or time.monotonic() - self._last > _SECONDS_BETWEEN_LINES

    def _line(self) -> None:
        self._last = time.monotonic()
        elapsed, worked = self._last - self._begin, self.done - self._skipped
        left = ""
        if worked > 0.02 * self.total:
            left = f", about {tqdm.format_interval(elapsed / worked * (self.total - self.done))} left"
        print(f"mwork: {100 * self.done / self.total:3.0f}% {self._what}{left}", file=sys.stderr, flush=True)
