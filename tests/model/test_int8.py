"""Matrices as 8-bit whole numbers: everything is computed with the same model as if they were multiplied out."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import mwork_jax as mw
from mwork_jax.enhance import TuneSettings, fine_tune
from mwork_jax.enhance.neuron_params import parameter_arrays
from mwork_jax.errors import InputError
from mwork_jax.lens.neuron_contexts import column_logits
from mwork_jax.model.decoder import Decoder
from mwork_jax.model.int8 import FACTOR, INPUT_AXES, quantised
from mwork_jax.model.parameters import parameter_specs, weight_bytes
from mwork_jax.neurons import NeuronMask
from support.slow_deactivation import random_neurons
from support.tiny import pair, tokens


def in_int8(decoder):
    arrays = dict(parameter_arrays(decoder))
    for name, inputs in INPUT_AXES.items():
        if (key := f"layers.{name}") in arrays:
            arrays[key], arrays[f"{key}{FACTOR}"] = quantised(arrays[key], inputs)
    return Decoder(decoder.config, arrays)


def test_every_number_is_the_nearest():
    matrix = np.random.default_rng(0).normal(0, 1, (3, 5, 40)).astype(np.float32)
    matrix[1, 2] = 0
    whole, factor = quantised(jnp.asarray(matrix), 1)
    assert whole.dtype == jnp.int8
    assert factor.shape == (3, 5, 1)
    assert np.abs(np.asarray(whole)).max() == 127
    assert (np.abs(whole * factor - matrix) <= np.asarray(factor) / 2 + 1e-7).all()
    assert not np.asarray(whole[1, 2]).any()
    both = quantised(jnp.asarray(matrix), 2)
    assert both[1].shape == (3, 1, 1)


@pytest.mark.parametrize("family", ["llama", "gemma3", "mixtral", "bloom"])
def test_everything_is_of_the_model_multiplied_out(family):
    both = pair(family, 2)
    small = in_int8(both.decoder)
    assert small.int8
    plain = Decoder(both.config, parameter_arrays(small))
    assert not plain.int8
    mask = NeuronMask.keep_all(both.config).drop(random_neurons(both.config))
    ids = tokens(2, 20)
    small, plain = (mw.Model(decoder, None, "tiny") for decoder in (small, plain))
    ours, theirs = (np.asarray(mw.forward(model, ids, mask)) for model in (small, plain))
    np.testing.assert_allclose(ours, theirs, atol=1e-5, rtol=0)
    assert np.abs(ours - np.asarray(mw.forward(both.model, ids, mask))).max() > 1e-4, "it is another model"
    rows = [tokens(1, n, seed=n)[0] for n in (5, 40)]
    for one, other in zip(*(mw.generate(m, rows, mask, max_new_tokens=6) for m in (small, plain)), strict=True):
        np.testing.assert_array_equal(one, other)
    scores = [mw.score_neurons(model, rows) for model in (small, plain)]
    for group, values in scores[0].lowest.items():
        np.testing.assert_allclose(values, scores[1].lowest[group], rtol=1e-3, atol=1e-6)
    layers, indices = np.asarray([0, 2]), np.asarray([3, 7])
    np.testing.assert_allclose(
        column_logits(small.decoder, layers, indices), column_logits(plain.decoder, layers, indices), atol=1e-5
    )
    assert small.info.dtype == "int8, read in float32"
    assert small.key != plain.key


def test_a_folder_is_loaded_in_int8_and_not_tuned(tiny_folder):
    model = mw.load_model(tiny_folder, dtype="bfloat16", weights="int8")
    assert model.decoder.layers.q[...].dtype == jnp.int8
    assert model.decoder.embed[...].dtype == jnp.bfloat16
    held = sum(leaf.nbytes for leaf in jax.tree.leaves(model.decoder))
    assert held == weight_bytes(model.config, jnp.bfloat16, int8=True) < weight_bytes(model.config, jnp.bfloat16)
    (text,) = mw.generate(model, ["a prompt"], NeuronMask.keep_all(model.config), max_new_tokens=4)
    assert isinstance(text, str)
    with pytest.raises(InputError, match="int8 cannot be tuned; load the model without --weights int8"):
        fine_tune(model, random_neurons(model.config), ["a text to tune on"], TuneSettings())
    with pytest.raises(InputError, match="weights 'int4' are not supported; use int8"):
        mw.load_model(tiny_folder, weights="int4")


def test_factors_lie_where_their_channels_lie():
    specs = parameter_specs(pair("llama", 2).config, int8=True)
    assert specs[f"layers.q{FACTOR}"].axes == ("layers", "heads", "head_dim", None)
    assert specs[f"layers.o{FACTOR}"].axes == ("layers", "hidden", None, None)
    assert specs[f"layers.down{FACTOR}"].shape == (*specs["layers.down"].shape[:-1], 1)
