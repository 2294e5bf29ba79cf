"""What a model is measured on in one language, under any number of masks: a task's items, or held-out documents."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Protocol, Self

import numpy as np

from mwork_jax.corpus import Batching, Encoded, documents_key
from mwork_jax.errors import InputError
from mwork_jax.evaluate.likelihood import held_out_losses, log_likelihoods
from mwork_jax.evaluate.tasks import Choices, Item, Task, continuations, filtered
from mwork_jax.intervention import Edit, Intervention, Sites
from mwork_jax.metrics import NORMALISATIONS, normalised
from mwork_jax.model.decode_queue import Filling
from mwork_jax.model.generate import generations
from mwork_jax.model.model import Model
from mwork_jax.neurons import NeuronMask
from mwork_jax.results import HELD_OUT_LOSS, DataInfo, TaskInfo, task_title
from mwork_jax.runtime.cache import fingerprint

ItemScores = dict[str, list[float]]  # score name -> one number per item
Answered = tuple[ItemScores, tuple[str, ...] | None]  # with each item's answer, None where text is only read
LOSS_VERSION = "held_out_loss-1"  # results of another version are not mixed in
POINTS = 100.0  # a task's scores are between 0 and 1, tables show points


def nats_per_token(scores: ItemScores) -> float:
    """The held-out loss over all documents, of the scores of a `LossEvaluation`."""
    return sum(scores["nats"]) / sum(scores["tokens"])


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

    @property
    def info(self) -> DataInfo:
        """Where the items are from, for the provenance."""
        ...

    def task_info(self, data: Iterable[DataInfo]) -> TaskInfo:
        """What is measured, with the score that tables show; data: of all languages."""
        ...

    def means(self, scores: ItemScores) -> dict[str, float]:
        """{score: its mean over the items}, as tables show it, that of `task_info` among them."""
        ...

    def scaled(self, factor: float) -> Self:
        """The same where neurons that a mask switches off are multiplied by `factor` instead."""
        ...

    def points(self, scores: ItemScores) -> np.ndarray:
        """What tables show of each item, higher is better: float64 [size]."""
        ...

    def measure(
        self, model: Model, masks: Sequence[Edit], progress: Callable[[int], None] | None = None
    ) -> list[ItemScores]:
        """What each mask scores, item by item. progress is called with the items done, those of all masks together."""
        ...


@dataclass(frozen=True, eq=False)
class LossEvaluation:
    """Held-out documents of one language; their scores are "nats", "tokens" and "bytes". ids: of the documents, the
    same for documents that are translations of each other. origin: where they are from. scale: what neurons that a
    mask switches off are multiplied by."""

    documents: tuple[Encoded, ...]
    batching: Batching
    ids: tuple[str, ...]
    origin: str = "documents given from Python"
    scale: float = 0.0

    def __post_init__(self) -> None:
        if len(self.ids) != len(self.documents):
            raise InputError(f"held-out documents: {len(self.documents)} documents have {len(self.ids)} ids")

    @property
    def key(self) -> Mapping[str, object]:
        return {"evaluator": LOSS_VERSION, "documents": documents_key(self.documents), **_scale_key(self.scale)}

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

    @property
    def info(self) -> DataInfo:
        return DataInfo(self.origin, self.size, documents_key(self.documents))

    def task_info(self, data: Iterable[DataInfo]) -> TaskInfo:
        return TaskInfo(HELD_OUT_LOSS, 1, "nats_per_token", HELD_OUT_LOSS)

    def means(self, scores: ItemScores) -> dict[str, float]:
        size = sum(scores["bytes"])
        per_byte = {"nats_per_byte": sum(scores["nats"]) / size} if size else {}
        return {"nats_per_token": nats_per_token(scores), **per_byte}

    def scaled(self, factor: float) -> LossEvaluation:
        return replace(self, scale=factor)

    def first(self, count: int) -> LossEvaluation:
        """The same over the first `count` documents."""
        return replace(self, documents=self.documents[:count], ids=self.ids[:count])

    def measure(
        self, model: Model, masks: Sequence[Edit], progress: Callable[[int], None] | None = None
    ) -> list[ItemScores]:
        edits = _scaled(masks, self.scale)
        losses = held_out_losses(model, self.documents, edits, batching=self.batching, progress=progress)
        if not all(np.isfinite(loss.nats).all() for loss in losses):
            raise InputError(f"{model.source}: the held-out loss is not finite; are the model's weights sound?")
        return [
            {"nats": loss.nats.tolist(), "tokens": loss.tokens.tolist(), "bytes": loss.bytes.tolist()}
            for loss in losses
        ]


def _scale_key(scale: float) -> dict[str, float]:
    """What a scale adds to a key: nothing where neurons are switched off, as in caches that are there."""
    return {"scale": scale} if scale else {}


def _scaled(masks: Sequence[Edit], scale: float) -> Sequence[Edit]:
    """The masks with `scale` in the place of 0."""
    if not scale:
        return masks
    edits = [Intervention.from_mask(mask) if isinstance(mask, NeuronMask) else mask for mask in masks]
    return [replace(edit, factors=Sites(*(f + (1 - f) * scale for f in edit.factors))) for edit in edits]


def answered(
    evaluation: Evaluation,
    model: Model,
    masks: Sequence[Edit],
    progress: Callable[[int], None] | None = None,
    watch: Callable[[Filling], None] | None = None,
) -> list[Answered]:
    """What each mask scores, item by item, with the answers where the evaluation has answers. watch is called with how
    full the slots are where the model writes."""
    if isinstance(evaluation, TaskEvaluation):
        return evaluation.answered(model, masks, progress, watch)
    return [(scores, None) for scores in evaluation.measure(model, masks, progress)]


@dataclass(frozen=True, eq=False)
class TaskEvaluation:
    """The items of a task in one language with their prompts; their scores are the task's. scale: what neurons that a
    mask switches off are multiplied by."""

    task: Task
    language: str
    items: tuple[Item, ...]
    prompts: tuple[str, ...]
    origin: str
    revision: str | None = None
    chat: bool = False
    scale: float = 0.0

    @property
    def key(self) -> Mapping[str, object]:
        items = fingerprint([self.prompts, [asdict(item) for item in self.items], self.chat])
        return {"task": [self.task.name, self.task.version], "items": items, **_scale_key(self.scale)}

    @property
    def info(self) -> DataInfo:
        return DataInfo(self.origin, self.size, str(self.key["items"]), self.revision)

    def task_info(self, data: Iterable[DataInfo]) -> TaskInfo:
        return TaskInfo(self.task.name, self.task.version, self.task.score_names[0], task_title(self.task.name, data))

    def means(self, scores: ItemScores) -> dict[str, float]:
        return {name: POINTS * float(np.mean(values)) for name, values in scores.items()}

    def scaled(self, factor: float) -> TaskEvaluation:
        return replace(self, scale=factor)

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
        self, model: Model, masks: Sequence[Edit], progress: Callable[[int], None] | None = None
    ) -> list[ItemScores]:
        return [scores for scores, _ in self.answered(model, masks, progress)]

    def answered(
        self,
        model: Model,
        masks: Sequence[Edit],
        progress: Callable[[int], None] | None = None,
        watch: Callable[[Filling], None] | None = None,
    ) -> list[Answered]:
        """`measure` with the answers: what the model writes, or the choice that it finds likeliest."""
        written, masks = self.task.kind == "generate", _scaled(masks, self.scale)
        found = self._generated(model, masks, progress, watch) if written else self._choices(model, masks, progress)
        results: list[Answered] = []
        for answers in found:
            each = [self.task.score(item, answer) for item, answer in zip(self.items, answers, strict=True)]
            texts = tuple(self._text(item, answer) for item, answer in zip(self.items, answers, strict=True))
            results.append(({name: [one[name] for one in each] for name in self.score_names}, texts))
        return results

    def _text(self, item: Item, choices: Choices | str) -> str:
        """What the model wrote, or the choice that the first of the task's scores takes."""
        if isinstance(choices, str):
            return choices
        options = self.task.options(item)
        way = next((way for way in NORMALISATIONS if self.score_names[0].endswith(way)), NORMALISATIONS[0])
        scores = normalised(choices.log_likelihoods, way, texts=options, tokens=choices.tokens)
        return options[int(np.argmax(scores))]

    def _generated(
        self,
        model: Model,
        masks: Sequence[Edit],
        progress: Callable[[int], None] | None,
        watch: Callable[[Filling], None] | None,
    ) -> list[list[str]]:
        """What the model writes after each prompt, as it is scored."""
        answers = generations(
            model,
            self.prompts,
            masks,
            max_new_tokens=self.task.max_new_tokens,
            stop=self.task.stop(self.language),
            progress=progress,
            watch=watch,
        )
        return [[filtered(self.task, self.language, str(text)) for text in texts] for texts in answers]

    def _choices(
        self, model: Model, masks: Sequence[Edit], progress: Callable[[int], None] | None
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
