"""How a command begins and ends, whatever it does: closed streams, warnings, devices that are not there."""

import sys
import warnings

import pytest

from mwork_jax.cli import main, report
from mwork_jax.errors import InputWarning
from support.made_results import MODEL, made_scores


def scores_in(folder, languages=("en", "de")):
    for language, scores in made_scores(languages, model=MODEL).items():
        scores.save(folder / "scores" / f"{language}.safetensors")


@pytest.mark.parametrize("stream", ["stdout", "stderr"])
def test_a_stream_that_the_shell_has_closed(stream, tmp_path, monkeypatch):
    scores_in(tmp_path)
    monkeypatch.setattr(sys, stream, None)
    assert main(["select", str(tmp_path)]) == 0
    assert main(["select", str(tmp_path / "nowhere")]) == 2


def test_files_that_macos_puts_beside_others_and_copies(tmp_path, capsys):
    scores_in(tmp_path)
    (tmp_path / "scores" / "._de.safetensors").write_bytes(b"\0\5\x16\7")
    assert main(["select", str(tmp_path)]) == 0
    (tmp_path / "neurons" / "._de.json").write_bytes(b"\0\5\x16\7")
    assert main(["report", str(tmp_path), "--format", "csv"]) == 0
    (tmp_path / "scores" / "de.safetensors").rename(tmp_path / "scores" / "fr.safetensors")
    capsys.readouterr()
    for command in ("select", "report"):
        assert main([command, str(tmp_path)]) == 2
        assert "fr.safetensors: of 'de' by what it says, of 'fr' by its name" in capsys.readouterr().err


def test_a_warning_is_one_line_and_comes_once(monkeypatch, capsys):
    def warn(args):
        for _ in range(2):
            warnings.warn("file: not verified", InputWarning, stacklevel=1)

    monkeypatch.setattr(report, "_report", warn)
    assert main(["report", "x"]) == 0
    assert capsys.readouterr().err == "mwork: warning: file: not verified\n"


def test_one_of_several_platforms_that_is_not_there(monkeypatch, capsys):
    def fail(args):
        raise RuntimeError("Unable to initialize backend 'banana': Backend 'banana' is not in the list")

    monkeypatch.setattr(report, "_report", fail)
    monkeypatch.setenv("JAX_PLATFORMS", "cpu,banana")
    monkeypatch.delenv("JAX_PLATFORM_NAME", raising=False)
    assert main(["report", "x"]) == 2
    assert capsys.readouterr().err.startswith("mwork: JAX_PLATFORMS=cpu,banana: no such device here")


def test_an_output_folder_without_a_name(capsys):
    assert main(["lens", "--out", ""]) == 2
    assert "the output folder has no name; is a variable of the shell not set?" in capsys.readouterr().err
