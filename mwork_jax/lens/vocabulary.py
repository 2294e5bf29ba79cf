"""The language of every entry of a vocabulary, decided once: what the logit lens counts with.

The script decides where it can (Thai letters are Thai); where several of the languages share a script, a labeller
decides among those. An entry that nothing decides is not forced into a language: it is `other` (letters of a script
that none of the languages is written in), `unclear` (letters, and several languages are likely) or `none` (no letters:
digits, punctuation, control tokens, half a character).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np
import regex

from mwork_jax.errors import InputError
from mwork_jax.metrics import lingua_codes
from mwork_jax.model.tokens import vocabulary_texts
from mwork_jax.runtime.files import read_json, write_json

OTHER, UNCLEAR, NONE = REST = ("other", "unclear", "none")
LABELLING_VERSION = 1  # the version of what decides: kept labels of another one are made again
Labeller = Callable[[Sequence[str], Sequence[str]], Sequence[str | None]]
_FORMAT = "mwork-labels-1"
_LATIN = ("Latin",)
_SCRIPTS_OF = {
    "Arabic": "ar fa ps sd ug ur",
    "Armenian": "hy",
    "Bengali": "as bn",
    "Cyrillic": "be bg kk ky mk mn ru sr tg uk",
    "Devanagari": "hi mr ne sa",
    "Ethiopic": "am ti",
    "Georgian": "ka",
    "Greek": "el",
    "Gujarati": "gu",
    "Gurmukhi": "pa",
    "Han": "zh ja",
    "Hangul": "ko",
    "Hebrew": "he yi",
    "Hiragana": "ja",
    "Kannada": "kn",
    "Katakana": "ja",
    "Khmer": "km",
    "Lao": "lo",
    "Malayalam": "ml",
    "Myanmar": "my",
    "Oriya": "or",
    "Sinhala": "si",
    "Tamil": "ta",
    "Telugu": "te",
    "Thai": "th",
    "Tibetan": "bo dz",
}
_LETTER = regex.compile(
    "|".join(rf"(?P<{s}>\p{{Script={s}}})" for s in ("Latin", *_SCRIPTS_OF)) + r"|(?P<another>\p{L})"
)
_TAG = regex.compile(r"\s*(</?[\w|-]*>|\[[\w@-]*\])\s*")  # <b>, <unused7>, [multimodal]
_IDENTIFIER = regex.compile(r"\p{Ll}\p{Lu}|[\p{L}]_|_[\p{L}]|\p{L}\d|\d\p{L}|\p{L}\.\p{L}")  # getElement, a_b, x2, a.b


@dataclass(frozen=True, eq=False)
class VocabularyLabels:
    """Which language each entry of a vocabulary is of.

    columns: the languages, then `other`, `unclear` and `none`. codes: int16 [vocabulary], a place in `columns`.
    provenance says which labeller decided, for which tokenizer.
    """

    languages: tuple[str, ...]
    codes: np.ndarray
    provenance: Mapping[str, object] = field(default_factory=dict)

    def __post_init__(self) -> None:
        codes = np.array(self.codes, np.int16)
        codes.setflags(write=False)
        object.__setattr__(self, "codes", codes)
        object.__setattr__(self, "provenance", MappingProxyType(dict(self.provenance)))

    @property
    def columns(self) -> tuple[str, ...]:
        return (*self.languages, *REST)

    def of(self, token: int) -> str:
        """The label of one entry."""
        return self.columns[self.codes[token]]

    def table(self) -> np.ndarray:
        """float32 [vocabulary, columns], 1 at each entry's label: gathered on the device."""
        return np.eye(len(self.columns), dtype=np.float32)[self.codes]

    def counts(self) -> dict[str, int]:
        """How many entries have each label."""
        return dict(zip(self.columns, np.bincount(self.codes, minlength=len(self.columns)).tolist(), strict=True))

    def save(self, path: str | Path) -> None:
        """Writes JSON, atomically: one letter per entry, 'a' for the first column."""
        body = {"format": _FORMAT, "columns": self.columns, "provenance": dict(self.provenance)}
        write_json(path, body | {"codes": "".join(chr(ord("a") + c) for c in self.codes)})

    @classmethod
    def load(cls, path: str | Path) -> VocabularyLabels:
        """The labels that `save` wrote. Raises InputError, naming the file, where it is not one."""
        body = read_json(path)
        if not isinstance(body, dict) or body.get("format") != _FORMAT:
            raise InputError(f"{path}: not vocabulary labels (its 'format' should be {_FORMAT!r})")
        try:
            columns, codes = tuple(body["columns"]), np.asarray([ord(c) - ord("a") for c in body["codes"]], np.int32)
            if not all(isinstance(column, str) for column in columns) or len(set(columns)) != len(columns):
                raise ValueError("a column is no text, or is there twice")
            if columns[-len(REST) :] != REST or codes.size == 0 or codes.min() < 0 or codes.max() >= len(columns):
                raise ValueError("the codes do not fit the columns")
            return cls(columns[: -len(REST)], codes, body["provenance"])
        except (KeyError, TypeError, ValueError) as error:
            raise InputError(f"{path}: damaged vocabulary labels ({type(error).__name__}: {error!s:.200})") from None


def label_vocabulary(
    tokenizer: Any, size: int, languages: Sequence[str], labeller: str | Labeller = "lingua"
) -> VocabularyLabels:
    """Labels entries 0 to size - 1 of the tokenizer's vocabulary with one of `languages` each, or why with none.

    labeller: who decides between languages that share a script: "lingua" (n-grams of letters, restricted to these
    languages), "scripts" (nobody: they stay unclear), or a function (texts, languages) -> a language or None for each.
    Raises InputError for no languages, one given twice, or one that the labeller does not know.
    """
    languages = tuple(languages)
    if not languages or len(set(languages)) != len(languages):
        raise InputError(f"labels: languages {', '.join(languages) or '(none)'}; at least one is needed, each once")
    if isinstance(labeller, str) and labeller not in LABELLERS:
        raise InputError(f"labeller {labeller!r} is not one of {', '.join(LABELLERS)}")
    decide = LABELLERS[labeller] if isinstance(labeller, str) else labeller
    texts = vocabulary_texts(tokenizer, size)
    words = Counter(text.strip() for text in texts)  # " the" and "the" are asked about once
    label = _label_words(tuple(words), languages, decide)
    place = {column: i for i, column in enumerate((*languages, *REST))}
    codes = np.asarray([place[label[text.strip()]] for text in texts], np.int16)
    name = labeller if isinstance(labeller, str) else getattr(labeller, "__name__", "own")
    return VocabularyLabels(languages, codes, {"labeller": name})


def scripts_of(language: str) -> tuple[str, ...]:
    """The scripts that a language is written in, by their Unicode names; Latin where nothing else is known."""
    base = language.split("-")[0].lower()
    return tuple(script for script, codes in _SCRIPTS_OF.items() if base in codes.split()) or _LATIN


def script_of(text: str) -> str | None:
    """The script of most letters of a text; None without letters, or where it is markup, not a word."""
    if "�" in text or _TAG.fullmatch(text):
        return None
    letters = Counter(match.lastgroup for match in _LETTER.finditer(text))
    return letters.most_common(1)[0][0] if letters else None


def _label_words(words: Sequence[str], languages: Sequence[str], decide: Labeller) -> dict[str, str]:
    """{word: its label}."""
    users = {script: [lang for lang in languages if script in scripts_of(lang)] for script in ("Latin", *_SCRIPTS_OF)}
    label: dict[str, str] = {}
    asked: dict[tuple[str, ...], list[str]] = {}
    for word in words:
        script = script_of(word)
        candidates = users.get(script or "", [])
        if script is None:
            label[word] = NONE
        elif not candidates:
            label[word] = OTHER
        elif script == "Latin" and _IDENTIFIER.search(word):
            label[word] = UNCLEAR
        elif len(candidates) == 1:
            label[word] = candidates[0]
        else:
            asked.setdefault(tuple(candidates), []).append(word)
    for candidates, texts in asked.items():
        answers = decide(texts, candidates)
        label.update({text: answer or UNCLEAR for text, answer in zip(texts, answers, strict=True)})
    return label


def by_script_alone(texts: Sequence[str], languages: Sequence[str]) -> list[str | None]:
    """Leaves open what the script leaves open."""
    return [None] * len(texts)


def by_lingua(texts: Sequence[str], languages: Sequence[str]) -> list[str | None]:
    """The language that lingua finds likely among the candidates, where it is ahead of the next one. Raises InputError
    for a language that lingua does not know."""
    from lingua import LanguageDetectorBuilder

    codes = lingua_codes(languages, "labels, or use --labeller scripts")
    detector = LanguageDetectorBuilder.from_iso_codes_639_1(*codes).build()
    answers: list[str | None] = []
    for values in detector.compute_language_confidence_values_in_parallel(list(texts)):
        first, second = values[0], values[1]
        sure = first.value >= _SURE and first.value >= _AHEAD * second.value
        answers.append(codes[first.language.iso_code_639_1] if sure else None)
    return answers


# The least confidence, and how many times that of the next language: lower, and more words get a wrong language;
# higher, and more common ones get none.
_SURE, _AHEAD = 0.45, 1.25
LABELLERS: Mapping[str, Labeller] = MappingProxyType({"lingua": by_lingua, "scripts": by_script_alone})
