"""The strongest neurons of a set: against sorting all of them."""

import numpy as np
import pytest

from mwork_jax.errors import InputError
from mwork_jax.neurons import GROUPS, NeuronSet
from mwork_jax.select.strongest import strongest_neurons
from support.made_results import WIDTHS, made_scores


def some(seed=0):
    rng = np.random.default_rng(seed)
    return NeuronSet({g: rng.random((3, w)) < 0.4 for g, w in WIDTHS.items()}, {"language": "de"})


def test_the_strongest_of_each_group():
    neurons, scores = some(), made_scores()["de"]
    found = strongest_neurons(neurons, scores, 7)
    for group in GROUPS:
        ranked = sorted(np.argwhere(neurons.groups[group]).tolist(), key=lambda at: -scores.mean[group][tuple(at)])
        assert sorted(map(tuple, ranked[:7])) == list(map(tuple, np.argwhere(found.groups[group])))
    assert found.provenance == {"language": "de", "strongest": 7}


def test_without_scores():
    neurons = some().in_groups("attn_k")
    assert strongest_neurons(neurons, None, 100) == neurons
    with pytest.raises(InputError, match=r"attn_k has \d+ neurons, and the 3 strongest are known from scores alone"):
        strongest_neurons(neurons, None, 3)
    other = made_scores(layers=2)["de"]
    with pytest.raises(InputError, match="they are of another model"):
        strongest_neurons(neurons, other, 3)
