"""A table killed again and again at random moments ends in the same results, to the byte."""

import json
import os
import random
import signal
import subprocess
import sys
import time

import pytest

import mwork_jax as mw
from support.paths import ROOT
from support.slow_deactivation import save_neurons

KILLS = int(os.environ.get("MWORK_KILLS", "1"))  # scripts/faults.py has more of them, of every command


@pytest.mark.slow
@pytest.mark.processes
def test_killed_at_random_moments(tiny_folder, tmp_path):
    neurons = tmp_path / "neurons"
    save_neurons(neurons, mw.load_model(tiny_folder), ("de",))
    settings = ("--table", "4", "--languages", "en,de", "--items", "2", "--seeds", "1", "--dtype", "float32")

    # The same command in folders of their own, as results hold the command.
    given = ("--model", tiny_folder, "--neurons", neurons, "--out", "out", *settings)
    command = [sys.executable, "-m", "mwork_jax.cli", "evaluate", *map(str, given)]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}

    def finish(name):
        folder = tmp_path / name
        folder.mkdir(exist_ok=True)
        subprocess.run(command, check=True, capture_output=True, cwd=folder, env=environment)
        return (folder / "out" / "results.json").read_bytes()

    first = finish("first")  # compiles for those that come after
    begin = time.monotonic()
    assert finish("whole") == first
    whole = time.monotonic() - begin
    draw, out, killed = random.Random(0), tmp_path / "killed" / "out", 0
    out.parent.mkdir()
    while killed < KILLS:
        process = subprocess.Popen(
            command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, cwd=out.parent, env=environment
        )
        try:
            process.wait(timeout=draw.uniform(0.2, 0.8) * whole)
        except subprocess.TimeoutExpired:
            process.send_signal(signal.SIGKILL)
            process.wait()
            killed += 1
        else:  # it had time to finish: begin anew
            assert process.returncode == 0
            assert (out / "results.json").read_bytes() == first
            for path in sorted(out.rglob("*"), reverse=True):
                path.rmdir() if path.is_dir() else path.unlink()
    assert finish("killed") == first
    for path in out.rglob("*.json"):
        json.loads(path.read_text())
