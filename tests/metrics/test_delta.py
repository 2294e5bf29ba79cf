"""Delta and its interval, against numbers worked out by hand and against plain resampling loops."""

import numpy as np
import pytest

from mwork_jax.errors import InputError
from mwork_jax.metrics import delta


def test_delta_by_hand():
    original = {"en": [1.0, 1.0], "de": [1.0, 0.0], "ru": [0.0, 1.0, 1.0, 1.0]}
    deactivated = {
        "de": {"en": [1.0, 0.0], "de": [0.0, 0.0]},  # en -0.5, de -0.5
        "ru": {"en": [1.0, 1.0], "ru": [0.0, 0.0, 0.0, 1.0]},  # en 0, ru -0.5
    }
    found = delta(original, deactivated)
    assert found.delta_eng == pytest.approx(-0.25)
    assert found.delta_n_eng == pytest.approx(-0.5)
    assert found.delta == pytest.approx(0.25)
    assert found.eng == pytest.approx(0.75)
    assert found.n_eng == pytest.approx((0 + 0.25) / 2)
    assert found.n_items == 8
    assert found.languages == ("de", "ru")
    low, high = found.delta_ci95
    assert low <= found.delta <= high


def test_weights_make_means_per_token():
    original = {"en": [-1.0, -3.0], "de": [-1.0, -2.0]}
    deactivated = {"de": {"en": [-1.0, -3.0], "de": [-2.0, -2.0]}}
    found = delta(original, deactivated, {"en": [1, 1], "de": [30, 10]})
    assert found.delta_n_eng == pytest.approx(-(60 + 20) / 40 + (30 + 20) / 40)
    assert found.n_eng == pytest.approx(-2.0)


def test_interval_equals_a_resampling_loop():
    rng = np.random.default_rng(3)
    before = {lang: rng.normal(size=40) for lang in ("en", "de", "th")}
    after = {
        lang: {"en": before["en"] - 0.1 * rng.random(40), lang: before[lang] - rng.random(40)} for lang in ("de", "th")
    }
    found = delta(before, after)
    draws = []
    for _ in range(4000):
        items = {lang: rng.integers(0, 40, 40) for lang in before}
        eng = np.mean([(after[lang]["en"] - before["en"])[items["en"]].mean() for lang in after])
        others = np.mean([(after[lang][lang] - before[lang])[items[lang]].mean() for lang in after])
        draws.append(eng - others)
    np.testing.assert_allclose(found.delta_ci95, np.percentile(draws, [2.5, 97.5]), atol=0.02)


def test_interval_is_reproducible_and_a_single_item_has_none():
    original, after = {"en": [1.0], "de": [1.0]}, {"de": {"en": [1.0], "de": [0.5]}}
    found = delta(original, after)
    assert found.delta_ci95 == (found.delta, found.delta) == (0.5, 0.5)
    many = {"en": np.arange(9.0), "de": np.arange(9.0)}
    changed = {"de": {"en": np.arange(9.0), "de": np.arange(9.0)[::-1]}}
    assert delta(many, changed).delta_ci95 == delta(many, changed).delta_ci95


@pytest.mark.parametrize(
    ("original", "deactivated", "message"),
    [
        ({"en": [1.0]}, {}, "at least one"),
        ({"en": [1.0]}, {"en": {"en": [1.0]}}, "other than 'en'"),
        ({"de": [1.0]}, {"de": {"de": [1.0]}}, "'en' are missing"),
        ({"en": [1.0], "de": [1.0, 2.0]}, {"de": {"en": [1.0], "de": [1.0]}}, "2 items before and 1 after"),
    ],
)
def test_what_cannot_be_compared(original, deactivated, message):
    with pytest.raises(InputError, match=message):
        delta(original, deactivated)
