"""Timing two sides in turn, on the same weights and inputs, so that a machine whose speed drifts cannot tilt the
comparison."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from typing import Any


def paired(ours: Callable[[], Any], theirs: Callable[[], Any], rounds: int, *, warm: bool = True) -> dict[str, float]:
    """Times both in turn, after a warm-up of each where `warm`; the ratio is theirs / ours, so more than 1 means
    that this project is faster."""
    if warm:
        ours()
        theirs()
    times = [(seconds(ours), seconds(theirs)) for _ in range(rounds)]
    ratios = sorted(b / a for a, b in times)
    return {
        "ours_seconds": statistics.median(a for a, _ in times),
        "theirs_seconds": statistics.median(b for _, b in times),
        "ratio": statistics.median(ratios),
        "ratio_min": ratios[0],
        "ratio_max": ratios[-1],
    }


def fastest(calls: dict[str, Callable[[], Any]]) -> str:
    """The name of the call that takes the least time, after a warm-up of each. One that takes twice as long as another
    at its first time is not called again: a dtype that the machine has no instructions for takes minutes."""
    for call in calls.values():
        call()
    times = {name: seconds(call) for name, call in calls.items()}
    close = [name for name in calls if times[name] <= 2 * min(times.values())]
    if len(close) == 1:
        return close[0]
    return min(close, key=lambda name: min(times[name], *(seconds(calls[name]) for _ in range(2))))


def seconds(call: Callable[[], Any]) -> float:
    begin = time.perf_counter()
    call()
    return time.perf_counter() - begin
