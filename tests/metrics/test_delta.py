"""Delta by hand, and its interval against plain resampling loops; more on intervals in test_intervals.py."""

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
    assert found.n_items == found.n_clusters == 8
    assert found.n_seeds == 0
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


def test_interval_equals_a_loop_that_resamples_clusters_of_all_languages():
    rng = np.random.default_rng(11)
    languages, passages = ("en", "de", "th"), np.repeat(np.arange(40), 3)
    effect = rng.normal(size=40)[passages]
    change = {lang: effect * (lang != "en") + 0.5 * rng.normal(size=120) for lang in languages}
    before = {lang: rng.normal(size=120) for lang in languages}
    after = {lang: {at: before[at] + change[at] for at in ("en", lang)} for lang in ("de", "th")}
    result = delta(before, after, groups=dict.fromkeys(languages, passages))
    draws = []
    for _ in range(4000):
        items = np.concatenate([np.flatnonzero(passages == g) for g in rng.integers(0, 40, 40)])
        mean = {lang: x[items].mean() for lang, x in change.items()}
        draws.append(mean["en"] - (mean["de"] + mean["th"]) / 2)
    # The percentile interval of 40 clusters is narrower by about 2.02 / 1.96 (t) and 40 / 39 (variance): 0.02 here.
    np.testing.assert_allclose(result.delta_ci95, np.percentile(draws, [2.5, 97.5]), atol=0.04)
    independent = delta(before, after)
    assert np.ptp(independent.delta_ci95) < 0.6 * np.ptp(result.delta_ci95)


def test_a_single_item_has_no_interval():
    # Version 0.1 gave an interval of no width and p = 1, which is a claim that one item cannot support.
    result = delta({"en": [1.0], "de": [1.0]}, {"de": {"en": [1.0], "de": [0.5]}})
    assert result.delta == 0.5
    assert result.delta_ci95 is result.delta_eng_ci95 is result.delta_n_eng_ci95 is result.p is None


@pytest.mark.parametrize(
    ("original", "deactivated", "message"),
    [
        ({"en": [1.0]}, {}, "at least one"),
        ({"en": [1.0]}, {"en": {"en": [1.0]}}, "other than 'en'"),
        ({"de": [1.0]}, {"de": {"de": [1.0]}}, "'en' are missing"),
        (
            {"en": [1.0], "de": [1.0]},
            {"de": {"en": [float("nan")], "de": [1.0]}},
            "scores of 'en' hold NaN or infinity",
        ),
        ({"en": [1.0], "de": [float("inf")]}, {"de": {"en": [1.0], "de": [1.0]}}, "original: scores of 'de' hold NaN"),
        ({"en": [1.0], "de": [1.0, 2.0]}, {"de": {"en": [1.0], "de": [1.0]}}, "1 items of 'de', where original has 2"),
    ],
)
def test_what_cannot_be_compared(original, deactivated, message):
    with pytest.raises(InputError, match=message):
        delta(original, deactivated)
