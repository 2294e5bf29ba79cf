"""The atlas against the slow ways: selecting anew at every threshold, comparing sets one by one."""

import numpy as np
import pytest

from mwork_jax.analysis import importance_quantiles, overlap, threshold_curves
from mwork_jax.errors import InputError
from mwork_jax.neurons import GROUPS, NeuronSet
from mwork_jax.select.modes import MODES, select_neurons
from support.made_results import LANGUAGES, WIDTHS, made_scores

VALUES = {"top_fraction": (0.01, 0.1, 0.25, 0.5, 1.0), "epsilon": (0.001, 0.3, 1.0, 2.5)}


def test_overlap_is_of_sets():
    with pytest.raises(InputError, match="overlap: 'de' is a str; a NeuronSet is needed"):
        overlap({"de": "neurons/de.json"})


@pytest.fixture(scope="module")
def scores():
    return made_scores()


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("kind", VALUES)
def test_every_threshold_at_once_is_selecting_at_each(scores, kind, mode):
    curves = threshold_curves(scores, VALUES[kind], kind, mode)
    assert any(curve.any() for curve in curves.values())
    for i, value in enumerate(VALUES[kind]):
        found = select_neurons(scores, f"{kind}:{value}", mode)
        assert {lang: curve[i] for lang, curve in curves.items()} == {lang: s.count() for lang, s in found.items()}


def test_thresholds_that_cannot_be(scores):
    with pytest.raises(InputError, match="the kinds are top_fraction, epsilon"):
        threshold_curves(scores, [0.1], "top_k")
    with pytest.raises(InputError, match="needs scores of 'en'"):
        threshold_curves({"de": scores["de"]}, [0.1])


def test_overlap_counts_and_jaccard(scores):
    sets = select_neurons(scores, "top_fraction:0.6", "all")
    found = overlap(sets)
    assert sorted(found.languages) == sorted(LANGUAGES)
    for i, a in enumerate(found.languages):
        for j, b in enumerate(found.languages):
            shared, union = (sets[a] & sets[b]).count(), (sets[a] | sets[b]).count()
            assert found.shared[i, j] == shared
            assert found.jaccard[i, j] == pytest.approx(shared / union)


def test_similar_languages_stand_side_by_side():
    rng = np.random.default_rng(0)
    families = {f: rng.random((2, 400)) < 0.3 for f in "ab"}

    def member(family):
        noise = rng.random((2, 400)) < 0.02
        return NeuronSet(dict.fromkeys(GROUPS, families[family] ^ noise))

    found = overlap({name: member(name[0]) for name in ("a1", "b1", "a2", "b2", "a3")})
    assert [name[0] for name in found.languages] in (list("aaabb"), list("bbaaa"))


def test_empty_sets_overlap_in_nothing():
    empty = NeuronSet({g: np.zeros((2, w), bool) for g, w in WIDTHS.items()})
    np.testing.assert_array_equal(overlap({"de": empty, "fr": empty}).jaccard, 0)
    with pytest.raises(InputError, match="no neuron sets"):
        overlap({})


def test_quantiles_are_of_each_layer_s_neurons(scores):
    found = importance_quantiles(scores["de"], (0.5, 1.0))
    for group in GROUPS:
        mean = scores["de"].mean[group]
        np.testing.assert_allclose(found[group], [np.median(mean, axis=1), mean.max(axis=1)])
