"""MGSM (Shi et al. 2023): word problems, solved step by step. Tests reasoning (Table 3)."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

from mwork_jax.corpus import LANGUAGES, own_rows
from mwork_jax.errors import InputError
from mwork_jax.evaluate.tasks.base import HubData, Item, Task, labelled, one_line, text_of
from mwork_jax.metrics import number_exact, plain_number
from mwork_jax.runtime.files import read_text


class _Words(NamedTuple):
    opening: str
    problem: str
    solution: str
    phrases: tuple[str, ...]  # what announces the final number; the first is the one that the opening asks for


_WORDS = {
    "en": _Words(
        "Solve the problem step by step. End with “The answer is” and the number.",
        "Problem:",
        "Solution:",
        ("the answer is",),
    ),
    "de": _Words(
        "Lösen Sie die Aufgabe Schritt für Schritt. Schließen Sie mit „Die Antwort lautet“ und der Zahl.",
        "Aufgabe:",
        "Lösung:",
        ("die antwort lautet", "die antwort ist"),
    ),
    "fr": _Words(
        "Résolvez le problème étape par étape. Terminez par «\u00a0La réponse est\u00a0» et le nombre.",
        "Problème\u00a0:",
        "Solution\u00a0:",
        ("la réponse est",),
    ),
    "es": _Words(
        "Resuelva el problema paso a paso. Termine con «La respuesta es» y el número.",
        "Problema:",
        "Solución:",
        ("la respuesta es",),
    ),
    "ru": _Words("Решите задачу по шагам. В конце напишите «Ответ:» и число.", "Задача:", "Решение:", ("ответ:",)),
    "zh": _Words("请一步一步地解答问题，最后写“答案是”和数字。", "题目：", "解答：", ("答案是", "答案为", "答案：")),
    "vi": _Words(
        "Hãy giải bài toán từng bước. Kết thúc bằng “Đáp án là” và con số.",
        "Bài toán:",
        "Lời giải:",
        ("đáp án là", "đáp số:"),
    ),
    "th": _Words("แก้โจทย์ทีละขั้น แล้วจบด้วย “คำตอบคือ” และตัวเลข", "โจทย์:", "วิธีทำ:", ("คำตอบคือ",)),
    "ar": _Words(
        "حل المسألة خطوة خطوة، واختم بعبارة «الجواب هو» ثم العدد.", "المسألة:", "الحل:", ("الجواب هو", "الإجابة هي")
    ),
    "sw": _Words("Tatua swali hatua kwa hatua. Malizia kwa “Jibu ni” na namba.", "Swali:", "Suluhisho:", ("jibu ni",)),
}


def _read(path: Path, language: str) -> tuple[Item, ...]:
    """Items of a TSV file without a header: question, answer."""
    items = []
    # Not splitlines: a question may hold other separators than the line feed.
    for number, line in enumerate(read_text(path).split("\n"), 1):
        if not line.strip():
            continue
        where, fields = f"{path}:{number}", line.split("\t")
        if len(fields) != 2 or not all(field.strip() for field in fields):
            raise InputError(f"{where}: {len(fields)} fields; a question, a tab and an answer are needed on each line")
        question, gold = one_line(_unquoted(fields[0])), str(plain_number(fields[1], where))
        worked = f"{_announcement(language)} {gold}"
        items.append(Item(str(number), language, question=question, references=(gold,), worked=worked))
    return tuple(items)


def _unquoted(field: str) -> str:
    """A field without the quotes that Excel puts around one in which quotes stand, and doubles those; others as they
    are."""
    inner = field.strip()[1:-1]
    quoted = field.strip() == f'"{inner}"' and '""' in inner and '"' not in inner.replace('""', "")
    return inner.replace('""', '"') if quoted else field


def _hub_item(row: dict[str, object], language: str, where: str) -> Item:
    """One row of the Hub's schema: question, answer_number."""
    gold = str(plain_number(str(row.get("answer_number")), where))
    question = one_line(text_of(row, "question", where))
    worked = f"{_announcement(language)} {gold}"
    return Item(where.rpartition(" ")[2], language, question=question, references=(gold,), worked=worked)


def _announcement(language: str) -> str:
    return _WORDS[language].phrases[0].capitalize()


def _read_own(language: str) -> tuple[tuple[Item, ...], tuple[Item, ...]]:
    rows = own_rows("arithmetic", language)
    items = (
        Item(row["id"], language, question=row["question"], references=(row["answer"],), worked=row["solution"])
        for row in rows
    )
    return tuple(items), ()


def _ask(item: Item) -> str:
    words = _WORDS[item.language]
    return labelled(item.language, (words.problem, item.question), (words.solution, ""))


def _score(item: Item, answer: str) -> dict[str, float]:
    # A model may fall back on English, so the English phrase announces an answer in every language.
    phrases = {*_WORDS[item.language].phrases, *_WORDS["en"].phrases}
    return {"exact": number_exact(answer, item.references[0], tuple(sorted(phrases)))}


MGSM = Task(
    name="mgsm",
    version=2,
    kind="generate",
    languages=("en", "de", "fr", "es", "ru", "zh", "th", "sw"),
    files=("mgsm_{language}.tsv",),
    read=_read,
    built_in=LANGUAGES,
    read_own=_read_own,
    opening=lambda language: _WORDS[language].opening,
    ask=_ask,
    reply=lambda item: item.worked,
    stop=lambda language: ("\n" + _WORDS[language].problem,),
    max_new_tokens=256,
    score_names=("exact",),
    score=_score,
    right_or_wrong="exact",
    hub=HubData("juletxara/mgsm", "{language}", "test", _hub_item),
)
