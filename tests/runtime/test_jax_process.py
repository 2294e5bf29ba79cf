"""How a command sets up JAX: the search for TPUs, and flags of the user's shell."""

import os
import subprocess
import sys

import pytest

from mwork_jax.errors import InputError
from mwork_jax.results import read_results
from mwork_jax.runtime import jax_process

_NO_CUDA = "JAX_SKIP_CUDA_CONSTRAINTS_CHECK"


@pytest.fixture
def pci_bus(tmp_path, monkeypatch):
    """A PCI bus with devices of these makers, and an environment that says nothing of TPUs."""
    monkeypatch.setattr(jax_process, "_PCI_DEVICES", tmp_path)
    for name in (*jax_process._NO_POD, _NO_CUDA):
        monkeypatch.delenv(name, raising=False)

    def put(*makers):
        for i, maker in enumerate(makers):
            (tmp_path / str(i)).mkdir()
            (tmp_path / str(i) / "vendor").write_text(f"{maker}\n")

    return put


def test_without_a_chip_nothing_is_searched_for(pci_bus, monkeypatch):
    pci_bus("0x8086", "0x10de")
    monkeypatch.setenv("TPU_WORKER_HOSTNAMES", "mine")
    jax_process.skip_search_for_absent_chips()
    assert os.environ["TPU_SKIP_MDS_QUERY"] == "1"
    assert os.environ["TPU_WORKER_HOSTNAMES"] == "mine"
    assert _NO_CUDA not in os.environ  # NVIDIA's card is there
    for name in jax_process._NO_POD:
        monkeypatch.delenv(name)


def test_with_a_chip_the_environment_stays(pci_bus):
    pci_bus("0x8086", "0x1ae0")
    jax_process.skip_search_for_absent_chips()
    assert not any(name in os.environ for name in jax_process._NO_POD)
    assert os.environ.pop(_NO_CUDA) == "1"


@pytest.mark.processes
def test_a_command_does_not_wait_for_a_tpu(tmp_path):
    """As a user starts it: where libtpu is installed it would take minutes."""
    environment = {
        name: value for name, value in os.environ.items() if name not in (*jax_process._NO_POD, "JAX_PLATFORMS")
    }
    script = "from mwork_jax.cli import main; main(['report', 'nowhere']); import jax; print(jax.default_backend())"
    done = subprocess.run(
        [sys.executable, "-c", script], env=environment, cwd=tmp_path, capture_output=True, text=True, timeout=600
    )
    assert done.stdout.split()[-1] in ("cpu", "gpu", "tpu"), done.stderr


FLAGS = {
    "JAX_ENABLE_X64": "1",
    "JAX_DISABLE_JIT": "1",
    "JAX_NUMPY_RANK_PROMOTION": "raise",
    "JAX_NUMPY_DTYPE_PROMOTION": "strict",
    "JAX_DEBUG_INFS": "1",
    "JAX_TRANSFER_GUARD": "disallow",
    "JAX_DEFAULT_MATMUL_PRECISION": "bfloat16",
}


@pytest.mark.slow
@pytest.mark.processes
def test_flags_of_the_shell_change_no_result(tiny_folder, tmp_path):
    """All of them at once: each breaks or changes some program."""
    settings = ("--documents", "2", "--held-out", "1", "--seeds", "1", "--max-tokens", "16", "--languages", "en,de")

    def losses(name, **flags):
        command = ("run", "--model", str(tiny_folder), "--out", str(tmp_path / name), "--rule", "top_k:5", *settings)
        environment = {**os.environ, "JAX_PLATFORMS": "cpu", **flags}
        script = "import sys; from mwork_jax.cli import main; sys.exit(main(sys.argv[1:]))"
        done = subprocess.run([sys.executable, "-c", script, *command], env=environment, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr[-3000:]
        return read_results(tmp_path / name / "results.json").rows, done.stderr

    plain, _ = losses("plain")
    flagged, errors = losses("flagged", **FLAGS)
    assert flagged == plain
    assert "mwork: without JAX_ENABLE_X64, JAX_DISABLE_JIT" in errors


@pytest.mark.processes
@pytest.mark.parametrize(
    ("start", "status", "begin"),
    [
        (("-m", "mwork_jax.cli", "report"), 2, "mwork: JAX_ENABLE_X64=banana: JAX does not take this"),
        (("-c", "import mwork_jax"), 1, "mwork_jax.errors.InputError: JAX_ENABLE_X64=banana: JAX does not take this"),
    ],
    ids=["command", "import"],
)
def test_a_flag_that_jax_refuses_is_one_line(start, status, begin):
    environment = {**os.environ, "JAX_ENABLE_X64": "banana"}
    done = subprocess.run([sys.executable, *start], env=environment, capture_output=True, text=True)
    assert done.returncode == status, done.stderr
    assert done.stderr.splitlines()[-1].startswith(begin)
    assert status == 1 or len(done.stderr.splitlines()) == 1


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        ("--xla_dump_to=x --no_such=1", r"XLA does not take this \(Unknown flag in XLA_FLAGS: --no_such=1\)"),
        ("nowhere", r'XLA does not take this \(Could not open file "nowhere" to read flags'),
        (f"{jax_process._DEVICES_OF_A_CPU}=two", r"XLA does not take this \(Couldn't interpret value two"),
        (f"{jax_process._DEVICES_OF_A_CPU}=0", "no device to compute on; give 1 or more"),
    ],
)
def test_flags_that_would_end_the_process_are_one_line(flags, said, monkeypatch):
    monkeypatch.setenv("XLA_FLAGS", flags)
    with pytest.raises(InputError, match=f"^XLA_FLAGS: .*{said}") as raised:
        jax_process.check_flags_of_xla()
    assert "\n" not in str(raised.value)


@pytest.mark.processes
@pytest.mark.parametrize(
    ("variable", "value", "begin"),
    [
        ("XLA_FLAGS", "--no_such=1", "mwork: XLA_FLAGS: XLA does not take this"),
        ("JAX_NUM_CPU_DEVICES", "0", "mwork: JAX_NUM_CPU_DEVICES=0: no device to compute on"),
    ],
)
def test_a_command_says_one_line_of_such_flags(variable, value, begin, tmp_path):
    environment = {**os.environ, "XLA_FLAGS": "", variable: value}
    command = [sys.executable, "-m", "mwork_jax.cli", "report", str(tmp_path)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert done.returncode == 2, done.stderr
    (line,) = done.stderr.splitlines()
    assert line.startswith(begin)


def test_flags_that_xla_takes_are_said_nothing_about(monkeypatch):
    for flags in ("", f"{jax_process._DEVICES_OF_A_CPU}=2", "--xla_cpu_enable_fast_math=false"):
        monkeypatch.setenv("XLA_FLAGS", flags)
        jax_process.check_flags_of_xla()


@pytest.mark.processes
@pytest.mark.parametrize("variable", ["JAX_PLATFORMS", "JAX_PLATFORM_NAME"])
def test_a_device_that_is_not_there_is_one_line(variable, tiny_folder, tmp_path):
    script = "import sys; from mwork_jax.cli import main; sys.exit(main(sys.argv[1:]))"
    command = ("lens", "--model", str(tiny_folder), "--out", str(tmp_path / "out"))
    environment = {**os.environ, variable: "cuda"}
    for other in {"JAX_PLATFORMS", "JAX_PLATFORM_NAME"} - {variable}:
        environment.pop(other, None)
    done = subprocess.run([sys.executable, "-c", script, *command], env=environment, capture_output=True, text=True)
    assert done.returncode == 2, done.stderr
    line = done.stderr.splitlines()[-1]
    assert line.startswith(f"mwork: {variable}=cuda: no such device here")
    assert "Traceback" not in done.stderr
