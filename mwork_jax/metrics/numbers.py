"""The number that a worked answer ends in, in the digits and the punctuation of any language."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Sequence
from decimal import Decimal, InvalidOperation

from mwork_jax.errors import InputError

# One name for each sign: U+2212, U+FF0D, en dash and small hyphen are minus; U+066B and U+FF0E are decimal points.
_SIGNS = str.maketrans(
    {"\u2212": "-", "\uff0d": "-", "\u2013": "-", "\ufe63": "-", "\u066b": ".", "\uff0e": ".", "\u066c": ","}
)
_CURRENCY = "Sc"
# Thousands are set off by a mark or a space (plain, no-break, narrow, thin, figure); India groups by two.
_NUMBER = re.compile(
    r"(?P<grouped>[1-9]\d{0,2}(?P<mark>[.,'’ \u00a0\u202f\u2009\u2007])\d{3}(?:(?P=mark)\d{3})*)"
    r"(?:(?!(?P=mark))[.,](?P<part>\d+))?(?!\d)"
    r"|(?P<indian>[1-9]\d?(?:,\d\d)+,\d{3})(?:\.(?P<indian_part>\d+))?(?!\d)"
    r"|(?P<plain>\d+(?:[.,]\d+)?|(?<![\w.,])\.\d+)"
)
_SENTENCE_END = re.compile(r"\n|[。！？]|[.!?؟](?=\s|$)")


def number_exact(answer: str, gold: str, phrases: Sequence[str] = ()) -> float:
    """1 where the answer's number is the gold one, exactly (15 = 15.0); else 0.

    answer: free text. gold: as `plain_number` reads it. phrases: see `number_readings`.
    """
    return float(plain_number(gold, "the gold answer") in number_readings(answer, phrases))


def number_readings(text: str, phrases: Sequence[str] = ()) -> tuple[Decimal, ...]:
    """What the answer of a text can be read as: no number, one, or two.

    The number is the first after the last of the answer phrases ("the answer is", case ignored), after the equals
    sign where an equation follows; without a phrase it is the last number of the text. Minus signs, decimals with
    point or comma, thousands marks and the digits of any script are understood. A hyphen after a digit, a bracket or
    a letter of a cased script is no minus. One point or comma before exactly three digits is read both ways, as a
    thousands mark and as a decimal mark: which is meant differs even between countries of one language.
    """
    text = _levelled(text)
    after = _after_phrase(text, phrases)
    number = _in_clause(after) if after else None
    if number is None:
        number = next(reversed(_numbers(text)), None)
    return number[1] if number else ()


def plain_number(text: str, where: str) -> Decimal:
    """A number as data sets write it: ASCII digits, decimal point, commas between thousands. Else InputError."""
    try:
        number = Decimal(text.strip().replace(",", ""))
    except InvalidOperation:
        number = Decimal("nan")
    if not number.is_finite():
        raise InputError(f"{where}: {text!r} is not a number; digits with a decimal point are needed, as in -7.5")
    return number


def _levelled(text: str) -> str:
    visible = (c for c in text.translate(_SIGNS) if unicodedata.category(c) != "Cf")
    return "".join(str(unicodedata.digit(c)) if unicodedata.category(c) == "Nd" else c for c in visible).casefold()


def _after_phrase(text: str, phrases: Sequence[str]) -> str:
    ends = [place + len(phrase) for phrase in map(str.casefold, phrases) if (place := text.rfind(phrase)) >= 0]
    return text[max(ends) :] if ends else ""


def _in_clause(text: str) -> tuple[int, tuple[Decimal, ...]] | None:
    """The first number, or the one after the last equals sign of the sentence that the first one stands in."""
    numbers = _numbers(text)
    if not numbers:
        return None
    sentence = text[numbers[0][0] :]
    end = _SENTENCE_END.search(sentence)
    sentence = sentence[: end.start()] if end else sentence
    equals = sentence.rfind("=")
    results = _numbers(sentence[equals + 1 :]) if equals >= 0 else []
    return (results or numbers)[0]


def _numbers(text: str) -> list[tuple[int, tuple[Decimal, ...]]]:
    """(place, readings) of each number, from left to right."""
    return [
        (
            match.start(),
            tuple(-r for r in _readings(match)) if _is_negative(text[: match.start()]) else _readings(match),
        )
        for match in _NUMBER.finditer(text)
    ]


def _readings(match: re.Match[str]) -> tuple[Decimal, ...]:
    if match["plain"]:
        return (Decimal(match["plain"].replace(",", ".")),)
    if match["indian"]:
        return (Decimal(match["indian"].replace(",", "") + "." + (match["indian_part"] or "0")),)
    grouped, mark, part = match["grouped"], match["mark"], match["part"]
    whole = Decimal(grouped.replace(mark, "") + "." + (part or "0"))
    if mark in ".," and grouped.count(mark) == 1 and part is None:
        return (whole, Decimal(grouped.replace(mark, ".")))
    return (whole,)


def _is_negative(before: str) -> bool:
    """Whether the text before a number ends in its minus sign; "$-5" and "-$5" are both negative."""
    if before and unicodedata.category(before[-1]) == _CURRENCY:
        before = before[:-1]
    if not before.endswith("-"):
        return False
    before = before[:-1]
    if before[-1:].isalpha() and before[-1].lower() != before[-1].upper():
        return False  # a hyphen, as in covid-19; scripts without case put no space before a number
    spaced = before.rstrip()[-1:]
    return not (spaced.isdigit() or (spaced and spaced in ")]%-"))
