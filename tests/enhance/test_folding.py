"""A masked model as a folder: Hugging Face's logits on it are those of the masked forward pass, and what weights
cannot do is refused."""

import jax
import numpy as np
import pytest

import mwork_jax as mw
from mwork_jax.enhance.folding import weight_factors
from mwork_jax.enhance.neuron_params import parameter_arrays
from mwork_jax.intervention import Intervention
from mwork_jax.neurons import NeuronMask
from support.slow_deactivation import random_neurons
from support.tiny import DISTINCT, pair, tokens, torch, transformers
from support.tuned import tuned_model


def hf_logits(folder, ids):
    hf = transformers.AutoModelForCausalLM.from_pretrained(folder, attn_implementation="eager").eval()
    with torch.no_grad():
        return hf(torch.tensor(ids, dtype=torch.long)).logits.numpy()


@pytest.mark.parametrize("family", DISTINCT)
def test_the_folder_in_hf_pytorch_is_the_masked_model(family, tmp_path):
    model, ids = pair(family, 2).model, tokens(2, 19)
    mask = NeuronMask.keep_all(model.config).drop(random_neurons(model.config))
    mw.save_folder(model, tmp_path, mask)
    theirs = hf_logits(tmp_path, ids)
    np.testing.assert_allclose(mw.forward(model, ids, mask), theirs, atol=1e-5, rtol=1e-5)
    assert np.abs(theirs - np.asarray(mw.forward(model, ids, NeuronMask.keep_all(model.config)))).max() > 0.01
    off = sum(int((np.asarray(getattr(mask, name)) == 0).sum()) for name in ("attn_q", "attn_k", "attn_v"))
    assert f"feed-forward products, {off:,} queries, keys and values)" in (tmp_path / "README.md").read_text()


@pytest.mark.parametrize("family", ["llama-biases", "bloom", "gpt-oss"])
def test_what_scales_neurons_is_in_the_weights_too(family, tmp_path):
    model, ids = pair(family, 2).model, tokens(2, 19)
    first, second = (random_neurons(model.config, seed=s) for s in (1, 2))
    edit = Intervention.none(model.config).scale(first, 1.7).scale(second, 0.4).scale(first, -0.5, at="gate")
    mw.save_folder(model, tmp_path, edit)
    np.testing.assert_allclose(mw.forward(model, ids, edit), hf_logits(tmp_path, ids), atol=1e-5, rtol=1e-5)


def test_any_model_is_saved_whole_and_a_tuned_one_under_a_mask(tmp_path):
    model, ids = pair("llama", 2).model, tokens(2, 19)
    keep = NeuronMask.keep_all(model.config)
    mw.save_folder(model, tmp_path / "plain", keep)
    saved = mw.load_model(tmp_path / "plain", dtype="float32")
    for name, array in parameter_arrays(model.decoder).items():
        np.testing.assert_array_equal(array, parameter_arrays(saved.decoder)[name], err_msg=name)
    assert "Every weight is the base model's, bit for bit" in (tmp_path / "plain" / "README.md").read_text()
    tuned, mask = tuned_model("llama"), keep.drop(random_neurons(model.config))
    mw.save_folder(tuned, tmp_path / "tuned", mask)
    loaded = mw.load_model(tmp_path / "tuned", dtype="float32")
    np.testing.assert_allclose(mw.forward(loaded, ids, keep), mw.forward(tuned, ids, mask), atol=1e-5, rtol=1e-5)


def cannot_be_weights(config):
    none, neurons = Intervention.none(config), random_neurons(config)
    return {
        "values": (
            none.replace(neurons, 0.5),
            "layer 0 adds a value at attn_q; weights can hold what scales",
        ),
        "steering": (none.steer(1, np.ones(config.hidden_size)), "layer 1 adds a vector to the residual stream"),
        "the prompt only": (none.scale(neurons, 2.0).on("prompt"), "layer 0 acts on a part of each text only"),
        "a set": (neurons, "mask is a NeuronSet"),
        "a stack": (NeuronMask.stack([NeuronMask.keep_all(config)] * 2), "it is a stack"),
    }


@pytest.mark.parametrize("case", ["values", "steering", "the prompt only", "a set", "a stack"])
def test_what_weights_cannot_do_is_one_line(case, tmp_path):
    model = pair("llama", 2).model
    edit, message = cannot_be_weights(model.config)[case]
    with pytest.raises(mw.InputError, match=message):
        mw.save_folder(model, tmp_path / "x", edit)
    assert not (tmp_path / "x").exists()


def test_what_is_not_done_needs_no_weights():
    config = pair("llama", 2).config
    none = Intervention.none(config)
    assert weight_factors(config, none.on("generated")) == {}
    assert weight_factors(config, none.scale(random_neurons(config), 1.0).on("prompt")) == {}
    with pytest.raises(mw.InputError, match="the mask is traced"):
        jax.jit(lambda mask: weight_factors(config, mask))(NeuronMask.keep_all(config))
