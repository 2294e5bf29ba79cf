"""Prompts in one language whose answers are wanted in another, and what a model under interventions makes of them."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from mwork_jax.corpus import Batching, Encoded
from mwork_jax.errors import InputError
from mwork_jax.evaluate.likelihood import held_out_losses, log_likelihoods
from mwork_jax.evaluate.tasks import Item, Task, prompt, questions
from mwork_jax.intervention import Edit
from mwork_jax.metrics import Identify, chrf, language_share, repeated_share
from mwork_jax.model.generate import generations
from mwork_jax.model.model import Model

STEERING_VERSION = "steering-1"  # of prompts and measures: cached answers of another one are computed again


@dataclass(frozen=True)
class SteeringPrompts:
    """The same questions in one language, with the answers that are wanted in others.

    ids: of the questions; references: {wanted language: an answer each}. stop: strings that end an answer.
    """

    language: str
    ids: tuple[str, ...]
    texts: tuple[str, ...]
    references: Mapping[str, tuple[str, ...]]
    stop: tuple[str, ...]
    origin: str

    @property
    def key(self) -> Mapping[str, object]:
        """What determines the answers, besides the model and the intervention."""
        return {"texts": list(self.texts), "stop": list(self.stop)}

    def after(self, instruction: str) -> SteeringPrompts:
        """With an instruction before every question."""
        return replace(self, texts=tuple(f"{instruction}\n\n{text}" for text in self.texts))


def steering_prompts(
    task: Task, language: str, wanted: Sequence[str], data: str | Path | None, items: int | None
) -> SteeringPrompts:
    """The first `items` questions of a task that generates answers, of those that all languages have (by id). Raises
    InputError for a task that chooses, and where no questions are shared."""
    if task.kind != "generate":
        raise InputError(f"task {task.name} chooses among answers; steering needs one that writes them")
    by_language = {lang: questions(task, lang, data) for lang in dict.fromkeys((language, *wanted))}
    by_id = {lang: {item.id: item for item in own.items} for lang, own in by_language.items()}
    shared = [item for item in by_language[language].items if all(item.id in own for own in by_id.values())]
    if not shared:
        raise InputError(f"{by_language[language].origin}: no question that {', '.join(wanted)} have too, by id")
    if items is not None and not 2 <= items <= len(shared):
        raise InputError(f"{by_language[language].origin}: {items} items asked; from 2 to {len(shared)} can be")
    shared = shared[:items]
    return SteeringPrompts(
        language,
        tuple(item.group or item.id for item in shared),
        tuple(prompt(task, item, ()) for item in shared),
        {lang: tuple(_reference(by_id[lang][item.id]) for item in shared) for lang in wanted},
        task.stop(language),
        by_language[language].origin,
    )


def _reference(item: Item) -> str:
    """The answer in full where the item has one."""
    return item.worked or item.references[0]


@dataclass(frozen=True)
class SteeredAnswers:
    """What a model writes under one intervention, and how it finds given texts. answers: one for each prompt; nats,
    tokens: of each reference answer; english_nats, english_tokens: of each held-out English document."""

    answers: tuple[str, ...]
    nats: tuple[float, ...]
    tokens: tuple[int, ...]
    english_nats: tuple[float, ...]
    english_tokens: tuple[int, ...]

    @property
    def reference_loss(self) -> np.ndarray:
        """Nats per token of each reference answer, float64 [items]."""
        return np.asarray(self.nats) / np.asarray(self.tokens)

    def forcing(self, language: str, identify: Identify) -> np.ndarray:
        """The share of each answer that is in the language: float64 [items]."""
        return np.asarray([language_share(answer, language, identify) for answer in self.answers])

    def relevance(self, references: Sequence[str]) -> np.ndarray:
        """chrF of each answer with its reference, 0 to 1: float64 [items]."""
        return np.asarray([chrf(answer, (r,)) for answer, r in zip(self.answers, references, strict=True)])

    @property
    def repetition(self) -> np.ndarray:
        """How much each answer repeats itself: float64 [items]."""
        return np.asarray([repeated_share(answer) for answer in self.answers])


def steered_answers(
    model: Model,
    prompts: SteeringPrompts,
    wanted: str,
    english: Sequence[Encoded],
    edits: Sequence[Edit],
    *,
    max_new_tokens: int,
    progress: Callable[[int], None] | None = None,
) -> list[SteeredAnswers]:
    """`SteeredAnswers` under each intervention, all side by side through one program. Its progress counts answers."""
    texts = generations(
        model, prompts.texts, edits, max_new_tokens=max_new_tokens, stop=prompts.stop, progress=progress
    )
    references = [f" {reference}" for reference in prompts.references[wanted]]
    likelihoods = log_likelihoods(model, prompts.texts, references, edits)
    losses = held_out_losses(model, english, edits, batching=Batching(tokens_per_batch=2048))
    return [
        SteeredAnswers(
            tuple(str(text).strip() for text in answers),
            tuple((-likelihood.nats).tolist()),
            tuple(likelihood.tokens.tolist()),
            tuple(loss.nats.tolist()),
            tuple(loss.tokens.tolist()),
        )
        for answers, likelihood, loss in zip(texts, likelihoods, losses, strict=True)
    ]
