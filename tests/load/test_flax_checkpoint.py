"""Older Flax checkpoints, against the HF PyTorch models that they are copies of."""

import json

import jax.numpy as jnp
import ml_dtypes
import msgpack
import numpy as np
import pytest
from flax import serialization
from flax.traverse_util import flatten_dict, unflatten_dict

from mwork_jax.errors import InputError
from mwork_jax.families import config_from_hf
from mwork_jax.load.assemble import assemble
from mwork_jax.load.flax_checkpoint import FlaxCheckpoint
from mwork_jax.load.hf_folder import SafetensorsFolder
from mwork_jax.model.decoder import forward_decoder
from mwork_jax.neurons import NeuronMask
from support.tiny import hf_model, pair, tokens

WHOLE = "flax_model.msgpack"


def flax_tree(hf, dtype=np.float32) -> dict:
    """The parameters as HF's Flax models nested and named them."""
    tree = {}
    for name, tensor in hf.state_dict().items():
        *parents, leaf = name.split(".")
        array = tensor.numpy().astype(dtype)
        if parents[-1] == "embed_tokens":
            leaf = "embedding"
        elif array.ndim == 2:
            leaf, array = "kernel", np.ascontiguousarray(array.T)
        tree[(*parents, leaf)] = array
    return unflatten_dict(tree)


def written(folder, hf, dtype=np.float32):
    (folder / WHOLE).write_bytes(serialization.to_bytes(flax_tree(hf, dtype)))
    return folder


def message_of(folder) -> str:
    with pytest.raises(InputError) as error:
        FlaxCheckpoint(folder)
    assert "\n" not in str(error.value)
    return str(error.value)


@pytest.mark.parametrize("dtype", [np.float32, np.float16, ml_dtypes.bfloat16])
@pytest.mark.parametrize("family", ["llama", "llama-biases", "mistral"])
def test_weights_are_those_of_the_original(family, dtype, tmp_path):
    hf = hf_model(family, 2)
    checkpoint = FlaxCheckpoint(written(tmp_path, hf, dtype))
    expected = {name: tensor.numpy().astype(dtype) for name, tensor in hf.state_dict().items()}
    assert checkpoint.names() == set(expected)
    for name, tensor in expected.items():
        found = checkpoint.read(name)
        assert found.dtype == dtype
        np.testing.assert_array_equal(found, tensor, err_msg=name)


def test_the_model_computes_the_same(tmp_path):
    original = pair("mistral", 2)
    checkpoint = FlaxCheckpoint(written(tmp_path, original.hf))
    config = config_from_hf(original.hf.config.to_dict(), where="tiny")
    decoder = assemble(config, checkpoint, jnp.float32, lambda name, array: jnp.asarray(array))
    ids, mask = tokens(2, 11), NeuronMask.keep_all(config)
    np.testing.assert_array_equal(forward_decoder(decoder, ids, mask), forward_decoder(original.decoder, ids, mask))


def sharded(folder, hf) -> dict:
    """Two shards and an index, as HF's Flax models were saved. Returns which file holds what."""
    flat = flatten_dict(flax_tree(hf), sep="/")
    files = {f"flax_model-{i + 1:05}-of-00002.msgpack": sorted(flat)[i::2] for i in range(2)}
    for name, keys in files.items():
        shard = unflatten_dict({key: flat[key] for key in keys}, sep="/")
        (folder / name).write_bytes(serialization.to_bytes(shard))
    where = {key: name for name, keys in files.items() for key in keys}
    (folder / f"{WHOLE}.index.json").write_text(json.dumps({"metadata": {}, "weight_map": where}))
    return where


def test_shards(tmp_path):
    hf = hf_model("llama", 2)
    sharded(tmp_path, hf)
    assert FlaxCheckpoint.holds(tmp_path)
    checkpoint = FlaxCheckpoint(tmp_path)
    assert checkpoint.names() == set(hf.state_dict())
    for name, tensor in hf.state_dict().items():
        np.testing.assert_array_equal(checkpoint.read(name), tensor.numpy())


def test_shards_that_do_not_fit_together(tmp_path):
    first, second = sorted(set(sharded(tmp_path, hf_model("llama", 2)).values()))
    (tmp_path / second).write_bytes((tmp_path / first).read_bytes())
    assert "is in another file of this checkpoint too" in message_of(tmp_path)
    (tmp_path / second).unlink()
    assert f"names files that are not there: {second}" in message_of(tmp_path)
    for index in ({}, {"weight_map": {}}, {"weight_map": 3}, []):
        (tmp_path / f"{WHOLE}.index.json").write_text(json.dumps(index))
        assert "no 'weight_map'" in message_of(tmp_path)


@pytest.mark.parametrize("outside", ["../x.msgpack", "a/../../x.msgpack", "/tmp/x.msgpack", "..", "", ".", 1, None])
@pytest.mark.parametrize("kind", [FlaxCheckpoint, SafetensorsFolder])
def test_an_index_names_files_of_its_folder_alone(kind, outside, tmp_path):
    """What a checkpoint's index says is data from a stranger: it must not choose files elsewhere."""
    folder = tmp_path / "model"
    folder.mkdir()
    written(tmp_path, hf_model("llama", 2)).joinpath(WHOLE).rename(tmp_path / "x.msgpack")
    name = f"{WHOLE}.index.json" if kind is FlaxCheckpoint else "model.safetensors.index.json"
    (folder / name).write_text(json.dumps({"weight_map": {"lm_head/kernel": outside}}))
    with pytest.raises(InputError, match=f"{name}: lm_head/kernel is in .*; the name of a file here is needed"):
        kind(folder)


def test_links_are_followed_as_in_the_hub_s_cache(tmp_path):
    hf, blobs, folder = hf_model("llama", 2), tmp_path / "blobs", tmp_path / "snapshots"
    for each in (blobs, folder):
        each.mkdir()
    for shard in set(sharded(blobs, hf).values()):
        (folder / shard).symlink_to(f"../blobs/{shard}")
    (folder / f"{WHOLE}.index.json").symlink_to(f"../blobs/{WHOLE}.index.json")
    assert FlaxCheckpoint(folder).names() == set(hf.state_dict())


def test_arrays_that_were_split_for_their_size(tmp_path, monkeypatch):
    """flax cuts arrays beyond a gigabyte into pieces; here, beyond a hundred bytes."""
    monkeypatch.setattr(serialization, "MAX_CHUNK_SIZE", 100)
    hf = hf_model("llama", 2)
    checkpoint = FlaxCheckpoint(written(tmp_path, hf))
    name = "model.layers.1.mlp.down_proj.weight"
    np.testing.assert_array_equal(checkpoint.read(name), hf.state_dict()[name].numpy())


def test_a_file_cut_short(tmp_path):
    whole = (written(tmp_path, hf_model("llama", 2)) / WHOLE).read_bytes()
    for size in [0, 1, 7, 100, 1000, len(whole) // 2, len(whole) - 1]:
        (tmp_path / WHOLE).write_bytes(whole[:size])
        assert str(tmp_path / WHOLE) in message_of(tmp_path), size


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"PK\x03\x04 a zip file of weights", "not a Flax checkpoint"),
        (b"\x80\x05\x95 a pickle", "Flax checkpoint"),
        (msgpack.packb([1, 2]), "holds list, not a map"),
        (msgpack.packb({}), "not a map of parameters"),
        (msgpack.packb({"model": {"step": 3}}), "model.step is int; an array of float32, float16, bfloat16 is needed"),
        (serialization.to_bytes({"a": {"kernel": np.ones(3, np.int32)}}), "a.kernel is int32"),
        (serialization.to_bytes({"a": {"kernel": np.ones(3, np.float32)}}), "a.kernel has shape (3,)"),
        (msgpack.packb({"a": msgpack.ExtType(1, msgpack.packb([[2], b"O", bytes(16)]))}), "not a Flax checkpoint"),
        (msgpack.packb({"a": msgpack.ExtType(1, msgpack.packb([[9], b"float32", b"1234"]))}), "not a Flax checkpoint"),
        (msgpack.packb({"a": msgpack.ExtType(9, b"")}), "a is ExtType"),
    ],
)
def test_other_files(content, said, tmp_path):
    (tmp_path / WHOLE).write_bytes(content)
    assert said in message_of(tmp_path)


def test_nothing_there(tmp_path):
    assert not FlaxCheckpoint.holds(tmp_path)
    assert "no such file" in message_of(tmp_path)
