"""Tokenizers of a model folder: what fails on a text is refused when it is loaded, not in the middle of the work."""

import json
import shutil

import pytest
from tokenizers import Tokenizer

from mwork_jax.errors import InputError
from mwork_jax.load.tokenizer import folder_tokenizer


@pytest.fixture
def folder(tiny_folder, tmp_path):
    for path in tiny_folder.glob("tokenizer*"):
        shutil.copy(path, tmp_path)
    return tmp_path


def changed(path, *keys, value):
    """The JSON file with another value at keys."""
    whole = part = json.loads(path.read_text())
    for key in keys[:-1]:
        part = part[key]
    part[keys[-1]] = value
    path.write_text(json.dumps(whole))


@pytest.mark.parametrize("value", ["x", [], {"a": 1}, True, -1, 0])
def test_a_length_that_is_no_number(value, folder):
    changed(folder / "tokenizer_config.json", "model_max_length", value=value)
    with pytest.raises(InputError, match=r"model_max_length is .*; a positive number is needed"):
        folder_tokenizer(folder)


def test_a_panic_of_the_library_is_one_line(folder):
    """A post-processor that adds a token without an id."""
    changed(folder / "tokenizer.json", "post_processor", "special_tokens", "<s>", "ids", value=[])
    changed(folder / "tokenizer.json", "post_processor", "special_tokens", "<s>", "tokens", value=[""])
    changed(folder / "tokenizer.json", "post_processor", "single", 0, "SpecialToken", "id", value="")
    with pytest.raises(InputError) as error:
        folder_tokenizer(folder)
    assert "\n" not in str(error.value)


def test_one_that_transformers_rebuilds_with_a_loss(folder, monkeypatch):
    """transformers 5.3 makes a SentencePiece tokenizer of a byte-level one that its configuration calls Llama's: spaces
    and Chinese are lost."""
    from transformers import AutoTokenizer, PreTrainedTokenizerFast

    right = folder_tokenizer(folder)
    rebuilt = json.loads((folder / "tokenizer.json").read_text()) | {"pre_tokenizer": {"type": "Whitespace"}}
    lossy = PreTrainedTokenizerFast(tokenizer_object=Tokenizer.from_str(json.dumps(rebuilt)))
    monkeypatch.setattr(AutoTokenizer, "from_pretrained", lambda *_, **__: lossy)
    with pytest.raises(
        InputError, match=r"reads it otherwise than it is written \('hello world 你好' comes back as 'hello"
    ):
        folder_tokenizer(folder)
    monkeypatch.setattr(AutoTokenizer, "from_pretrained", lambda *_, **__: right)
    assert folder_tokenizer(folder) is right


@pytest.mark.parametrize("fixed", ["padding", "truncation"])
def test_one_that_changes_text_as_its_file_says(fixed, folder):
    """Also where the file has texts padded or cut, as transformers does only when asked."""
    whole = Tokenizer.from_file(str(folder / "tokenizer.json"))
    if fixed == "padding":
        whole.enable_padding(length=64)
    else:
        whole.enable_truncation(max_length=2)
    whole.save(str(folder / "tokenizer.json"))
    changed(
        folder / "tokenizer.json",
        "normalizer",
        value={"type": "Replace", "pattern": {"String": "hello"}, "content": "H"},
    )
    assert (
        folder_tokenizer(folder).decode(folder_tokenizer(folder)("hello x", add_special_tokens=False)["input_ids"])
        == "H x"
    )
