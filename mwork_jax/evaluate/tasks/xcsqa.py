"""X-CSQA (Lin et al. 2021): commonsense questions with five choices. Tests knowledge (Table 4).

Two tasks read the same questions: `xcsqa` compares the texts of the choices, which the prompt does not show, and
`xcsqa_letter` lists them and compares their letters.
"""

from __future__ import annotations

from pathlib import Path

from mwork_jax.corpus import LANGUAGES, own_rows
from mwork_jax.errors import InputError
from mwork_jax.evaluate.tasks.base import (
    CHOICE_SCORES,
    HubData,
    Item,
    Task,
    labelled,
    list_of,
    one_line,
    score_choices,
    text_of,
)
from mwork_jax.evaluate.tasks.wording import LABELS
from mwork_jax.runtime.files import read_jsonl

_NAMES = {"ja": "jap"}  # the data set's own codes where they differ


def _read(path: Path, language: str) -> tuple[Item, ...]:
    return tuple(_item(row, language, f"{path}:{number}") for number, row in read_jsonl(path))


def _item(row: dict[str, object], language: str, where: str) -> Item:
    """One row of the Hub's schema: id, lang, question {stem, choices {label, text}}, answerKey."""
    expected, lang = _NAMES.get(language, language), row.get("lang")
    if lang != expected:
        raise InputError(f"{where}: 'lang' is {lang!r}; {expected!r} is needed for the language {language!r}")
    question = row.get("question")
    if not isinstance(question, dict):
        raise InputError(f"{where}: no 'question' (an object with a 'stem' and 'choices')")
    choices = _choices(question, where)
    labels = tuple(text_of(choice, "label", f"{where}: a choice") for choice in choices)
    if not row.get("answerKey"):
        raise InputError(f"{where}: no 'answerKey'; the test file hides its keys, use the validation file")
    if row["answerKey"] not in labels or len(set(labels)) < len(labels):
        raise InputError(f"{where}: 'answerKey' {row['answerKey']!r} must be one of the labels {', '.join(labels)}")
    return Item(
        text_of(row, "id", where),
        language,
        question=one_line(text_of(question, "stem", where)),
        choices=tuple(one_line(text_of(choice, "text", f"{where}: a choice")) for choice in choices),
        labels=labels,
        answer=labels.index(row["answerKey"]),
    )


def _choices(question: dict[str, object], where: str) -> list[dict[str, object]]:
    """The choices as a list of {label, text}; the Hub also hands them out as one object of two lists."""
    if isinstance(question.get("choices"), dict):
        labels, texts = (list_of(question["choices"], name, f"{where}: 'choices'") for name in ("label", "text"))
        if len(labels) != len(texts):
            raise InputError(f"{where}: {len(labels)} labels and {len(texts)} texts of choices; one each is needed")
        return [{"label": label, "text": text} for label, text in zip(labels, texts, strict=True)]
    choices = list_of(question, "choices", where)
    if not all(isinstance(choice, dict) for choice in choices):
        raise InputError(f"{where}: each of the 'choices' must be an object with a 'label' and a 'text'")
    return choices


def _read_own(language: str) -> tuple[tuple[Item, ...], tuple[Item, ...]]:
    rows = own_rows("knowledge", language)
    return tuple(_item(row, language, f"knowledge.{language}.jsonl, {row['id']}") for row in rows), ()


def _ask(item: Item) -> str:
    labels = LABELS[item.language]
    return labelled(item.language, (labels.question, item.question), (labels.answer, ""))


def _ask_letter(item: Item) -> str:
    labels = LABELS[item.language]
    options = [(f"{letter}.", text) for letter, text in zip(item.labels, item.choices, strict=True)]
    # Letters are followed by a space in all languages: their full stop is not full-width.
    listed = "\n".join(f"{letter} {text}" for letter, text in options)
    question = labelled(item.language, (labels.question, item.question))
    return f"{question}\n{listed}\n{labels.answer}"


def _texts(item: Item) -> tuple[str, ...]:
    return item.choices


def _letters(item: Item) -> tuple[str, ...]:
    return item.labels


XCSQA = Task(
    name="xcsqa",
    version=1,
    kind="choose",
    languages=("en", "de", "fr", "es", "ru", "zh", "vi", "ar", "sw"),
    files=(
        "X-CSQA-{name}.jsonl",
        "X-CSQA-{name}/validation.jsonl",
        "X-CSQA/{name}/dev.jsonl",
    ),
    names=_NAMES,
    read=_read,
    built_in=LANGUAGES,
    read_own=_read_own,
    ask=_ask,
    reply=lambda item: item.choices[item.answer],
    options=_texts,
    score_names=CHOICE_SCORES,
    score=score_choices(_texts),
    right_or_wrong=CHOICE_SCORES[0],
    hub=HubData("INK-USC/xcsr", "X-CSQA-{name}", "validation", _item),
)

XCSQA_LETTER = Task(
    name="xcsqa_letter",
    version=1,
    kind="choose",
    languages=XCSQA.languages,
    files=XCSQA.files,
    names=_NAMES,
    read=_read,
    built_in=LANGUAGES,
    read_own=_read_own,
    ask=_ask_letter,
    reply=lambda item: item.labels[item.answer],
    options=_letters,
    score_names=CHOICE_SCORES,
    score=score_choices(_letters),
    right_or_wrong=CHOICE_SCORES[0],
    hub=XCSQA.hub,
)
