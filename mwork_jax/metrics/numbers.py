"""The number that a worked answer ends in, in the digits and the punctuation of any language."""

from __future__ import annotations

import re
import unicodedata
from collections import deque
from collections.abc import Sequence
from decimal import Decimal, InvalidOperation

from mwork_jax.errors import InputError

# One name for each sign: U+2212, U+FF0D, en dash and small hyphen are minus; U+066B and U+FF0E are decimal points.
_SIGNS = str.maketrans(
    {"\u2212": "-", "\uff0d": "-", "\u2013": "-", "\ufe63": "-", "\u066b": ".", "\uff0e": ".", "\u066c": ","}
)
# What LaTeX puts between thousands or around a decimal comma.
_LATEX_MARKS = ((re.compile(r"(?<=\d)\{([.,])\}(?=\d)"), r"\1"), (re.compile(r"(?<=\d)\\[,;: ](?=\d{3})"), "\u2009"))
_LATEX_FRACTION = re.compile(r"\\[dt]?frac\s*\{\s*(\d+)\s*\}\s*\{\s*(\d+)\s*\}")
_CURRENCY = "Sc"
# Thousands are set off by a mark (the full-width comma is nothing else) or a space (plain, no-break, narrow, thin,
# figure); India groups by two. No more than twelve groups, so that a list of numbers is read in time.
_NUMBER = re.compile(
    r"(?P<grouped>[1-9]\d{0,2}(?P<mark>[.,'’\uff0c \u00a0\u202f\u2009\u2007])\d{3}(?:(?P=mark)\d{3}){0,11})"
    r"(?:(?!(?P=mark))[.,](?P<part>\d+))?(?!\d)"
    r"|(?P<indian>[1-9]\d?(?:,\d\d){1,11},\d{3})(?:\.(?P<indian_part>\d+))?(?!\d)"
    r"|(?<![\d/])(?P<fraction>(?:(?P<whole>\d{1,15})\s)?(?P<above>\d{1,15})/(?P<below>[1-9]\d{0,14}))(?![\d/]|[.,]\d)"
    r"|(?P<plain>\d+(?:[.,]\d+)?|(?<![\w.,])\.\d+)"
)
# What a word or sign behind a number multiplies it by. East Asian ones add up: 1万2千 is 12000.
_EAST_ASIAN = {"千": 10**3, "천": 10**3, "万": 10**4, "萬": 10**4, "만": 10**4, "亿": 10**8, "億": 10**8, "억": 10**8}
_THAI = {"พัน": 10**3, "หมื่น": 10**4, "แสน": 10**5, "ล้าน": 10**6}  # words that no space ends
_LETTER = {"k": 10**3}
_WORDS = {
    10**3: "thousand tausend mille mil тысяча тысячи тысяч nghìn ngàn ألف آلاف",
    10**5: "lakh",
    10**6: "million millions millionen millón millones миллион миллиона миллионов triệu مليون ملايين",
    10**7: "crore",
    10**9: "billion milliarde milliarden milliard milliards миллиард миллиарда миллиардов tỷ مليار",
}
_FACTOR_OF_WORD = {word: factor for factor, words in _WORDS.items() for word in words.split()}
_FACTOR = _EAST_ASIAN | _THAI | _LETTER | _FACTOR_OF_WORD
_SCALE = re.compile(
    rf"[ \u00a0\u202f]?(?P<sign>[{''.join(_EAST_ASIAN)}])"
    rf"|[ \u00a0\u202f]?(?P<thai>{'|'.join(_THAI)})"
    rf"|(?P<letter>[{''.join(_LETTER)}])(?!\w)"
    rf"|[ \u00a0\u202f](?P<word>{'|'.join(sorted(_FACTOR_OF_WORD, key=len, reverse=True))})(?!\w)"
)
# "540 (= 3 x 3 x 60)": how the number in front comes about.
_EXPLAINED = re.compile(r"(?<=[\d%])(\s?)[(（]\s*[=＝≈][^()（）\n]{0,200}[)）]")
_BRACKETED = re.compile(r"[(（][^()（）\n]{0,400}[)）]")
_BEFORE = 64  # characters in front of a number that can make it negative
_SENTENCE_END = re.compile(r"\n|[。！？]|[.!?؟](?=\s|$)")


def number_exact(answer: str, gold: str, phrases: Sequence[str] = ()) -> float:
    """1 where the answer's number is the gold one, exactly (15 = 15.0); else 0.

    answer: free text. gold: as `plain_number` reads it. phrases: see `number_readings`.
    """
    return float(plain_number(gold, "the gold answer") in number_readings(answer, phrases))


def number_readings(text: str, phrases: Sequence[str] = ()) -> tuple[Decimal, ...]:
    """What the answer of a text can be read as: no number, one, or two.

    The number is the first after the last of the answer phrases ("the answer is", case ignored), after the equals
    sign where an equation follows; without a phrase it is the last number of the text. What stands in brackets behind
    it, as how it comes about, is passed over. Minus signs, decimals with point or comma, thousands marks, those of
    LaTeX too, fractions (1/2), the digits of any script and scale words (5k, 12万, 2 million) are understood. A hyphen
    after a digit, a bracket or a letter of a cased script is no minus. One point or comma before exactly three digits
    is read both ways, as a thousands mark and as a decimal mark: which is meant differs even between countries of one
    language.
    """
    text = _EXPLAINED.sub(r"\1", _levelled(text))
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
    """In one spelling: ASCII digits and signs, no invisible characters, no LaTeX around marks, lower case."""
    visible = (c for c in text.translate(_SIGNS) if unicodedata.category(c) != "Cf")
    text = "".join(str(unicodedata.digit(c)) if unicodedata.category(c) == "Nd" else c for c in visible).casefold()
    for marked, mark in _LATEX_MARKS:
        text = marked.sub(mark, text)
    return _LATEX_FRACTION.sub(r" \1/\2", text)


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
    sentence = _BRACKETED.sub("", sentence[: end.start()] if end else sentence)
    equals = sentence.rfind("=")
    results = _numbers(sentence[equals + 1 :]) if equals >= 0 else []
    return (results or numbers)[0]


def _numbers(text: str) -> list[tuple[int, tuple[Decimal, ...]]]:
    """(place, readings) of each number with what it is multiplied by, from left to right."""
    numbers, rest = [], deque(_NUMBER.finditer(text))
    while rest:
        first = rest.popleft()
        begin = first.start()
        readings, room, end = _scaled(text, first)
        # East Asian numbers add up, each part smaller than the one before it: 1亿2000万, 1万2千, 3万5000.
        while rest and rest[0].start() == end:
            (part, *_), part_room, part_end = _scaled(text, rest[0])
            if not 0 < part < room:
                break
            readings, room, end = tuple(reading + part for reading in readings), part_room, part_end
            rest.popleft()
        negative = _is_negative(text[max(0, begin - _BEFORE) : begin])
        numbers.append((begin, tuple(-r for r in readings) if negative else readings))
    return numbers


def _scaled(text: str, number: re.Match[str]) -> tuple[tuple[Decimal, ...], int, int]:
    """The readings of a number times the scale word behind it; what a part that follows at once, to be added, must be
    smaller than (0: there can be none); and where it ends."""
    scale = _SCALE.match(text, number.end())
    if scale is None:
        return _readings(number), 0, number.end()
    factor = _FACTOR[next(filter(None, scale.groups()))]
    return tuple(reading * factor for reading in _readings(number)), factor if scale["sign"] else 0, scale.end()


def _readings(match: re.Match[str]) -> tuple[Decimal, ...]:
    if match["plain"]:
        return (Decimal(match["plain"].replace(",", ".")),)
    if match["indian"]:
        return (Decimal(match["indian"].replace(",", "") + "." + (match["indian_part"] or "0")),)
    if match["fraction"]:
        return (int(match["whole"] or 0) + Decimal(match["above"]) / Decimal(match["below"]),)
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
