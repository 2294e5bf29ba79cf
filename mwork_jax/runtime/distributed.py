"""One run as several processes, one for each host of a pod or a node of a cluster.

Every process runs the same program on the same documents; arrays are shared out over the devices of all, so each works
on its own part. The first process alone writes files, and says what was found finished, so that all go the same way.

A process that ends early ends the others within seconds (`end_all`): it puts its one line into the store that JAX's
coordinator keeps for all processes, where a thread of each other process looks every second.
"""

from __future__ import annotations

import atexit
import contextlib
import json
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from typing import Any, NoReturn

import jax
import numpy as np
from jax._src import distributed as jax_distributed  # the coordinator's store has no public name
from jax._src import xla_bridge
from jax.errors import JaxRuntimeError

from mwork_jax.errors import InputError

_JOIN_SECONDS = 300.0  # the longest wait for the others at the beginning
_TELL_SECONDS = 60.0  # the same of a process that has only bad news for them
_HEARD_SECONDS = 5.0  # the longest wait until the others have read why the run ends
_READY_SECONDS = 3600.0  # reading documents from a slow disk takes its time
_LOOK_SECONDS = 1.0
_FAILED, _HEARD = "mwork/failed", "mwork/heard"  # names in the store
_ending = threading.Lock()  # taken once, by the thread that ends this process
_VARIABLES = {"coordinator": "MWORK_COORDINATOR", "processes": "MWORK_PROCESSES", "process_id": "MWORK_PROCESS_ID"}


def start(
    coordinator: str | None = None,
    processes: int | None = None,
    process_id: int | None = None,
    seconds: float = _JOIN_SECONDS,
) -> bool:
    """Joins the other processes; whether it was asked to. To be called before anything uses a device.

    What is not given is read from MWORK_COORDINATOR (host:port), MWORK_PROCESSES and MWORK_PROCESS_ID, or found by JAX
    where it knows the environment (TPU pods, Slurm, Open MPI): "auto" as the coordinator asks for that. Raises
    InputError for a part without the others, and where the others cannot be reached. Where they do not come within
    `seconds`, the process ends with one line and exit status 2.
    """
    given = {"coordinator": coordinator, "processes": processes, "process_id": process_id}
    settings = {name: os.environ.get(_VARIABLES[name]) if value is None else value for name, value in given.items()}
    settings = {name: value for name, value in settings.items() if value not in (None, "")}
    if not settings:
        return False
    options = {} if settings.get("coordinator") == "auto" else _explicit(settings)
    try:
        _use_gloo()
        with _limited(seconds):
            jax.distributed.initialize(**options, initialization_timeout=int(2 * seconds))
    except (RuntimeError, ValueError) as error:
        reason = " ".join(str(error).split())[:200]
        raise InputError(f"the other processes cannot be joined ({reason}); see docs/pods.md") from None
    _watch_others()
    return True


@contextlib.contextmanager
def _limited(seconds: float) -> Iterator[None]:
    """Ends the process with one line where the block takes longer: JAX itself would print a trace of C++, and Ctrl-C
    would have to wait for it."""

    def give_up() -> None:
        print(f"mwork: the other processes did not join within {seconds:g} s; see docs/pods.md", file=sys.stderr)
        _exit(2)

    timer = threading.Timer(seconds, give_up)
    timer.daemon = True
    main = threading.current_thread() is threading.main_thread()
    handler = signal.signal(signal.SIGINT, signal.SIG_DFL) if main else None
    timer.start()
    try:
        yield
    finally:
        timer.cancel()
        if handler is not None:
            signal.signal(signal.SIGINT, handler)


def _explicit(settings: Mapping[str, Any]) -> dict[str, Any]:
    missing = [name for name in _VARIABLES if name not in settings]
    if missing:
        options = ", ".join(f"--{name.replace('_', '-')}" for name in missing)
        raise InputError(f"several processes: {options} is missing; or --coordinator auto on a TPU pod and under Slurm")
    try:
        count, own = int(settings["processes"]), int(settings["process_id"])
    except ValueError:
        raise InputError("several processes: --processes and --process-id are whole numbers") from None
    if not 0 <= own < count:
        raise InputError(f"--process-id {own}: from 0 to {count - 1} for --processes {count}")
    return {"coordinator_address": settings["coordinator"], "num_processes": count, "process_id": own}


def _use_gloo() -> None:
    """CPUs talk to each other through gloo; other devices do not look at this."""
    jax.config.update("jax_cpu_collectives_implementation", "gloo")


def several() -> bool:
    """Whether this run is several processes."""
    return jax.distributed.is_initialized() and jax_distributed.global_state.num_processes > 1


def is_first() -> bool:
    """Whether this process writes the results: the first of several, or the only one."""
    if not several():
        return True
    # Once devices are in use JAX's own number counts, which on TPUs may be another. Before that, asking for it would
    # wait for the devices of all other processes.
    used = xla_bridge.backends_are_initialized()
    return (jax.process_index() if used else jax_distributed.global_state.process_id) == 0


def meet() -> None:
    """Waits until every process of the run has come here, so that none that reads its input slowly is taken for
    lost."""
    if several():
        _client().wait_at_barrier("mwork/ready", int(1000 * _READY_SECONDS))


def end_all(
    status: int,
    line: str,
    coordinator: str | None = None,
    processes: int | None = None,
    process_id: int | None = None,
) -> int:
    """Ends this process and all others of the run with an exit status; `line` is what the others print.

    A process that has not joined the others yet, as `start` would with the same arguments, does so to tell them.
    Returns the status, and ends nothing, where this is not one of several processes.
    """
    if not several():
        try:
            start(coordinator, processes, process_id, _TELL_SECONDS)
        except InputError:  # they cannot be reached
            return status
    if not several():
        return status
    _ending.acquire()
    news = json.dumps({"process": jax_distributed.global_state.process_id, "status": status, "line": line})
    with contextlib.suppress(JaxRuntimeError):  # another process was first
        _client().key_value_set(_FAILED, news)
    _leave(status)


def _watch_others() -> None:
    """Looks in a thread whether another process has ended early, until this one ends."""
    finished = threading.Event()
    watcher = threading.Thread(target=_watch, args=(finished,), daemon=True)
    watcher.start()

    @atexit.register  # runs before JAX's own, which would wait for a process that has failed
    def finish() -> None:
        sys.stdout.flush()
        with contextlib.suppress(JaxRuntimeError):
            _client().wait_at_barrier("mwork/finished", int(1000 * _JOIN_SECONDS))
        finished.set()
        watcher.join()


def _watch(finished: threading.Event) -> None:
    while not finished.wait(_LOOK_SECONDS):
        try:
            news = json.loads(_client().key_value_try_get(_FAILED))
        except JaxRuntimeError:  # nothing there; of a coordinator that is lost, JAX tells
            continue
        if _ending.acquire(blocking=False):
            bar = "\n" if sys.stderr.isatty() else ""
            print(f"{bar}mwork: process {news['process']} has ended: {news['line']}", file=sys.stderr)
            _leave(news["status"])
        return


def _client() -> Any:
    return jax_distributed.global_state.client


def _leave(status: int) -> NoReturn:
    """Ends this process at once: an ordinary end would wait for the others. The first, where the coordinator runs, goes
    last, when the others know."""
    state = jax_distributed.global_state
    with contextlib.suppress(JaxRuntimeError):
        _client().key_value_set(f"{_HEARD}/{state.process_id}", "")
        end = time.monotonic() + _HEARD_SECONDS
        while state.process_id == 0 and time.monotonic() < end:
            if len(_client().key_value_dir_get(_HEARD)) == state.num_processes:
                break
            time.sleep(0.1)
    _exit(status)


def _exit(status: int) -> NoReturn:
    with contextlib.suppress(OSError, ValueError):
        sys.stdout.flush()
        sys.stderr.flush()
    os._exit(status)


def everyone(holds: bool) -> bool:
    """Whether it holds in every process. All of them must ask."""
    if not several():
        return holds
    from jax.experimental import multihost_utils

    return bool(np.all(multihost_utils.process_allgather(np.bool_(holds))))


def agreed(value: Callable[[], Any]) -> Any:
    """A JSON value as the first process has it, in every process. Others do not call `value`."""
    if not several():
        return value()
    from jax.experimental import multihost_utils

    text = np.frombuffer(json.dumps(value()).encode(), np.uint8) if is_first() else np.zeros(0, np.uint8)
    size = int(multihost_utils.broadcast_one_to_all(np.int32(text.size)))
    padded = np.zeros(size, np.uint8)
    padded[: text.size] = text[:size]
    return json.loads(bytes(np.asarray(multihost_utils.broadcast_one_to_all(padded), np.uint8)).decode())
