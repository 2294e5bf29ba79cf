"""Several real processes on this machine, joined through gloo, against one."""

import json
import os
import socket
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from mwork_jax.cli import main
from mwork_jax.detect import NeuronScores
from mwork_jax.neurons import GROUPS
from mwork_jax.select import select_neurons

ROOT = Path(__file__).parent.parent


def free_port():
    with socket.socket() as listener:
        listener.bind(("localhost", 0))
        return listener.getsockname()[1]


def together(count, *arguments, timeout=900):
    """The same command as `count` processes; what each printed."""
    port = free_port()
    environment = {**os.environ, "JAX_PLATFORMS": "cpu", "PYTHONPATH": str(ROOT), "XLA_FLAGS": ""}
    command = [sys.executable, "-m", "mwork_jax.cli", *map(str, arguments)]
    if count > 1:
        command += ["--coordinator", f"localhost:{port}", "--processes", str(count), "--process-id"]
    running = [
        subprocess.Popen(
            [*command, *([str(i)] if count > 1 else [])],
            env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        )
        for i in range(count)
    ]  # fmt: skip
    done = [process.communicate(timeout=timeout) for process in running]
    for process, (_, errors) in zip(running, done, strict=True):
        assert process.returncode == 0, errors[-3000:]
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
