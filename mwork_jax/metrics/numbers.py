"""The number that a worked answer ends in, in the digits and the punctuation of any language."""

from __future__ import annotations

import math
import re
import unicodedata
from collections import deque
from collections.abc import Sequence
from decimal import Decimal, InvalidOperation
from typing import NamedTuple

from mwork_jax.errors import InputError

# One name for each sign: U+2212, U+FF0D, en dash and small hyphen are minus; U+066B and U+FF0E are decimal points;
# U+2044, U+2215 and U+FF0F are the fraction's slash.
_SIGNS = str.maketrans(
    {"\u2212": "-", "\uff0d": "-", "\u2013": "-", "\ufe63": "-", "\u066b": ".", "\uff0e": ".", "\u066c": ","}
    | {"\u2044": "/", "\u2215": "/", "\uff0f": "/"}
)
# Arabic is often written without the hamza and madda on the alif, and with or without vowel marks.
_ARABIC = str.maketrans(dict.fromkeys("آأإٱ", "ا") | dict.fromkeys(map(chr, (0x640, *range(0x64B, 0x653)))))
_MONEY = "$¢-¥฿\u20a0-\u20cf＄￠￡￥￦"
_GAP = r"(?:[ \u00a0\u202f\u2009~]|\\[,;:! ])"
# What LaTeX puts around text, between thousands or around a decimal comma; an exponent behind a unit is no number.
_LATEX_MARKS = (
    (re.compile(r"\\(?:text(?:rm|bf|it|normal)?|math(?:rm|bf|ord|punct)|mbox)\s?\{([^{}]{0,200})\}"), r"\1"),
    (re.compile(r"(?<=[\d.,}])\\!(?=[\d.,{])"), ""),
    (re.compile(r"(?<=\d)\{([.,])\}(?=\d)"), r"\1"),
    (re.compile(r"(?<=\d)(?:\\[,;: ]|\{\\[,;: ]\})(?=\d{3})"), "\u2009"),
    (re.compile(r"(?<=[^\W\d_])\^(?:\{\s?[+-]?\d{1,3}\s?\}|[+-]?\d{1,3})"), ""),
    (re.compile(r"(?<=\d)\s?\^\s?(?:\{\s?([+-]?\d{1,3})\s?\}|([+-]?\d{1,3}))(?!\d)"), r"^\1\2"),
)
# A braced number, or one digit: \frac12 is a half.
_LATEX_FRACTION = re.compile(
    rf"(?:(?<=\d){_GAP}{{0,3}})?\\(?:[dtcs]|nice)?frac"
    r"\s?(?:\{\s?(?P<minus>-?)\s?(?P<above>\d+)\s?\}|(?P<above_digit>\d))"
    r"\s?(?:\{\s?(?P<below>\d+)\s?\}|(?P<below_digit>\d))"
)
_FRACTION_SIGN = re.compile(r"[¼½¾⅐-⅞↉]|(?<![⁰¹²³⁴-⁹])[⁰¹²³⁴-⁹]{1,15}/[₀-₉]{1,15}(?![₀-₉])")
_SUPERSCRIPT = re.compile(r"(?<=\d)[⁺⁻]?[⁰¹²³⁴-⁹]{1,3}(?![⁰¹²³⁴-⁹])")
_EXPONENT = re.compile(r"(?<![\w.,])(\d{1,15}(?:[.,]\d{1,15})?)e([+-]?\d{1,3})(?!\w|[.,]\d)")  # 1.5e3
# A single letter is a million only as a capital at the digits or before a currency sign (5 m are metres), any other
# only behind an amount of money. LaTeX's dollars are told by what follows: $5m$, $5m = 3$.
_CAPITAL_MILLION = re.compile(rf"(?<=\d)(?:M(?!\w)|[ \u00a0\u202f]M(?=[{_MONEY}]))")
_MONEY_LETTER = re.compile(
    rf"([{_MONEY}][ \u00a0]?-?\d[\d.,]{{0,30}})[ \u00a0\u202f]?(mn?|bn?|tn?)(?!\w|\s?[$=+*/^\\{{}}<>-])"
)
_MONEY_WORDS = {"m": "million", "b": "billion", "t": "trillion"}
# Thousands are set off by a mark (the full-width comma is nothing else) or a space (plain, no-break, narrow, thin,
# figure); India groups by two. No more than twelve groups, so that a list of numbers is read in time.
_NUMBER = re.compile(
    r"(?<![\d/])(?P<fraction>(?:(?P<whole>\d{1,3}(?:(?P<whole_mark>[, \u00a0\u202f\u2009])\d{3})"
    r"(?:(?P=whole_mark)\d{3}){0,3}|\d{1,15})\s)?(?P<above>\d{1,15})/(?P<below>[1-9]\d{0,14}))(?![\d/]|[.,]\d)"
    r"|(?<![\d.,])(?P<power>(?P<base>[1-9]\d{0,14})\^(?P<exponent>[+-]?\d{1,3}))(?!\d|[.,]\d)"
    r"|(?P<grouped>[1-9]\d{0,2}(?P<mark>[.,'’\uff0c \u00a0\u202f\u2009\u2007])\d{3}(?:(?P=mark)\d{3}){0,11})"
    r"(?:(?!(?P=mark))[.,](?P<part>\d+))?(?!\d)"
    r"|(?P<indian>[1-9]\d?(?:,\d\d){1,11},\d{3})(?:\.(?P<indian_part>\d+))?(?!\d)"
    r"|(?P<plain>\d+(?:[.,]\d+)?|(?<![\w.,])\.\d+)"
)
# What a word or sign behind a number multiplies it by. Those that no space ends add up: 1万2千 is 12000. The smaller
# ones count within the next larger one: 3千5百万 is 3500万.
_WITHIN = {"百": 100, "백": 100, "千": 10**3, "천": 10**3}
_WITHIN |= {"ร้อย": 100, "พัน": 10**3, "หมื่น": 10**4, "แสน": 10**5}
_ABOVE = {"万": 10**4, "萬": 10**4, "만": 10**4, "亿": 10**8, "億": 10**8, "억": 10**8, "兆": 10**12, "조": 10**12}
_ABOVE |= {"ล้าน": 10**6}
# Where the sign begins another word: 조각 (piece), 만큼 (as much as), 兆字节 (megabyte), 百分 (percent), พันธุ์ (species).
_OTHER_WORD = {"조": "[각건]", "만": "큼", "兆": "[字赫瓦]", "百": "[分货貨]", "백": "[분화]", "พัน": "ธุ", "ร้อย": "ละ"}
_WORDS = {
    10**2: "hundred hundert trăm",
    10**3: "thousand thousands tausend tsd mille mil тысяча тысячи тысяч тыс nghìn ngàn ألف ألفا آلاف",
    10**4: "vạn",
    10**5: "lakh lakhs",
    10
    ** 6: "million millions millionen millón millones mio mln миллион миллиона миллионов млн triệu مليون مليونا ملايين",
    10**7: "crore crores",
    10**9: "billion billions bn milliarde milliarden mrd milliard milliards mld миллиард миллиарда миллиардов млрд"
    " tỷ tỉ مليار مليارا مليارات",
    10**12: "trillion trillions billionen billón billones триллион триллиона триллионов трлн تريليون",
}
_FACTOR_OF_WORD = {word.translate(_ARABIC): factor for factor, words in _WORDS.items() for word in words.split()}
_FACTOR = _WITHIN | _ABOVE | {"k": 10**3} | _FACTOR_OF_WORD
_SIGN_PATTERNS = (sign + (f"(?!{_OTHER_WORD[sign]})" if sign in _OTHER_WORD else "") for sign in _WITHIN | _ABOVE)
_SCALE = re.compile(
    rf"[ \u00a0\u202f]?(?P<sign>{'|'.join(_SIGN_PATTERNS)})"
    r"|(?P<letter>k)(?!\w)"
    rf"|(?:{_GAP}|-)?(?P<word>{'|'.join(sorted(_FACTOR_OF_WORD, key=len, reverse=True))})(?!\w)"
)
_TIMES_POWER_OF_TEN = re.compile(
    rf"{_GAP}{{0,2}}(?:\\times|\\cdot|\\?\*|[x×·⋅]){_GAP}{{0,2}}10\^(?P<exponent>[+-]?\d{{1,3}})(?!\d|[.,]\d)"
)
# Swahili puts the word in front: elfu 5 is 5000.
_FACTOR_IN_FRONT = {"elfu": 10**3, "laki": 10**5, "milioni": 10**6, "bilioni": 10**9, "trilioni": 10**12}
_SCALE_IN_FRONT = re.compile(rf"(?<!\w)(?P<word>{'|'.join(_FACTOR_IN_FRONT)})[ \u00a0\u202f]\Z")
_BETWEEN_PARTS = frozenset({" ", "\u00a0", "\u202f", " na "})  # 3만 5천, 2 triệu 500 nghìn, milioni 3 na laki 2
_CURRENCY = "Sc"
# "540 (= 3 x 3 x 60)": how the number in front comes about.
_EXPLAINED = re.compile(r"(?<=[\d%])(\s?)[(（]\s*[=＝≈][^()（）\n]{0,200}[)）]")
# "540 (3 x 3 x 60)": the same, where the product is the number.
_PRODUCT = re.compile(
    r"(?<![\d.,])(?P<result>\d{1,15})(?P<gap>\s?)"
    r"[(（]\s?(?P<product>\d{1,6}(?:\s?(?:[x×*]|\\times)\s?\d{1,6}){1,9})\s?[)）]"
)
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
    LaTeX too, fractions (1/2, 2½), powers (10^2, 3 × 10⁴, 1e3), the digits of any script and scale words (5k, 12万,
    2 million, $2M, elfu 5) are understood. A hyphen after a digit, a bracket or a letter of a cased script is no
    minus. One point or comma before exactly three digits is read both ways, as a thousands mark and as a decimal mark:
    which is meant differs even between countries of one language.
    """
    text = _PRODUCT.sub(_without_its_product, _EXPLAINED.sub(r"\1", _levelled(text)))
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


class _Part(NamedTuple):
    """A number and the scale words with it: readings * within * above, at text[begin:end]."""

    begin: int
    end: int
    readings: tuple[Decimal, ...]
    within: int  # what counts within the next larger scale word, as 千 does
    above: int
    open: bool  # whether a smaller part can follow without a space

    @property
    def scaled(self) -> bool:
        return self.within * self.above > 1


def _levelled(text: str) -> str:
    """In one spelling: ASCII digits and signs, no invisible characters, no LaTeX around marks, lower case."""
    text = unicodedata.normalize("NFC", text).translate(_SIGNS)
    visible = (c for c in text if unicodedata.category(c) != "Cf")
    text = "".join(str(unicodedata.digit(c)) if unicodedata.category(c) == "Nd" else c for c in visible)
    text = _FRACTION_SIGN.sub(lambda match: _set_off(match, _compatible(match[0])), text)
    text = _SUPERSCRIPT.sub(lambda match: "^" + _compatible(match[0]), text)
    text = _letters(_CAPITAL_MILLION.sub(" million", text))
    for marked, mark in _LATEX_MARKS:
        text = marked.sub(mark, text)
    text = _LATEX_FRACTION.sub(_latex_fraction, text)
    text = _EXPONENT.sub(r"\1*10^\2", text)
    return _MONEY_LETTER.sub(lambda match: f"{match[1]} {_MONEY_WORDS[match[2][0]]}", text)


def _letters(text: str) -> str:
    """In one spelling of its letters: composed, lower case, Arabic without hamza on the alif and vowel marks."""
    return unicodedata.normalize("NFC", text).casefold().translate(_ARABIC)


def _compatible(text: str) -> str:
    """Fraction signs and superscripts as plain digits: ½ is 1/2."""
    return unicodedata.normalize("NFKC", text).translate(_SIGNS)


def _latex_fraction(match: re.Match[str]) -> str:
    above, below = match["above"] or match["above_digit"], match["below"] or match["below_digit"]
    return _set_off(match, f"{match['minus'] or ''}{above}/{below}")


def _set_off(match: re.Match[str], fraction: str) -> str:
    """The fraction with a space where a digit stands at its side: 2½ is 2 1/2, not 21/2."""
    before, after = match.string[max(0, match.start() - 1) : match.start()], match.string[match.end() : match.end() + 1]
    return " " * before.isnumeric() + fraction + " " * after.isnumeric()


def _without_its_product(match: re.Match[str]) -> str:
    product = math.prod(map(int, re.findall(r"\d+", match["product"])))
    return match["result"] + match["gap"] if product == int(match["result"]) else match[0]


def _after_phrase(text: str, phrases: Sequence[str]) -> str:
    ends = [place + len(phrase) for phrase in map(_letters, phrases) if (place := text.rfind(phrase)) >= 0]
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
    numbers, parts = [], _parts(text)
    while parts:
        begin = parts[0].begin
        readings = _sum_of_parts(text, parts)
        negative = _is_negative(text[max(0, begin - _BEFORE) : begin])
        numbers.append((begin, tuple(-r for r in readings) if negative else readings))
    return numbers


def _parts(text: str) -> deque[_Part]:
    parts: deque[_Part] = deque()
    for number in _NUMBER.finditer(text):
        if not parts or number.start() >= parts[-1].end:  # else it is the 10^4 of 3 * 10^4
            parts.append(_part(text, number))
    return parts


def _part(text: str, number: re.Match[str]) -> _Part:
    begin, end, readings = number.start(), number.end(), _readings(number)
    if power := _TIMES_POWER_OF_TEN.match(text, end):
        end, factor = power.end(), Decimal(10) ** int(power["exponent"])
        readings = tuple(reading * factor for reading in readings)
    within, above, last, last_sign = 1, 1, 1, None
    # Each word of a compound is larger than the one before it: 千万, mil millones, พันล้าน.
    while (scale := _SCALE.match(text, end)) and (factor := _FACTOR[next(filter(None, scale.groups()))]) > last:
        last, end, last_sign = factor, scale.end(), scale["sign"]
        within, above = (within * factor, above) if last_sign in _WITHIN else (within, above * factor)
    if (
        last == 1
        and text[max(0, begin - 2) : max(0, begin - 1)].isalpha()
        and (front := _SCALE_IN_FRONT.search(text[max(0, begin - _BEFORE) : begin]))
    ):
        begin, above = begin - len(front[0]), _FACTOR_IN_FRONT[front["word"]]
    return _Part(begin, end, readings, within, above, last_sign is not None)


def _sum_of_parts(text: str, parts: deque[_Part]) -> tuple[Decimal, ...]:
    """Take the first part and those that add to it, each smaller than the last: 1亿2000万, 12万5千3百, 3万5000."""
    first = last = parts.popleft()
    if not first.scaled:
        return first.readings
    # Worked out for the first reading; a section is what the next large scale word multiplies.
    total, section, scale = Decimal(0), first.readings[0] * first.within, first.within
    limit = Decimal("Infinity")  # what a section with its large scale word must be smaller than
    while True:
        if last.above > 1:
            scale *= 1 if total else last.above  # the first of these words multiplies the first part
            total, section, limit = total + section * last.above, Decimal(0), Decimal(last.above)
        if not parts or not _can_follow(text, last, parts[0]):
            break
        part = parts[0]
        value = part.readings[0] * part.within
        room = limit if last.above > 1 else last.within
        if not (0 < value < room and (section + value) * part.above < limit):
            break
        section, last = section + value, parts.popleft()
    return tuple(total + section + (reading - first.readings[0]) * scale for reading in first.readings)


def _can_follow(text: str, last: _Part, part: _Part) -> bool:
    if part.begin == last.end:
        return last.open
    return last.scaled and part.scaled and text[last.end : min(part.begin, last.end + 8)] in _BETWEEN_PARTS


def _readings(match: re.Match[str]) -> tuple[Decimal, ...]:
    if match["plain"]:
        return (Decimal(match["plain"].replace(",", ".")),)
    if match["indian"]:
        return (Decimal(match["indian"].replace(",", "") + "." + (match["indian_part"] or "0")),)
    if match["fraction"]:
        whole = Decimal("".join(filter(str.isdigit, match["whole"] or "0")))
        return (whole + Decimal(match["above"]) / Decimal(match["below"]),)
    if match["power"]:
        return (Decimal(match["base"]) ** int(match["exponent"]),)
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
