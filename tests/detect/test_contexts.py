"""The tokens at which neurons act most: streamed on the device against every token in NumPy."""

from functools import partial

import jax
import numpy as np
import pytest

import mwork_jax as mw
from mwork_jax.corpus import Batching, encoded, measured_token_mask, stream_batches
from mwork_jax.detect import contexts
from mwork_jax.detect.contexts import FFN, NeuronAt, _merged, neurons_at, strongest_tokens
from mwork_jax.model.decoder import hidden_states
from mwork_jax.neurons import GROUPS, NeuronMask, NeuronSet, group_widths
from support.tiny import pair

SMALL = Batching(max_tokens=24, tokens_per_batch=64)


def documents(count=14, vocabulary=97, seed=0):
    """Documents of two lengths of batches, some of them twice, so that activations are equal."""
    rng = np.random.default_rng(seed)
    lengths = rng.choice([5, 9, 15, 20, 22, 23], count)  # with a BOS in front, programs of 16 and of 24
    drawn = [rng.integers(3, vocabulary, length).astype(np.int32) for length in lengths]
    return [np.concatenate([[1], d]).astype(np.int32) for d in (*drawn, *drawn[::3])]


@partial(jax.jit, static_argnums=2)
def every_activation(decoder, tokens, config):
    """{site: [layers, b, t, width]} and act(gate) [layers, b, t, f], an expert's where the token goes there."""

    def spread(record, x, nothing):
        if record.experts is None:
            return x
        chosen = jax.nn.one_hot(record.experts, config.num_experts, dtype=bool)[..., None]
        return jax.numpy.where(chosen, x[..., None, :], nothing).max(axis=2).reshape(*x.shape[:2], -1)

    def observe(record):
        flat = {
            s: x.reshape(*x.shape[:2], -1) for s, x in zip(GROUPS, (record.q_raw, record.k_raw, record.v), strict=False)
        }
        minus = -jax.numpy.inf
        return {**flat, FFN: spread(record, record.product, minus)}, spread(record, record.activated, minus)

    return hidden_states(decoder, tokens, NeuronMask.keep_all(config), observe=observe)[1]


def slowly(model, texts, chosen, kept, batching):
    """(value, document, position) of each neuron's strongest tokens, and its share of active ones."""
    found, active, counted = {at: [] for at in chosen}, dict.fromkeys(chosen, 0), 0
    for batch in stream_batches(encoded(model, texts, batching.max_tokens), batching):
        values, gates = jax.tree.map(np.asarray, every_activation(model.decoder, batch.tokens, model.config))
        mask = measured_token_mask(model, batch.tokens, batch.lengths, include_bos=False) > 0
        counted += mask.sum()
        for row, position in np.argwhere(mask):
            for at in chosen:
                value = values[at.site][at.layer, row, position, at.index]
                if np.isfinite(value):
                    found[at].append((value, batch.documents[row], position))
                if at.site == FFN:
                    active[at] += gates[at.layer, row, position, at.index] > 0
    strongest = {at: sorted(all_, key=lambda one: (-one[0], one[1], one[2]))[:kept] for at, all_ in found.items()}
    return strongest, {at: count / counted for at, count in active.items()}


def assert_same(found, strongest, active):
    for i, at in enumerate(found.neurons):
        values, texts, positions = zip(*strongest[at], strict=True)
        count = len(values)
        np.testing.assert_array_equal(found.documents[i, :count], texts, err_msg=str(at))
        np.testing.assert_array_equal(found.positions[i, :count], positions, err_msg=str(at))
        np.testing.assert_array_equal(found.values[i, :count], values, err_msg=str(at))
        assert (found.documents[i, count:] == -1).all()
        assert np.isneginf(found.values[i, count:]).all()
        if at.site == FFN:
            assert found.active[i] == active[at]
        else:
            assert np.isnan(found.active[i])


def some(config, seed=0, share=0.06):
    rng = np.random.default_rng(seed)
    return NeuronSet({g: rng.random((config.num_layers, w)) < share for g, w in group_widths(config).items()})


def test_streamed_equals_every_token(tiny_folder):
    model = mw.load_model(tiny_folder, dtype="float32")
    neurons, texts = some(model.config), documents(vocabulary=250)
    found = strongest_tokens(model, texts, neurons, 6, batching=SMALL)
    assert found.neurons == neurons_at(neurons)
    assert found.tokens == sum(len(text) - 1 for text in texts)
    assert_same(found, *slowly(model, texts, found.neurons, 6, SMALL))


def test_experts_act_at_the_tokens_that_go_to_them():
    model = pair("mixtral", 2).model
    neurons, texts = some(model.config, share=0.1).in_groups("ffn_up"), documents(2)
    found = strongest_tokens(model, texts, neurons, 40, batching=SMALL)
    assert (found.documents == -1).any(), "some experts have fewer tokens"
    assert_same(found, *slowly(model, texts, found.neurons, 40, SMALL))


def test_up_and_down_are_one_activation():
    config = pair("llama", 2).config
    groups = {g: np.zeros((config.num_layers, w), bool) for g, w in group_widths(config).items()}
    groups["ffn_up"][1, 4] = groups["ffn_down"][1, [4, 7]] = groups["attn_v"][0, 2] = True
    assert neurons_at(NeuronSet(groups)) == (NeuronAt("attn_v", 0, 2), NeuronAt(FFN, 1, 4), NeuronAt(FFN, 1, 7))


@pytest.mark.parametrize("shards", [1, 2])
def test_ties_go_to_the_first_document_and_position(shards):
    """Whole numbers, so that most are equal, in batches that come in any order of the documents."""
    rng, time, rows, neurons, kept = np.random.default_rng(1), 5, 4, 3, 7
    state = (
        np.full((shards, neurons, kept), -np.inf, np.float32),
        *(np.full((shards, neurons, kept), -1, np.int32) for _ in "dp"),
    )
    order, seen = rng.permutation(6 * shards * rows).reshape(6, shards, rows), []
    for batch in np.sort(order, axis=-1).astype(np.int32):
        new = rng.integers(-1, 3, (shards, neurons, rows * time)).astype(np.float32) * -0.0 + rng.integers(
            -1, 2, (shards, neurons, rows * time)
        )
        new[rng.random(new.shape) < 0.2] = -np.inf
        state = jax.jit(partial(_merged, time))(*state, new.astype(np.float32), batch)
        seen.append((new, batch))
    for shard, neuron in np.ndindex(shards, neurons):
        every = [
            (-new[shard, neuron, row * time + t], batch[shard, row], t)
            for new, batch in seen
            for row in range(rows)
            for t in range(time)
        ]
        expected = np.asarray(sorted(every)[:kept])
        for got, column in zip(state, expected.T, strict=True):
            np.testing.assert_array_equal(np.abs(got[shard, neuron]), np.abs(column))


def test_one_program_for_each_length_whichever_neurons():
    model, texts = pair("llama", 2).model, documents(30)
    contexts.keep_strongest.clear_cache()
    for seed in range(3):
        few = _first(some(model.config, seed, share=0.3).in_groups("ffn_up"), 5)
        strongest_tokens(model, texts, few, 4, batching=SMALL)
    assert contexts.keep_strongest._cache_size() == 2, "one program for each of the two lengths"


def _first(neurons, count):
    """At most so many of each layer."""
    groups = {g: m & (np.cumsum(m, axis=1) <= count) for g, m in neurons.groups.items()}
    return NeuronSet(groups)


def test_what_cannot_be_read():
    model = pair("llama", 2).model
    with pytest.raises(mw.InputError, match="no neuron in the set"):
        strongest_tokens(model, documents(2), NeuronSet.empty(model.config))
    with pytest.raises(mw.InputError, match="the set is of another model"):
        strongest_tokens(model, documents(2), some(pair("mixtral", 2).config))
    with pytest.raises(mw.InputError, match="no documents"):
        strongest_tokens(model, [], some(model.config))
    with pytest.raises(mw.InputError, match="kept is 0"):
        strongest_tokens(model, documents(2), some(model.config), 0)
