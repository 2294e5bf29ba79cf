"""Where there is no TPU, none is searched for."""

from __future__ import annotations

import os
from pathlib import Path

_PCI_DEVICES = Path("/sys/bus/pci/devices")
_GOOGLE = "0x1ae0"  # PCI's number of the maker
# What libtpu would ask the cloud's metadata server for; without such a server it asks for minutes.
_NO_POD = {
    "TPU_SKIP_MDS_QUERY": "1",
    "TPU_WORKER_HOSTNAMES": "localhost",
    "TPU_ACCELERATOR_TYPE": "v5litepod-1",
    "TPU_STDERR_LOG_LEVEL": "4",
}


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
