"""XCOPA (Ponti et al. 2020): the likelier of two causes or effects. Stands in for X-CSQA in the languages it has."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

from mwork_jax.errors import InputError
from mwork_jax.evaluate.tasks.base import CHOICE_SCORES, HubData, Item, Task, labelled, one_line, score_choices, text_of
from mwork_jax.runtime.files import read_jsonl


class _Words(NamedTuple):
    premise: str
    cause: str
    effect: str


_WORDS = {
    "en": _Words("Situation:", "Cause:", "Effect:"),
    "id": _Words("Situasi:", "Penyebab:", "Akibat:"),
    "it": _Words("Situazione:", "Causa:", "Effetto:"),
    "sw": _Words("Hali:", "Sababu:", "Matokeo:"),
    "th": _Words("สถานการณ์:", "สาเหตุ:", "ผลลัพธ์:"),
    "tr": _Words("Durum:", "Neden:", "Sonuç:"),
    "vi": _Words("Tình huống:", "Nguyên nhân:", "Kết quả:"),
    "zh": _Words("情况：", "原因：", "结果："),
}


def _read(path: Path, language: str) -> tuple[Item, ...]:
    return tuple(_item(row, language, f"{path}:{number}") for number, row in read_jsonl(path))


def _item(row: dict[str, object], language: str, where: str) -> Item:
    """One row of the official schema: premise, choice1, choice2, question (cause or effect), label (0 or 1), idx."""
    question = row.get("question")
    if not isinstance(question, str) or question not in ("cause", "effect"):
        raise InputError(f"{where}: 'question' is {question!r}; 'cause' or 'effect' is needed")
    if type(row.get("label")) is not int or row["label"] not in (0, 1):
        raise InputError(f"{where}: 'label' is {row.get('label')!r}; 0 or 1 is needed")
    if type(row.get("idx")) is not int:
        raise InputError(f"{where}: no 'idx' (a whole number)")
    return Item(
        str(row["idx"]),
        language,
        context=one_line(text_of(row, "premise", where)),
        question=question,
        choices=tuple(one_line(text_of(row, name, where)) for name in ("choice1", "choice2")),
        labels=("1", "2"),
        answer=row["label"],
    )


def _ask(item: Item) -> str:
    words = _WORDS[item.language]
    asked = words.cause if item.question == "cause" else words.effect
    return labelled(item.language, (words.premise, item.context), (asked, ""))


def _texts(item: Item) -> tuple[str, ...]:
    return item.choices


XCOPA = Task(
    name="xcopa",
    version=1,
    kind="choose",
    languages=tuple(_WORDS),  # English is not in XCOPA; the original COPA has the same schema
    files=("test.{language}.jsonl", "val.{language}.jsonl"),
    read=_read,
    ask=_ask,
    reply=lambda item: item.choices[item.answer],
    options=_texts,
    score_names=CHOICE_SCORES,
    score=score_choices(_texts),
    right_or_wrong=CHOICE_SCORES[0],
    hub=HubData("cambridgeltl/xcopa", "{language}", "test", _item),
)
