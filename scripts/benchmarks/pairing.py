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
    """The name of the call that takes the least time, after a warm-up of each."""
    for call in calls.values():
        call()
    return min(calls, key=lambda name: min(seconds(calls[name]) for _ in range(3)))


def seconds(call: Callable[[], Any]) -> float:
    begin = time.perf_counter()
    call()
    return time.perf_counter() - begin
