"""Steering vectors against plain NumPy over every token, and on languages that are planted in the residual stream."""

import jax.numpy as jnp
import numpy as np
import pytest

import mwork_jax as mw
from mwork_jax.corpus import Batching
from mwork_jax.detect.language_vectors import METHODS, ResidualMoments, _vectors, language_vectors
from mwork_jax.detect.scores import NeuronScores, score_neurons
from mwork_jax.errors import InputError
from mwork_jax.model.decoder import hidden_states
from mwork_jax.neurons import NeuronMask
from support.tiny import pair, tokens

SMALL = Batching(max_tokens=40, tokens_per_batch=64)


@pytest.fixture(scope="module")
def model():
    return pair("gemma3", 2).model


@pytest.fixture(scope="module")
def documents():
    return {lang: [tokens(1, 14, 10 * n + seed)[0] for seed in range(5)] for n, lang in enumerate(("en", "de", "th"))}


@pytest.fixture(scope="module")
def residuals(model, documents):
    """{language: float64 [layers, tokens, hidden]}, the BOS left out."""
    keep = NeuronMask.keep_all(model.config)

    def of(document):
        observed = hidden_states(model.decoder, jnp.asarray(document[None]), keep, observe=lambda r: r.hidden)[1]
        return np.asarray(observed, np.float64)[:, 0, 1:]

    return {lang: np.concatenate([of(d) for d in own], axis=1) for lang, own in documents.items()}


def slow(residuals, language, method, layer):
    own = residuals[language][layer]
    others = [x[layer] for name, x in residuals.items() if name != language]
    difference = own.mean(axis=0) - np.mean([x.mean(axis=0) for x in others], axis=0)
    if method == "diffmean":
        return difference
    # As many tokens of each, so that repeating them weighs the other languages alike.
    pooled = np.concatenate(others)
    if method == "probe":
        within = (np.cov(own.T, bias=True) + np.cov(pooled.T, bias=True)) / 2
        shrunk = 0.99 * within + 0.01 * np.trace(within) / len(within) * np.eye(len(within))
        direction = np.linalg.solve(shrunk, difference)
    else:
        both = np.concatenate([np.repeat(own, len(others), axis=0), pooled])
        direction = np.linalg.svd(both - both.mean(axis=0), full_matrices=False)[2][0]
    return direction * (direction @ difference) / (direction @ direction)


@pytest.mark.parametrize("method", METHODS)
def test_vectors_equal_numpy_over_all_tokens(method, model, documents, residuals):
    vectors = language_vectors(model, documents, method, batching=SMALL)
    for language, of_layers in vectors.items():
        assert of_layers.shape == (model.config.num_layers, model.config.hidden_size)
        assert of_layers.dtype == np.float32
        for layer, vector in enumerate(of_layers):
            expected = slow(residuals, language, method, layer)
            np.testing.assert_allclose(vector, expected, atol=2e-3 * np.abs(expected).max(), err_msg=language)


def test_scores_give_the_same_difference_of_means(model, documents):
    scores = {lang: score_neurons(model, own, batching=SMALL) for lang, own in documents.items()}
    expected = language_vectors(model, documents, batching=SMALL)
    for language, vector in mw.language_vectors(None, scores).items():
        np.testing.assert_allclose(vector, expected[language], atol=1e-4)


def test_batches_and_their_order_do_not_matter(model, documents):
    one = language_vectors(model, documents, "probe", batching=Batching(max_tokens=40, tokens_per_batch=1024))
    other = language_vectors(model, {k: v[::-1] for k, v in documents.items()}, "probe", batching=SMALL)
    for language, vector in one.items():
        np.testing.assert_allclose(vector, other[language], atol=2e-3 * np.abs(vector).max())


def test_a_probe_finds_what_tells_apart_and_pca_what_varies():
    """Two languages that differ along one axis, while another axis varies more."""
    covariance = np.diag([1.0, 400.0, 1.0])[None]
    means = {"en": np.zeros((1, 3)), "de": np.array([[3.0, 3.0, 0.0]])}
    moments = {lang: ResidualMoments(mean, covariance) for lang, mean in means.items()}
    probe, pca = (_vectors(moments, method)["de"][0] for method in ("probe", "pca"))
    assert abs(probe[0]) > 20 * abs(probe[1])
    assert abs(pca[1]) > 20 * abs(pca[0])
    assert pca[1] > 0


def test_bad_input_is_one_line(model, documents):
    scores = {lang: score_neurons(model, documents[lang][:1], batching=SMALL) for lang in ("en", "de")}
    old = {
        lang: NeuronScores(s.lowest, s.worst_rank, s.mean, s.active, s.activation, s.documents, s.tokens)
        for lang, s in scores.items()
    }
    for line, call in {
        "method 'svm' is not": lambda: language_vectors(model, documents, "svm"),
        "two languages": lambda: language_vectors(model, {"en": documents["en"]}),
        "scores hold means alone": lambda: language_vectors(model, scores, "probe"),
        "give documents of each": lambda: language_vectors(model, {**documents, "de": scores["de"]}),
        "have no means": lambda: language_vectors(model, old),
        "the documents of de: no documents": lambda: language_vectors(model, {"en": documents["en"], "de": []}),
        "need a model": lambda: language_vectors(None, documents),
    }.items():
        with pytest.raises(InputError, match=line):
            call()
