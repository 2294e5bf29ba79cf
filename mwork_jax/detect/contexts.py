"""Where neurons act most: the tokens of a language's documents at which the activation of each chosen neuron is
largest, and how often the neuron is active.

In a pass of its own the few largest activations of each neuron are kept on the device, so that memory does not grow
with the number of documents; what is kept of a token is its document and its place there, and its text is looked up
later.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from mwork_jax.config import ModelConfig
from mwork_jax.corpus import Batch, Batching, Encoded, encoded, measured_token_mask, stream_batches
from mwork_jax.errors import InputError, whole_number
from mwork_jax.model.buckets import bucket_length
from mwork_jax.model.decoder import Decoder, LayerRecord, hidden_states
from mwork_jax.model.model import Model
from mwork_jax.model.tokens import Document
from mwork_jax.neurons import ATTENTION_GROUPS, FFN_GROUPS, NeuronMask, NeuronSet
from mwork_jax.sharding import constrain, fetch, mesh_of, on_mesh_of, parts_of, per_device, put

FFN = "ffn"  # up and down are two ends of one product, which is one activation
SITES = (*ATTENTION_GROUPS, FFN)
_MOST_KEPT = 1 << 12  # far more than anyone reads
_STATE_AXES = ("layers", "shards", "width", "kept")


@dataclass(frozen=True, order=True)
class NeuronAt:
    """One neuron: where its activation is (one of SITES), its layer and its index in it, both from 0."""

    site: str
    layer: int
    index: int


@dataclass(frozen=True, eq=False)
class StrongestTokens:
    """Of each neuron, the tokens of one language's documents at which its activation is largest, the largest first;
    equal ones in the order of the documents and of the positions in them.

    An activation is the output of a query, key or value neuron before RoPE and norms, and act(gate) * up of a
    feed-forward neuron, that of an expert only at tokens that go there. values: float32 [neurons, kept], minus infinity
    where there are fewer tokens; documents, positions: int32 [neurons, kept], from 0, -1 there. active: float64
    [neurons], the share of the tokens that count with act(gate) > 0 (LAPE, Tang et al., ACL 2024), NaN for queries,
    keys and values, of which LAPE says nothing. tokens: how many tokens count.
    """

    neurons: tuple[NeuronAt, ...]
    values: np.ndarray
    documents: np.ndarray
    positions: np.ndarray
    active: np.ndarray
    tokens: int


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class KeptTokens:
    """The largest activations so far, on the device: of each site [layers, shards, neurons, kept], each group of
    devices those of its own documents. Falling values; equal ones by document, then position."""

    value: dict[str, jax.Array]  # float32
    document: dict[str, jax.Array]  # int32
    position: dict[str, jax.Array]  # int32
    active: dict[str, jax.Array]  # int32 [layers, shards, neurons], of the feed-forward alone

    @classmethod
    def placed(cls, indices: Mapping[str, np.ndarray], kept: int, mesh: Mesh | None) -> KeptTokens:
        """Before the first token, each shard on its own devices."""
        shards = parts_of(mesh, "shards")

        def empty() -> KeptTokens:
            shapes = {site: (of.shape[0], shards, of.shape[1], kept) for site, of in indices.items()}
            values = {s: constrain(jnp.full(shape, -jnp.inf, jnp.float32), *_STATE_AXES) for s, shape in shapes.items()}
            nowhere = {s: constrain(jnp.full(shape, -1, jnp.int32), *_STATE_AXES) for s, shape in shapes.items()}
            active = {
                s: constrain(jnp.zeros(x[:-1], jnp.int32), *_STATE_AXES[:-1]) for s, x in shapes.items() if s == FFN
            }
            return cls(values, nowhere, jax.tree.map(jnp.copy, nowhere), active)

        return empty() if mesh is None else jax.jit(empty)()


def neurons_at(neurons: NeuronSet) -> tuple[NeuronAt, ...]:
    """The neurons of a set, by site, layer and index; one in both `ffn_up` and `ffn_down` once."""
    return tuple(
        NeuronAt(site, int(layer), int(index))
        for site, members in _members(neurons).items()
        for layer, index in np.argwhere(members)
    )


def _members(neurons: NeuronSet) -> dict[str, np.ndarray]:
    up, down = (neurons.groups[group] for group in FFN_GROUPS)
    return {**{group: neurons.groups[group] for group in ATTENTION_GROUPS}, FFN: up | down}


def strongest_tokens(
    model: Model,
    documents: Iterable[Document | Encoded],
    neurons: NeuronSet,
    kept: int = 8,
    *,
    include_bos: bool = False,
    batching: Batching = Batching(),
    progress: Callable[[int], None] | None = None,
) -> StrongestTokens:
    """The `kept` tokens at which each neuron of a set acts most, over a stream of documents of one language.

    The documents' tokens that count are those that detection counts, without a BOS unless `include_bos`. One program
    for each length of documents, whichever neurons of so many are chosen. progress is called with the number of
    documents done. Raises InputError for an empty set, one of another model, documents that cannot be used, and
    activations that are not finite.
    """
    if whole_number("kept", kept, 1) > _MOST_KEPT:
        raise InputError(f"kept is {kept}; at most {_MOST_KEPT} tokens are remembered for each neuron")
    NeuronMask.keep_all(model.config).drop(neurons)  # refuses a set of another model
    chosen = neurons_at(neurons)
    if not chosen:
        raise InputError("there is no neuron in the set; at least one is needed")
    mesh = mesh_of(model.decoder)
    shards = parts_of(mesh, "shards")
    wide = replace(batching, tokens_per_batch=batching.tokens_per_batch * shards)
    indices = _indices(neurons)
    done = counted = 0
    with on_mesh_of(model.decoder):
        state = KeptTokens.placed(indices, kept, mesh)
        on_devices = {site: put(of, mesh, "layers", "width") for site, of in indices.items()}
    for batch in map(_in_order, stream_batches(encoded(model, documents, batching.max_tokens), wide, multiple=shards)):
        token_mask = measured_token_mask(model, batch.tokens, batch.lengths, include_bos)
        with on_mesh_of(model.decoder):
            on_mesh = put((batch.tokens, token_mask > 0), mesh, "batch", "time")
            state = keep_strongest(model.decoder, state, on_devices, *on_mesh, put(batch.documents, mesh, "batch"))
        done += int((batch.documents >= 0).sum())
        counted += int(token_mask.sum())
        if progress is not None:
            progress(done)
    with on_mesh_of(model.decoder):
        found = _of_neurons(fetch(state), chosen, counted)
    if np.isposinf(found.values).any():
        raise InputError(f"{model.source}: activations are not finite; are the model's weights sound?")
    return found


def _indices(neurons: NeuronSet) -> dict[str, np.ndarray]:
    """Which neurons of each layer are looked at: {site: int32 [layers, neurons]}, of sites with any. So many for every
    layer, rounded up so that sets of about one size share a program; what fills a row up stands for neuron 0, and is
    left out at the end."""
    indices = {}
    for site, members in _members(neurons).items():
        counts = members.sum(axis=1)
        if not counts.any():
            continue
        rows = np.zeros((members.shape[0], bucket_length(int(counts.max()), members.shape[1], least=8)), np.int32)
        for layer, of_layer in enumerate(members):
            rows[layer, : counts[layer]] = np.flatnonzero(of_layer)
        indices[site] = rows
    return indices


def _in_order(batch: Batch) -> Batch:
    """The batch with its documents in the order of the stream, empty rows last: of equal activations in a batch, the
    device then takes the first."""
    order = np.argsort(np.where(batch.documents < 0, np.iinfo(np.int32).max, batch.documents), kind="stable")
    return Batch(*(part[order] for part in batch))


@partial(jax.jit, donate_argnums=1)
def keep_strongest(
    decoder: Decoder,
    state: KeptTokens,
    indices: Mapping[str, jax.Array],
    tokens: jax.Array,
    token_mask: jax.Array,
    documents: jax.Array,
) -> KeptTokens:
    """The state with one more batch: tokens int32 [batch, time]; token_mask bool [batch, time], True for the tokens
    that count; documents int32 [batch], ascending within each shard of the batch. indices: {site: int32 [layers,
    neurons]}."""
    config = decoder.config

    def observe(record: LayerRecord, own: tuple[KeptTokens, Mapping[str, jax.Array]]) -> KeptTokens:
        before, of_layer = own
        value, document, position, active = {}, {}, {}, {}
        for site, at in of_layer.items():
            activations = jnp.where(token_mask[..., None], _activations(config, record, site, at), -jnp.inf)
            kept = (before.value[site], before.document[site], before.position[site])
            value[site], document[site], position[site] = _inserted(kept, activations, documents)
        for site, count in before.active.items():
            acts = token_mask[..., None] & (_of_neurons_at(config, record, record.activated, of_layer[site]) > 0)
            active[site] = count + _by_shard(acts, count.shape[0]).sum(axis=-1, dtype=jnp.int32)
        return KeptTokens(value, document, position, active)

    keep = NeuronMask.keep_all(config)
    _, state = hidden_states(decoder, tokens, keep, observe=observe, per_layer=(state, dict(indices)))
    return jax.tree.map(lambda x: constrain(x, *_STATE_AXES[: x.ndim]), state)


def _activations(config: ModelConfig, record: LayerRecord, site: str, at: jax.Array) -> jax.Array:
    """What the neurons at the indices `at` [n] compute at each token: float32 [b, t, n]."""
    if site == FFN:
        return _of_neurons_at(config, record, record.product, at)
    x = {"attn_q": record.q_raw, "attn_k": record.k_raw, "attn_v": record.v}[site]
    return jnp.take(x.reshape(*x.shape[:2], -1), at, axis=-1, mode="clip")


def _of_neurons_at(config: ModelConfig, record: LayerRecord, x: jax.Array, at: jax.Array) -> jax.Array:
    """What has one value per feed-forward neuron (x like `record.product`) at the indices `at` [n]: [b, t, n]. Minus
    infinity for an expert's neuron at a token that goes elsewhere."""
    if record.experts is None:
        return jnp.take(x, at, axis=-1, mode="clip")
    size = x.shape[-1]
    sent = record.experts[..., None] == at // size  # [b, t, e, n]
    return jnp.where(sent, jnp.take(x, at % size, axis=-1, mode="clip"), -jnp.inf).max(axis=2)


def _by_shard(x: jax.Array, shards: int) -> jax.Array:
    """[b, t, n] -> [shards, n, tokens of a shard], its documents one after the other."""
    batch, time, neurons = x.shape
    split = x.reshape(shards, batch // shards, time, neurons)
    return split.transpose(0, 3, 1, 2).reshape(shards, neurons, -1)


_Kept = tuple[jax.Array, jax.Array, jax.Array]  # values, documents and positions [shards, neurons, kept]


def _inserted(kept: _Kept, activations: jax.Array, documents: jax.Array) -> _Kept:
    """The largest of those that are kept and of a batch's activations [b, t, n], minus infinity at tokens that do not
    count. documents: int32 [b]."""
    shards, time = kept[0].shape[0], activations.shape[1]
    axes = ("shards", None, None)
    inputs = (*kept, _by_shard(activations, shards), documents.reshape(shards, -1))
    shapes = [x.shape for x in kept]
    merge = partial(_merged, time)
    return per_device(merge, inputs, (axes, axes, axes, axes, ("shards", None)), (axes, axes, axes), shapes)


def _merged(
    time: int, values: jax.Array, documents: jax.Array, positions: jax.Array, new: jax.Array, rows: jax.Array
) -> _Kept:
    """Within one device: `_inserted` over its own shards. new: [shards, n, tokens]; rows: int32 [shards, documents]."""
    shards, neurons, kept = values.shape
    new = jnp.where(jnp.isnan(new), jnp.inf, jnp.where(new == 0, 0.0, new))  # -0 and 0 are equal; NaN is not lost
    # Of equal ones `top_k` takes the first, so the tokens have to be in their order.
    best, place = jax.lax.top_k(new.reshape(shards * neurons, -1), min(kept, new.shape[-1]))
    best, place = (x.reshape(shards, neurons, -1) for x in (best, place))
    at = jnp.take_along_axis(rows, (place // time).reshape(shards, -1), axis=1).reshape(place.shape)
    both = [jnp.concatenate(pair, axis=-1) for pair in ((-values, -best), (documents, at), (positions, place % time))]
    falling, documents, positions = (x[..., :kept] for x in jax.lax.sort(both, dimension=-1, num_keys=3))
    return -falling, documents, positions


def _of_neurons(state: KeptTokens, chosen: tuple[NeuronAt, ...], counted: int) -> StrongestTokens:
    """From the state on the host: the shards together, and of each row what is a chosen neuron's."""
    tables: dict[str, tuple[np.ndarray, ...]] = {}
    for site, value in state.value.items():
        layers, shards, neurons, kept = value.shape
        parts = [
            np.moveaxis(np.asarray(x[site]), 1, 2).reshape(layers, neurons, shards * kept)
            for x in (state.value, state.document, state.position)
        ]
        order = np.lexsort((parts[2], parts[1], -parts[0]), axis=-1)[..., :kept]
        tables[site] = tuple(np.take_along_axis(part, order, axis=-1) for part in parts)
    active = {site: count.sum(axis=1) / counted for site, count in state.active.items()}
    rows, shares, last, slot = [], [], (None, -1), 0
    for site, layer in ((at.site, at.layer) for at in chosen):  # in the order in which `_indices` fills the rows
        slot = slot + 1 if (site, layer) == last else 0
        last = (site, layer)
        rows.append(tuple(table[layer, slot] for table in tables[site]))
        shares.append(active[site][layer, slot] if site in active else np.nan)
    values, documents, positions = (np.stack(part) for part in zip(*rows, strict=True))
    empty = np.isneginf(values)
    documents, positions = (np.where(empty, -1, x).astype(np.int32) for x in (documents, positions))
    return StrongestTokens(chosen, values, documents, positions, np.asarray(shares, np.float64), counted)
