"""The tokenizer of a GGUF file, rebuilt from its metadata with the `tokenizers` library.

Two kinds exist among the supported families: SentencePiece BPE ("llama": Llama 1 and 2, Mistral, Gemma, Phi 3), where
merges follow from the scores of the pieces, and byte-level BPE ("gpt2": Llama 3, Qwen, Cohere and most others), whose
merges are listed.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np

from mwork_jax.errors import InputError

_NORMAL, _CONTROL, _USER_DEFINED, _BYTE = 1, 3, 4, 6  # token types; 2 is unknown, 5 unused
_SPACE = "\u2581"  # how SentencePiece writes a space
_PREFIX = "tokenizer.ggml."
_LLAMA3_BEGIN = "<|begin_of_text|>"
_IN_BRACKETS = re.compile(r"<[^<>\s]+>")
_SPECIAL = {"bos": "bos", "eos": "eos", "unk": "unknown", "pad": "padding"}

_CONTRACTIONS = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)"
_REST = r" ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
_BEFORE = r"[^\r\n\p{L}\p{N}]?"
_CASED_REST = r" ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+"
_BLOOM = r" ?[^(\s|.,!?…。，、।۔،)]+"


class _Split(NamedTuple):
    """How byte-level BPE cuts text into words before merging."""

    pattern: str | None = None  # None: GPT-2's own pattern, which the library knows
    first: str | None = None  # what is cut out before that
    single_digits: bool = False
    nfc: bool = False  # composes accents first
    whole_words: bool = False  # a word that is a token stays whole, even where no merges lead to it
    adds_bos: bool = False  # the default where the file has no such entry


def _splits() -> dict[str, _Split]:
    """By the name in tokenizer.ggml.pre."""
    llama3 = _Split(
        pattern=rf"{_CONTRACTIONS}|[^\r\n\p{{L}}\p{{N}}]?\p{{L}}+|\p{{N}}{{1,3}}|{_REST}",
        whole_words=True,
        adds_bos=True,
    )
    qwen2 = _Split(pattern=rf"{_CONTRACTIONS}|[^\r\n\p{{L}}\p{{N}}]?\p{{L}}+|\p{{N}}|{_REST}", nfc=True)
    o200k = rf"{_cased_words(f'{_CONTRACTIONS}?')}|\p{{N}}{{1,3}}|{_CASED_REST}"
    names = dict.fromkeys(("llama-bpe", "llama3", "llama-v3"), llama3) | dict.fromkeys(("gpt-2", "default"), _Split())
    # SmolLM3's, and that of OLMo 2 and Phi 4, are cut as Llama 3's, without what else it does.
    names |= dict.fromkeys(("smaug-bpe", "dbrx"), _Split(pattern=llama3.pattern))
    # Granite 3 has the vocabulary of StarCoder, whose name in llama.cpp is that of another model with it.
    names |= dict.fromkeys(("smollm", "refact", "starcoder"), _Split(single_digits=True))
    return {
        **names,
        "qwen2": qwen2,
        "command-r": _Split(single_digits=True, nfc=True),
        "tekken": _Split(rf"{_cased_words('')}|\p{{N}}|{_CASED_REST}", whole_words=True, adds_bos=True),
        "gpt-4o": _Split(o200k, whole_words=True),
        # Digits in threes from the right. That accents are composed is what Cohere's other tokenizers do.
        "tiny_aya": _Split(o200k, first=r"\d{1,3}(?=(?:\d{3})*\b)", nfc=True),
        "bloom": _Split(_BLOOM),
    }


def _cased_words(ending: str) -> str:
    """Words that are cut before a capital letter, with what may follow each (Mistral's Tekken, OpenAI's o200k)."""
    upper, lower = r"[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]", r"[\p{Ll}\p{Lm}\p{Lo}\p{M}]"
    return rf"{_BEFORE}{upper}*{lower}+{ending}|{_BEFORE}{upper}+{lower}*{ending}"


class _Vocabulary:
    """The metadata below `tokenizer.ggml.`, checked."""

    def __init__(self, metadata: Mapping[str, object], where: str):
        self.where = where
        self._metadata = metadata
        self.texts = self.strings("tokens")
        types = self.numbers("token_type")
        self.types = np.full(len(self.texts), _NORMAL) if types is None else types
        if self.types.shape != (len(self.texts),):
            raise InputError(f"{where}: {self.types.size} token types for {len(self.texts)} tokens")
        self._mark_turns()

    def _mark_turns(self) -> None:
        """Some converters give the tokens that begin and end a turn out for words, which would be cut into pieces: what
        the chat template writes in angle brackets and the vocabulary has whole is a control token."""
        written = set(_IN_BRACKETS.findall(self.template() or ""))
        turns = [i for i, text in enumerate(self.texts) if text in written and self.types[i] == _NORMAL]
        if turns:
            self.types = self.types.copy()
            self.types[turns] = _CONTROL

    def get(self, key: str, default: Any = None) -> Any:
        return self._metadata.get(_PREFIX + key, default)

    @property
    def architecture(self) -> object:
        return self._metadata.get("general.architecture")

    def template(self) -> str | None:
        """The chat template. Raises InputError where it is no text."""
        value = self._metadata.get("tokenizer.chat_template")
        if not isinstance(value, str | None):
            raise InputError(f"{self.where}: tokenizer.chat_template is {value!r:.80}; a text is needed")
        return value

    def flag(self, key: str, default: bool) -> bool:
        """A switch. Raises InputError where it is something else."""
        value = self.get(key, default)
        if not isinstance(value, bool | int):
            raise InputError(f"{self.where}: {_PREFIX}{key} is {value!r:.80}; true or false is needed")
        return bool(value)

    def numbers(self, key: str) -> np.ndarray | None:
        """A list of numbers, None where the file has none. Raises InputError where it is something else."""
        value = self.get(key)
        if value is not None and (not isinstance(value, np.ndarray) or value.dtype == bool):
            raise InputError(f"{self.where}: {_PREFIX}{key} is {value!r:.80}; a list of numbers is needed")
        return value

    def strings(self, key: str) -> list[str]:
        """A list of texts (a copy), empty where the file has none. Raises InputError where it is something else."""
        value = self.get(key, [])
        if not isinstance(value, list) or not all(isinstance(text, str) for text in value):
            raise InputError(f"{self.where}: {_PREFIX}{key} is {value!r:.80}; a list of texts is needed")
        return value.copy()

    def of_type(self, kind: int) -> list[str]:
        return [self.texts[i] for i in np.flatnonzero(self.types == kind)]

    def ids(self) -> dict[str, int]:
        """Text -> id. Raises InputError where two tokens are the same."""
        ids = {text: i for i, text in enumerate(self.texts)}
        if len(ids) != len(self.texts):
            twice = next(text for i, text in enumerate(self.texts) if ids[text] != i)
            raise InputError(f"{self.where}: token {twice!r} is in the vocabulary twice")
        return ids

    def special(self, name: str) -> str | None:
        """The text of the bos, eos, unk or pad token, or None where the file names none."""
        key = f"{_SPECIAL[name]}_token_id"
        index = self.get(key)
        if index is None:
            return None
        if type(index) is not int or not 0 <= index < len(self.texts):
            raise InputError(
                f"{self.where}: {_PREFIX}{key} is {index!r:.80}; the vocabulary has {len(self.texts)} tokens"
            )
        return self.texts[index]


def build_tokenizer(metadata: Mapping[str, object], where: str) -> Any | None:
    """A transformers fast tokenizer from GGUF metadata, or None where there is no vocabulary in it.

    where: the file, for messages. Raises InputError for a tokenizer or a pre-tokenizer that is not supported, or
    metadata that does not fit together.
    """
    vocabulary = _Vocabulary(metadata, where)
    if not vocabulary.texts:
        return None
    model = vocabulary.get("model")
    kinds = {"llama": lambda v: (_sentencepiece(v), True), "gpt2": _byte_level}
    if not isinstance(model, str) or model not in kinds:
        raise InputError(f"{where}: tokenizer {model!r:.80} is not supported; supported: {', '.join(kinds)}")
    tokenizer, adds_bos = kinds[model](vocabulary)
    _add_ends(tokenizer, vocabulary, adds_bos)
    return _wrap(tokenizer, vocabulary, metadata)


def _sentencepiece(vocabulary: _Vocabulary) -> Any:
    """SentencePiece BPE: spaces become visible, characters without a piece become bytes."""
    from tokenizers import AddedToken, Tokenizer, decoders, normalizers
    from tokenizers.models import BPE

    for key in ("remove_extra_whitespaces", "precompiled_charsmap"):
        if np.any(vocabulary.get(key, False)):
            raise InputError(f"{vocabulary.where}: {_PREFIX}{key} is set, which is not supported for tokenizer 'llama'")
    merges = merges_from_scores(vocabulary.of_type(_NORMAL), _normal_scores(vocabulary))
    model = BPE(
        vocabulary.ids(),
        merges,
        unk_token=vocabulary.special("unk"),
        fuse_unk=True,
        byte_fallback=bool((vocabulary.types == _BYTE).any()),
    )
    tokenizer = Tokenizer(model)
    # Gemma's vocabularies have no space in front of a text; files of some converters leave that to the reader.
    prefix = vocabulary.flag("add_space_prefix", not str(vocabulary.architecture).startswith("gemma"))
    spaces = normalizers.Replace(" ", _SPACE)
    tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend(_SPACE), spaces]) if prefix else spaces
    steps = [decoders.Replace(_SPACE, " "), decoders.ByteFallback(), decoders.Fuse()]
    tokenizer.decoder = decoders.Sequence([*steps, decoders.Strip(" ", 1, 0)] if prefix else steps)
    # User-defined pieces are cut out before any merging. Gemma has runs of spaces among them, written with real spaces:
    # normalised like the text, they match it. A normaliser that puts a space in front would do so to the pieces too.
    tokenizer.add_tokens([AddedToken(t, normalized=not prefix) for t in vocabulary.of_type(_USER_DEFINED)])
    # Phi 3's take the white space behind them, which no metadata says (llama.cpp goes by the model's name).
    takes = vocabulary.of_type(_CONTROL) if vocabulary.architecture == "phi3" else []
    takes = set(takes) - {"<unk>", "<s>", "<|endoftext|>"}
    control = [AddedToken(t, normalized=False, special=True, rstrip=t in takes) for t in vocabulary.of_type(_CONTROL)]
    tokenizer.add_special_tokens(control)
    return tokenizer


def _normal_scores(vocabulary: _Vocabulary) -> np.ndarray:
    scores = vocabulary.numbers("scores")
    if scores is None or scores.shape != (len(vocabulary.texts),):
        count = "no" if scores is None else scores.size
        raise InputError(f"{vocabulary.where}: {count} {_PREFIX}scores for {len(vocabulary.texts)} tokens")
    return scores[vocabulary.types == _NORMAL]


def merges_from_scores(pieces: list[str], scores: np.ndarray) -> list[tuple[str, str]]:
    """Every way to put a piece together from two others, best piece first: what SentencePiece decides from scores
    alone.

    pieces: the ordinary ones, no control or byte tokens. scores: one per piece, higher merges earlier.
    """
    known = set(pieces)
    lengths = sorted(set(map(len, known)))  # nothing else can be a piece: one of a million characters ends too
    merges = []
    for i in np.argsort(-scores, kind="stable").tolist():
        piece = pieces[i]
        for cut in lengths:
            if cut >= len(piece):
                break
            left = piece[:cut]
            if left in known and (right := piece[cut:]) in known:
                merges.append((left, right))
    return merges


def _byte_level(vocabulary: _Vocabulary) -> tuple[Any, bool]:
    """Byte-level BPE, and whether this kind puts BOS in front by default."""
    from tokenizers import AddedToken, Regex, Tokenizer, decoders, normalizers, pre_tokenizers, processors
    from tokenizers.models import BPE

    splits, name = _splits(), vocabulary.get("pre", _split_without_name(vocabulary))
    if name is None:
        raise InputError(
            f"{vocabulary.where}: no {_PREFIX}pre, which says how text is split before merging; convert the model again"
        )
    if not isinstance(name, str) or name not in splits:
        known = ", ".join(splits)
        raise InputError(f"{vocabulary.where}: pre-tokenizer {name!r:.80} is not supported; supported: {known}")
    split, ids = splits[name], vocabulary.ids()
    merges = _listed_merges(vocabulary, ids)
    tokenizer = Tokenizer(BPE(ids, merges, fuse_unk=False, byte_fallback=False, ignore_merges=split.whole_words))
    if split.nfc:
        tokenizer.normalizer = normalizers.NFC()
    steps = [pre_tokenizers.Split(Regex(cut), "isolated") for cut in (split.first, split.pattern) if cut]
    steps += [pre_tokenizers.Digits(individual_digits=True)] if split.single_digits else []
    steps += [pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=split.pattern is None)]
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(steps)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.post_processor = processors.ByteLevel(trim_offsets=False)
    tokenizer.add_tokens([AddedToken(t, normalized=False) for t in vocabulary.of_type(_USER_DEFINED)])
    tokenizer.add_special_tokens([AddedToken(t, normalized=False, special=True) for t in vocabulary.of_type(_CONTROL)])
    return tokenizer, split.adds_bos


def _split_without_name(vocabulary: _Vocabulary) -> str | None:
    """The split of files from before there was a name for it, by what else tells the vocabulary; None: nothing does."""
    if vocabulary.architecture in ("qwen2", "qwen3"):
        return "qwen2"
    return "llama-bpe" if _LLAMA3_BEGIN in vocabulary.texts else None


def _listed_merges(vocabulary: _Vocabulary, ids: Mapping[str, int]) -> list[tuple[str, str]]:
    """The merges, best first. Raises InputError for one that does not join two tokens to a third."""
    merges = []
    for merge in vocabulary.strings("merges"):
        left, _, right = merge.partition(" ")
        if left not in ids or right not in ids or left + right not in ids:
            raise InputError(f"{vocabulary.where}: merge {merge!r} does not fit the vocabulary")
        merges.append((left, right))
    return merges


def _add_ends(tokenizer: Any, vocabulary: _Vocabulary, adds_bos: bool) -> None:
    """BOS and EOS around every text, as the file asks for."""
    from tokenizers.processors import TemplateProcessing

    wanted = {"bos": vocabulary.flag("add_bos_token", adds_bos), "eos": vocabulary.flag("add_eos_token", False)}
    ends = {name: vocabulary.special(name) for name, wants in wanted.items() if wants}
    missing = [name for name, text in ends.items() if text is None]
    if missing:
        raise InputError(
            f"{vocabulary.where}: the tokenizer adds {missing[0]} but {_PREFIX}{missing[0]}_token_id is missing"
        )
    bos, eos = ends.get("bos"), ends.get("eos")
    first = [*([bos] if bos else []), "$A", *([eos] if eos else [])]
    second = [f"{part.replace('$A', '$B')}:1" for part in first]
    special = [(text, vocabulary.texts.index(text)) for text in ends.values() if text is not None]
    if special or tokenizer.post_processor is None:
        tokenizer.post_processor = TemplateProcessing(single=first, pair=[*first, *second], special_tokens=special)


class _Uncopied:
    """Hands a tokenizer over as it is. transformers deep-copies what it is given, through JSON: seconds for a large
    vocabulary that nobody else holds."""

    def __init__(self, tokenizer: Any):
        self._tokenizer = tokenizer

    def __deepcopy__(self, memo: dict[int, Any]) -> Any:
        return self._tokenizer


def _wrap(tokenizer: Any, vocabulary: _Vocabulary, metadata: Mapping[str, object]) -> Any:
    from transformers import PreTrainedTokenizerFast  # takes a second to import; models without text never pay for it

    special = {f"{name}_token": vocabulary.special(name) for name in _SPECIAL}
    length = metadata.get(f"{metadata.get('general.architecture')}.context_length")
    return PreTrainedTokenizerFast(
        tokenizer_object=_Uncopied(tokenizer),
        clean_up_tokenization_spaces=False,
        chat_template=vocabulary.template(),
        **{name: text for name, text in special.items() if text is not None},
        **({"model_max_length": length} if isinstance(length, int) and length > 0 else {}),
    )
