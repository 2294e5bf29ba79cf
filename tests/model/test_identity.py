"""Which model: the fingerprints themselves are tested with loading, in tests/load/test_load.py."""

import shutil
from dataclasses import asdict, replace

import pytest

import mwork_jax as mw
from mwork_jax.model.identity import ModelInfo, model_of

INFO = ModelInfo("owner/name", "llama", 4, 32, "float32", "0123456789abcdef", "fedcba9876543210", "0" * 40)


@pytest.mark.parametrize(
    ("changed", "same"),
    [
        ({"source": "a/copy/of/it", "revision": None}, True),
        ({"weights": "of-another-model"}, False),
        ({"tokenizer": None}, False),
        ({"layers": 5}, False),
        ({"dtype": "bfloat16", "weights": "rounded"}, True),
        ({"dtype": "bfloat16", "weights": "rounded", "source": "owner/other"}, False),
        ({"dtype": "bfloat16", "weights": "rounded", "tokenizer": None}, False),
    ],
)
def test_one_model_has_other_fingerprints_in_another_dtype(changed, same):
    other = replace(INFO, **changed)
    assert INFO.is_same_as(other) == other.is_same_as(INFO) == same


def test_the_key_says_nothing_of_where_it_came_from():
    assert replace(INFO, source="here", revision=None).key == INFO.key
    assert "source" not in INFO.key


def test_what_a_file_says_of_its_model():
    assert model_of({"model": asdict(INFO)}, "scores.safetensors") == INFO
    assert model_of({"language": "de"}, "scores.safetensors") is None
    for damaged in (
        "owner/name",
        {"source": "owner/name"},
        {**asdict(INFO), "layers": "4"},
        {**asdict(INFO), "layers": 0},
    ):
        with pytest.raises(mw.InputError, match=r"^de\.json: damaged \(its model: "):
            model_of({"model": damaged}, "de.json")


def test_the_commit_of_a_model_in_the_hub_s_cache(tiny_folder, tmp_path):
    commit = "0123456789abcdef" * 2 + "01234567"
    folder = tmp_path / "models--owner--name" / "snapshots" / commit
    shutil.copytree(tiny_folder, folder)
    model = mw.load_model(folder, dtype="float32")
    assert model.info.revision == model.revision == commit
    assert mw.load_model(tiny_folder, dtype="float32").info.revision is None
    assert model.key == mw.load_model(tiny_folder, dtype="float32").key
