"""The language of a vocabulary's entries: scripts, lingua, and a list that was labelled by hand."""

import json

import numpy as np
import pytest

from mwork_jax.errors import InputError
from mwork_jax.lens.vocabulary import (
    LABELLERS,
    VocabularyLabels,
    label_vocabulary,
    script_of,
    scripts_of,
    vocabulary_texts,
)
from support.paths import TEST_DATA

HAND = json.loads((TEST_DATA / "token_languages.json").read_text())["tokens"]
LANGUAGES = ("en", "de", "fr", "es", "ru", "zh", "th", "ar")


class Vocabulary:
    """A tokenizer of these texts, one each."""

    all_special_ids = ()

    def __init__(self, texts):
        self.texts = texts

    def __len__(self):
        return len(self.texts)

    def decode(self, ids):
        return "".join(self.texts[i] for i in ids)


def labelled(texts, languages=LANGUAGES, labeller="lingua"):
    labels = label_vocabulary(Vocabulary(texts), len(texts), languages, labeller)
    return [labels.of(i) for i in range(len(texts))]


def test_at_least_nine_in_ten_agree_with_a_hand_made_list():
    assert len(HAND) == 200
    found = labelled([text for text, _ in HAND])
    wrong = [(text, said, label) for (text, said), label in zip(HAND, found, strict=True) if label not in said]
    assert len(wrong) <= 20, wrong
    clear = [said[0] for _, said in HAND if len(said) == 1]
    assert set(LANGUAGES) <= set(clear)
    missed = [w for w in wrong if len(w[1]) == 1]
    assert len(missed) <= 0.1 * len(clear), "also where a reader would accept one label only"


@pytest.mark.slow
def test_the_hand_made_list_in_the_vocabulary_of_gemma():
    from mwork_jax.load.gguf_file import GGUFCheckpoint
    from mwork_jax.load.packaged import packaged_gguf

    tokenizer = GGUFCheckpoint(packaged_gguf("gemma3-270m")).tokenizer()
    size = len(tokenizer)
    labels = label_vocabulary(tokenizer, size, LANGUAGES)
    texts = vocabulary_texts(tokenizer, size)
    places = {text: i for i, text in reversed(list(enumerate(texts)))}
    special = tokenizer.convert_tokens_to_ids("<eos>")
    agree = [labels.of(places.get(text, special)) in said for text, said in HAND]
    assert sum(agree) >= 0.9 * len(HAND)
    assert all(text in places or text == "<eos>" for text, _ in HAND), "the list is of this vocabulary"
    assert sum(labels.counts().values()) == size


def test_scripts_decide_without_a_labeller():
    texts = ["ที่", "не", "时间", "ひらがな", "한국", "مدينة", "λόγος", "हिन्दी", "the"]
    languages = ("th", "ru", "zh", "ja", "ko", "ar", "el", "hi", "en")
    expected = ["th", "ru", "unclear", "ja", "ko", "ar", "el", "hi", "en"]  # Han is Chinese or Japanese
    assert labelled(texts, languages, "scripts") == expected
    assert labelled(texts, ("en", "de"), "scripts") == ["other"] * 8 + ["unclear"]


@pytest.mark.parametrize("text", ["", " ", "123", "...", "</b>", "<unused7>", "[multimodal]", "�", "\n\n", "👍", "="])
def test_what_is_no_word_has_no_language(text):
    assert script_of(text) is None
    assert labelled([text]) == ["none"]


@pytest.mark.parametrize("text", ["getElement", "my_name", "x2", "os.path"])
def test_an_identifier_is_of_no_language(text):
    assert labelled([text]) == ["unclear"]


def test_a_vocabulary_longer_than_its_tokenizer():
    labels = label_vocabulary(Vocabulary(["the", "ที่"]), 5, ("en", "th"))
    assert [labels.of(i) for i in range(5)] == ["en", "th", "none", "none", "none"]
    assert labels.counts() == {"en": 1, "th": 1, "other": 0, "unclear": 0, "none": 3}
    np.testing.assert_array_equal(labels.table().sum(axis=1), 1)


def test_a_labeller_of_ones_own_decides_only_what_scripts_leave_open():
    asked = []

    def shouting(texts, languages):
        asked.extend(texts)
        return [languages[-1] if text.isupper() else None for text in texts]

    assert labelled(["HAUS", " HAUS", "haus", "не"], ("en", "de", "ru"), shouting) == ["de", "de", "unclear", "ru"]
    assert asked == ["HAUS", "haus"], "each text is asked about once"


def test_saved_and_loaded(tmp_path):
    labels = label_vocabulary(Vocabulary(["the", "und", "7"]), 3, ("en", "de"))
    labels.save(tmp_path / "labels.json")
    again = VocabularyLabels.load(tmp_path / "labels.json")
    assert (again.columns, again.provenance) == (labels.columns, labels.provenance)
    np.testing.assert_array_equal(again.codes, labels.codes)


@pytest.mark.parametrize("change", [{"codes": "az"}, {"codes": ""}, {"columns": ["en"]}, {"codes": 3}, {"format": "x"}])
def test_damaged_labels_are_named(tmp_path, change):
    path = tmp_path / "labels.json"
    label_vocabulary(Vocabulary(["the"]), 1, ("en",)).save(path)
    path.write_text(json.dumps({**json.loads(path.read_text()), **change}))
    with pytest.raises(InputError, match=r"labels\.json: (damaged|not) "):
        VocabularyLabels.load(path)


def test_languages_that_cannot_be():
    with pytest.raises(InputError, match="each once"):
        label_vocabulary(Vocabulary(["a"]), 1, ("en", "en"))
    with pytest.raises(InputError, match="at least one"):
        label_vocabulary(Vocabulary(["a"]), 1, ())
    with pytest.raises(InputError, match="lingua does not know 'xx'"):
        label_vocabulary(Vocabulary(["a"]), 1, ("en", "xx"))
    with pytest.raises(InputError, match=f"one of {', '.join(LABELLERS)}"):
        label_vocabulary(Vocabulary(["a"]), 1, ("en", "de"), "magic")
    assert scripts_of("zh-TW") == ("Han",)
