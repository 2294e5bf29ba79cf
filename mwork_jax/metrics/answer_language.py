"""Which language an answer is in, sentence by sentence, and how much it repeats itself."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import regex

from mwork_jax.errors import InputError
from mwork_jax.metrics.fasttext_model import fasttext_identifier

LINGUA = "lingua"
_SENTENCE = regex.compile(r"[^.!?。！？؟।\n]+[.!?。！？؟।]*")
_LETTER = regex.compile(r"\p{L}")
_PIECE = 8  # characters of what counts as repeated

Identify = Callable[[str], str | None]  # a sentence -> the code of its language, None where that is open


def lingua_codes(languages: Sequence[str], where: str) -> dict[Any, str]:
    """{lingua's code: ours}. Raises InputError, beginning with `where`, for a language that lingua does not know or
    cannot tell apart from another of these."""
    from lingua import IsoCode639_1  # slow to import, and most commands need none

    codes: dict[Any, str] = {}
    for language in languages:
        code = getattr(IsoCode639_1, language.split("-")[0].upper(), None)
        if code is None or code in codes:
            raise InputError(f"{where}: lingua does not know {language!r:.40} apart from the others")
        codes[code] = language
    return codes


def identifier(languages: Sequence[str], model: str = LINGUA) -> Identify:
    """Tells languages apart: by lingua's n-grams, among these alone, or by a model of fastText, the path of its file,
    among all that it knows. Raises InputError as `lingua_codes` and `fasttext_identifier`, and for fewer than two."""
    if len(set(languages)) < 2:
        raise InputError("answers: two languages at least are needed to tell apart")
    if model != LINGUA:
        return fasttext_identifier(model, languages)
    from lingua import LanguageDetectorBuilder

    codes = lingua_codes(languages, "answers")
    detector = LanguageDetectorBuilder.from_iso_codes_639_1(*codes).build()

    def identify(sentence: str) -> str | None:
        language = detector.detect_language_of(sentence)
        return None if language is None else codes[language.iso_code_639_1]

    return identify


def language_share(answer: str, language: str, identify: Identify) -> float:
    """The share of an answer's sentences that are in a language; those without a letter do not count. 0 where there is
    none."""
    sentences = _sentences(answer)
    return sum(identify(text) == language for text in sentences) / max(1, len(sentences))


def main_language(answer: str, identify: Identify) -> str | None:
    """The language of most of an answer's letters, sentence by sentence; None where that is open, and for an answer
    without a letter. Of languages with as many letters, the first in the answer."""
    letters: dict[str, int] = {}
    for text in _sentences(answer):
        if (language := identify(text)) is not None:
            letters[language] = letters.get(language, 0) + len(_LETTER.findall(text))
    return max(letters, key=lambda language: letters[language], default=None)


def _sentences(answer: str) -> list[str]:
    """Those that have a letter."""
    return [text.strip() for text in _SENTENCE.findall(answer) if _LETTER.search(text)]


def repeated_share(answer: str) -> float:
    """The share of an answer's pieces of 8 characters that it has written before: 0 for a text that says everything
    once."""
    pieces = [answer[i : i + _PIECE] for i in range(len(answer) - _PIECE + 1)]
    return 1 - len(set(pieces)) / len(pieces) if pieces else 0.0


def harmonic_mean(first: float, second: float) -> float:
    """2ab / (a + b) of two numbers from 0; 0 where either is 0."""
    return 2 * first * second / (first + second) if first > 0 and second > 0 else 0.0
