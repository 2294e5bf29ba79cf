"""Writing about an article: XL-Sum's one-sentence summaries (Hasan et al. 2021), or its headline.

Tests generation (Table 5). `headlines` reads MasakhaNEWS (Adelani et al. 2023) and the project's own documents.
"""

from __future__ import annotations

import csv
import io
from pathlib import Path
from typing import Any

from mwork_jax.corpus import LANGUAGES, own_rows
from mwork_jax.errors import InputError
from mwork_jax.evaluate.tasks.base import HubData, Item, Task, labelled, one_line, text_of
from mwork_jax.evaluate.tasks.wording import LABELS
from mwork_jax.metrics import chrf, rouge_l
from mwork_jax.runtime.files import cells_of_any_length, read_jsonl, read_text

# What to do, and the label of the summary.
_SUMMARY = {
    "en": ("Summarise the text in one sentence.", "Summary:"),
    "fr": ("Résumez le texte en une phrase.", "Résumé\u00a0:"),
    "es": ("Resuma el texto en una frase.", "Resumen:"),
    "ru": ("Кратко изложите текст одним предложением.", "Краткое содержание:"),
    "zh": ("请用一句话概括这篇文章。", "摘要："),
    "vi": ("Hãy tóm tắt đoạn văn bằng một câu.", "Tóm tắt:"),
    "th": ("สรุปข้อความนี้ในหนึ่งประโยค", "สรุป:"),
    "ar": ("لخّص النص في جملة واحدة.", "الملخص:"),
    "sw": ("Fupisha maandishi haya kwa sentensi moja.", "Muhtasari:"),
}
_HEADLINE = {
    "en": ("Write a headline for the text.", "Headline:"),
    "de": ("Schreiben Sie eine Überschrift für den Text.", "Überschrift:"),
    "fr": ("Écrivez un titre pour le texte.", "Titre\u00a0:"),
    "es": ("Escriba un titular para el texto.", "Titular:"),
    "ru": ("Напишите заголовок к тексту.", "Заголовок:"),
    "zh": ("请为这篇文章写一个标题。", "标题："),
    "vi": ("Hãy viết tiêu đề cho đoạn văn.", "Tiêu đề:"),
    "th": ("เขียนพาดหัวให้ข้อความนี้", "พาดหัว:"),
    "ar": ("اكتب عنوانًا للنص.", "العنوان:"),
    "sw": ("Andika kichwa cha habari cha maandishi haya.", "Kichwa:"),
}
_XLSUM_NAMES = {
    "en": "english",
    "fr": "french",
    "es": "spanish",
    "ru": "russian",
    "zh": "chinese_simplified",
    "vi": "vietnamese",
    "th": "thai",
    "ar": "arabic",
    "sw": "swahili",
}
_NEWS_NAMES = {"en": "eng", "fr": "fra", "sw": "swa"}
_NEWS_COLUMNS = ["category", "headline", "text", "url"]


def _read_xlsum(path: Path, language: str) -> tuple[Item, ...]:
    """Items of JSONL in the Hub's schema: id, url, title, summary, text."""
    return tuple(_xlsum_item(row, language, f"{path}:{number}") for number, row in read_jsonl(path))


def _xlsum_item(row: dict[str, object], language: str, where: str) -> Item:
    text, summary = (one_line(text_of(row, name, where)) for name in ("text", "summary"))
    return Item(text_of(row, "id", where), language, context=text, references=(summary,))


@cells_of_any_length()
def _read_news(path: Path, language: str) -> tuple[Item, ...]:
    """Items of a TSV file with a header, category, headline, text and url, quoted as CSV is; texts may span lines."""
    rows = csv.reader(io.StringIO(read_text(path), newline=""), delimiter="\t", strict=True)
    items = []
    try:
        header = next(rows, [])
        if header and header != _NEWS_COLUMNS:
            raise InputError(f"{path}:1: the columns are {', '.join(header)}; {', '.join(_NEWS_COLUMNS)} are needed")
        for row in rows:
            where = f"{path}:{rows.line_num}"
            if len(row) != len(_NEWS_COLUMNS):
                raise InputError(
                    f"{where}: {len(row)} columns in the row that ends here; {len(_NEWS_COLUMNS)} are needed"
                )
            items.append(_news_item(dict(zip(_NEWS_COLUMNS, row, strict=True)), language, where, len(items) + 1))
    except csv.Error as error:
        raise InputError(f"{path}:{rows.line_num}: not valid TSV ({error})") from None
    return tuple(items)


def _news_item(row: dict[str, object], language: str, where: str, number: int | None = None) -> Item:
    text, headline = (one_line(text_of(row, name, where)) for name in ("text", "headline"))
    # News of two languages are not translations of each other, so no two of them share an id.
    place = number or where.rpartition(" ")[2]
    return Item(f"{language}-{place}", language, context=text, references=(headline,))


def _read_own(language: str) -> tuple[tuple[Item, ...], tuple[Item, ...]]:
    by_split: dict[str, list[Item]] = {"held_out": [], "detect": []}
    for row in own_rows("documents", language):
        by_split[row["split"]].append(Item(row["id"], language, row["text"], references=(row["title"],)))
    return tuple(by_split["held_out"]), tuple(by_split["detect"])


def _ask_summary(item: Item) -> str:
    return _ask(item, _SUMMARY[item.language][1])


def _ask_headline(item: Item) -> str:
    return _ask(item, _HEADLINE[item.language][1])


def _ask(item: Item, label: str) -> str:
    return labelled(item.language, (LABELS[item.language].text, item.context), (label, ""))


def _score(item: Item, answer: Any) -> dict[str, float]:
    return {"rouge_l": rouge_l(answer, item.references, item.language), "chrf": chrf(answer, item.references)}


XLSUM = Task(
    name="xlsum",
    version=1,
    kind="generate",
    languages=tuple(_SUMMARY),
    files=("{name}_test.jsonl", "{name}_val.jsonl", "{name}/test.jsonl", "{name}/validation.jsonl"),
    names=_XLSUM_NAMES,
    read=_read_xlsum,
    opening=lambda language: _SUMMARY[language][0],
    ask=_ask_summary,
    reply=lambda item: item.references[0],
    stop=lambda language: ("\n",),
    max_new_tokens=96,
    score_names=("rouge_l", "chrf"),
    score=_score,
    # The Hub's own loader of this set is a script, which is never run; its converted files are the same data.
    hub=HubData("csebuetnlp/xlsum", "{name}", "test", _xlsum_item, revision="refs/convert/parquet"),
)

HEADLINES = Task(
    name="headlines",
    version=1,
    kind="generate",
    languages=tuple(_NEWS_NAMES),
    files=("{name}/test.tsv", "{name}/dev.tsv"),
    names=_NEWS_NAMES,
    read=_read_news,
    built_in=LANGUAGES,
    read_own=_read_own,
    opening=lambda language: _HEADLINE[language][0],
    ask=_ask_headline,
    reply=lambda item: item.references[0],
    stop=lambda language: ("\n",),
    max_new_tokens=48,
    score_names=("rouge_l", "chrf"),
    score=_score,
    hub=HubData("masakhane/masakhanews", "{name}", "test", _news_item, revision="refs/convert/parquet"),
)
