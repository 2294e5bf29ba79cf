"""Folders in Hugging Face layout: whole and in shards, tied and untied, and everything that can be wrong with them."""

import json
import shutil
from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from huggingface_hub.utils import filter_repo_objects
from safetensors.numpy import load_file, save_file

import mwork_jax as mw
from mwork_jax.enhance.neuron_params import parameter_arrays
from mwork_jax.errors import InputWarning
from mwork_jax.load import _HUB_FILES, default_dtype, read_config
from mwork_jax.model.parameters import weight_bytes
from support.tiny import hf_model, pair, tokens, torch

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
    assert model.info.source == str(tmp_path)


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
    a, b = (mw.load_model(tmp_path / name, dtype="float32").info for name in "ab")
    assert a.weights != b.weights
    assert a == mw.load_model(tmp_path / "a", dtype="float32").info


def test_a_key_does_not_depend_on_how_the_path_is_spelled(tiny_folder, monkeypatch):
    whole = mw.load_model(tiny_folder, dtype="float32")
    monkeypatch.chdir(tiny_folder.parent)
    relative = mw.load_model(f"./{tiny_folder.name}", dtype="float32")
    whole.tokenizer(["a", "b c"], padding=True, truncation=True, max_length=4)  # leaves its mark on the tokenizer
    assert relative.key == whole.key
    assert relative.info == replace(whole.info, source=f"./{tiny_folder.name}")
    assert mw.load_model(tiny_folder, dtype="bfloat16").key != whole.key


def test_a_single_weight_changes_the_key():
    model = pair("llama", 2).model
    for name in ("down", "q", "attn_norm"):

        def change(path, leaf, name=name):
            return leaf.at[(1,) * leaf.ndim].multiply(1.0001) if f"'{name}'" in str(path) else leaf

        changed = jax.tree_util.tree_map_with_path(change, model)
        assert changed.key["weights"] != model.key["weights"], name


def test_tokenizers_are_part_of_the_key(tiny_folder, tmp_path):
    folder = tmp_path / "model"
    shutil.copytree(tiny_folder, folder)
    text = (folder / "tokenizer.json").read_text()
    written = json.loads(text)
    written["post_processor"] = None  # no BOS in front of a text
    (folder / "tokenizer.json").write_text(json.dumps(written))
    with_bos, without = mw.load_model(tiny_folder, dtype="float32"), mw.load_model(folder, dtype="float32")
    assert with_bos.key["weights"] == without.key["weights"]
    assert with_bos.key["tokenizer"] != without.key["tokenizer"]
    assert pair("llama", 2).model.key["tokenizer"] is None


def test_a_model_goes_through_jit_and_grad():
    model, ids = pair("llama", 2).model, tokens(2, 7)
    mask = mw.NeuronMask.keep_all(model.config)
    traces = []

    @jax.jit
    def forward(model, ids, mask):
        traces.append(model.source)
        return mw.forward(model, ids, mask)

    for _ in range(2):
        again = mw.Model(model.decoder, None, "tiny")
        np.testing.assert_allclose(forward(again, ids, mask), mw.forward(model, ids, mask), atol=1e-6, rtol=0)
    assert traces == ["tiny"]
    gradient = jax.grad(lambda model: jnp.square(forward(model, ids, mask)).mean())(model)
    assert isinstance(gradient, mw.Model)
    assert gradient.config == model.config
    assert jax.tree.structure(gradient) == jax.tree.structure(model)
    assert all(np.any(np.asarray(leaf) != 0) for leaf in jax.tree.leaves(gradient))
    moved = jax.tree.map(lambda weight, slope: weight - 0.1 * slope, model, gradient)
    assert moved.key["weights"] != model.key["weights"]


def test_models_with_different_tokenizers_are_not_mixed_up():
    decoder, first, second = pair("llama", 2).decoder, object(), object()
    structures = [jax.tree.structure(mw.Model(decoder, tokenizer, "x")) for tokenizer in (first, first, second)]
    assert structures[0] == structures[1] != structures[2]
    assert hash(structures[0]) == hash(structures[1])


def test_a_single_changed_weight_is_another_model():
    model = mw.Model(pair("llama", 2).decoder, None, "tiny")
    arrays = parameter_arrays(model.decoder)
    arrays["layers.down"] = arrays["layers.down"].at[1, 3, 7].add(1e-3)
    tuned = mw.Model(mw.Decoder(model.config, arrays), None, "tiny")
    assert tuned.info.weights != model.info.weights


def edit_config(folder, **changes):
    path = folder / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


def cut(path, share):
    data = path.read_bytes()
    path.write_bytes(data[: int(len(data) * share)])


def stale_shards(folder):
    shutil.copy(folder / "model.safetensors", folder / "old.safetensors")
    (folder / "model.safetensors.index.json").write_text('{"weight_map": {"model.norm.weight": "old.safetensors"}}')


def one_deeper(folder):
    """As the Hub's cache has it."""
    below = folder / "snapshots" / "abc"
    below.mkdir(parents=True)
    for path in [path for path in folder.iterdir() if path.is_file()]:
        path.rename(below / path.name)


def as_doubles(folder):
    tensors = {name: tensor.astype(np.float64) for name, tensor in load_file(folder / "model.safetensors").items()}
    tensors["lm_head.weight"][7, 3] = -1e39
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})


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
    "far wider": (
        lambda f: edit_config(f, intermediate_size=1 << 30),
        r"has shape .48, 32., the configuration needs .1073741824, 32.",
    ),
    "more layers": (lambda f: edit_config(f, num_hidden_layers=9), "and .* more missing"),
    "fewer layers": (lambda f: edit_config(f, num_hidden_layers=3), "that the configuration does not explain"),
    "cut short": (lambda f: cut(f / "model.safetensors", 0.7), "damaged or cut short"),
    "cut in the header": (lambda f: cut(f / "model.safetensors", 0.001), "damaged or cut short"),
    "empty": (lambda f: (f / "model.safetensors").write_bytes(b""), "damaged or cut short"),
    "tokenizer": (lambda f: cut(f / "tokenizer.json", 0.5), "tokenizer cannot be read"),
    "a pointer": (
        lambda f: (f / "model.safetensors").write_text("version https://git-lfs.github.com/spec/v1\noid sha256:0\n"),
        r"model.safetensors: a Git LFS pointer, not the file itself; fetch it with `git lfs pull`",
    ),
    "an adapter": (lambda f: (f / "adapter_config.json").write_text("{}"), "a LoRA adapter, not a model; merge it"),
    "pickled": (
        lambda f: (f / "model.safetensors").rename(f / "pytorch_model.bin"),
        "pytorch_model.bin can hold code and is not read",
    ),
    "shards without an index": (
        lambda f: (f / "model.safetensors").rename(f / "model-00001-of-00001.safetensors"),
        "there is model-00001-of-00001.safetensors, but not model.safetensors.index.json",
    ),
    "another layout": (
        lambda f: (f / "model.safetensors").rename(f / "consolidated.safetensors"),
        "consolidated.safetensors is not in Hugging Face's layout",
    ),
    "one folder too high": (one_deeper, "no config.json; .* has one: .*/snapshots/abc, for example"),
    "a mark of Windows": (
        lambda f: (f / "config.json").write_bytes(b"\xef\xbb\xbf" + (f / "config.json").read_bytes()),
        "config.json: begins with a byte order mark",
    ),
    "two sets": (
        stale_shards,
        "two sets of weights, model.safetensors and the files that model.safetensors.index.json names",
    ),
    "NaN": (
        lambda f: edit_tensor(f, "model.layers.2.mlp.down_proj.weight", np.nan),
        "model.layers.2.mlp.down_proj.weight holds NaN or infinity",
    ),
    "too large for float32": (as_doubles, rf"lm_head.weight holds 1e\+39, which {default_dtype()} does not have"),
    "infinity": (lambda f: edit_tensor(f, "model.norm.weight", -np.inf), "model.norm.weight holds NaN or infinity"),
}


def edit_tensor(folder, name, value):
    """One entry of a tensor."""
    tensors = load_file(folder / "model.safetensors")
    tensors[name].reshape(-1)[-1] = value
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})


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


def test_a_tensor_in_two_files_is_refused(tmp_path):
    hf_model("llama", 2).save_pretrained(tmp_path, max_shard_size="20KB")
    first, second, *_ = sorted(tmp_path.glob("model-*.safetensors"))
    twice = next(iter(load_file(first)))
    save_file({**load_file(second), twice: load_file(first)[twice] + 1}, second, metadata={"format": "pt"})
    with pytest.raises(mw.InputError, match=f"{twice} is in two files, {first.name} and {second.name}"):
        mw.load_model(tmp_path)


def renamed(folder, prefix, head):
    """The checkpoint with other prefixes in front of its tensors and of its head."""
    tensors = load_file(folder / "model.safetensors")
    spelled = {
        head + name if name.startswith("lm_head") else prefix + name.removeprefix("model."): tensor
        for name, tensor in tensors.items()
    }
    save_file(spelled, folder / "model.safetensors", metadata={"format": "pt"})


@pytest.mark.parametrize("mesh", [None, "a mesh"])
@pytest.mark.parametrize(
    ("family", "prefix", "head"),
    [
        ("llama-tied", "", ""),
        ("llama", "language_model.model.", "language_model."),
        ("llama", "model.language_model.", ""),
        ("llama", "_orig_mod.model.", "_orig_mod."),
        ("llama", "module.model.", "module."),
        ("llama", "base_model.model.model.", "base_model.model."),
    ],
)
def test_parts_of_larger_models_have_other_names(family, prefix, head, mesh, tmp_path):
    hf_model(family, 2).save_pretrained(tmp_path)
    expected = mw.load_model(tmp_path, dtype="float32").decoder
    renamed(tmp_path, prefix, head)
    found = mw.load_model(tmp_path, dtype="float32", mesh=mw.make_mesh({"data": 1}) if mesh else None).decoder
    for x, y in zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True):
        np.testing.assert_array_equal(x, y)


def test_two_spellings_of_one_tensor_are_refused(tmp_path):
    hf_model("llama", 2).save_pretrained(tmp_path)
    tensors = load_file(tmp_path / "model.safetensors")
    tensors["model.language_model.embed_tokens.weight"] = tensors["model.embed_tokens.weight"] + 1
    save_file(tensors, tmp_path / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(mw.InputError, match=r"model.embed_tokens.weight and model.language_model.embed_tokens.weight"):
        mw.load_model(tmp_path)


def test_one_tensor_beside_its_other_spelling_is_refused(tmp_path):
    hf_model("llama", 2).save_pretrained(tmp_path)
    renamed(tmp_path, "model.language_model.", "")
    tensors = load_file(tmp_path / "model.safetensors")
    tensors["model.norm.weight"] = tensors["model.language_model.norm.weight"] + 1
    save_file(tensors, tmp_path / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(mw.InputError, match=r"norm.weight is in the checkpoint under another name too"):
        mw.load_model(tmp_path)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_a_head_that_is_not_the_embedding_it_should_be_is_refused(dtype, tmp_path):
    hf_model("llama-tied", 2).save_pretrained(tmp_path)
    tensors = load_file(tmp_path / "model.safetensors")
    embed = tensors["model.embed_tokens.weight"]
    save_file({**tensors, "lm_head.weight": embed}, tmp_path / "model.safetensors", metadata={"format": "pt"})
    mw.load_model(tmp_path, dtype=dtype)
    changed = embed.copy()
    changed[-1, -1] += 1
    save_file({**tensors, "lm_head.weight": changed}, tmp_path / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(
        mw.InputError, match=r"tie_word_embeddings is true, but lm_head.weight differs from model.embed"
    ):
        mw.load_model(tmp_path, dtype=dtype)


@pytest.mark.parametrize(
    "name", [3, None, ["a"], "../x.safetensors", "/x.safetensors", "a/../../x", "", "é" * 200, "a\0"]
)
def test_an_index_names_files_of_its_folder(name, tmp_path):
    hf_model("llama", 2).save_pretrained(tmp_path, max_shard_size="20KB")
    index = tmp_path / "model.safetensors.index.json"
    written = json.loads(index.read_text())
    written["weight_map"]["model.norm.weight"] = name
    index.write_text(json.dumps(written))
    with pytest.raises(mw.InputError, match=r"model.norm.weight is in .*the name of a file here") as error:
        mw.load_model(tmp_path)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(("dtype", "stored"), [(np.int8, "I8"), (np.int32, "I32"), (np.bool_, "BOOL")])
def test_whole_numbers_are_not_weights(dtype, stored, tmp_path):
    hf_model("llama", 2).save_pretrained(tmp_path)
    name, path = "model.layers.1.mlp.down_proj.weight", tmp_path / "model.safetensors"
    tensors = load_file(path)
    save_file({**tensors, name: tensors[name].astype(dtype)}, path)
    with pytest.raises(mw.InputError, match=f"{name} is stored as {stored}; one of F32"):
        mw.load_model(tmp_path)


@pytest.mark.parametrize("dtype", [np.float64, np.float16])
def test_other_floats_are_read(dtype, tmp_path):
    hf_model("llama", 2).save_pretrained(tmp_path)
    tensors = load_file(tmp_path / "model.safetensors")
    save_file({name: tensor.astype(dtype) for name, tensor in tensors.items()}, tmp_path / "model.safetensors")
    norm = mw.load_model(tmp_path, dtype="float32").decoder.final_norm[...]
    np.testing.assert_array_equal(norm, tensors["model.norm.weight"].astype(dtype).astype(np.float32))


def test_only_the_files_that_are_read_come_from_the_hub():
    read = [
        "config.json", "model.safetensors", "model-00001-of-00002.safetensors", "model.safetensors.index.json",
        "flax_model.msgpack", "flax_model-00001-of-00002.msgpack", "flax_model.msgpack.index.json",
        "tokenizer.json", "tokenizer.model", "chat_template.jinja",
    ]  # fmt: skip
    others = ["adapter_model.safetensors", "consolidated.safetensors", "pytorch_model.bin", "original/params.pth"]
    assert list(filter_repo_objects([*read, *others], allow_patterns=_HUB_FILES)) == read


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("./no/such/folder", "no such model; give a folder"),
        ("nothing.gguf", "no such model"),
        ("just-a-name", "no such model"),
        ("owner/name", "the Hub could not give it"),
        ("", "the model has no name; is a variable of the shell not set"),
        (f"{'x' * 300}/folder", "no such model .*too long"),
        ("~nobody-has-this-name/x", "no such model"),
        ("https://huggingface.co/owner/name/tree/main", "address of a page; the model's Hub id is owner/name$"),
    ],
)
def test_models_that_are_not_there(source, message):
    with pytest.raises(mw.InputError, match=message) as error:
        mw.load_model(source)
    assert source in str(error.value)
    assert "\n" not in str(error.value)


def test_a_hub_id_is_the_folder_that_the_hub_gives(tiny_folder, monkeypatch):
    """A stand-in for the network; what is shared out over devices depends on the size of the files."""
    asked = []

    def snapshot_download(repository, revision, allow_patterns):
        asked.append((repository, revision))
        return str(tiny_folder)

    monkeypatch.setattr("huggingface_hub.snapshot_download", snapshot_download)
    assert read_config("owner/name@refs/pr/13") == read_config(tiny_folder)
    assert asked == [("owner/name", "refs/pr/13")]
    with pytest.raises(mw.InputError, match="owner/name@: a revision follows the @"):
        read_config("owner/name@")
    assert mw.load_model("owner/name").key == mw.load_model(tiny_folder).key
    decoder = mw.load_model(tiny_folder, dtype="float32").decoder
    config = read_config("owner/name")
    assert weight_bytes(config, "float32") == sum(a.nbytes for a in parameter_arrays(decoder).values())
    assert weight_bytes(config, "bfloat16") < 0.6 * weight_bytes(config, "float32")


def test_it_ends_where_the_generation_config_says(tiny_folder, tmp_path):
    shutil.copytree(tiny_folder, tmp_path / "model")
    config = json.loads((tiny_folder / "config.json").read_text())
    path = tmp_path / "model" / "generation_config.json"
    path.write_text(json.dumps({"eos_token_id": [7, config["eos_token_id"]], "temperature": 0.6}))
    assert mw.load_model(tmp_path / "model").config.eos_ids == (config["eos_token_id"], 7)
    path.write_text('{"eos_token_id": 99999}')
    with pytest.warns(InputWarning, match="the end token 99999 is not in the vocabulary of 259"):
        mw.load_model(tmp_path / "model")
    path.write_text('{"eos_token_id": "end"}')
    with pytest.raises(mw.InputError, match=r"generation_config.json: eos_token_id is 'end'; a token id"):
        mw.load_model(tmp_path / "model")


def test_penalties_of_the_generation_config_are_named_where_answers_are_made(tiny_folder, tmp_path):
    shutil.copytree(tiny_folder, tmp_path / "model")
    settings = {"repetition_penalty": 1.1, "num_beams": 1, "do_sample": True, "no_repeat_ngram_size": 3}
    (tmp_path / "model" / "generation_config.json").write_text(json.dumps(settings))
    model = mw.load_model(tmp_path / "model", dtype="float32")
    keep = mw.NeuronMask.keep_all(model.config)
    penalties = r"without its generation_config.json's repetition_penalty 1.1, no_repeat_ngram_size 3$"
    with pytest.warns(InputWarning, match=penalties), pytest.raises(mw.InputError, match="there are none"):
        mw.generate(model, [], keep, max_new_tokens=2)
    assert mw.load_model(tiny_folder).ignored_in_answers == ()


def test_a_file_that_is_no_model(tmp_path):
    path = tmp_path / "weights.bin"
    path.write_bytes(b"x")
    with pytest.raises(mw.InputError, match="not a model"):
        mw.load_model(path)
    with pytest.raises(mw.InputError, match="dtype 'float16'"):
        mw.load_model(path, dtype="float16")
