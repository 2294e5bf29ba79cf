"""The notebooks' cells on a tiny model, and what they keep."""

import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

import notebooks
from support.paths import ROOT

NOTEBOOKS = sorted(notebooks.FOLDER.glob("*.ipynb"))
SMALL = {"documents": "3", "held_out": "2"}


@pytest.mark.slow
@pytest.mark.processes
@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_the_cells_run(path, tiny_folder, capfd):
    if path.stem == "pods" and importlib.util.find_spec("libtpu") is None:
        pytest.skip("compiles through libtpu")
    pytest.importorskip("nbclient", reason="pip install 'mwork-jax[docs]'")
    values = [f"--set={name}={value}" for name, value in {**SMALL, "model_name": str(tiny_folder)}.items()]
    paths = os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])
    flags = "" if path.stem == "pods" else os.environ.get("XLA_FLAGS", "")  # libtpu ends a process for flags of CPUs
    done = subprocess.run(
        [sys.executable, str(ROOT / "scripts" / "notebooks.py"), "--check", *values, str(path)],
        env={**os.environ, "PYTHONPATH": paths, "XLA_FLAGS": flags},
        capture_output=True,
        text=True,
        timeout=1800,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout == f"{path.name}: ran\n"


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_a_notebook_keeps_what_it_printed_and_says_what_it_needs(path):
    cells = json.loads(path.read_text(encoding="utf-8"))["cells"]
    text = "".join("".join(cell["source"]) for cell in cells if cell["cell_type"] == "markdown")
    assert "**Needs**" in text
    assert "Colab" in text
    code = [cell for cell in cells if cell["cell_type"] == "code"]
    assert "".join(code[0]["source"]).startswith("# %pip install")
    outputs = [output for cell in code for output in cell["outputs"]]
    assert outputs, "python scripts/notebooks.py"
    assert not any(output["output_type"] == "error" for output in outputs)
    kept = json.dumps(outputs)
    assert str(Path.home()) not in kept
    assert "/tmp/" not in kept
    assert "site-packages" not in kept


def test_values_replace_those_of_the_first_cell():
    code = '# %pip\nname = "a"  # or b\nfew = (\n    1,\n    2,\n)\nother = [\n    3\n]'
    space = {}
    exec(notebooks.with_values(code, {"name": "/x", "few": "5", "none": "1"}), space)
    assert (space["name"], space["few"], space["other"]) == ("/x", 5, [3])
