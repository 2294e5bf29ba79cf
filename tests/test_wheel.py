"""The wheel holds the whole package and works in an environment of its own, from a folder without a checkout."""

import os
import shutil
import subprocess
import sys
import sysconfig
import zipfile
from pathlib import Path

import pytest

import mwork_jax as mw
from support.paths import ROOT

pytestmark = [pytest.mark.slow, pytest.mark.processes]
PACKAGES = {"mwork_jax": ROOT / "mwork_jax", "mwork_kernels": ROOT / "kernels"}


def output(*command, **options):
    done = subprocess.run([*map(str, command)], capture_output=True, text=True, **options)
    assert done.returncode == 0, (done.stdout + done.stderr)[-3000:]
    return done.stdout


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    """Built from a copy: what an earlier build left in the checkout must not get into it."""
    copy, out = tmp_path_factory.mktemp("sources"), tmp_path_factory.mktemp("wheel")
    for name in ("mwork_jax", "kernels"):
        shutil.copytree(ROOT / name, copy / name, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("pyproject.toml", "setup.py", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, copy)
    pip = (sys.executable, "-m", "pip", "--disable-pip-version-check", "wheel", "--quiet", "--no-cache-dir")
    output(*pip, "--no-deps", "--no-index", "--no-build-isolation", "--wheel-dir", out, copy)
    (built,) = out.glob("*.whl")
    return built


@pytest.fixture(scope="module")
def installed(wheel, tmp_path_factory):
    """The folder with the programs of an environment that has the wheel, and this environment's other packages.

    They come through a .pth file, whose folders are searched after the environment's own and whose own .pth files are
    not read: this checkout, installed in editable form, is not among them.
    """
    folder = tmp_path_factory.mktemp("environment")
    output(sys.executable, "-m", "venv", "--without-pip", folder)
    python = folder / "bin" / "python"
    pip = (sys.executable, "-m", "pip", "--disable-pip-version-check", "--python", python, "install", "--quiet")
    output(*pip, "--no-deps", "--no-index", wheel)
    own = output(python, "-c", "import sysconfig; print(sysconfig.get_path('purelib'))").strip()
    others = dict.fromkeys(sysconfig.get_path(name) for name in ("purelib", "platlib"))
    Path(own, "dependencies.pth").write_text("".join(f"{path}\n" for path in others))
    return folder / "bin"


def outside(folder):
    """How a command runs in a folder that has no checkout, in its working folder or on PYTHONPATH."""
    return {"cwd": folder, "env": {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}}


def test_the_wheel_holds_every_file_of_the_packages(wheel):
    expected = {
        f"{name}/{path.relative_to(folder).as_posix()}"
        for name, folder in PACKAGES.items()
        for path in folder.rglob("*")
        if path.is_file() and path.suffix != ".pyc"
    }
    found = {name for name in zipfile.ZipFile(wheel).namelist() if ".dist-info/" not in name}
    assert found == expected
    assert {"mwork_jax/py.typed", "mwork_jax/report/page.css", "mwork_jax/data/README.md"} <= found
    assert wheel.name.startswith(f"mwork_jax-{mw.__version__}-")


def test_both_packages_come_from_the_wheel(installed, tmp_path):
    script = "import mwork_jax, mwork_kernels; print(mwork_jax.__file__, mwork_kernels.__file__, mwork_jax.__version__)"
    *files, version = output(installed / "python", "-c", script, **outside(tmp_path)).split()
    assert all(Path(file).is_relative_to(installed.parent) for file in files), files
    assert version == mw.__version__


def test_commands_of_the_wheel_run_from_another_folder(installed, tiny_folder, tmp_path):
    where = outside(tmp_path)
    assert "--topology" in output(installed / "mwork", "plan", "--help", **where)
    # The shapes of tests/cli/test_run.py.
    settings = ("--languages", "en,de,th", "--documents", 3, "--held-out", 2, "--seeds", 2, "--max-tokens", 64)
    command = ("run", "--model", tiny_folder, "--quick", *settings, "--out", "out")
    printed = output(installed / "mwork", *command, **where)
    assert "German" in printed
    css = (ROOT / "mwork_jax" / "report" / "page.css").read_text().strip()
    page = (tmp_path / "out" / "report.html").read_text()
    assert css[-20:] in page
