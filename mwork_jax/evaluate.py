"""Held-out loss under a neuron mask: the cheapest and most sensitive measure of what deactivation does."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import jax
import jax.numpy as jnp
import numpy as np

from mwork_jax.corpus import Batching, Document, Encoded, encoded, list_batches
from mwork_jax.load import Model
from mwork_jax.model import Decoder, hidden_states, logits_of
from mwork_jax.neurons import NeuronMask

_ROWS = 128  # positions whose logits exist at once: a vocabulary is too wide for a whole batch


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
        return float(self.nats.sum() / self.bytes.sum()) if self.bytes.sum() else float("nan")

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
    ready = list(encoded(model, documents, batching.max_tokens, where="held-out documents"))
    nats = np.zeros(len(ready))
    done = 0
    for batch in list_batches(ready, batching):
        positions, predicted = _predicted_positions(batch.lengths, batch.tokens.shape[1])
        losses = np.asarray(_losses(model.decoder, batch.tokens, positions, predicted, mask), np.float64)
        nats[batch.documents] = losses
        done += len(losses)
        if progress is not None:
            progress(done)
    sizes = np.asarray([(d.tokens.size - 1, d.bytes) for d in ready])
    return HeldOutLoss(nats, sizes[:, 0], sizes[:, 1])


def _predicted_positions(lengths: np.ndarray, bucket: int) -> tuple[np.ndarray, np.int32]:
    """Flat indices of the positions that predict a real token, first in an int32 [rows * bucket] array, and how many
    they are."""
    predicts = np.arange(bucket)[None, :] < lengths[:, None] - 1
    flat = np.flatnonzero(predicts)
    positions = np.zeros(-(-predicts.size // _ROWS) * _ROWS, np.int32)
    positions[: flat.size] = flat
    return positions, np.int32(flat.size)


@jax.jit
def _losses(
    decoder: Decoder, tokens: jax.Array, positions: jax.Array, predicted: jax.Array, mask: NeuronMask
) -> jax.Array:
    """Summed nats of each row, float32 [rows]. Logits are made for `_ROWS` predicting positions at a time, and never
    for padding."""
    x, _ = hidden_states(decoder, tokens, mask)
    x = x.reshape(-1, x.shape[-1])
    targets = jnp.roll(tokens, -1, axis=1).reshape(-1)

    def add_chunk(chunk: jax.Array, total: jax.Array) -> jax.Array:
        at = jax.lax.dynamic_slice(positions, (chunk * _ROWS,), (_ROWS,))
        logits = logits_of(decoder, x[at])
        nats = jax.nn.logsumexp(logits, axis=-1) - jnp.take_along_axis(logits, targets[at][:, None], axis=-1)[:, 0]
        real = chunk * _ROWS + jnp.arange(_ROWS) < predicted
        return total.at[at // tokens.shape[1]].add(jnp.where(real, nats, 0.0))

    chunks = (predicted + _ROWS - 1) // _ROWS
    return jax.lax.fori_loop(0, chunks, add_chunk, jnp.zeros(tokens.shape[0], jnp.float32))
