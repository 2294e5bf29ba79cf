"""How JAX is set up in a process that runs a command: no search for TPUs that are not there, and no flag of the user's
shell that changes results or breaks programs."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import jax

_PCI_DEVICES = Path("/sys/bus/pci/devices")
_GOOGLE = "0x1ae0"  # PCI's number of the maker
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


def skip_search_for_tpus() -> None:
    """Keeps JAX from waiting where libtpu is installed, as `mwork plan` needs it, and no chip of Google's is on the PCI
    bus. To be called before JAX looks for devices; changes this process's environment, and nothing that is set."""
    if any(_maker(path) == _GOOGLE for path in _PCI_DEVICES.glob("*/vendor")):
        return
    for name, value in _NO_POD.items():
        os.environ.setdefault(name, value)


def _maker(path: Path) -> str:
    try:
        return path.read_text().strip()
    except OSError:
        return ""
