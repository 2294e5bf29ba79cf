"""What a model makes of given text under a neuron mask: held-out loss, the cheapest and most sensitive measure of what
deactivation does, and the log-likelihood of continuations, for multiple choice."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from mwork_jax.corpus import Batching, Encoded, encoded
from mwork_jax.errors import InputError
from mwork_jax.intervention import Edit
from mwork_jax.metrics import NORMALISATIONS
from mwork_jax.model.admission import Prompt
from mwork_jax.model.checks import check_model
from mwork_jax.model.model import Model
from mwork_jax.model.predictions import Reading, predictions
from mwork_jax.model.tokens import Document, shared_prefix_length


@dataclass(frozen=True, eq=False)
class HeldOutLoss:
    """Causal language-modelling loss of each document: nats float64 [n], predicted tokens int [n], their UTF-8 bytes
    int [n]."""

    nats: np.ndarray
    tokens: np.ndarray
    bytes: np.ndarray

    @property
    def per_token(self) -> float:
        """Nats per predicted token, over all documents."""
        return float(self.nats.sum() / self.tokens.sum())

    @property
    def per_byte(self) -> float:
        """Nats per UTF-8 byte of the documents, over all documents: comparable between tokenizers. NaN for token
        arrays."""
        return float(self.nats.sum() / self.bytes.sum()) if self.bytes.all() else float("nan")

    @property
    def scores(self) -> np.ndarray:
        """Minus nats per token of each document, so that higher is better, as in accuracies: float64 [n]."""
        return -self.nats / self.tokens


def held_out_loss(
    model: Model,
    documents: Sequence[Document | Encoded],
    mask: Edit,
    *,
    batching: Batching = Batching(tokens_per_batch=2048),
    progress: Callable[[int], None] | None = None,
) -> HeldOutLoss:
    """The loss of each document with the neurons of `mask` that are 0 switched off. One program serves every mask.

    Longer documents are cut at `batching.max_tokens`; the bytes are those of the part that is left. progress is called
    with the number of documents done. Raises InputError for an empty list or a document of fewer than two tokens.
    """
    return held_out_losses(model, documents, [mask], batching=batching, progress=progress)[0]


def held_out_losses(
    model: Model,
    documents: Sequence[Document | Encoded],
    masks: Sequence[Edit],
    *,
    batching: Batching = Batching(tokens_per_batch=2048),
    progress: Callable[[int], None] | None = None,
) -> list[HeldOutLoss]:
    """`held_out_loss` under each mask, side by side. progress is called with the number of documents done, those of all
    masks counted together."""
    ready = list(encoded(model, documents, batching.max_tokens, where="held-out documents"))
    rows = [_reading(d.tokens, d.tokens.size - 1) for d in ready]
    nats = _nats(model, rows, masks, batching.tokens_per_batch, progress)
    sizes = np.asarray([(d.tokens.size - 1, d.bytes) for d in ready])
    return [HeldOutLoss(-each, sizes[:, 0], sizes[:, 1]) for each in nats]


@dataclass(frozen=True, eq=False)
class LogLikelihood:
    """How likely each continuation is after its context: natural log-probability float64 [n], its tokens int [n], its
    UTF-8 bytes int [n] (0 for token arrays, whose text is not known)."""

    nats: np.ndarray
    tokens: np.ndarray
    bytes: np.ndarray

    def scores(self, normalisation: str) -> np.ndarray:
        """float64 [n], higher is better: the sum of the log-probabilities ("sum"), or that "per_token" or
        "per_byte".

        Raises InputError for another name, and for "per_byte" where the text is not known.
        """
        if normalisation not in NORMALISATIONS:
            raise InputError(f"normalisation {normalisation!r} is not one of {', '.join(NORMALISATIONS)}")
        if normalisation == "sum":
            return self.nats
        sizes = self.tokens if normalisation == "per_token" else self.bytes
        if not sizes.all():
            raise InputError("continuations given as tokens have no bytes to normalise by; use 'sum' or 'per_token'")
        return self.nats / sizes


def log_likelihood(
    model: Model,
    contexts: Sequence[Document],
    continuations: Sequence[Document],
    mask: Edit,
    *,
    tokens_per_batch: int = 2048,
    progress: Callable[[int], None] | None = None,
) -> LogLikelihood:
    """The log-probability of continuations[i] right after contexts[i], with the neurons of `mask` that are 0 switched
    off. One program serves every mask.

    Both are str, or both int32 [time]. Text is tokenized as a whole: a token that reaches over the boundary counts as
    part of the continuation, since it is not what the context alone would end with. Nothing is cut; what pairs
    begin with alike is computed once. progress is called with the number of pairs done. Raises InputError, naming the
    pair, for a context without a token, an empty continuation, a mixture of text and tokens, or a pair longer than the
    model's context.
    """
    options = {"tokens_per_batch": tokens_per_batch, "progress": progress}
    return log_likelihoods(model, contexts, continuations, [mask], **options)[0]


def log_likelihoods(
    model: Model,
    contexts: Sequence[Document],
    continuations: Sequence[Document],
    masks: Sequence[Edit],
    *,
    tokens_per_batch: int = 2048,
    progress: Callable[[int], None] | None = None,
) -> list[LogLikelihood]:
    """`log_likelihood` under each mask, side by side. progress is called with the number of pairs done, those of all
    masks counted together."""
    check_model(model)
    if not all(
        isinstance(given, Sequence | np.ndarray) and not isinstance(given, str) for given in (contexts, continuations)
    ):
        raise InputError("contexts and continuations come as lists, also when there is only one of each")
    if len(contexts) != len(continuations):
        raise InputError(f"{len(contexts)} contexts and {len(continuations)} continuations; each needs the other")
    if not len(contexts):
        raise InputError("contexts: there are none; at least one is needed")
    pairs = [_pair(model, a, b, f"pair {i + 1}") for i, (a, b) in enumerate(zip(contexts, continuations, strict=True))]
    begins, sizes = (np.asarray(column) for column in zip(*((b, pair.tokens.size) for pair, b in pairs), strict=True))
    rows = [_reading(pair.tokens, *[pair.tokens.size - begin] * 2) for pair, begin in pairs]
    nats = _nats(model, rows, masks, tokens_per_batch, progress)
    return [LogLikelihood(each, sizes - begins, np.asarray([pair.bytes for pair, _ in pairs])) for each in nats]


def _pair(model: Model, context: Document, continuation: Document, where: str) -> tuple[Encoded, int]:
    """Context and continuation as one, with the bytes of the continuation, and the index of its first token."""
    if isinstance(context, str) != isinstance(continuation, str):
        raise InputError(f"{where}: context and continuation must be both text or both tokens")
    if not isinstance(continuation, str) and np.ndim(continuation) != 1:
        raise InputError(f"{where}: the continuation has shape {list(np.shape(continuation))}; int32 [time] is needed")
    if not len(continuation):
        raise InputError(f"{where}: the continuation is empty")
    first = model.encode_prompt(context, where=f"{where}, context")
    if isinstance(context, str) and isinstance(continuation, str):
        whole, size = model.encode_prompt(context + continuation, where=where), len(continuation.encode())
        begin = shared_prefix_length(first, whole)
    else:
        second = model.encode(continuation, where=f"{where}, continuation")
        whole, size, begin = np.concatenate([first, second]), 0, first.size
    if not begin:
        raise InputError(f"{where}: no token comes before the continuation; give a context, or a BOS as one")
    if begin == whole.size:
        raise InputError(f"{where}: the continuation adds no token to the context")
    if whole.size > model.config.max_length:
        raise InputError(f"{where} has {whole.size} tokens; the model's context is {model.config.max_length}")
    return Encoded(whole, size), begin


def _nats(
    model: Model,
    rows: Sequence[Reading],
    masks: Sequence[Edit],
    tokens_per_batch: int,
    progress: Callable[[int], None] | None,
) -> np.ndarray:
    """Summed log-probability of each row's target under each mask: float64 [masks, rows]."""
    nats = np.zeros((len(masks), len(rows)))
    for done, (pair, found) in enumerate(predictions(model, rows, masks, tokens_per_batch), start=1):
        nats[pair.mask, pair.prompt] = found.nats[0]
        if progress is not None:
            progress(done)
    return nats


def _reading(tokens: np.ndarray, predicted: int, generated: int = 0) -> Reading:
    """A sequence whose last `predicted` tokens are predicted; the last `generated` count as generated. All but the last
    token go through; what comes before the token in front of the first predicted one may come from another row."""
    size = tokens.size
    return Reading(Prompt(tokens, size - 1, size - 1 - predicted, size - generated), [tokens[size - predicted :]])
