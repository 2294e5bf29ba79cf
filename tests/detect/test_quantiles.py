"""Quantiles of activations, found bit by bit on the device, against sorting every token's in NumPy."""

from functools import partial

import jax
import numpy as np
import pytest

import mwork_jax as mw
from mwork_jax.corpus import Batching, encoded, measured_token_mask, stream_batches
from mwork_jax.detect import quantiles
from mwork_jax.detect.quantiles import _key, _value, activation_quantiles
from mwork_jax.model.decoder import hidden_states
from mwork_jax.neurons import NeuronMask
from support.tiny import pair

SMALL = Batching(max_tokens=24, tokens_per_batch=64)
SHARES = (0.0, 0.05, 0.5, 0.95, 1.0)


def documents(count=9, vocabulary=97, seed=0):
    rng = np.random.default_rng(seed)
    return [np.r_[1, rng.integers(3, vocabulary, rng.integers(4, 23))].astype(np.int32) for _ in range(count)]


@partial(jax.jit, static_argnums=(2, 3))
def every_activation(decoder, tokens, config, at):
    """[layers, b, t, f], NaN for an expert's neuron where the token goes elsewhere."""

    def observe(record):
        x = record.product if at == "neuron" else record.activated
        if record.experts is None:
            return x
        chosen = jax.nn.one_hot(record.experts, config.num_experts, dtype=bool)[..., None]
        spread = jax.numpy.where(chosen, x[..., None, :], -jax.numpy.inf).max(axis=2).reshape(*x.shape[:2], -1)
        return jax.numpy.where(jax.numpy.isneginf(spread), jax.numpy.nan, spread)

    return hidden_states(decoder, tokens, NeuronMask.keep_all(config), observe=observe)[1]


def slowly(model, texts, at, include_bos=False):
    """[quantiles, layers, f]"""
    rows = []
    for batch in stream_batches(encoded(model, texts, SMALL.max_tokens), SMALL):
        values = np.asarray(every_activation(model.decoder, batch.tokens, model.config, at))
        mask = measured_token_mask(model, batch.tokens, batch.lengths, include_bos) > 0
        rows.append(values[:, mask])
    every = np.concatenate(rows, axis=1)
    found = np.full((len(SHARES), every.shape[0], every.shape[2]), np.nan, np.float32)
    for layer, index in np.ndindex(every.shape[0], every.shape[2]):
        own = every[layer, :, index]
        if (own := own[~np.isnan(own)]).size:
            found[:, layer, index] = np.quantile(own, SHARES, method="inverted_cdf")
    return found


@pytest.mark.parametrize("at", ["neuron", "gate"])
@pytest.mark.parametrize("family", ["llama", "gemma3", "apertus", "qwen3-moe"])
def test_quantiles_are_those_of_every_token(family, at):
    model = pair(family, 2).model
    found = activation_quantiles(model, documents(), SHARES, at=at, batching=SMALL)
    slow = slowly(model, documents(), at)
    assert found.dtype == np.float32
    np.testing.assert_allclose(found, slow, rtol=1 / 256, atol=1e-37)


def test_an_expert_to_which_no_token_goes_has_none():
    model, texts = pair("qwen3-moe", 2).model, [np.asarray([1, 5, 9], np.int32)]
    found, slow = activation_quantiles(model, texts, SHARES, batching=SMALL), slowly(model, texts, "neuron")
    assert 0 < np.isnan(slow).mean() < 1
    np.testing.assert_allclose(found, slow, rtol=1 / 256, atol=1e-37)  # NaN where NaN is


def test_the_bos_counts_where_asked():
    model = pair("llama", 2).model
    found = activation_quantiles(model, documents(), SHARES, include_bos=True, batching=SMALL)
    np.testing.assert_allclose(found, slowly(model, documents(), "neuron", True), rtol=1 / 256)
    assert not np.allclose(found, activation_quantiles(model, documents(), SHARES, batching=SMALL), rtol=1 / 256)


def test_keys_are_in_the_order_of_the_floats():
    values = np.asarray([-np.inf, -3e38, -1.5, -1e-30, -0.0, 0.0, 1e-30, 1.0, 1.00390625, 3e38, np.inf], np.float32)
    keys = np.asarray(_key(values))
    assert (np.diff(keys.astype(np.int64)) >= 0).all()
    assert keys[4] == keys[5]
    middles = _value(keys[1:-1] >> 16)
    np.testing.assert_allclose(middles, values[1:-1], rtol=1 / 256)
    assert middles[3] == middles[4] == 0


def test_one_program_for_all_passes_over_batches_of_a_shape():
    model = pair("llama", 2).model
    batches = stream_batches(encoded(model, documents(), SMALL.max_tokens), SMALL)
    shapes = {batch.tokens.shape for batch in batches}
    quantiles._of_batch.clear_cache()
    activation_quantiles(model, documents(), (0.5,), batching=SMALL)
    activation_quantiles(model, documents(), (0.9,), batching=SMALL)
    assert quantiles._of_batch._cache_size() == len(shapes)


@pytest.mark.parametrize(
    ("options", "line"),
    [
        ({"quantiles": (1.5,)}, r"quantiles are \(1\.5,\); numbers from 0 to 1"),
        ({"quantiles": (float("nan"),)}, "numbers from 0 to 1"),
        ({"quantiles": ()}, "numbers from 0 to 1"),
        ({"at": "up"}, "at is 'up'; it can be neuron or gate"),
    ],
)
def test_what_cannot_be_asked_is_one_line(options, line):
    with pytest.raises(mw.InputError, match=line):
        activation_quantiles(pair("llama", 2).model, documents(), **options)


def test_no_documents_are_one_line():
    with pytest.raises(mw.InputError, match="no documents"):
        activation_quantiles(pair("llama", 2).model, [])
