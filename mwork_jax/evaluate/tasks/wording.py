"""Words that several tasks put before their parts, in each language."""

from __future__ import annotations

from typing import NamedTuple


class Labels(NamedTuple):
    """The labels of a text, a question and an answer, each with its colon."""

    text: str
    question: str
    answer: str


LABELS = {
    "en": Labels("Text:", "Question:", "Answer:"),
    "de": Labels("Text:", "Frage:", "Antwort:"),
    "fr": Labels("Texte\u00a0:", "Question\u00a0:", "Réponse\u00a0:"),
    "es": Labels("Texto:", "Pregunta:", "Respuesta:"),
    "ru": Labels("Текст:", "Вопрос:", "Ответ:"),
    "zh": Labels("文章：", "问题：", "答案："),
    "vi": Labels("Đoạn văn:", "Câu hỏi:", "Trả lời:"),
    "th": Labels("ข้อความ:", "คำถาม:", "คำตอบ:"),
    "ar": Labels("النص:", "السؤال:", "الجواب:"),
    "sw": Labels("Maandishi:", "Swali:", "Jibu:"),
}
