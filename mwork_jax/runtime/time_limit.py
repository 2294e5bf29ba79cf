"""Limits on time and memory for what somebody else's file makes this process compute."""

from __future__ import annotations

import contextlib
import signal
import threading
from collections.abc import Iterator
from pathlib import Path
from types import FrameType

from mwork_jax.errors import InputError

try:
    import resource
except ImportError:  # Windows has no such limits
    resource = None


@contextlib.contextmanager
def time_limit(seconds: float, message: str) -> Iterator[None]:
    """Raises InputError with the message where the block of Python code takes longer. Without effect outside the main
    thread and where the system has no timers, as on Windows."""
    if threading.current_thread() is not threading.main_thread() or not hasattr(signal, "setitimer"):
        yield
        return

    def give_up(number: int, frame: FrameType | None) -> None:
        raise InputError(message)

    handler = signal.signal(signal.SIGALRM, give_up)
    # Again every second, as what is raised within a callback of the garbage collector is lost.
    signal.setitimer(signal.ITIMER_REAL, seconds, 1.0)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, handler)


@contextlib.contextmanager
def memory_limit(more: int) -> Iterator[None]:
    """Within the block of Python code, this process may take so many bytes more than it has; what needs more raises
    MemoryError. Without effect outside the main thread and where the system does not say what a process has, as on
    macOS and Windows."""
    try:
        pages = int(Path("/proc/self/statm").read_text().split()[0])
    except OSError:
        pages = 0
    if resource is None or not pages or threading.current_thread() is not threading.main_thread():
        yield
        return
    least, most = resource.getrlimit(resource.RLIMIT_AS)
    limit = pages * resource.getpagesize() + more
    if least != resource.RLIM_INFINITY:
        limit = min(limit, least)
    resource.setrlimit(resource.RLIMIT_AS, (limit, most))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_AS, (least, most))
