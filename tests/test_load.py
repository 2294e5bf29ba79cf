"""Folders in Hugging Face layout: whole and in shards, tied and untied, and everything that can be wrong with them."""

import json
import shutil

import jax.numpy as jnp
import numpy as np
import pytest

import mwork_jax as mw
from tiny import hf_model, tokens, torch

TOLERANCE = 1e-5


def hf_logits(hf, ids):
    with torch.no_grad():
        return hf(torch.tensor(ids, dtype=torch.long)).logits


@pytest.mark.parametrize("shards", ["10GB", "20KB"])
@pytest.mark.parametrize("family", ["llama", "llama-tied", "llama-biases", "qwen3", "gemma3"])
def test_folders_load_as_hf_saved_them(family, shards, tmp_path):
    hf = hf_model(family, 2)
    hf.save_pretrained(tmp_path, max_shard_size=shards)
    assert (tmp_path / "model.safetensors.index.json").exists() == (shards == "20KB")
    model = mw.load_model(tmp_path, dtype="float32")
    ids = tokens(2, 11)
    ours = mw.forward(model, ids, mw.NeuronMask.keep_all(model.config))
    np.testing.assert_allclose(ours, hf_logits(hf, ids), atol=TOLERANCE, rtol=0)
    assert model.tokenizer is None
    assert model.identity["source"] == str(tmp_path)


def test_bfloat16_weights_are_the_rounded_ones(tmp_path):
    hf = hf_model("llama", 2)
    hf.to(torch.bfloat16).save_pretrained(tmp_path)
    model = mw.load_model(tmp_path, dtype="bfloat16")
    assert model.decoder.dtype == jnp.bfloat16
    stored = hf.model.embed_tokens.weight.detach().float().numpy()
    np.testing.assert_array_equal(np.asarray(model.decoder.embed[...], np.float32), stored)
    assert model.decoder.final_norm[...].dtype == jnp.float32


def test_text_goes_through_the_tokenizer(tiny_folder):
    model = mw.load_model(tiny_folder, dtype="float32")
    ids = model.encode("été")
    assert ids.dtype == np.int32
    assert ids[0] == model.config.bos_id == 1
    assert ids.size == 1 + len("été".encode())
    assert mw.importance(model, "a few words")["ffn_up"].shape == (4, 48)


def test_identities_tell_models_apart(tmp_path):
    for name, family in (("a", "llama"), ("b", "llama-tied")):
        hf_model(family, 2).save_pretrained(tmp_path / name)
    a, b = (mw.load_model(tmp_path / name, dtype="float32").identity for name in "ab")
    assert a["weights"] != b["weights"]
    assert a == mw.load_model(tmp_path / "a", dtype="float32").identity


def edit_config(folder, **changes):
    path = folder / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


def cut(path, share):
    data = path.read_bytes()
    path.write_bytes(data[: int(len(data) * share)])


BROKEN = {
    "no weights": (lambda f: (f / "model.safetensors").unlink(), "no weights; model.safetensors"),
    "no config": (lambda f: (f / "config.json").unlink(), "no config.json"),
    "config not JSON": (lambda f: (f / "config.json").write_text("{"), "not valid JSON"),
    "config a list": (lambda f: (f / "config.json").write_text("[]"), "a JSON object"),
    "architecture": (lambda f: edit_config(f, model_type="mamba"), "model_type 'mamba' is not supported"),
    "attribute": (lambda f: edit_config(f, clip_qkv=3), "attribute 'clip_qkv'"),
    "other width": (
        lambda f: edit_config(f, intermediate_size=50),
        "has shape .48, 32., the configuration needs .50, 32.",
    ),
    "more layers": (lambda f: edit_config(f, num_hidden_layers=9), "and .* more missing"),
    "fewer layers": (lambda f: edit_config(f, num_hidden_layers=3), "that the configuration does not explain"),
    "cut short": (lambda f: cut(f / "model.safetensors", 0.7), "damaged or cut short"),
    "cut in the header": (lambda f: cut(f / "model.safetensors", 0.001), "damaged or cut short"),
    "empty": (lambda f: (f / "model.safetensors").write_bytes(b""), "damaged or cut short"),
    "tokenizer": (lambda f: cut(f / "tokenizer.json", 0.5), "tokenizer cannot be read"),
}


@pytest.mark.parametrize("case", BROKEN)
def test_broken_folders_are_one_line_each(case, tiny_folder, tmp_path):
    folder = tmp_path / "model"
    shutil.copytree(tiny_folder, folder)
    damage, message = BROKEN[case]
    damage(folder)
    with pytest.raises(mw.InputError, match=message) as error:
        mw.load_model(folder)
    assert str(folder) in str(error.value)
    assert "\n" not in str(error.value)


def test_a_missing_shard_is_named(tmp_path):
    hf_model("llama", 2).save_pretrained(tmp_path, max_shard_size="20KB")
    shard = sorted(tmp_path.glob("model-*.safetensors"))[1]
    shard.unlink()
    with pytest.raises(mw.InputError, match=shard.name):
        mw.load_model(tmp_path)


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("./no/such/folder", "no such model; give a folder"),
        ("nothing.gguf", "no such model"),
        ("just-a-name", "no such model"),
        ("owner/name", "the Hub could not give it"),
    ],
)
def test_models_that_are_not_there(source, message):
    with pytest.raises(mw.InputError, match=message) as error:
        mw.load_model(source)
    assert source in str(error.value)
    assert "\n" not in str(error.value)


def test_a_file_that_is_no_model(tmp_path):
    path = tmp_path / "weights.bin"
    path.write_bytes(b"x")
    with pytest.raises(mw.InputError, match="not a model"):
        mw.load_model(path)
    with pytest.raises(mw.InputError, match="dtype 'float16'"):
        mw.load_model(path, dtype="float16")
