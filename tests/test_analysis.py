"""The atlas against the slow ways: selecting anew at every threshold, comparing sets one by one."""

from dataclasses import replace

import numpy as np
import pytest

from mwork_jax.analysis import (
    importance_quantiles,
    neurons_by_expert,
    overlap,
    routing,
    similar_rows,
    threshold_curves,
)
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


@pytest.mark.parametrize("mode", [*MODES, *(f"shared_by:{sign}{n}" for n in (1, 2, 3) for sign in ("", "="))])
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
    with pytest.raises(InputError, match="shared_by:4 needs at least 4 languages"):
        threshold_curves(scores, [0.1], mode="shared_by:4")


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


def test_rows_of_one_pattern_stand_side_by_side_whatever_their_size():
    patterns = np.asarray([[4.0, 3.0, 0.1, 0.2], [0.1, 0.2, 4.0, 3.0]])
    rows = np.stack([patterns[i % 2] * 3.0**i for i in range(5)])
    order = similar_rows(rows).tolist()
    assert sorted(order) == list(range(5))
    assert [i % 2 for i in order] in ([0, 0, 0, 1, 1], [1, 1, 0, 0, 0])


def test_rows_without_a_pattern_have_a_place_too():
    for rows in (np.zeros((4, 3)), np.zeros((1, 3)), np.eye(3) * [[1.0], [0.0], [-1e29]]):
        assert sorted(similar_rows(rows)) == list(range(len(rows)))


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


def test_routing_is_what_the_router_did(scores):
    rng = np.random.default_rng(0)
    routed = {lang: rng.dirichlet(np.ones(4), 3).astype(np.float32) * 2 for lang in LANGUAGES}
    routed["th"] = routed["de"]
    found = routing({lang: replace(own, routed=routed[lang]) for lang, own in scores.items()})
    a, b = (routed[lang][1].astype(float) / 2 for lang in ("en", "de"))
    expected = 0.5 * sum(np.sum(p * np.log2(p / ((a + b) / 2))) for p in (a, b))
    assert found.divergence[1, 0, 1] == pytest.approx(expected, rel=1e-4)
    np.testing.assert_allclose(found.divergence[:, 1, 2], 0, atol=1e-9)
    np.testing.assert_allclose(found.shares["en"].sum(axis=-1), 1)
    apart = {"en": [[2.0, 0.0]], "de": [[0.0, 2.0]]}
    alone = routing({lang: replace(scores[lang], routed=np.asarray(x, np.float32)) for lang, x in apart.items()})
    assert alone.divergence[0, 0, 1] == pytest.approx(1.0)


def test_routing_that_is_not_there_is_one_line(scores):
    with pytest.raises(InputError, match="make them anew"):
        routing({lang: replace(own, routed=None) for lang, own in scores.items()})
    with pytest.raises(InputError, match="without experts"):
        routing({lang: replace(own, routed=np.zeros((3, 0), np.float32)) for lang, own in scores.items()})


def test_a_set_says_which_expert():
    members = {g: np.zeros((2, w), bool) for g, w in WIDTHS.items()}
    members["ffn_up"][0, [0, 11, 47]] = members["ffn_down"][0, 0] = members["ffn_down"][1, 12] = True
    assert neurons_by_expert(NeuronSet(members), 4).tolist() == [[2, 0, 0, 1], [0, 1, 0, 0]]
    with pytest.raises(InputError, match="48 feed-forward neurons in a layer are not those of 5 experts"):
        neurons_by_expert(NeuronSet(members), 5)
