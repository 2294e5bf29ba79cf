"""How JAX is set up in a process that runs a command: no search for TPUs and GPUs that are not there, and no flag of
the user's shell that changes results or breaks programs."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from functools import cache
from pathlib import Path
from typing import Any

import jax

from mwork_jax.errors import InputError

_PCI_DEVICES = Path("/sys/bus/pci/devices")
_GOOGLE, _NVIDIA = "0x1ae0", "0x10de"  # PCI's numbers of the makers
# What libtpu would ask the cloud's metadata server for; without such a server it asks for minutes.
_NO_POD = {
    "TPU_SKIP_MDS_QUERY": "1",
    "TPU_WORKER_HOSTNAMES": "localhost",
    "TPU_ACCELERATOR_TYPE": "v5litepod-1",
    "TPU_STDERR_LOG_LEVEL": "4",
}


# The flags that programs here are written and tested for.
_FLAGS: dict[str, Any] = {
    "jax_enable_x64": False,
    "jax_disable_jit": False,
    "jax_numpy_rank_promotion": "allow",
    "jax_numpy_dtype_promotion": "standard",
    "jax_default_matmul_precision": None,
    "jax_default_prng_impl": "threefry2x32",
    "jax_debug_nans": False,  # unused rows may hold some
    "jax_debug_infs": False,
    "jax_check_tracer_leaks": False,
}
_GUARDS = (
    "jax_transfer_guard_host_to_device",
    "jax_transfer_guard_device_to_device",
    "jax_transfer_guard_device_to_host",
)


def plain_jax() -> list[str]:
    """Sets the flags of this process to what programs here are written for; the names of those that were otherwise, as
    an environment variable has them."""
    changed = [name for name, value in _FLAGS.items() if getattr(jax.config, name) != value]
    for name in changed:
        jax.config.update(name, _FLAGS[name])
    guards = [name for name in _GUARDS if getattr(jax.config, name) not in (None, "allow")]
    for name in guards:
        jax.config.update(name, "allow")
    return [name.upper() for name in (*changed, *guards)]


_DEVICES_OF_A_CPU = "--xla_force_host_platform_device_count"
_READS_FLAGS = "from jaxlib import _jax; _jax.CompileOptions()"
# What comes before XLA's reason: a letter, day and time, process, file of its sources and line.
_LOGGED = re.compile(r"^[EF]\d{4} [\d:.]+ +\d+ \w+\.cc:\d+\] (.*)", re.MULTILINE)


def check_flags_of_xla() -> None:
    """Raises InputError for a variable of the environment that leaves JAX without a device, or that would end this
    process: XLA prints a line of its sources then, and up to a thousand lines of flags."""
    if jax.config.jax_num_cpu_devices == 0:  # pyright: ignore[reportAttributeAccessIssue]
        raise InputError("JAX_NUM_CPU_DEVICES=0: no device to compute on; give 1 or more, or unset it")
    flags = os.environ.get("XLA_FLAGS", "").split()
    counts = [flag.partition("=")[2] for flag in flags if flag.startswith(f"{_DEVICES_OF_A_CPU}=")]
    if "0" in counts:
        raise InputError(f"XLA_FLAGS: {_DEVICES_OF_A_CPU}=0: no device to compute on; give 1 or more")
    if len(flags) == len(counts) and all(count.isdecimal() for count in counts):
        return
    if refused := _refused_by_xla(os.environ["XLA_FLAGS"]):
        raise InputError(f"XLA_FLAGS: XLA does not take this ({refused}); correct or unset it")


@cache
def _refused_by_xla(flags: str) -> str:
    """Why XLA refuses these flags, "" where it does not: it reads them in a process of its own, which takes 0.3 s."""
    command = [sys.executable, "-c", _READS_FLAGS]
    environment = {**os.environ, "XLA_FLAGS": flags}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, errors="replace")
    reasons = _LOGGED.findall(done.stderr) if done.returncode else []
    return " ".join(reasons[0].split())[:300] if reasons else ""


def skip_search_for_absent_chips() -> None:
    """Keeps JAX from waiting where libtpu is installed, as `mwork plan` needs it, and no chip of Google's is on the PCI
    bus, and from a page of complaints where the compiler for GPUs is and none of NVIDIA's is. To be called before JAX
    looks for devices; changes this process's environment, and nothing that is set."""
    makers = {_maker(path) for path in _PCI_DEVICES.glob("*/vendor")}
    absent = {} if _GOOGLE in makers else dict(_NO_POD)
    if _NVIDIA not in makers:
        absent["JAX_SKIP_CUDA_CONSTRAINTS_CHECK"] = "1"
    for name, value in absent.items():
        os.environ.setdefault(name, value)


def _maker(path: Path) -> str:
    try:
        return path.read_text().strip()
    except OSError:
        return ""
