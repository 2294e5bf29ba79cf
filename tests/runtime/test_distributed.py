"""Several real processes on this machine, joined through gloo, against one."""

import json
import signal
import subprocess
import sys
import time
from functools import cache

import numpy as np
import pytest
from safetensors.numpy import load_file

import mwork_jax as mw
from mwork_jax.cli import main
from mwork_jax.detect.scores import NeuronScores
from mwork_jax.neurons import GROUPS
from mwork_jax.results import read_results
from mwork_jax.select.modes import select_neurons
from support.joined import JoinedProcesses, environment, free_port, joining
from support.slow_deactivation import save_neurons

pytestmark = pytest.mark.processes


def started(count, *arguments, own=None):
    """The same command as `count` processes of their own; own: what each has besides, and the folder it runs in."""
    port = free_port()
    command = [sys.executable, "-m", "mwork_jax.cli", *map(str, arguments)]
    return [
        subprocess.Popen(
            [*command, *joining(port, count, i), *more],
            env=environment(), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=folder,
        )
        for i, (more, folder) in enumerate(own or [((), None)] * count)
    ]  # fmt: skip


def alone(*arguments):
    """The command in this process."""
    assert main([*map(str, arguments)]) == 0


def only_the_first_speaks(outputs):
    """Results and progress come from the first of several processes."""
    (out, _), *others = outputs
    assert out
    assert not any(out for out, _ in others)
    assert not any("mwork: " in errors for _, errors in others)


@pytest.fixture(scope="module")
def two(tmp_path_factory):
    processes = JoinedProcesses(2, tmp_path_factory.mktemp("two"))
    yield processes
    processes.close()


@pytest.fixture(scope="module")
def four(tmp_path_factory):
    processes = JoinedProcesses(4, tmp_path_factory.mktemp("four"))
    yield processes
    processes.close()


def corpus(folder, name, seed):
    rng = np.random.default_rng(seed)
    texts = ["".join(rng.choice(list("abcdefgh "), 12)) for _ in range(7)]
    path = folder / f"{name}.jsonl"
    path.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    return f"{name}={path}"


def scores_in(folder):
    return {path.stem: NeuronScores.load(path) for path in sorted((folder / "scores").glob("*.safetensors"))}


@pytest.mark.slow
def test_two_processes_find_what_one_finds(tiny_folder, tmp_path):
    texts = [part for name, seed in (("en", 1), ("de", 2)) for part in ("--corpus", corpus(tmp_path, name, seed))]
    command = ("detect", "--model", tiny_folder, "--dtype", "float32", "--max-tokens", 16, *texts)
    alone(*command, "--out", tmp_path / "one")
    running = started(2, *command, "--out", tmp_path / "two", "--mesh", "data=2")
    outputs = [process.communicate(timeout=900) for process in running]
    assert [process.returncode for process in running] == [0, 0], outputs
    only_the_first_speaks(outputs)
    one, two = scores_in(tmp_path / "one"), scores_in(tmp_path / "two")
    for language, single in one.items():
        both = two[language]
        assert (both.documents, both.tokens) == (single.documents, single.tokens)
        assert both.provenance["key"] == single.provenance["key"]
        for group in GROUPS:
            np.testing.assert_allclose(both.mean[group], single.mean[group], rtol=1e-5, atol=1e-6)
            np.testing.assert_allclose(both.lowest[group], single.lowest[group], rtol=1e-5, atol=1e-6)
    chosen, expected = (select_neurons(s, "top_fraction:0.3", "minus_english")["de"] for s in (two, one))
    assert chosen == expected
    # What two processes found, one goes on with: nothing is computed again.
    before = (tmp_path / "two" / "scores" / "de.safetensors").stat().st_mtime_ns
    alone(*command, "--out", tmp_path / "two")
    assert (tmp_path / "two" / "scores" / "de.safetensors").stat().st_mtime_ns == before


@pytest.fixture(scope="module")
def neurons(tiny_folder, tmp_path_factory):
    """A folder with a neuron set of German."""
    out = tmp_path_factory.mktemp("neurons")
    save_neurons(out, mw.load_model(tiny_folder), ("de",))
    return out


def evaluation(tiny_folder, neurons, out, table):
    """Three items, which two processes cannot share evenly, and seven masks, as odd a number: one program for each
    shape is compiled by each process, so a second language, which would add shapes, is left out."""
    settings = ("--table", table, "--languages", "en,de", "--items", 3, "--seeds", 1, "--dtype", "float32")
    return ("evaluate", "--model", tiny_folder, "--neurons", neurons, "--out", out, *settings)


def assert_same(found, expected, where="results"):
    """Equal but for the last digits of numbers, which a p value magnifies where the changes are small."""
    if isinstance(expected, dict):
        assert found.keys() == expected.keys(), where
        for name, value in expected.items():
            assert_same(found[name], value, f"{where}.{name}")
    elif isinstance(expected, list | tuple):
        assert len(found) == len(expected), where
        for place, (a, b) in enumerate(zip(found, expected, strict=True)):
            assert_same(a, b, f"{where}[{place}]")
    elif isinstance(expected, float):
        close = 2e-3 if where.endswith((".p", ".p_holm", ".p_bh")) else 1e-5
        np.testing.assert_allclose(found, expected, rtol=1e-4, atol=close, err_msg=where)
    else:
        assert found == expected, where


def results_in(folder):
    """What the results hold but for the commands, which name the folder and the processes."""
    results = read_results(folder / "results.json").to_json()
    for part in (results, *results.get("tables", [])):
        assert part["provenance"].pop("command")[0] == "mwork"
    return results


@pytest.fixture(scope="module")
def measured_alone(tiny_folder, neurons, tmp_path_factory):
    """table -> the results of one process."""

    @cache
    def results(table):
        out = tmp_path_factory.mktemp("alone")
        alone(*evaluation(tiny_folder, neurons, out, table))
        return results_in(out)

    return results


@pytest.mark.slow
@pytest.mark.parametrize(("table", "several", "mesh"), [(2, "two", "data=2"), (4, "four", "data=2,mask=2")])
def test_several_processes_measure_what_one_measures(
    table, several, mesh, tiny_folder, neurons, measured_alone, tmp_path, request
):
    """Table 2 generates answers, table 4 scores choices."""
    processes, out = request.getfixturevalue(several), tmp_path / mesh
    only_the_first_speaks(processes.run(*evaluation(tiny_folder, neurons, out, table), "--mesh", mesh))
    assert_same(results_in(out), measured_alone(table))


@pytest.mark.slow
def test_four_processes_tune_what_one_tunes(four, tiny_folder, neurons, tmp_path):
    tuning = ("--language", "de", "--seeds", 1, "--epochs", 2, "--batch", 4, "--max-tokens", 64, "--validate-every", 1)
    command = ("enhance", "--model", tiny_folder, "--neurons", neurons, "--dtype", "float32", *tuning)
    alone(*command, "--out", tmp_path / "1")
    out = tmp_path / "4"
    only_the_first_speaks(four.run(*command, "--out", out, "--mesh", "model=2,mask=2"))
    assert_same(results_in(out), results_in(tmp_path / "1"))
    for file in ("delta.safetensors", "model/model.safetensors"):
        found, expected = (load_file(folder / file) for folder in (out, tmp_path / "1"))
        assert found.keys() == expected.keys()
        for name, values in expected.items():
            np.testing.assert_allclose(found[name], values, rtol=1e-4, atol=1e-5, err_msg=name)


@pytest.mark.slow
@pytest.mark.parametrize("lost", [0, 1], ids=["the first", "another"])
def test_a_lost_process_ends_the_others_and_other_numbers_go_on(lost, tiny_folder, neurons, measured_alone, tmp_path):
    out = tmp_path / "out"
    command = evaluation(tiny_folder, neurons, out, table=4)
    running = started(2, *command, "--mesh", "data=2")
    while not list((out / "cache").glob("*.json")) and all(process.poll() is None for process in running):
        time.sleep(0.05)
    running[lost].send_signal(signal.SIGKILL)
    _, errors = running[1 - lost].communicate(timeout=300)
    if lost == 0:  # the others lose touch with JAX's coordinator, which ends them
        assert running[1].returncode not in (0, None), errors[-3000:]
    else:
        assert running[0].returncode == 1, errors[-3000:]
        assert "cannot go on without the other processes" in errors.splitlines()[-1]
    kept = len(list((out / "cache").glob("*.json")))
    assert kept
    assert not (out / "results.json").exists()
    alone(*command)
    assert_same(results_in(out), measured_alone(4))


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["--coordinator", "localhost:1"], "--processes, --process-id is missing"),
        (["--coordinator", "localhost:1", "--processes", "2", "--process-id", "2"], "from 0 to 1"),
    ],
)
def test_half_a_description_of_processes_is_one_line(arguments, says, tiny_folder, tmp_path, capsys):
    command = ["detect", "--model", str(tiny_folder), "--out", str(tmp_path), "--corpus", corpus(tmp_path, "en", 1)]
    assert main([*command, *arguments]) == 2
    assert says in capsys.readouterr().err


def good(folder):
    """A host's copy of the documents."""
    folder.mkdir()
    corpus(folder, "en", 1)
    return folder


def no_file(folder):
    (folder / "en.jsonl").unlink()
    return (), "mwork: en.jsonl: no such file"


def other_mesh(folder):
    """What is found when both have joined and the other goes on to compute."""
    return ("--mesh", "data=3"), "mwork: mesh data=3: that is 3 devices, there are 2"


def bad_option(folder):
    return ("--fast",), "mwork: unrecognized arguments: --fast"


@pytest.mark.slow
@pytest.mark.parametrize(("fault", "failing"), [(no_file, 0), (bad_option, 1), (other_mesh, 0), (other_mesh, 1)])
def test_a_process_that_cannot_begin_ends_the_others_with_its_line(fault, failing, tiny_folder, tmp_path):
    hosts = [good(tmp_path / name) for name in ("first", "second")]
    more, message = fault(hosts[failing])
    own = [(more if i == failing else (), host) for i, host in enumerate(hosts)]
    command = ("detect", "--model", tiny_folder, "--dtype", "float32", "--corpus", "en=en.jsonl", "--out", "out")
    running = started(2, *command, own=own)
    errors = [process.communicate(timeout=280)[1].strip() for process in running]  # alone, JAX waits for 300 s
    assert [process.returncode for process in running] == [2, 2], errors
    wrong, other = errors[failing], errors[1 - failing]
    assert wrong.splitlines()[-1].startswith(message)
    assert other.splitlines()[-1] == f"mwork: process {failing} has ended: {wrong.splitlines()[-1][len('mwork: ') :]}"
    assert sum(text.count("mwork: ") - text.count("%") for text in errors) == 2
    assert "Traceback" not in "".join(errors)


@pytest.mark.slow
def test_processes_that_never_come_are_one_line():
    script = "import sys; from mwork_jax.runtime.distributed import start; start(sys.argv[1], 2, 0, seconds=2)"
    command = [sys.executable, "-c", script, f"localhost:{free_port()}"]
    done = subprocess.run(command, env=environment(), capture_output=True, text=True, timeout=280)
    assert done.returncode == 2
    assert done.stderr == "mwork: the other processes did not join within 2 s; see docs/pods.md\n"
