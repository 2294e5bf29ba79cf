"""Continuations of tokens against sums of HF's log-softmax and its likeliest tokens."""

import numpy as np
import pytest

import mwork_jax as mw
from mwork_jax.errors import InputError
from mwork_jax.evaluate.continuations import TokenPair, _rows, continuations
from support.slow_deactivation import random_neurons, zero_neurons
from support.tiny import pair, tokens, torch


def hf_logs(hf, context):
    """float64 [time, vocab]: the log-probabilities after each token."""
    with torch.no_grad():
        return torch.log_softmax(hf(torch.tensor(context, dtype=torch.long)[None]).logits[0].double(), dim=-1).numpy()


def expected(hf, one):
    whole = np.concatenate([one.context, one.continuation])
    logs = hf_logs(hf, whole[:-1])[-one.continuation.size :]
    nats = logs[np.arange(one.continuation.size), one.continuation].sum()
    return nats, bool((logs.argmax(axis=-1) == one.continuation).all())


def pairs_of(hf):
    """Three choices of one token each, longer ones, and what the model itself says."""
    shared, other = tokens(1, 40)[0], tokens(1, 9, seed=3)[0]
    given = [TokenPair(shared, np.int32([token])) for token in (5, 9, 70)]
    given += [TokenPair(c, tokens(1, n, seed=n, first=None)[0]) for c, n in ((shared, 4), (other, 2), (other[:1], 7))]
    said = shared
    for _ in range(3):
        said = np.append(said, hf_logs(hf, said)[-1].argmax()).astype(np.int32)
    return [*given, TokenPair(shared, said[shared.size :])]


def test_nats_and_what_is_likeliest_equal_hf():
    both = pair("gemma3", 2)
    keep = mw.NeuronMask.keep_all(both.config)
    neurons, given, done = random_neurons(both.config, share=0.2), pairs_of(both.hf), []
    steps = {"tokens_per_batch": 128, "progress": done.append}
    found = continuations(both.model, given, [keep, keep.drop(neurons)], **steps)
    for row, hf in enumerate((both.hf, zero_neurons(both.hf, neurons, both.config))):
        nats, greedy = zip(*(expected(hf, one) for one in given), strict=True)
        np.testing.assert_allclose(found.nats[row], nats, rtol=1e-5, atol=1e-4)
        assert found.greedy[row].tolist() == list(greedy)
    assert found.greedy[0].tolist()[-1]
    assert done[-1] == 2 * len(given)


def test_what_reads_the_same_is_read_once():
    model, context = pair("llama", 2).model, tokens(1, 20)[0]
    rows = _rows(model, [TokenPair(context, np.int32([token])) for token in (4, 5, 6)])
    assert [(row.tokens.tolist(), row.predicted, row.pairs) for row in rows] == [(context.tolist(), 1, [0, 1, 2])]


@pytest.mark.parametrize(
    ("context", "continuation", "line"),
    [
        ([1], [], "request 1: its continuation has no token"),
        ([], [4], "request 1: its context has no token"),
        ([1], [97], "request 1: token 97 is outside the vocabulary of 97"),
        ([1] * 60, [4] * 6, "request 1 has 65 tokens to read; the model's context is 64"),
    ],
)
def test_bad_pairs_are_named(context, continuation, line):
    both = pair("llama", 2)
    with pytest.raises(InputError, match=line):
        continuations(
            both.model, [TokenPair(np.int32(context), np.int32(continuation))], [mw.NeuronMask.keep_all(both.config)]
        )
