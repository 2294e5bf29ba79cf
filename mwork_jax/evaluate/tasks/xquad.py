"""XQuAD (Artetxe et al. 2020): find the answer to a question in a passage. Tests understanding (Table 2)."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

from mwork_jax.corpus import LANGUAGES, own_rows
from mwork_jax.errors import InputError, InputWarning
from mwork_jax.evaluate.tasks.base import HubData, Item, Task, labelled, list_of, one_line, text_of
from mwork_jax.evaluate.tasks.wording import LABELS
from mwork_jax.metrics import answer_exact, answer_f1, squad_v11_exact, squad_v11_f1
from mwork_jax.runtime.cache import fingerprint
from mwork_jax.runtime.files import read_json

_OPENINGS = {
    "en": "Answer the question with a few words taken from the text.",
    "de": "Beantworten Sie die Frage mit wenigen Wörtern aus dem Text.",
    "fr": "Répondez à la question avec quelques mots tirés du texte.",
    "es": "Responda a la pregunta con unas pocas palabras del texto.",
    "ru": "Ответьте на вопрос несколькими словами из текста.",
    "zh": "请用文中的几个词回答问题。",
    "vi": "Hãy trả lời câu hỏi bằng vài từ lấy từ đoạn văn.",
    "th": "ตอบคำถามด้วยคำสั้น ๆ จากข้อความ",
    "ar": "أجب عن السؤال ببضع كلمات من النص.",
    "sw": "Jibu swali kwa maneno machache kutoka kwenye maandishi.",
}


def _read(path: Path, language: str) -> tuple[Item, ...]:
    """Items of a file in SQuAD's format: data / paragraphs (context) / qas (id, question, answers). Questions without
    an answer, as SQuAD 2 has them, are left out and counted in one InputWarning."""
    items, without_answer = [], 0
    for a, article in enumerate(list_of(read_json(path), "data", str(path)), 1):
        for p, paragraph in enumerate(list_of(article, "paragraphs", f"{path}: article {a}"), 1):
            where = f"{path}: article {a}, paragraph {p}"
            pairs = list_of(paragraph, "qas", where)
            context = one_line(text_of(paragraph, "context", where))
            for q, pair in enumerate(pairs, 1):
                if isinstance(pair, dict) and pair.get("is_impossible") is True:
                    without_answer += 1
                else:
                    items.append(_item(pair, context, language, f"{a}.{p}", f"{where}, question {q}"))
    if without_answer:
        line = f"{path}: {without_answer} of {without_answer + len(items)} questions have no answer and are left out"
        warnings.warn(line, InputWarning, stacklevel=2)
    return tuple(items)


def _item(pair: Any, context: str, language: str, group: str, where: str) -> Item:
    answers = list_of(pair, "answers", where)
    where = f"{where} ({text_of(pair, 'id', where)})"
    question = one_line(text_of(pair, "question", where))
    if not all(isinstance(answer, dict) for answer in answers):
        raise InputError(f"{where}: each of its 'answers' must be an object with a 'text'")
    texts = [text for answer in answers for text in _texts(text_of(answer, "text", where), context)]
    references = tuple(dict.fromkeys(texts))
    for reference in references:
        if reference not in context:
            raise InputError(
                f"{where}: the answer {reference!r} is not in its context; it must stand there word for word"
            )
    return Item(pair["id"], language, context, question, references, group=group)


def _texts(text: str, context: str) -> list[str]:
    """An answer, or several that stand in lines of their own: where the whole is not in the context."""
    whole = one_line(text)
    lines = [one_line(line) for line in text.split("\n") if line.strip()]
    return [whole] if whole in context or len(lines) < 2 else lines


def _hub_item(row: dict[str, object], language: str, where: str) -> Item | None:
    """One row of the Hub's schema, which is flat: id, context, question, answers {text}; None for a question without an
    answer."""
    context = one_line(text_of(row, "context", where))
    answers = row.get("answers")
    if isinstance(answers, dict) and isinstance(answers.get("text"), list) and not answers["text"]:
        return None
    texts = list_of(row.get("answers"), "text", f"{where}: 'answers'")
    pair = {**row, "answers": [{"text": text} for text in texts]}
    return _item(pair, context, language, fingerprint(context), where)


def _read_own(language: str) -> tuple[tuple[Item, ...], tuple[Item, ...]]:
    by_split: dict[str, list[Item]] = {"held_out": [], "detect": []}
    for row in own_rows("documents", language):
        item = Item(row["id"], language, row["text"], row["question"], (row["answer"],))
        by_split[row["split"]].append(item)
    return tuple(by_split["held_out"]), tuple(by_split["detect"])


def _ask(item: Item) -> str:
    labels = LABELS[item.language]
    lines = ((labels.text, item.context), (labels.question, item.question), (labels.answer, ""))
    return labelled(item.language, *lines)


def _score(item: Item, answer: str) -> dict[str, float]:
    return {
        "f1": answer_f1(answer, item.references, item.language),
        "exact": answer_exact(answer, item.references, item.language),
        "squad_v11_f1": squad_v11_f1(answer, item.references),
        "squad_v11_exact": squad_v11_exact(answer, item.references),
    }


XQUAD = Task(
    name="xquad",
    version=1,
    kind="generate",
    languages=("en", "de", "es", "ru", "zh", "vi", "th", "ar"),
    files=("xquad.{language}.json",),
    read=_read,
    built_in=LANGUAGES,
    read_own=_read_own,
    opening=_OPENINGS.__getitem__,
    ask=_ask,
    reply=lambda item: item.references[0],
    stop=lambda language: ("\n",),
    max_new_tokens=32,
    score_names=("f1", "exact", "squad_v11_f1", "squad_v11_exact"),
    score=_score,
    right_or_wrong="exact",
    hub=HubData("google/xquad", "xquad.{language}", "validation", _hub_item),
)
