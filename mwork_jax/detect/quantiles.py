"""Quantiles of what feed-forward neurons compute on a language's text: a median that interventions put in its place.

A radix search: floats in their order are integers in theirs, and each pass over the documents counts how many fall into
each of sixteen parts of the range that a quantile is known to be in. Four passes give sixteen bits of it, as many as
bfloat16 has. What is kept on the device are counts, so memory does not grow with the number of documents.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Literal

import jax
import jax.numpy as jnp
import numpy as np

from mwork_jax.corpus import Batching, Encoded, encoded, measured_token_mask, stream_batches
from mwork_jax.detect.activations import neuron_sums
from mwork_jax.errors import InputError
from mwork_jax.model.decoder import Decoder, LayerRecord, hidden_states
from mwork_jax.model.model import Model
from mwork_jax.model.tokens import Document
from mwork_jax.neurons import NeuronMask
from mwork_jax.sharding import constrain, fetch, mesh_of, on_mesh_of, parts_of, put

_BITS, _PASSES = 4, 4  # of a quantile, found in each pass
_PARTS = 1 << _BITS
_SIGN = np.uint32(1 << 31)
_AXES = ("layers", None, "width")

Site = Literal["neuron", "gate"]


def activation_quantiles(
    model: Model,
    documents: Sequence[Document | Encoded],
    quantiles: Sequence[float] = (0.5, 0.95),
    *,
    at: Site = "neuron",
    include_bos: bool = False,
    batching: Batching = Batching(),
    progress: Callable[[int], None] | None = None,
) -> np.ndarray:
    """Quantiles of every feed-forward neuron over the tokens of one language's documents: float32 [quantiles, layers,
    f], each off by at most 1/256 of itself.

    The quantile q is the smallest value that at least a share q of the tokens do not exceed (NumPy's `inverted_cdf`).
    at: of act(gate) * up ("neuron") or act(gate) ("gate"). The tokens that count are those that detection counts,
    without a BOS unless `include_bos`; of an expert's neuron, those that go there, and NaN where none does. The
    documents are read four times, so they have to be a sequence. progress: called with the number of documents done,
    all passes together. Raises InputError for quantiles outside 0 to 1, no documents, and activations that are not
    finite.
    """
    if not quantiles or not all(0 <= q <= 1 for q in quantiles):
        raise InputError(f"quantiles are {quantiles!r:.60}; numbers from 0 to 1 are needed")
    if at not in ("neuron", "gate"):
        raise InputError(f"at is {at!r:.40}; it can be neuron or gate")
    if not documents:
        raise InputError("quantiles: no documents")
    ready = list(encoded(model, documents, batching.max_tokens))
    config = model.config
    prefixes = np.zeros((config.num_layers, len(quantiles), config.ffn_width), np.uint32)
    ranks = np.zeros(prefixes.shape, np.int64)  # within the part that the prefixes name, from 1
    seen = np.zeros(prefixes.shape, bool)
    for number in range(_PASSES):
        done = number * len(ready)
        counts = _counts(model, ready, prefixes, 32 - _BITS * (number + 1), at, include_bos, batching, done, progress)
        if number == 0:
            tokens = counts.sum(axis=-1)
            seen = tokens > 0
            ranks = np.maximum(1, np.ceil(np.asarray(quantiles, np.float64)[:, None] * tokens)).astype(np.int64)
        below = np.cumsum(counts, axis=-1)
        digits = (below < ranks[..., None]).sum(axis=-1).clip(max=_PARTS - 1)
        before = np.take_along_axis(below - counts, digits[..., None], axis=-1)[..., 0]
        ranks, prefixes = ranks - before, (prefixes << _BITS) | digits.astype(np.uint32)
    values = _value(prefixes)
    if not np.isfinite(values[seen]).all():
        raise InputError(f"{model.source}: activations are not finite; are the model's weights sound?")
    return np.where(seen, values, np.float32(np.nan)).swapaxes(0, 1)


def _counts(
    model: Model,
    documents: Sequence[Encoded],
    prefixes: np.ndarray,
    shift: int,
    at: Site,
    include_bos: bool,
    batching: Batching,
    done: int,
    progress: Callable[[int], None] | None,
) -> np.ndarray:
    """One pass: how many tokens begin with each neuron's bits, by the bits that follow: int32 [layers, quantiles, f,
    parts]."""
    mesh = mesh_of(model.decoder)
    shards = parts_of(mesh, "batch")
    total = None
    with on_mesh_of(model.decoder):
        on_devices = put(prefixes, mesh, *_AXES)
    for batch in stream_batches(documents, batching, multiple=shards):
        token_mask = measured_token_mask(model, batch.tokens, batch.lengths, include_bos)
        with on_mesh_of(model.decoder):
            on_mesh = put((batch.tokens, token_mask), mesh, "batch", "time")
            added = _of_batch(model.decoder, on_devices, jnp.uint32(shift), *on_mesh, at)
            total = added if total is None else total + added
        done += int((batch.documents >= 0).sum())
        if progress is not None:
            progress(done)
    with on_mesh_of(model.decoder):
        return fetch(total)


@partial(jax.jit, static_argnames="at")
def _of_batch(
    decoder: Decoder, prefixes: jax.Array, shift: jax.Array, tokens: jax.Array, token_mask: jax.Array, at: Site
) -> jax.Array:
    """`_counts` of one batch: tokens int32 and token_mask float32 [batch, time]; prefixes uint32 [layers, quantiles,
    f], the bits above the next `_BITS`, which `shift` puts last."""
    config = decoder.config

    def observe(record: LayerRecord, known: jax.Array) -> jax.Array:
        keys = _key(record.product if at == "neuron" else record.activated)
        bits = keys >> shift
        return jnp.stack([of_quantile(record, bits, own) for own in known])

    def of_quantile(record: LayerRecord, bits: jax.Array, known: jax.Array) -> jax.Array:
        if record.experts is not None:
            known = known.reshape(config.num_experts, -1)[record.experts]
        inside, digits = bits >> _BITS == known, bits & (_PARTS - 1)
        parts = [(inside & (digits == part)).astype(jnp.int32) for part in range(_PARTS)]
        return jnp.stack([neuron_sums(config, record, part, token_mask).sum(axis=0) for part in parts], axis=-1)

    keep = NeuronMask.keep_all(config)
    _, counts = hidden_states(decoder, tokens, keep, observe=observe, per_layer=prefixes)
    return constrain(counts, *_AXES, None)


def _key(x: jax.Array) -> jax.Array:
    """uint32 in the order of the floats; both zeros are one."""
    bits = jax.lax.bitcast_convert_type(jnp.where(x == 0, 0.0, x).astype(jnp.float32), jnp.uint32)
    return jnp.where(bits >> 31 == 1, ~bits, bits | _SIGN)


def _value(prefixes: np.ndarray) -> np.ndarray:
    """The middle of the values that begin with these bits; 0 where they lie about it."""
    size = 32 - _BITS * _PASSES
    keys = prefixes << size | np.uint32(1 << size - 1)
    values = np.where(keys & _SIGN, keys & ~_SIGN, ~keys).astype(np.uint32).view(np.float32)
    return np.where(np.abs(values) < np.finfo(np.float32).tiny, np.float32(0), values)
