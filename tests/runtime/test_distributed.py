"""Several real processes on this machine, joined through gloo, against one."""

import json
import os
import signal
import socket
import subprocess
import sys
import time
from functools import partial

import numpy as np
import pytest
from safetensors.numpy import load_file

from mwork_jax.cli import main
from mwork_jax.detect.scores import NeuronScores
from mwork_jax.neurons import GROUPS
from mwork_jax.results import read_results
from mwork_jax.select.modes import select_neurons
from support.paths import ROOT


def free_port():
    with socket.socket() as listener:
        listener.bind(("localhost", 0))
        return listener.getsockname()[1]


def started(count, *arguments, own=None):
    """The same command as `count` processes; own: what each has besides, and the folder that it runs in."""
    port = free_port()
    environment = {**os.environ, "JAX_PLATFORMS": "cpu", "PYTHONPATH": str(ROOT), "XLA_FLAGS": ""}
    command = [sys.executable, "-m", "mwork_jax.cli", *map(str, arguments)]
    if count > 1:
        command += ["--coordinator", f"localhost:{port}", "--processes", str(count), "--process-id"]
    return [
        subprocess.Popen(
            [*command, *([str(i)] if count > 1 else []), *more],
            env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=folder,
        )
        for i, (more, folder) in enumerate(own or [((), None)] * count)
    ]  # fmt: skip


def together(count, *arguments, timeout=900):
    """The same command as `count` processes; what each printed. The first alone says how it goes."""
    running = started(count, *arguments)
    done = [process.communicate(timeout=timeout) for process in running]
    for process, (_, errors) in zip(running, done, strict=True):
        assert process.returncode == 0, errors[-3000:]
    assert not any("mwork: " in errors for _, errors in done[1:])
    return [out for out, _ in done]


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
    together(1, *command, "--out", tmp_path / "one")
    said = together(2, *command, "--out", tmp_path / "two", "--mesh", "data=2")
    assert said[0]
    assert not said[1]  # the first says the results, alone
    one, two = scores_in(tmp_path / "one"), scores_in(tmp_path / "two")
    for language, alone in one.items():
        both = two[language]
        assert (both.documents, both.tokens) == (alone.documents, alone.tokens)
        assert both.provenance["key"] == alone.provenance["key"]
        for group in GROUPS:
            np.testing.assert_allclose(both.mean[group], alone.mean[group], rtol=1e-5, atol=1e-6)
            np.testing.assert_allclose(both.lowest[group], alone.lowest[group], rtol=1e-5, atol=1e-6)
    chosen, expected = (select_neurons(s, "top_fraction:0.3", "minus_english")["de"] for s in (two, one))
    assert chosen == expected
    # What two processes found, one goes on with: nothing is computed again.
    before = (tmp_path / "two" / "scores" / "de.safetensors").stat().st_mtime_ns
    together(1, *command, "--out", tmp_path / "two")
    assert (tmp_path / "two" / "scores" / "de.safetensors").stat().st_mtime_ns == before


@pytest.fixture(scope="module")
def neurons(tiny_folder, tmp_path_factory):
    """A folder with neuron sets of German and Thai."""
    out = tmp_path_factory.mktemp("neurons")
    run = ("--languages", "en,de,th", "--documents", "2", "--held-out", "1", "--seeds", "1", "--rule", "top_k:20")
    assert main(["run", "--model", str(tiny_folder), "--out", str(out), *run]) == 0
    return out


def evaluation(tiny_folder, neurons, out, table):
    settings = ("--table", table, "--languages", "en,de,th", "--items", 3, "--seeds", 2, "--dtype", "float32")
    return ("evaluate", "--model", tiny_folder, "--neurons", neurons, "--out", out, *settings)


def assert_same(found, expected, where="results"):
    """Equal but for the last digits of numbers, which a p value magnifies where the changes are small."""
    if isinstance(expected, dict):
        assert found.keys() == expected.keys(), where
        for name, value in expected.items():
            assert_same(found[name], value, f"{where}.{name}")
    elif isinstance(expected, list):
        assert len(found) == len(expected), where
        for place, (a, b) in enumerate(zip(found, expected, strict=True)):
            assert_same(a, b, f"{where}[{place}]")
    elif isinstance(expected, float):
        close = 2e-3 if where.endswith(".p") else 1e-5
        np.testing.assert_allclose(found, expected, rtol=1e-4, atol=close, err_msg=where)
    else:
        assert found == expected, where


def results_in(folder):
    """What the results hold but for the commands, which name the folder and the processes."""
    results = read_results(folder / "results.json").to_json()
    for part in (results, *results.get("tables", [])):
        assert part["provenance"].pop("command")[0] == "mwork"
    return results


@pytest.mark.slow
@pytest.mark.parametrize("table", [2, 4], ids=["generated", "scored"])
def test_two_and_four_processes_measure_what_one_measures(table, tiny_folder, neurons, tmp_path):
    together(1, *evaluation(tiny_folder, neurons, tmp_path / "1", table))
    for count, mesh in ((2, "data=2"), (4, "data=2,mask=2")):
        out = tmp_path / str(count)
        said = together(count, *evaluation(tiny_folder, neurons, out, table), "--mesh", mesh)
        assert said[0]
        assert not any(said[1:])
        assert_same(results_in(out), results_in(tmp_path / "1"))


@pytest.mark.slow
def test_two_and_four_processes_tune_what_one_tunes(tiny_folder, neurons, tmp_path):
    tuning = ("--language", "de", "--seeds", 1, "--epochs", 2, "--batch", 4, "--max-tokens", 64, "--validate-every", 1)
    command = ("enhance", "--model", tiny_folder, "--neurons", neurons, "--dtype", "float32", *tuning)
    together(1, *command, "--out", tmp_path / "1")
    for count, mesh in ((2, "model=2"), (4, "data=2,mask=2")):
        out = tmp_path / str(count)
        together(count, *command, "--out", out, "--mesh", mesh)
        assert_same(results_in(out), results_in(tmp_path / "1"))
        for file in ("delta.safetensors", "model/model.safetensors"):
            found, expected = (load_file(folder / file) for folder in (out, tmp_path / "1"))
            assert found.keys() == expected.keys()
            for name, values in expected.items():
                np.testing.assert_allclose(found[name], values, rtol=1e-4, atol=1e-5, err_msg=name)


@pytest.mark.slow
@pytest.mark.parametrize("lost", [0, 1], ids=["the first", "another"])
def test_a_lost_process_ends_the_others_and_other_numbers_go_on(lost, tiny_folder, neurons, tmp_path):
    command, out = partial(evaluation, tiny_folder, neurons, table=4), tmp_path / "out"
    running = started(2, *command(out), "--mesh", "data=2")
    while not list((out / "cache").glob("*.json")) and all(process.poll() is None for process in running):
        time.sleep(0.05)
    running[lost].send_signal(signal.SIGKILL)
    _, errors = running[1 - lost].communicate(timeout=60)
    if lost == 0:  # the others lose touch with JAX's coordinator, which ends them
        assert running[1].returncode not in (0, None), errors[-3000:]
    else:
        assert running[0].returncode == 1, errors[-3000:]
        assert "cannot go on without the other processes" in errors.splitlines()[-1]
    kept = len(list((out / "cache").glob("*.json")))
    assert kept
    assert not (out / "results.json").exists()
    together(1, *command(out))
    together(1, *command(tmp_path / "whole"))
    assert_same(results_in(out), results_in(tmp_path / "whole"))


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
    return ("--mesh", "data=3"), "mwork: mesh data=3,model=1,mask=1: that is 3 devices, there are 2"


def bad_option(folder):
    return ("--fast",), "mwork: unrecognized arguments: --fast"


@pytest.mark.slow
@pytest.mark.parametrize("failing", [0, 1], ids=["the first", "another"])
@pytest.mark.parametrize("fault", [no_file, bad_option, other_mesh])
def test_a_process_that_cannot_begin_ends_the_others_with_its_line(fault, failing, tiny_folder, tmp_path):
    hosts = [good(tmp_path / name) for name in ("first", "second")]
    more, message = fault(hosts[failing])
    own = [(more if i == failing else (), host) for i, host in enumerate(hosts)]
    command = ("detect", "--model", tiny_folder, "--dtype", "float32", "--corpus", "en=en.jsonl", "--out", "out")
    running = started(2, *command, own=own)
    errors = [process.communicate(timeout=150)[1].strip() for process in running]  # alone, JAX waits for 300 s
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
    environment = {**os.environ, "JAX_PLATFORMS": "cpu", "PYTHONPATH": str(ROOT)}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=150)
    assert done.returncode == 2
    assert done.stderr == "mwork: the other processes did not join within 2 s; see docs/pods.md\n"
