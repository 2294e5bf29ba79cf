"""One run as several processes, one for each host of a pod or a node of a cluster.

Every process runs the same program on the same documents; arrays are shared out over the devices of all, so each works
on its own part. The first process alone writes files, and says what was found finished, so that all go the same way.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable, Mapping
from typing import Any, NoReturn

import jax
import numpy as np

from mwork_jax.errors import InputError

_VARIABLES = {"coordinator": "MWORK_COORDINATOR", "processes": "MWORK_PROCESSES", "process_id": "MWORK_PROCESS_ID"}


def start(coordinator: str | None = None, processes: int | None = None, process_id: int | None = None) -> bool:
    """Joins the other processes; whether it was asked to. To be called before anything uses a device.

    What is not given is read from MWORK_COORDINATOR (host:port), MWORK_PROCESSES and MWORK_PROCESS_ID, or found by JAX
    where it knows the environment (TPU pods, Slurm, Open MPI): "auto" as the coordinator asks for that. Raises
    InputError for a part without the others, and where the others cannot be reached.
    """
    given = {"coordinator": coordinator, "processes": processes, "process_id": process_id}
    found = {name: os.environ.get(_VARIABLES[name]) if value is None else value for name, value in given.items()}
    found = {name: value for name, value in found.items() if value not in (None, "")}
    if not found:
        return False
    options = {} if found.get("coordinator") == "auto" else _explicit(found)
    try:
        _use_gloo()
        jax.distributed.initialize(**options)
    except (RuntimeError, ValueError) as error:
        reason = " ".join(str(error).split())[:200]
        raise InputError(f"the other processes cannot be joined ({reason}); see docs/pods.md") from None
    return True


def _explicit(found: Mapping[str, Any]) -> dict[str, Any]:
    missing = [name for name in _VARIABLES if name not in found]
    if missing:
        options = ", ".join(f"--{name.replace('_', '-')}" for name in missing)
        raise InputError(f"several processes: {options} is missing; or --coordinator auto on a TPU pod and under Slurm")
    try:
        count, own = int(found["processes"]), int(found["process_id"])
    except ValueError:
        raise InputError("several processes: --processes and --process-id are whole numbers") from None
    if not 0 <= own < count:
        raise InputError(f"--process-id {own}: from 0 to {count - 1} for --processes {count}")
    return {"coordinator_address": found["coordinator"], "num_processes": count, "process_id": own}


def _use_gloo() -> None:
    """CPUs talk to each other through gloo; other devices do not look at this."""
    jax.config.update("jax_cpu_collectives_implementation", "gloo")


def several() -> bool:
    """Whether this run is several processes."""
    return jax.distributed.is_initialized() and jax.process_count() > 1


def is_first() -> bool:
    """Whether this process writes the results: the first of several, or the only one."""
    return not several() or jax.process_index() == 0


def leave() -> NoReturn:
    """Ends this process, with exit status 1, where others are lost: an ordinary end would wait for them."""
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(1)


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
