"""A model at an address of fsspec loads as its folder does, parts alone are read, what is wrong there is one line."""

import json
import struct

import fsspec
import jax
import numpy as np
import pytest

import mwork_jax as mw
from mwork_jax.errors import InputError
from mwork_jax.load import read_config
from mwork_jax.load.bucket import BucketFolder
from support.tiny import pair


@pytest.fixture
def bucket(tiny_folder):
    """The address of the tiny model in a filesystem in memory."""
    files = fsspec.filesystem("memory")
    for path in tiny_folder.iterdir():
        files.pipe_file(f"/models/tiny/{path.name}", path.read_bytes())
    yield "memory://models/tiny"
    files.rm("/models", recursive=True)


def put(name, content):
    fsspec.filesystem("memory").pipe_file(f"/models/tiny/{name}", content)


def test_it_is_the_folder(bucket, tiny_folder):
    here, there = (mw.load_model(source, dtype="float32") for source in (tiny_folder, bucket))
    assert there.key == here.key
    assert there.encode("Grüße").tolist() == here.encode("Grüße").tolist()
    assert read_config(bucket) == read_config(tiny_folder)


def test_shards(tmp_path):
    both = pair("llama", 2)
    both.hf.save_pretrained(tmp_path, max_shard_size="20KB")
    assert len(list(tmp_path.glob("*.safetensors"))) > 1
    here, there = (mw.load_model(source, dtype="float32") for source in (tmp_path, tmp_path.as_uri()))
    assert there.key == here.key


def test_a_part_is_the_part_and_costs_its_rows(bucket, monkeypatch):
    folder = BucketFolder(bucket)
    asked = []
    read = BucketFolder._bytes
    monkeypatch.setattr(
        BucketFolder, "_bytes", lambda self, file, begin, end: asked.append(end - begin) or read(self, file, begin, end)
    )
    for name in folder.names():
        whole = folder.read(name)
        assert whole.shape == folder.shape(name)
        index = tuple(slice(n // 4, n // 2) for n in whole.shape)
        asked.clear()
        np.testing.assert_array_equal(folder.part(name, index), whole[index])
        rows = index[0].stop - index[0].start
        assert sum(asked) == rows * whole[0].nbytes


def test_on_a_mesh(bucket, tiny_folder):
    mesh = mw.make_mesh({"data": 1}, jax.devices()[:1])
    assert mw.load_model(bucket, dtype="float32", mesh=mesh).key == mw.load_model(tiny_folder, dtype="float32").key


def cut_short(content):
    return content[: len(content) - 10]


def with_header(header, data=b"\0" * 64):
    text = json.dumps(header).encode()
    return struct.pack("<Q", len(text)) + text + data


@pytest.mark.parametrize(
    ("name", "change", "says"),
    [
        ("model.safetensors", None, "no weights"),
        ("config.json", None, "no config.json"),
        ("config.json", lambda _: b"{", "config.json: not valid JSON"),
        ("config.json", lambda _: b"[]", "config.json: a JSON object is needed"),
        ("model.safetensors", cut_short, "lies outside the file"),
        ("model.safetensors", lambda _: b"abc", "damaged or cut short"),
        ("model.safetensors", lambda _: struct.pack("<Q", 1 << 60), "longer than the file"),
        ("model.safetensors", lambda _: with_header([]), "damaged or cut short"),
        (
            "model.safetensors",
            lambda _: with_header({"a": {"dtype": "F32", "shape": [9], "data_offsets": [0, 8]}}),
            "not as long as its shape says",
        ),
        ("model.safetensors.index.json", lambda _: b"{}", "no 'weight_map'"),
        ("model.safetensors.index.json", lambda _: b'{"weight_map": {"a": "b"}}', "not there: b"),
    ],
)
def test_what_is_wrong_is_one_line(name, change, says, bucket):
    files = fsspec.filesystem("memory")
    if change is None:
        files.rm(f"/models/tiny/{name}")
    else:
        put(name, change(files.cat_file(f"/models/tiny/{name}") if "index" not in name else b""))
    with pytest.raises(InputError, match=says) as error:
        mw.load_model(bucket)
    assert "\n" not in str(error.value)
    assert bucket in str(error.value)


@pytest.mark.parametrize("source", ["memory://nothing/here", "nonsense://a/b"])
def test_an_address_without_a_model_is_one_line(source):
    with pytest.raises(InputError, match=source):
        mw.load_model(source)


def test_whole_numbers_are_not_weights(bucket):
    put("model.safetensors", with_header({"a": {"dtype": "I32", "shape": [16], "data_offsets": [0, 64]}}))
    with pytest.raises(InputError, match="a is stored as I32"):
        BucketFolder(bucket).read("a")
