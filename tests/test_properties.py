"""What holds whatever the numbers: set algebra, monotone rules, the sign of Delta, the symmetries of importance."""

from functools import partial

import jax
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from mwork_jax.detect.importance import importance, importance_batch
from mwork_jax.detect.scores import NeuronScores
from mwork_jax.enhance.neuron_params import parameter_arrays
from mwork_jax.families import config_from_hf
from mwork_jax.metrics import delta
from mwork_jax.model.decoder import Decoder
from mwork_jax.model.model import Model
from mwork_jax.neurons import GROUPS, NeuronMask, NeuronSet, group_widths
from mwork_jax.select.rules import Rule, activated
from support.tiny import pair, tokens

CONFIG = config_from_hf(
    {
        "model_type": "llama",
        "vocab_size": 5,
        "hidden_size": 4,
        "intermediate_size": 5,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "num_key_value_heads": 1,
    }
)
quick = partial(settings, deadline=None, derandomize=True, database=None, max_examples=60)


@st.composite
def sets(draw):
    shapes = {group: (CONFIG.num_layers, width) for group, width in group_widths(CONFIG).items()}
    return NeuronSet({group: draw(hnp.arrays(bool, shape)) for group, shape in shapes.items()})


@quick()
@given(sets(), sets(), sets())
def test_sets_obey_set_algebra(a, b, c):
    everything = NeuronSet({group: np.ones_like(member) for group, member in a.groups.items()})
    assert (a | b) == (b | a)
    assert (a & b) == (b & a)
    assert ((a | b) | c) == (a | (b | c))
    assert (a & (b | c)) == ((a & b) | (a & c))
    assert (everything - (a | b)) == ((everything - a) & (everything - b))
    assert ((a - b) | (a & b)) == a
    assert (a | b).count() == a.count() + b.count() - (a & b).count()
    assert (a.fingerprint == b.fingerprint) == (a == b)


@quick(max_examples=20)
@given(sets(), sets())
def test_masks_commute_and_dropping_twice_is_dropping_once(a, b):
    keep = NeuronMask.keep_all(CONFIG)
    one = keep.drop(a).drop(b)
    for other in (keep.drop(b).drop(a), keep.drop(a | b), one.drop(a)):
        assert all(map(np.array_equal, jax.tree.leaves(one), jax.tree.leaves(other)))


@quick(max_examples=30)
@given(sets(), st.integers(0, 2**31 - 1))
def test_random_sets_have_as_many_in_each_layer_and_group(a, seed):
    for group, counts in a.random_like(seed).counts().items():
        np.testing.assert_array_equal(counts, a.counts()[group])


@st.composite
def scores(draw):
    documents, layers, width = 4, 2, 6
    values = draw(hnp.arrays(np.float32, (documents, layers, width), elements=st.floats(0, 8, width=16)))
    ranks = np.argsort(np.argsort(-values, axis=-1, kind="stable"), axis=-1, kind="stable").astype(np.int32)
    lowest, worst = np.sort(values, axis=0), -np.sort(-ranks, axis=0)
    mean = values.mean(axis=0)
    tables = (dict.fromkeys(GROUPS, table) for table in (lowest, worst, mean))
    return NeuronScores(*tables, mean, mean, documents, 100)


THRESHOLDS = {"epsilon": st.floats(0.125, 8), "top_k": st.integers(1, 6), "top_fraction": st.floats(0.01, 1)}


@quick()
@given(scores(), st.data(), st.sampled_from(list(THRESHOLDS)))
def test_a_stricter_threshold_selects_fewer(of_language, data, kind):
    one, other = sorted(data.draw(st.tuples(THRESHOLDS[kind], THRESHOLDS[kind])))
    small, large = (activated(of_language, Rule.parse(f"{kind}:{value}")) for value in (one, other))
    stricter, milder = (large, small) if kind == "epsilon" else (small, large)
    assert (stricter - milder).count() == 0


@quick()
@given(scores(), st.sampled_from(["epsilon:1", "top_k:3", "top_fraction:0.5"]))
def test_asking_for_fewer_documents_selects_no_fewer(of_language, rule):
    all_of_them, most, half = (activated(of_language, Rule.parse(rule + share)) for share in ("", "@0.75", "@0.5"))
    assert (all_of_them - most).count() == (most - half).count() == 0


VALUES = hnp.arrays(np.float64, 6, elements=st.floats(-4, 4, width=32))


@quick(max_examples=15)
@given(VALUES, VALUES, VALUES, VALUES)
def test_delta_changes_its_sign_with_its_sides(en, de, en_off, de_off):
    there = delta({"en": en, "de": de}, {"de": {"en": en_off, "de": de_off}})
    back = delta({"en": en_off, "de": de_off}, {"de": {"en": en, "de": de}})
    for name in ("delta", "delta_eng", "delta_n_eng"):
        assert getattr(there, name) == pytest.approx(-getattr(back, name), abs=1e-9)
        interval, other = (getattr(one, f"{name}_ci95") for one in (there, back))
        assert (interval is None) == (other is None)  # none where nothing varies
        assert interval is None or interval == pytest.approx((-other[1], -other[0]), abs=1e-6)


def changed(decoder: Decoder, **change) -> Model:
    """A model with some parameters changed: name -> function of the array."""
    arrays = parameter_arrays(decoder)
    arrays |= {f"layers.{name}": function(arrays[f"layers.{name}"]) for name, function in change.items()}
    return Model(Decoder(decoder.config, arrays), None, "changed")


@pytest.fixture(scope="module")
def original():
    model = pair("qwen3", 2).model
    return model, importance(model, tokens(1, 19)[0])


def test_permuted_neurons_have_permuted_importance(original):
    model, scores = original
    order = np.random.default_rng(0).permutation(model.config.intermediate_size)
    permuted = changed(
        model.decoder, gate=lambda x: x[:, order], up=lambda x: x[:, order], down=lambda x: x[:, :, order]
    )
    found = importance(permuted, tokens(1, 19)[0])
    for group, expected in scores.items():
        expected = expected[:, order] if group.startswith("ffn") else expected
        np.testing.assert_allclose(found[group], expected, rtol=2e-4, atol=1e-5)


def test_permuted_heads_have_permuted_importance(original):
    """Key heads change places, and their query heads with them."""
    model, scores = original
    c = model.config
    keys = np.arange(c.num_kv_heads)[::-1]
    queries = np.concatenate([np.arange(c.queries_per_group) + k * c.queries_per_group for k in keys])
    permuted = changed(
        model.decoder,
        q=lambda x: x[:, queries],
        k=lambda x: x[:, keys],
        v=lambda x: x[:, keys],
        o=lambda x: x[:, :, queries],
    )
    found = importance(permuted, tokens(1, 19)[0])
    orders = {"attn_q": queries, "attn_k": keys, "attn_v": keys}
    for group, expected in scores.items():
        if group in orders:
            expected = expected.reshape(c.num_layers, -1, c.head_dim)[:, orders[group]].reshape(expected.shape)
        np.testing.assert_allclose(found[group], expected, rtol=2e-4, atol=1e-5)


@pytest.mark.parametrize("name", ["down", "up"])
def test_a_unit_scaled_in_the_last_layer_has_scaled_importance(name, original):
    """Imp is a norm of what the neuron adds: so many times its column of W_down, or its product, so many times Imp."""
    model, scores = original
    unit, times = 7, 3.0

    def scaled(array):
        return array.at[-1, :, unit].multiply(times) if name == "down" else array.at[-1, unit].multiply(times)

    found = importance(changed(model.decoder, **{name: scaled}), tokens(1, 19)[0])
    for group, expected in scores.items():
        expected = expected.copy()
        if group.startswith("ffn"):
            expected[-1, unit] *= times
        np.testing.assert_allclose(found[group], expected, rtol=2e-4, atol=1e-5)


def test_company_does_not_matter(original):
    """A document scores the same alone, in a batch, padded, and beside copies of itself."""
    model, scores = original
    ids = np.zeros((3, 32), np.int32)
    ids[0, :19] = ids[2, :19] = tokens(1, 19)[0]
    ids[1] = tokens(1, 32, seed=1)[0]
    mask = (np.arange(32) < np.asarray([19, 32, 19])[:, None]).astype(np.float32)
    mask[:, 0] = 0  # BOS
    for group, found in importance_batch(model.decoder, ids, mask).items():
        for row in (0, 2):
            np.testing.assert_allclose(found[row], scores[group], rtol=2e-4, atol=1e-5)
