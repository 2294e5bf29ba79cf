"""Scores of written answers and summaries against references, in any script; all between 0 and 1.

The unit of comparison is the word where a language puts spaces between words, and the character elsewhere. The plain
SQuAD v1.1 scores (Rajpurkar et al. 2016) stand beside them under their own names: they know English only.
"""

from __future__ import annotations

import re
import string
import unicodedata
from collections import Counter
from collections.abc import Callable, Sequence
from functools import cache
from typing import TYPE_CHECKING

from mwork_jax.errors import InputError

if TYPE_CHECKING:
    from sacrebleu.metrics.chrf import CHRF

# Languages whose words are not separated by spaces.
UNSPACED = frozenset({"zh", "ja", "th", "lo", "km", "my"})
# Articles that count for nothing in an answer, as whole words. A language that is not here has none that stand alone;
# French also has l', and Arabic a prefix: see `answer_units`.
ARTICLES = {
    "en": frozenset(["a", "an", "the"]),
    "de": frozenset(["der", "die", "das", "den", "dem", "des", "ein", "eine", "einen", "einem", "einer", "eines"]),
    "fr": frozenset(["le", "la", "les", "un", "une", "des"]),
    "es": frozenset(["el", "la", "los", "las", "un", "una", "unos", "unas"]),
}
_FRENCH_ELISION = re.compile(r"\bl['’](?=\w)")
_ARABIC_ARTICLE = "ال"
_ARABIC_ROOT = 3
# The last code point of the alphabets of Europe: in Chinese or Thai text, what is up to here comes in words.
_LAST_SPACED = "\u058f"


def answer_f1(answer: str, references: Sequence[str], language: str) -> float:
    """Harmonic mean of precision and recall over `answer_units`, the best over all references.

    Two texts without any unit (punctuation only) count as equal. Raises InputError where there is no reference.
    """

    def f1(answer: str, reference: str) -> float:
        ours, theirs = answer_units(answer, language), answer_units(reference, language)
        return _overlap(ours, theirs) if ours and theirs else float(ours == theirs)

    return _best(f1, answer, references)


def answer_exact(answer: str, references: Sequence[str], language: str) -> float:
    """1 where the `answer_units` are those of a reference, in the same order; else 0. Raises as `answer_f1`."""
    return _best(lambda a, r: float(answer_units(a, language) == answer_units(r, language)), answer, references)


def squad_v11_f1(answer: str, references: Sequence[str]) -> float:
    """F1 as SQuAD v1.1 defines it: lower case, ASCII punctuation and a/an/the removed, words between white space."""
    return _best(lambda a, r: _overlap(_squad_words(a), _squad_words(r)), answer, references)


def squad_v11_exact(answer: str, references: Sequence[str]) -> float:
    """Exact match as SQuAD v1.1 defines it; the normalisation is that of `squad_v11_f1`."""
    return _best(lambda a, r: float(_squad_words(a) == _squad_words(r)), answer, references)


def rouge_l(answer: str, references: Sequence[str], language: str) -> float:
    """ROUGE-L, F-measure with equal weights (Lin 2004), over `summary_units`; the best over all references.

    The longest common subsequence of the whole texts. The usual tokenizer keeps a-z and 0-9 only, so equal Chinese or
    Thai texts would score 0; on ASCII the two are the same.
    """

    def f_measure(answer: str, reference: str) -> float:
        ours, theirs = summary_units(answer, language), summary_units(reference, language)
        return 2 * _common_subsequence(ours, theirs) / max(1, len(ours) + len(theirs))

    return _best(f_measure, answer, references)


def chrf(answer: str, references: Sequence[str]) -> float:
    """chrF2 (Popovic 2015) of one text as sacrebleu computes it, divided by 100; the best over all references."""
    if not references:
        raise InputError("no reference to compare with; at least one is needed")
    return _chrf().sentence_score(answer, list(references)).score / 100


@cache
def _chrf() -> CHRF:
    from sacrebleu.metrics.chrf import CHRF  # slow to import, and most commands need none

    return CHRF()


def answer_units(text: str, language: str) -> list[str]:
    """Words or characters of a short answer, without punctuation and articles.

    Compatibility forms, case, the digits of any script and invisible format characters are levelled first. Punctuation
    is every character of category P and the ASCII symbols that SQuAD counts among it; it goes without leaving a space.
    Arabic words lose the prefix al- where a root's three letters remain.
    """
    text = _levelled(text)
    if language == "fr":
        text = _FRENCH_ELISION.sub("", text)
    text = "".join(c for c in text if not _is_punctuation(c))
    if language in UNSPACED:
        return _characters(text)
    words = [word for word in text.split() if word not in ARTICLES.get(language, ())]
    if language != "ar":
        return words
    longest_bare = len(_ARABIC_ARTICLE) + _ARABIC_ROOT
    return [word.removeprefix(_ARABIC_ARTICLE) if len(word) >= longest_bare else word for word in words]


def summary_units(text: str, language: str) -> list[str]:
    """Words or characters of a text: letters, marks and digits of any script, all else counting as space."""
    kept = "".join(c if unicodedata.category(c)[0] in "LMN" else " " for c in _levelled(text))
    return _characters(kept) if language in UNSPACED else kept.split()


def _characters(text: str) -> list[str]:
    """Each character with the marks it carries; words of alphabets with spaces, and numbers, stay whole."""
    units: list[str] = []
    for run in text.split():
        first = len(units)
        for c in run:
            is_mark = unicodedata.category(c).startswith("M")
            goes_on = len(units) > first and (is_mark or (c <= _LAST_SPACED and units[-1][-1] <= _LAST_SPACED))
            if goes_on:
                units[-1] += c
            else:
                units.append(c)
    return units


def _levelled(text: str) -> str:
    text = unicodedata.normalize("NFKC", unicodedata.normalize("NFKC", text).casefold())
    return "".join(_digit(c) for c in text if unicodedata.category(c) != "Cf")


def _digit(c: str) -> str:
    return str(unicodedata.digit(c)) if unicodedata.category(c) == "Nd" else c


def _is_punctuation(c: str) -> bool:
    return c in string.punctuation or unicodedata.category(c).startswith("P")


def _squad_words(text: str) -> list[str]:
    kept = "".join(c for c in text.lower() if c not in string.punctuation)
    return re.sub(r"\b(?:a|an|the)\b", " ", kept).split()


def _overlap(ours: list[str], theirs: list[str]) -> float:
    common = sum((Counter(ours) & Counter(theirs)).values())
    return 2 * common / (len(ours) + len(theirs)) if common else 0.0


def _common_subsequence(ours: list[str], theirs: list[str]) -> int:
    """Length of the longest common subsequence, one row of the table at a time."""
    row = [0] * (len(theirs) + 1)
    for unit in ours:
        diagonal = 0
        for i, other in enumerate(theirs, 1):
            above = row[i]
            row[i] = diagonal + 1 if unit == other else max(above, row[i - 1])
            diagonal = above
    return row[-1]


def _best(score: Callable[[str, str], float], answer: str, references: Sequence[str]) -> float:
    if not references:
        raise InputError("no reference to compare with; at least one is needed")
    return max(score(answer, reference) for reference in references)
