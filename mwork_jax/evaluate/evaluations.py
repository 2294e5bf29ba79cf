"""What a model is measured on in one language, under any number of masks: a task's items, or held-out documents."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Protocol

import numpy as np

from mwork_jax.corpus import Batching, Encoded, documents_key
from mwork_jax.errors import InputError
from mwork_jax.evaluate.likelihood import held_out_losses, log_likelihoods
from mwork_jax.evaluate.tasks import Choices, Item, Task, continuations, filtered
from mwork_jax.model.generate import generations
from mwork_jax.model.model import Model
from mwork_jax.neurons import NeuronMask
from mwork_jax.runtime.cache import fingerprint

ItemScores = dict[str, list[float]]  # score name -> one number per item
HELD_OUT_LOSS = "held-out loss"  # its name beside the tasks: minus nats per token, so that higher is better
LOSS_VERSION = "held_out_loss-1"  # results of another version are not mixed in
POINTS = 100.0  # a task's scores are between 0 and 1, tables show points


class Evaluation(Protocol):
    """Something to measure a model on in one language. `key`, a JSON value, is what determines the scores besides the
    model and the mask."""

    @property
    def key(self) -> Mapping[str, object]: ...

    @property
    def score_names(self) -> tuple[str, ...]:
        """The names of its scores."""
        ...

    @property
    def size(self) -> int:
        """How many items it has."""
        ...

    @property
    def item_ids(self) -> tuple[str, ...]:
        """What each item is about, [size]: items with one id are not independent of each other, in this language and
        across languages (a parallel document, the questions on one passage)."""
        ...

    @property
    def weights(self) -> np.ndarray:
        """How much each item counts in a mean: float64 [size]."""
        ...

    def points(self, scores: ItemScores) -> np.ndarray:
        """What tables show of each item, higher is better: float64 [size]."""
        ...

    def measure(
        self, model: Model, masks: Sequence[NeuronMask], progress: Callable[[int], None] | None = None
    ) -> list[ItemScores]:
        """What each mask scores, item by item. progress is called with the items done, those of all masks together."""
        ...


@dataclass(frozen=True, eq=False)
class LossEvaluation:
    """Held-out documents of one language; their scores are "nats", "tokens" and "bytes". ids: of the documents, the
    same for documents that are translations of each other."""

    documents: tuple[Encoded, ...]
    batching: Batching
    ids: tuple[str, ...]

    def __post_init__(self) -> None:
        if len(self.ids) != len(self.documents):
            raise InputError(f"held-out documents: {len(self.documents)} documents have {len(self.ids)} ids")

    @property
    def key(self) -> Mapping[str, object]:
        return {"evaluator": LOSS_VERSION, "documents": documents_key(self.documents)}

    @property
    def score_names(self) -> tuple[str, ...]:
        return ("nats", "tokens", "bytes")

    @property
    def size(self) -> int:
        return len(self.documents)

    @property
    def item_ids(self) -> tuple[str, ...]:
        return self.ids

    @property
    def weights(self) -> np.ndarray:
        """The predicted tokens of each document, so that means are per token."""
        return np.asarray([d.tokens.size - 1 for d in self.documents], float)

    def points(self, scores: ItemScores) -> np.ndarray:
        """Minus nats per token of each document."""
        return -np.asarray(scores["nats"]) / np.asarray(scores["tokens"])

    def measure(
        self, model: Model, masks: Sequence[NeuronMask], progress: Callable[[int], None] | None = None
    ) -> list[ItemScores]:
        losses = held_out_losses(model, self.documents, masks, batching=self.batching, progress=progress)
        if not all(np.isfinite(loss.nats).all() for loss in losses):
            raise InputError(f"{model.source}: the held-out loss is not finite; are the model's weights sound?")
        return [
            {"nats": loss.nats.tolist(), "tokens": loss.tokens.tolist(), "bytes": loss.bytes.tolist()}
            for loss in losses
        ]


@dataclass(frozen=True, eq=False)
class TaskEvaluation:
    """The items of a task in one language with their prompts; their scores are the task's."""

    task: Task
    language: str
    items: tuple[Item, ...]
    prompts: tuple[str, ...]
    origin: str
    revision: str | None = None
    chat: bool = False

    @property
    def key(self) -> Mapping[str, object]:
        items = fingerprint([self.prompts, [asdict(item) for item in self.items], self.chat])
        return {"task": [self.task.name, self.task.version], "items": items}

    @property
    def size(self) -> int:
        return len(self.items)

    @property
    def score_names(self) -> tuple[str, ...]:
        return self.task.score_names

    @property
    def item_ids(self) -> tuple[str, ...]:
        return tuple(item.group or item.id for item in self.items)

    @property
    def weights(self) -> np.ndarray:
        return np.ones(len(self.items))

    def points(self, scores: ItemScores) -> np.ndarray:
        """The first of the task's scores, in points of 100."""
        return POINTS * np.asarray(scores[self.task.score_names[0]])

    def right(self, scores: ItemScores) -> np.ndarray | None:
        """Whether each answer is right: bool [size]; None for a task without such a score. Where choices tie, a part of
        an item cannot be right, so it counts as wrong."""
        name = self.task.right_or_wrong
        return np.asarray(scores[name]) == 1.0 if name else None

    def as_chat(self, model: Model) -> TaskEvaluation:
        """With every prompt as a user's message in the model's chat template. Raises InputError where it has none."""
        return replace(self, prompts=tuple(map(model.chat_prompt, self.prompts)), chat=True)

    def check_fits(self, model: Model) -> None:
        """Raises InputError, naming the item, for a prompt that the model's context has no room for with the answer."""
        longest = model.config.max_length
        for item, text in zip(self.items, self.prompts, strict=True):
            answers = self._options(item) if self.task.kind == "choose" else ("",)
            size = max(model.encode_prompt(text + answer).size for answer in answers) + self.task.max_new_tokens
            if size > longest:
                raise InputError(
                    f"{self.origin}: item {item.id} takes {size} tokens with its answer, the model's context "
                    f"is {longest}; leave the item out, or use fewer --shots"
                )

    def _options(self, item: Item) -> tuple[str, ...]:
        """The choices as they go on from the prompt; a chat template ends where an answer begins, without a space."""
        options = continuations(self.task, item)
        return tuple(option.lstrip() for option in options) if self.chat else options

    def measure(
        self, model: Model, masks: Sequence[NeuronMask], progress: Callable[[int], None] | None = None
    ) -> list[ItemScores]:
        answers_of = self._generated if self.task.kind == "generate" else self._choices
        scores = []
        for answers in answers_of(model, masks, progress):
            each = [self.task.score(item, answer) for item, answer in zip(self.items, answers, strict=True)]
            scores.append({name: [one[name] for one in each] for name in self.task.score_names})
        return scores

    def _generated(
        self, model: Model, masks: Sequence[NeuronMask], progress: Callable[[int], None] | None
    ) -> list[list[str]]:
        """What the model writes after each prompt, as it is scored."""
        answers = generations(
            model,
            self.prompts,
            masks,
            max_new_tokens=self.task.max_new_tokens,
            stop=self.task.stop(self.language),
            progress=progress,
        )
        return [[filtered(self.task, self.language, str(text)) for text in texts] for texts in answers]

    def _choices(
        self, model: Model, masks: Sequence[NeuronMask], progress: Callable[[int], None] | None
    ) -> list[list[Choices]]:
        """How likely the model finds each choice after each prompt; all choices of all items go through together."""
        options = [self._options(item) for item in self.items]
        contexts = [text for text, choices in zip(self.prompts, options, strict=True) for _ in choices]
        whole = [choice for choices in options for choice in choices]
        share = len(self.items) / len(whole)
        step = None if progress is None else lambda done: progress(int(done * share))
        ends = np.cumsum([len(choices) for choices in options])[:-1]
        return [
            [Choices(*of_item) for of_item in zip(np.split(f.nats, ends), np.split(f.tokens, ends), strict=True)]
            for f in log_likelihoods(model, contexts, whole, masks, progress=step)
        ]
