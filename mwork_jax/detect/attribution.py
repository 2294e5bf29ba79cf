"""How much a language's own loss depends on each neuron, from one backward pass: the gradient with respect to a mask.

A neuron's mask multiplies its output. The derivative of the loss with respect to it, at 1, is to first order what the
loss loses when the neuron is scaled down: switching it off changes the loss by about minus the derivative (Molchanov et
al. 2017 prune by it). Where importance says how much a neuron moves its own block, this says whether that matters for
the text.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np

from mwork_jax.corpus import Batching, encoded, stream_batches
from mwork_jax.errors import InputError
from mwork_jax.model.decoder import Decoder, head_inputs, hidden_states
from mwork_jax.model.loss import summed_nats, vocab_block
from mwork_jax.model.model import Model
from mwork_jax.model.tokens import Document
from mwork_jax.neurons import GROUPS, NeuronMask
from mwork_jax.sharding import fetch, mesh_of, num_shards, on_mesh_of, parts_of, put


def attribution(
    model: Model,
    documents: Iterable[Document],
    *,
    batching: Batching = Batching(tokens_per_batch=2048),
    progress: Callable[[int], None] | None = None,
) -> dict[str, np.ndarray]:
    """The derivative of the loss, in nats per predicted token over all documents, with respect to the scale of every
    neuron, at 1: {group: float32 [layers, width]}. A positive one means that the loss falls as the neuron is scaled
    down.

    documents: str or int32 [time]; longer ones are cut at `batching.max_tokens`. Memory does not grow with their
    number. `ffn_up` and `ffn_down` are two ends of one product and have the same derivative. progress: called with the
    number of documents done after each batch. Raises InputError for no documents, one of fewer than two tokens, or a
    derivative that is not finite.
    """
    mesh = mesh_of(model.decoder)
    shards = parts_of(mesh, "batch")
    total: NeuronMask | None = None
    count = tokens = 0
    for batch in stream_batches(encoded(model, documents, batching.max_tokens), batching, multiple=shards):
        # The last token of a document predicts nothing; padding neither is predicted nor predicts.
        predicts = (np.arange(batch.tokens.shape[1]) < batch.lengths[:, None] - 1).astype(np.float32)
        with on_mesh_of(model.decoder):
            on_mesh = put((batch.tokens, predicts), mesh, "batch", "time")
            added = _of_batch(model.decoder, *on_mesh)
            total = added if total is None else jax.tree.map(jnp.add, total, added)
        count += int((batch.documents >= 0).sum())
        tokens += int(predicts.sum())
        if progress is not None:
            progress(count)
    if total is None:
        raise InputError("attribution: no documents")
    with on_mesh_of(model.decoder):
        host = fetch(total)
    gradients = {group: (getattr(host, group) / np.float32(tokens)).astype(np.float32) for group in GROUPS}
    if not all(np.isfinite(values).all() for values in gradients.values()):
        raise InputError(f"{model.source}: derivatives are not finite; are the model's weights sound?")
    return gradients


@jax.jit
def _of_batch(decoder: Decoder, tokens: jax.Array, predicts: jax.Array) -> NeuronMask:
    """The derivative of the summed nats of a batch: tokens int32 and predicts float32 [batch, time]."""
    block = vocab_block(tokens.shape[0] // num_shards("batch", tokens.shape[0]) * tokens.shape[1])
    return jax.grad(partial(_nats, decoder, block, tokens, predicts))(NeuronMask.keep_all(decoder.config))


def _nats(decoder: Decoder, block: int, tokens: jax.Array, predicts: jax.Array, mask: NeuronMask) -> jax.Array:
    x, _ = hidden_states(decoder, tokens, mask, remat=True)
    x = head_inputs(decoder, x).reshape(-1, decoder.config.hidden_size)
    head = decoder.embed[...] if decoder.head is None else decoder.head[...]
    targets = jnp.roll(tokens, -1, axis=1)
    return summed_nats(decoder.config, block, x, head, targets.reshape(-1), predicts.reshape(-1))
