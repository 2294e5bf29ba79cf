"""CI's check of skipped tests, over what pytest really writes: alone and with two workers."""

import subprocess
import sys

import pytest

from support.paths import ROOT

SCRIPT = ROOT / ".ci" / "skips.py"
TESTS = {
    "test_some.py": """
import pytest

@pytest.mark.skipif(True, reason="no browser (Debian: chromium)")
def test_marked(): pass

@pytest.mark.parametrize("n", [1, 2])
def test_called(n): pytest.skip(f"no file number {n}")

def test_inside(): pytest.importorskip("no_such_module_a", reason="needs 'a'")

def test_runs(): pass
""",
    "test_whole.py": """
import pytest
pytest.importorskip("no_such_module_b", reason="needs b")

def test_never(): pass
""",
}
REASONS = ["no browser (Debian: chromium)", "no file number 1", "no file number 2", "needs 'a'", "needs b"]
PATTERNS = [r"no browser \(Debian: chromium\)", r"no file number \d", "needs 'a'", "needs b"]


@pytest.fixture(scope="module", params=[(), ("-n", "2")], ids=["alone", "two workers"])
def report(request, tmp_path_factory):
    folder = tmp_path_factory.mktemp("tests")
    for name, text in TESTS.items():
        (folder / name).write_text(text)
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "--junitxml=report.xml", *request.param]
    subprocess.run(command, cwd=folder, check=True, capture_output=True)
    return folder / "report.xml"


def checked(report, allowed, *patterns):
    allowed.write_text("\n".join(["# why", "", *patterns]))
    command = [sys.executable, SCRIPT, report, allowed]
    return subprocess.run(command, capture_output=True, text=True, check=False)


def test_every_skip_is_printed_and_may_be_allowed(report, tmp_path):
    done = checked(report, tmp_path / "allowed.txt", *PATTERNS)
    assert done.returncode == 0, done.stdout
    for reason in REASONS:
        assert f": {reason}\n" in done.stdout
    assert "5 skipped, 0 of them" in done.stdout
    assert "test_runs" not in done.stdout


@pytest.mark.parametrize("left_out", PATTERNS)
def test_a_reason_that_is_not_listed_fails(left_out, report, tmp_path):
    done = checked(report, tmp_path / "allowed.txt", *(p for p in PATTERNS if p != left_out))
    assert done.returncode == 1
    refused = [line for line in done.stdout.splitlines() if "NOT ALLOWED" in line]
    assert len(refused) == (2 if r"\d" in left_out else 1)


def test_a_part_of_a_reason_is_not_enough(report, tmp_path):
    assert checked(report, tmp_path / "allowed.txt", "no", "needs").returncode == 1


@pytest.mark.parametrize("text", [None, "", "<testsuites/>"])
def test_a_report_without_tests_is_no_success(text, tmp_path):
    report = tmp_path / "report.xml"
    if text is not None:
        report.write_text(text)
    done = checked(report, tmp_path / "allowed.txt")
    assert done.returncode == 2
    assert done.stderr.count("\n") == 1


def test_each_listed_reason_has_its_cause_above_it():
    blocks = (ROOT / ".ci" / "allowed-skips.txt").read_text().split("\n\n")[1:]
    assert blocks
    assert all(block.startswith("# ") and not block.strip().splitlines()[-1].startswith("#") for block in blocks)
