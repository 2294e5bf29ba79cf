"""Neuron sets that were found in another model: refused, naming both, or used with a warning where asked for."""

import json
import shutil
from dataclasses import asdict

import pytest

import mwork_jax as mw
from mwork_jax.cli import main
from mwork_jax.neurons import NeuronSet
from mwork_jax.results import read_results
from support.slow_deactivation import random_neurons

COMMANDS = {
    "evaluate": ("run_table", ("--languages", "en,de", "--table", "4", "--items", "1", "--seeds", "1")),
    "lens": ("run_lens", ("--languages", "en,de", "--documents", "1", "--labeller", "scripts")),
    "enhance": ("run_enhancement", ("--documents", "8")),
}


@pytest.fixture(scope="module")
def model(tiny_folder):
    return mw.load_model(tiny_folder, dtype="float32")


def sets_of(model, folder, **changed):
    """Neurons of German, found in a model that differs from this one in what is `changed`."""
    identity = {**asdict(model.info), **changed}
    NeuronSet(random_neurons(model.config).groups, {"model": identity}).save(folder / "neurons" / "de.json")
    return folder


def run(command, tiny_folder, tmp_path, neurons, *more):
    """Exit status of a command that gets these neurons, and what it said."""
    _, arguments = COMMANDS[command]
    given = ("--model", tiny_folder, "--dtype", "float32", "--neurons", neurons, "--out", tmp_path / "out")
    return main([command, *map(str, given), *arguments, *more])


def reached(command, monkeypatch):
    """The work itself does not begin: it is an error that a test can see."""

    def work(*_, **__):
        raise mw.InputError("the work begins")

    monkeypatch.setattr(f"mwork_jax.cli.{command}.{COMMANDS[command][0]}", work)


@pytest.mark.parametrize("command", COMMANDS)
def test_sets_of_another_model_are_refused_by_name(command, model, tiny_folder, tmp_path, monkeypatch, capsys):
    reached(command, monkeypatch)
    neurons = sets_of(model, tmp_path / "sets", source="the-base-model", weights="0123456789abcdef")
    assert run(command, tiny_folder, tmp_path, neurons) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert "the neurons of de were found in the-base-model (weights 0123456789abcdef)" in line
    assert f"the model is {tiny_folder} (weights {model.key['weights']})" in line
    assert "--allow-other-model" in line
    assert not (tmp_path / "out" / "results.json").exists()


@pytest.mark.parametrize("command", COMMANDS)
def test_allowed_they_are_used_with_a_warning(command, model, tiny_folder, tmp_path, monkeypatch, capsys):
    reached(command, monkeypatch)
    neurons = sets_of(model, tmp_path / "sets", source="the-base-model", weights="0123456789abcdef")
    assert run(command, tiny_folder, tmp_path, neurons, "--allow-other-model") == 2
    warning, *_, last = capsys.readouterr().err.splitlines()
    assert warning.startswith(
        "mwork: warning: the neurons of de were found in the-base-model (weights 0123456789abcdef)"
    )
    assert str(tiny_folder) in warning
    assert last == "mwork: the work begins"


@pytest.mark.parametrize("command", COMMANDS)
@pytest.mark.parametrize(
    "changed",
    [
        {"source": "another/spelling/of/the/path"},
        {"dtype": "bfloat16", "weights": "0123456789abcdef"},  # rounded, the same weights have another fingerprint
    ],
    ids=["moved", "another dtype"],
)
def test_sets_of_this_model_are_not_warned_of(command, changed, model, tiny_folder, tmp_path, monkeypatch, capsys):
    reached(command, monkeypatch)
    assert run(command, tiny_folder, tmp_path, sets_of(model, tmp_path / "sets", **changed)) == 2
    *before, last = capsys.readouterr().err.splitlines()
    assert last == "mwork: the work begins"
    assert not [line for line in before if "warning" in line]


def test_sets_that_do_not_say_are_used(model, tiny_folder, tmp_path, monkeypatch, capsys):
    reached("lens", monkeypatch)
    random_neurons(model.config).save(tmp_path / "sets" / "neurons" / "de.json")
    assert run("lens", tiny_folder, tmp_path, tmp_path / "sets") == 2
    assert capsys.readouterr().err.splitlines()[-1] == "mwork: the work begins"


def test_another_dtype_of_another_model_is_refused(model, tiny_folder, tmp_path, monkeypatch, capsys):
    reached("lens", monkeypatch)
    for changed in ({"source": "the-base-model"}, {"tokenizer": "other"}, {"layers": 99}):
        neurons = sets_of(model, tmp_path / "sets", dtype="bfloat16", weights="0123456789abcdef", **changed)
        assert run("lens", tiny_folder, tmp_path, neurons) == 2
        assert "were found in" in capsys.readouterr().err


def test_a_lens_with_sets_of_another_model(model, tiny_folder, tmp_path, capsys):
    """The whole way: a copy of the model with another constant has the same shape and is another model."""
    folder = tmp_path / "model"
    shutil.copytree(tiny_folder, folder)
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "rms_norm_eps": 0.5}))
    neurons = sets_of(model, tmp_path / "sets")
    assert run("lens", folder, tmp_path, neurons) == 2
    assert not (tmp_path / "out" / "lens.json").exists()
    assert run("lens", folder, tmp_path, neurons, "--allow-other-model") == 0
    assert "mwork: warning: the neurons of de were found in" in capsys.readouterr().err
    results = read_results(tmp_path / "out" / "lens.json")
    assert results.provenance.model.source == str(folder)
    assert [shares.neurons_off > 0 for shares in results.shares] == [False, False, True]
    assert "--allow-other-model" in results.provenance.command
