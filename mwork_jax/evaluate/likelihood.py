"""What a model makes of given text under a neuron mask: held-out loss, the cheapest and most sensitive measure of what
deactivation does, and the log-likelihood of continuations, for multiple choice."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import jax
import jax.numpy as jnp
import numpy as np

from mwork_jax.corpus import Batching, Encoded, encoded
from mwork_jax.errors import InputError
from mwork_jax.metrics import NORMALISATIONS
from mwork_jax.model.decoder import Decoder, logits_of
from mwork_jax.model.model import Model
from mwork_jax.model.prefill import Prefilled, PrefillRequest, prefill
from mwork_jax.model.tokens import Document, shared_prefix_length
from mwork_jax.neurons import NeuronMask
from mwork_jax.sharding import DATA, MASK, constrain, fetch, mesh_of, on_mesh_of, put, size_of

LOGIT_ROWS = 128  # positions whose logits exist at once: a vocabulary is too wide for a whole batch


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
    mask: NeuronMask,
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
    masks: Sequence[NeuronMask],
    *,
    batching: Batching = Batching(tokens_per_batch=2048),
    progress: Callable[[int], None] | None = None,
) -> list[HeldOutLoss]:
    """`held_out_loss` under each mask, side by side. progress is called with the number of documents done, those of all
    masks counted together."""
    ready = list(encoded(model, documents, batching.max_tokens, where="held-out documents"))
    rows = [PrefillRequest(d.tokens, d.tokens.size) for d in ready]
    nats = _nats(model.decoder, rows, masks, batching.tokens_per_batch, progress)
    sizes = np.asarray([(d.tokens.size - 1, d.bytes) for d in ready])
    return [HeldOutLoss(each, sizes[:, 0], sizes[:, 1]) for each in nats]


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
    mask: NeuronMask,
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
    masks: Sequence[NeuronMask],
    *,
    tokens_per_batch: int = 2048,
    progress: Callable[[int], None] | None = None,
) -> list[LogLikelihood]:
    """`log_likelihood` under each mask, side by side. progress is called with the number of pairs done, those of all
    masks counted together."""
    if isinstance(contexts, str) or isinstance(continuations, str):
        raise InputError("contexts and continuations come as lists, also when there is only one of each")
    if len(contexts) != len(continuations):
        raise InputError(f"{len(contexts)} contexts and {len(continuations)} continuations; each needs the other")
    if not len(contexts):
        raise InputError("contexts: there are none; at least one is needed")
    pairs = [_pair(model, a, b, f"pair {i + 1}") for i, (a, b) in enumerate(zip(contexts, continuations, strict=True))]
    begins, sizes = (np.asarray(column) for column in zip(*((b, pair.tokens.size) for pair, b in pairs), strict=True))
    rows = [
        # What predicts the continuation: its tokens and the one before them.
        PrefillRequest(pair.tokens, pair.tokens.size - begin + 1)
        for pair, begin in pairs
    ]
    nats = _nats(model.decoder, rows, masks, tokens_per_batch, progress)
    return [LogLikelihood(-each, sizes - begins, np.asarray([pair.bytes for pair, _ in pairs])) for each in nats]


def _pair(model: Model, context: Document, continuation: Document, where: str) -> tuple[Encoded, int]:
    """Context and continuation as one, with the bytes of the continuation, and the index of its first token."""
    if isinstance(context, str) != isinstance(continuation, str):
        raise InputError(f"{where}: context and continuation must be both text or both tokens")
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
    decoder: Decoder,
    rows: Sequence[PrefillRequest],
    masks: Sequence[NeuronMask],
    tokens_per_batch: int,
    progress: Callable[[int], None] | None,
) -> np.ndarray:
    """Summed nats of each row's last `needed` - 1 tokens under each mask: float64 [masks, rows]."""
    nats = np.zeros((len(masks), len(rows)))
    mesh, done = mesh_of(decoder), 0
    for run in prefill(decoder, rows, masks, tokens_per_batch=tokens_per_batch):
        shards = size_of(mesh, MASK), size_of(mesh, DATA)
        positions, predicted = _predicting(run, [rows[place].needed for place in run.tree.indices], shards)
        targets = np.roll(run.tree.levels[-1].tokens, -1, axis=1)
        with on_mesh_of(decoder):
            placed = put(targets, mesh, "batch", None), put(positions, mesh, "masks", "batch", None)
            batch_nats = fetch(losses_at(decoder, run.x, *placed, np.int32(predicted)))
        nats[np.ix_(run.masks, run.tree.indices)] = batch_nats[: len(run.masks), : len(run.tree.indices)]
        done += len(run.masks) * len(run.tree.indices)
        if progress is not None:
            progress(done)
    return nats


def _predicting(run: Prefilled, needed: Sequence[int], shards: tuple[int, int]) -> tuple[np.ndarray, int]:
    """Which outputs predict a wanted token, and the most that any part has of them.

    The masks and the rows are shared out to `shards` groups of devices; int32 [of masks, of rows, positions] are flat
    indices into each part [masks, rows, time] of its own, -1 where there are no more.
    """
    masks, rows, time, _ = run.x.shape
    times, lengths = np.arange(time)[None, :], run.tree.lengths[:, None]
    wanted = np.zeros((rows, 1), np.int32)
    wanted[: len(needed), 0] = needed
    predicts = np.broadcast_to((times >= lengths - wanted) & (times < lengths - 1), (masks, rows, time))
    parts = predicts.reshape(shards[0], -1, shards[1], rows // shards[1], time).swapaxes(1, 2)
    positions = np.full((*shards, -(-parts[0, 0].size // LOGIT_ROWS) * LOGIT_ROWS), -1, np.int32)
    for place in np.ndindex(*shards):
        flat = np.flatnonzero(parts[place])
        positions[place][: flat.size] = flat
    return positions, int((positions >= 0).sum(axis=-1).max())


@jax.jit
def losses_at(
    decoder: Decoder, x: jax.Array, targets: jax.Array, positions: jax.Array, predicted: jax.Array
) -> jax.Array:
    """Summed nats of each row, float32 [masks, rows], of x [masks, rows, time, hidden] and targets [rows, time].
    `positions` and `predicted` as `_predicting` gives them. Logits are made for `LOGIT_ROWS` predicting positions of
    every part at a time, and never for padding."""
    masks, rows, time, _hidden = x.shape
    of_masks, of_rows, _ = positions.shape
    size = rows // of_rows

    def parts(x: jax.Array) -> jax.Array:
        """[masks, rows, ...] -> [parts of masks, parts of rows, positions of a part, ...]"""
        split = x.reshape(of_masks, -1, of_rows, size, *x.shape[2:]).swapaxes(1, 2)
        flat = split.reshape(of_masks, of_rows, -1, *x.shape[3:])
        return constrain(flat, "masks", "batch", *(None,) * (flat.ndim - 2))

    x, targets = parts(x), parts(jnp.broadcast_to(targets, (masks, rows, time)))
    put_at = jax.vmap(jax.vmap(lambda total, row, value: total.at[row].add(value)))

    def add_chunk(chunk: jax.Array, total: jax.Array) -> jax.Array:
        at = jax.lax.dynamic_slice_in_dim(positions, chunk * LOGIT_ROWS, LOGIT_ROWS, axis=2)
        real, at = at >= 0, jnp.maximum(at, 0)
        logits = logits_of(decoder, jnp.take_along_axis(x, at[..., None], axis=2))
        right = jnp.take_along_axis(logits, jnp.take_along_axis(targets, at, axis=2)[..., None], axis=-1)[..., 0]
        return put_at(total, at // time, jnp.where(real, jax.nn.logsumexp(logits, axis=-1) - right, 0.0))

    chunks = (predicted + LOGIT_ROWS - 1) // LOGIT_ROWS
    nothing = jnp.zeros((of_masks, of_rows, masks // of_masks * size), jnp.float32)
    total = jax.lax.fori_loop(0, chunks, add_chunk, constrain(nothing, "masks", "batch", None))
    return total.reshape(of_masks, of_rows, -1, size).swapaxes(1, 2).reshape(masks, rows)
