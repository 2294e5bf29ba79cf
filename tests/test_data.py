"""The project's own parallel data: ten languages, the same rows, the same answers."""

import json
import re
import unicodedata
from collections import Counter
from fractions import Fraction
from functools import cache
from pathlib import Path

import pytest

import mwork_jax

DATA = Path(mwork_jax.__file__).parent / "data"
LANGUAGES = ("en", "de", "fr", "es", "ru", "zh", "vi", "th", "ar", "sw")
TRANSLATIONS = LANGUAGES[1:]
COUNTS = {"documents": 48, "knowledge": 24, "arithmetic": 24}
PREFIXES = {"documents": "doc", "knowledge": "know", "arithmetic": "math"}
KEYS = {
    "documents": ["id", "split", "title", "text", "question", "answer"],
    "knowledge": ["id", "lang", "question", "answerKey"],
    "arithmetic": ["id", "question", "solution", "answer"],
}
SCRIPTS = {"ru": "CYRILLIC", "zh": "CJK UNIFIED", "th": "THAI", "ar": "ARABIC"}
DECIMAL_COMMA = {"de", "fr", "es", "ru", "vi"}
VIETNAMESE = set("ăđơư\N{COMBINING HOOK ABOVE}\N{COMBINING DOT BELOW}")  # of the ten, only Vietnamese has these
COMMON_WORDS = {
    "en": "the of and to is are was with their by",
    "de": "der die das und ist den ein eine wird mit von sich nicht",
    "fr": "le la les des et un une du dans est qui par sont leur",
    "es": "el la los las del y en un una que se con su por",
    "vi": "và của các là một những có được cho trong",
    "sw": "ya na wa kwa ni za la katika cha hadi",
}
NUMBER = r"\d+(?:[.,]\d+)?"
OPERAND = rf"(?:-?{NUMBER}|\({NUMBER} [-+] {NUMBER}\))"
EQUATION = re.compile(rf"({OPERAND}(?: [-+×·÷:] {OPERAND})+) = (-?{NUMBER})")
OPERATIONS = {"+": Fraction.__add__, "-": Fraction.__sub__, "×": Fraction.__mul__, "÷": Fraction.__truediv__}


@cache
def rows(kind, language):
    lines = (DATA / f"{kind}.{language}.jsonl").read_text(encoding="utf-8").split("\n")
    assert lines.pop() == "", "the last line must end with a newline"
    return [json.loads(line) for line in lines]


def english_and(kind, language):
    return zip(rows(kind, "en"), rows(kind, language), strict=True)


def strings(value):
    """Every string in a row, however deep."""
    if isinstance(value, str):
        return [value]
    return [text for item in (value.values() if isinstance(value, dict) else value) for text in strings(item)]


def number(text):
    return Fraction(text.replace(",", "."))


def numbers(text):
    return [number(found) for found in re.findall(NUMBER, text)]


def equations(solution):
    """All equations of a solution, with one sign for each operation and a decimal point."""
    signs = str.maketrans("·:,", "×÷.")
    return [(left.translate(signs), right.translate(signs)) for left, right in EQUATION.findall(solution)]


def value(expression):
    """The value of sums and products of numbers; brackets hold one sum."""
    expression = re.sub(r"\(([^)]*)\)", lambda inner: str(value(inner[1])), expression)
    total, sign = Fraction(0), 1
    for i, term in enumerate(re.split(r" ([-+]) ", expression)):
        if i % 2:
            sign = 1 if term == "+" else -1
            continue
        first, *rest = term.split(" ")
        product = Fraction(first)
        for operation, factor in zip(rest[::2], rest[1::2], strict=True):
            product = OPERATIONS[operation](product, Fraction(factor))
        total += sign * product
    return total


@pytest.mark.parametrize("kind", COUNTS)
@pytest.mark.parametrize("language", LANGUAGES)
def test_rows_are_the_english_rows(kind, language):
    assert [row["id"] for row in rows(kind, language)] == [
        f"{PREFIXES[kind]}-{i:02d}" for i in range(1, COUNTS[kind] + 1)
    ]
    for row in rows(kind, language):
        assert list(row) == KEYS[kind]
        for text in strings(row):
            assert text, row["id"]
            assert text == text.strip(), row["id"]
            assert "  " not in text, row["id"]
            assert text == unicodedata.normalize("NFC", text), row["id"]
            assert not re.search(r"[^\D0-9]", text), f"{row['id']}: a digit that is not ASCII"
            assert all(unicodedata.category(c) not in {"Cc", "Cf", "Co"} for c in text), row["id"]


def test_no_file_of_an_eleventh_language():
    expected = {f"{kind}.{language}.jsonl" for kind in COUNTS for language in LANGUAGES}
    assert {path.name for path in DATA.glob("*.jsonl")} == expected


@pytest.mark.parametrize("language", LANGUAGES)
def test_documents(language):
    documents = rows("documents", language)
    assert [row["split"] for row in documents] == ["detect"] * 32 + ["held_out"] * 16
    for row in documents:
        assert row["text"].count(row["answer"]) == 1, f"{row['id']}: {row['answer']!r}"
        if language != "th":  # Thai needs no question mark
            assert row["question"].endswith({"zh": "？", "ar": "؟"}.get(language, "?")), row["id"]
    for key in ("title", "text", "question"):
        assert len({row[key] for row in documents}) == len(documents), f"{key} twice"


@pytest.mark.parametrize("language", TRANSLATIONS)
def test_documents_are_translations(language):
    for english, row in english_and("documents", language):
        assert row["split"] == english["split"]
        for key in ("title", "text", "question"):
            assert row[key] != english[key], f"{row['id']}: {key} is still English"
        assert Counter(numbers(row["text"])) == Counter(numbers(english["text"])), row["id"]


@pytest.mark.parametrize("language", SCRIPTS)
def test_script(language):
    for kind in COUNTS:
        for row in rows(kind, language):
            text = " ".join(strings({key: row[key] for key in ("title", "text", "question", "solution") if key in row}))
            text = re.sub(r"\b[A-E]\b", "", text)  # the labels of the choices
            letters = [c for c in text if unicodedata.category(c)[0] in "LM"]
            share = sum(unicodedata.name(c).startswith(SCRIPTS[language]) for c in letters) / len(letters)
            assert share > 0.9, f"{row['id']}: {share:.2f}"


@pytest.mark.parametrize("language", COMMON_WORDS)
def test_every_text_is_in_its_language(language):
    for row in rows("documents", language):
        found = Counter(re.findall(r"\w+", row["text"].lower()))
        scores = {name: sum(found[word] for word in words.split()) for name, words in COMMON_WORDS.items()}
        assert max(scores, key=scores.__getitem__) == language, f"{row['id']}: {scores}"
        assert bool(VIETNAMESE & set(unicodedata.normalize("NFD", row["text"]) + row["text"])) == (language == "vi")


def test_french_typography():
    for kind in COUNTS:
        for row in rows(kind, "fr"):
            for text in strings({key: row[key] for key in row if key != "id"}):
                assert "'" not in text, row["id"]
                assert not re.search("[^\N{NO-BREAK SPACE}][?;:!%]", text), row["id"]


@pytest.mark.parametrize("language", LANGUAGES)
def test_knowledge(language):
    for english, row in english_and("knowledge", language):
        assert row["lang"] == language
        assert row["answerKey"] == english["answerKey"]
        assert list(row["question"]) == ["stem", "choices"]
        choices = row["question"]["choices"]
        assert [list(choice) for choice in choices] == [["label", "text"]] * 5, row["id"]
        assert "".join(choice["label"] for choice in choices) == "ABCDE", row["id"]
        assert len({choice["text"].lower() for choice in choices}) == 5, row["id"]
        if language != "en":
            assert row["question"]["stem"] != english["question"]["stem"], row["id"]
    assert len({row["question"]["stem"] for row in rows("knowledge", language)}) == COUNTS["knowledge"]
    keys = Counter(row["answerKey"] for row in rows("knowledge", language))
    assert set(keys) == set("ABCDE")
    assert max(keys.values()) - min(keys.values()) <= 1, keys


@pytest.mark.parametrize("language", LANGUAGES)
def test_arithmetic(language):
    wrong_mark = "." if language in DECIMAL_COMMA else ","
    for english, row in english_and("arithmetic", language):
        assert re.fullmatch(r"-?\d+(\.\d+)?", row["answer"]), row["id"]
        assert row["answer"] == english["answer"], row["id"]
        assert number(re.findall(rf"-?{NUMBER}", row["solution"])[-1]) == number(row["answer"]), row["id"]
        found = equations(row["solution"])
        assert found, row["id"]
        assert len(found) == row["solution"].count("="), f"{row['id']}: an equation that cannot be read"
        for left, right in found:
            assert value(left) == number(right), f"{row['id']}: {left} = {right}"
        assert number(found[-1][1]) == number(row["answer"]), row["id"]
        assert Counter(found) == Counter(equations(english["solution"])), row["id"]
        for text in (row["question"], row["solution"]):
            assert not re.search(rf"\d\{wrong_mark}\d", text), row["id"]
    questions = [row["question"] for row in rows("arithmetic", language)]
    assert len(set(questions)) == len(questions)


@pytest.mark.parametrize("language", TRANSLATIONS)
def test_arithmetic_questions_keep_their_numbers(language):
    for english, row in english_and("arithmetic", language):
        assert row["question"] != english["question"]
        # One and two may be words: a dual in Arabic, "twice" in English.
        large = [[n for n in numbers(item["question"]) if n > 2] for item in (english, row)]
        assert sorted(large[0]) == sorted(large[1]), row["id"]


@pytest.mark.parametrize(
    ("expression", "expected"),
    [("6 - 9", "-3"), ("-3 - 4", "-7"), ("2 × (15 + 9)", "48"), ("4 × 3 + 2 × 5", "22"), ("10.5 ÷ 3", "3.5")],
)
def test_value(expression, expected):
    assert value(expression) == Fraction(expected)
    assert equations(f"It is {expression} = {expected}.") == [(expression, expected)]
