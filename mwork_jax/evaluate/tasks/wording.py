"""Words that several tasks put before their parts, in each language."""

from __future__ import annotations

from typing import NamedTuple


class PromptLabels(NamedTuple):
    """The labels of a text, a question and an answer, each with its colon."""

    text: str
    question: str
    answer: str


LABELS = {
    "en": PromptLabels("Text:", "Question:", "Answer:"),
    "de": PromptLabels("Text:", "Frage:", "Antwort:"),
    "fr": PromptLabels("Texte\u00a0:", "Question\u00a0:", "Réponse\u00a0:"),
    "es": PromptLabels("Texto:", "Pregunta:", "Respuesta:"),
    "ru": PromptLabels("Текст:", "Вопрос:", "Ответ:"),
    "zh": PromptLabels("文章：", "问题：", "答案："),
    "vi": PromptLabels("Đoạn văn:", "Câu hỏi:", "Trả lời:"),
    "th": PromptLabels("ข้อความ:", "คำถาม:", "คำตอบ:"),
    "ar": PromptLabels("النص:", "السؤال:", "الجواب:"),
    "sw": PromptLabels("Maandishi:", "Swali:", "Jibu:"),
}
