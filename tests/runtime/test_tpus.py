"""The search for TPUs: skipped where there is none, left alone where there may be one."""

import os
import subprocess
import sys

import pytest

from mwork_jax.runtime import tpus


@pytest.fixture
def pci_bus(tmp_path, monkeypatch):
    """A PCI bus with devices of these makers, and an environment that says nothing of TPUs."""
    monkeypatch.setattr(tpus, "_PCI_DEVICES", tmp_path)
    for name in tpus._NO_POD:
        monkeypatch.delenv(name, raising=False)

    def put(*makers):
        for i, maker in enumerate(makers):
            (tmp_path / str(i)).mkdir()
            (tmp_path / str(i) / "vendor").write_text(f"{maker}\n")

    return put


def test_without_a_chip_nothing_is_searched_for(pci_bus, monkeypatch):
    pci_bus("0x8086", "0x10de")
    monkeypatch.setenv("TPU_WORKER_HOSTNAMES", "mine")
    tpus.skip_search_for_tpus()
    assert os.environ["TPU_SKIP_MDS_QUERY"] == "1"
    assert os.environ["TPU_WORKER_HOSTNAMES"] == "mine"
    for name in tpus._NO_POD:
        monkeypatch.delenv(name)


def test_with_a_chip_the_environment_stays(pci_bus):
    pci_bus("0x8086", "0x1ae0")
    tpus.skip_search_for_tpus()
    assert not any(name in os.environ for name in tpus._NO_POD)


@pytest.mark.processes
def test_a_command_does_not_wait_for_a_tpu(tmp_path):
    """As a user starts it: where libtpu is installed it would take minutes."""
    environment = {name: value for name, value in os.environ.items() if name not in (*tpus._NO_POD, "JAX_PLATFORMS")}
    script = "from mwork_jax.cli import main; main(['report', 'nowhere']); import jax; print(jax.default_backend())"
    done = subprocess.run(
        [sys.executable, "-c", script], env=environment, cwd=tmp_path, capture_output=True, text=True, timeout=100
    )
    assert done.stdout.split()[-1] in ("cpu", "gpu", "tpu"), done.stderr
