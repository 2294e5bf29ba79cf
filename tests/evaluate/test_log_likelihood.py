"""Log-likelihood of continuations against sums of HF's log-softmax; the boundary between context and continuation."""

import numpy as np
import pytest

import mwork_jax as mw
from mwork_jax.errors import InputError
from mwork_jax.model import predictions
from mwork_jax.neurons import NeuronMask
from support.slow_deactivation import random_neurons, zero_neurons
from support.tiny import pair, tokens, torch


def drawn_pairs(count=9, seed=0):
    rng = np.random.default_rng(seed)
    contexts = [tokens(1, n, seed=i)[0] for i, n in enumerate(rng.integers(1, 30, count))]
    continuations = [tokens(1, n, seed=99 + i, first=None)[0] for i, n in enumerate(rng.integers(1, 20, count))]
    return contexts, continuations


def hf_log_likelihood(hf, context, continuation) -> float:
    whole = torch.tensor(np.concatenate([context, continuation]), dtype=torch.long)
    with torch.no_grad():
        logs = torch.log_softmax(hf(whole[None]).logits[0].double(), dim=-1)
    begin = len(context)
    return float(logs[begin - 1 : -1].gather(1, whole[begin:, None]).sum())


@pytest.mark.parametrize("masked", [False, True], ids=["whole", "masked"])
@pytest.mark.parametrize("family", ["llama", "mistral", "gemma2", "gemma3"])
def test_sums_equal_hf(family, masked):
    both = pair(family, 2)
    mask, hf = NeuronMask.keep_all(both.config), both.hf
    if masked:
        neurons = random_neurons(both.config, share=0.2)
        mask, hf = mask.drop(neurons), zero_neurons(hf, neurons, both.config)
    contexts, continuations = drawn_pairs()
    done = []
    found = mw.log_likelihood(both.model, contexts, continuations, mask, tokens_per_batch=128, progress=done.append)
    expected = [hf_log_likelihood(hf, a, b) for a, b in zip(contexts, continuations, strict=True)]
    assert found.nats.dtype == np.float64
    np.testing.assert_allclose(found.nats, expected, rtol=1e-5, atol=1e-4)
    np.testing.assert_array_equal(found.tokens, [b.size for b in continuations])
    assert done[-1] == len(contexts)


def test_any_number_of_masks_is_one_program_per_shape():
    both = pair("llama", 2)
    contexts, continuations = [tokens(1, 11)[0]] * 4, [tokens(1, n, first=None)[0] for n in (2, 5, 3, 1)]
    predictions.predicted.clear_cache()
    for seed in range(20):
        mask = NeuronMask.keep_all(both.config).drop(random_neurons(both.config, seed=seed))
        mw.log_likelihood(both.model, contexts, continuations, mask)
    assert predictions.predicted._cache_size() == 1


class Merging:
    """A letter per token, "bc" one token; BOS first where asked."""

    def __init__(self, bos=True):
        self.bos = bos

    def __call__(self, text, add_special_tokens=True):
        letters = text.replace("bc", "B")
        return {"input_ids": [1] * (self.bos and add_special_tokens) + [3 + ord(letter) % 90 for letter in letters]}


def test_a_token_over_the_boundary_belongs_to_the_continuation():
    both = pair("llama", 2)
    model = mw.Model(both.decoder, Merging(), "tiny")
    mask = NeuronMask.keep_all(both.config)
    found = mw.log_likelihood(model, ["ab", "ab", "", "ab"], ["cd", "dé", "d", "c"], mask)
    split = [(["a"], "bcd"), (["ab"], "dé"), ([""], "d"), (["a"], "bc")]
    for nats, count, ((context,), rest) in zip(found.nats, found.tokens, split, strict=True):
        ids = np.asarray(Merging(False)(rest)["input_ids"])
        assert nats == pytest.approx(hf_log_likelihood(both.hf, Merging()(context)["input_ids"], ids), abs=1e-4)
        assert count == ids.size
    np.testing.assert_array_equal(found.bytes, [2, 3, 1, 1])  # of the text given, whatever the tokens


def test_text_is_scored_as_its_tokens(tiny_folder):
    model = mw.load_model(tiny_folder, dtype="float32")
    mask = NeuronMask.keep_all(model.config)
    text = mw.log_likelihood(model, ["Frage:", "問"], [" ja", "答え"], mask)
    parts = [model.encode("Frage:"), model.encode("問")], [model.encode(" ja")[1:], model.encode("答え")[1:]]
    arrays = mw.log_likelihood(model, *parts, mask)
    np.testing.assert_allclose(text.nats, arrays.nats, rtol=1e-6)
    np.testing.assert_array_equal(text.bytes, [3, 6])
    np.testing.assert_array_equal(text.tokens, arrays.tokens)
    np.testing.assert_array_equal(arrays.bytes, [0, 0])
    np.testing.assert_array_equal(text.scores("sum"), text.nats)
    np.testing.assert_array_equal(text.scores("per_token"), text.nats / text.tokens)
    np.testing.assert_array_equal(text.scores("per_byte"), text.nats / text.bytes)
    with pytest.raises(InputError, match="'length' is not one of sum, per_token, per_byte"):
        text.scores("length")
    with pytest.raises(InputError, match="no bytes to normalise by"):
        arrays.scores("per_byte")


ONE, TWO = tokens(1, 5)[0], tokens(1, 60)[0]


@pytest.mark.parametrize(
    ("contexts", "continuations", "message"),
    [
        ([], [], "contexts: there are none"),
        ("a", "b", "come as lists"),
        ([ONE], [ONE, ONE], "1 contexts and 2 continuations"),
        ([ONE, ONE[:0]], [ONE, ONE], "pair 2: no token comes before"),
        ([""], ["a"], "pair 1: no token comes before"),
        ([ONE, ONE], [ONE, ONE[:0]], "pair 2: the continuation is empty"),
        (["a"], [""], "pair 1: the continuation is empty"),
        (["a"], [ONE], "pair 1: context and continuation must be both text or both tokens"),
        ([ONE, TWO], [ONE, ONE], "pair 2 has 65 tokens; the model's context is 64"),
        ([ONE, ONE], [ONE, np.asarray([97])], "pair 2, continuation: token 97 is outside"),
    ],
)
def test_what_cannot_be_scored(contexts, continuations, message):
    both = pair("llama", 2)
    model = mw.Model(both.decoder, Merging(bos=False), "tiny")
    with pytest.raises(InputError, match=message):
        mw.log_likelihood(model, contexts, continuations, NeuronMask.keep_all(both.config))
