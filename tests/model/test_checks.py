"""What `mw.forward` is given: what cannot be meant is one line, and inside jit only shapes are looked at."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import mwork_jax as mw
from mwork_jax.neurons import NeuronMask
from support.slow_deactivation import random_neurons
from support.tiny import pair, tokens


@pytest.fixture(scope="module")
def model():
    return pair("llama", 2).model


WRONG_TOKENS = {
    "outside the vocabulary": ([[1, 97]], "tokens: 97 is not in the vocabulary, 0 to 96"),
    "negative": (jnp.asarray([[1, -1]]), "tokens: -1 is not in the vocabulary"),
    "beyond the context": (np.ones((1, 65), np.int32), "tokens: 65 in a row, the model's context is 64"),
    "no token": (np.ones((1, 0), np.int32), r"tokens are \[1, 0\]; at least one row of one token"),
    "one row": (np.ones(4, np.int32), r"tokens are int32 \[4\]; whole numbers \[batch, time\] are needed"),
    "numbers": (np.ones((1, 4), np.float32), "tokens are float32"),
    "text": ("hello", r"tokens are .* \[\]; whole numbers"),
    "ragged": ([[1, 2], [3]], "rows of different lengths; pad them on the right"),
    "nothing": (None, "tokens are object"),
}


@pytest.mark.parametrize("case", WRONG_TOKENS)
def test_tokens_that_cannot_be_meant(case, model):
    wrong, message = WRONG_TOKENS[case]
    with pytest.raises(mw.InputError, match=message):
        mw.forward(model, wrong, NeuronMask.keep_all(model.config))


def wrong_masks(config):
    keep = NeuronMask.keep_all(config)
    narrow = {**vars(keep), "ffn_up": keep.ffn_up[:, 1:]}
    return {
        "a set": (random_neurons(config), r"mask is a NeuronSet; .*keep_all\(config\)\.drop\(neurons\) makes one"),
        "nothing": (None, "mask is a NoneType; a NeuronMask or an Intervention is needed"),
        "a stack": (NeuronMask.stack([keep, keep]), "it is a stack: use jax.vmap"),
        "narrow": (NeuronMask(**narrow), r"mask: ffn_up is \[3, 47\], the model needs \[3, 48\]"),
        "not a number": (keep.__class__(**{**vars(keep), "attn_v": keep.attn_v * np.nan}), "mask: attn_v holds NaN"),
    }


@pytest.mark.parametrize("case", ["a set", "nothing", "a stack", "narrow", "not a number"])
def test_masks_that_cannot_be_meant(case, model):
    wrong, message = wrong_masks(model.config)[case]
    with pytest.raises(mw.InputError, match=message):
        mw.forward(model, tokens(1, 5), wrong)


def test_lists_are_tokens_and_transformations_go_through(model):
    ids, keep = tokens(2, 5), NeuronMask.keep_all(model.config)
    whole = mw.forward(model, ids, keep)
    np.testing.assert_array_equal(mw.forward(model, ids.tolist(), keep), whole)
    stacked = jax.vmap(lambda mask: mw.forward(model, ids, mask))(NeuronMask.stack([keep, keep]))
    np.testing.assert_allclose(stacked[1], whole, atol=1e-5)
    np.testing.assert_allclose(jax.jit(lambda mask: mw.forward(model, ids, mask))(keep), whole, atol=1e-5)
    with pytest.raises(mw.InputError, match="whole numbers"):
        jax.jit(lambda ids: mw.forward(model, ids, keep))(jnp.ones((2, 5)))


def test_a_table_of_documents_is_not_documents(model):
    with pytest.raises(mw.InputError, match=r"a table \(en, de\), where documents are needed"):
        mw.score_neurons(model, {"en": [tokens(1, 5)[0]], "de": [tokens(1, 5)[0]]})


@pytest.mark.parametrize("entry", ["held_out_loss", "log_likelihood", "generate", "top_tokens", "lens_logits"])
def test_every_function_refuses_what_is_no_mask(entry, model):
    """A list, a set, a mask of another model: one line, not an error of JAX's."""
    ids = tokens(1, 9)
    calls = {
        "held_out_loss": lambda mask: mw.held_out_loss(model, list(ids), mask),
        "log_likelihood": lambda mask: mw.log_likelihood(model, list(ids), [ids[0][2:]], mask),
        "generate": lambda mask: mw.generate(model, list(ids), mask, max_new_tokens=2),
        "top_tokens": lambda mask: mw.top_tokens(model, ids[0], mask),
        "lens_logits": lambda mask: mw.lens_logits(model, ids, mask),
    }
    keep = NeuronMask.keep_all(model.config)
    for wrong in ([keep], random_neurons(model.config, seed=0), None, NeuronMask.stack([keep, keep])):
        with pytest.raises(mw.InputError, match=r"^mask"):
            calls[entry](wrong)


def test_programs_that_set_flags_of_jax_get_the_same(model):
    """Whoever composes this package may need float64 elsewhere, or have JAX refuse promotion in programs of their
    own."""
    ids, keep = list(tokens(2, 9)), NeuronMask.keep_all(model.config)

    def results():
        return (
            mw.score_neurons(model, ids).mean["attn_k"],
            mw.held_out_loss(model, ids, keep).nats,
            mw.generate(model, ids, keep, max_new_tokens=3)[0].tolist(),
        )

    before = results()
    with jax.enable_x64(True), jax.numpy_rank_promotion("raise"), jax.numpy_dtype_promotion("strict"):
        scores, nats, new = results()
    assert scores.dtype == np.float32
    np.testing.assert_allclose(scores, before[0], rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(nats, before[1], rtol=1e-5)
    assert new == before[2]


def wrong_calls(model):
    ids, keep, neurons = tokens(2, 9), NeuronMask.keep_all(model.config), random_neurons(model.config)
    prompts = list(ids)
    return {
        "a name for a model": (lambda: mw.generate("tiny", prompts, keep, max_new_tokens=2), "model is a str"),
        "a decoder": (lambda: mw.held_out_loss(model.decoder, prompts, keep), "model is a Decoder; a Model is needed"),
        "scores of a name": (lambda: mw.score_neurons("tiny", prompts), "model is a str"),
        "a prompt of two rows": (lambda: mw.generate(model, [ids], keep, max_new_tokens=2), r"int32 of shape \(2, 9\)"),
        "numbers": (lambda: mw.importance(model, ids[0] * 1.0), r"float64 of shape \(9,\)"),
        "swapped": (lambda: mw.log_likelihood(model, keep, prompts, prompts), "come as lists"),
        "one pair": (lambda: mw.log_likelihood(model, ids[0], ids[1], keep), r"the continuation has shape \[\]"),
        "mask for tokens": (lambda: mw.forward(model, keep, ids), r"tokens are object \[\];.*, not NeuronMask"),
        "a row": (lambda: mw.lens_logits(model, ids[0], keep), r"int32 \[9\];.*tokens\[None\] makes one row"),
        "labels": (lambda: mw.language_shares(model, prompts, keep, None), "labels are a NoneType; Vocabulary"),
        "a mask to tune": (lambda: mw.fine_tune(model, keep, prompts), "a NeuronMask cannot be tuned; a NeuronSet"),
        "a model for its shape": (lambda: NeuronMask.keep_all(model), "a ModelConfig is needed, model.config, not a M"),
        "no masks": (lambda: NeuronMask.stack([]), "stack: there are no masks"),
        "sets": (lambda: NeuronMask.stack([neurons]), "stack: a NeuronSet is no NeuronMask"),
        "a list of sets": (lambda: mw.overlap([neurons]), "overlap: a list, where {language: NeuronSet} is needed"),
    }


@pytest.mark.parametrize("case", wrong_calls(pair("llama", 2).model))
def test_wrong_arguments_are_one_line(case, model):
    call, message = wrong_calls(model)[case]
    with pytest.raises(mw.InputError, match=message) as error:
        call()
    assert "\n" not in str(error.value)
