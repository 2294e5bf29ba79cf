"""The verdict on Figure 1: on simulated prompts that support it, contradict it and do not decide, and what it needs."""

from dataclasses import replace

import numpy as np
import pytest
from scipy import stats

from mwork_jax.lens.logit_lens import english_lead, inner_layers
from mwork_jax.lens.pattern import MARGIN, english_pattern
from mwork_jax.results import DataInfo, LabelsInfo
from support.made_results import made_lens

LANGUAGES = ("de", "th", "zh", "es")
# Means of English's lead in the inner layers and at the end, and its spread over prompts.
THROUGH, NEVER, STAYS, UNCLEAR = ((0.3, -0.6), 0.1), ((-0.4, -0.6), 0.1), ((0.3, 0.4), 0.1), ((0.05, -0.6), 0.3)


def simulated(worlds, prompts=8, seed=0, columns=None):
    """A lens on prompts drawn from these worlds, {language: (means, spread)}."""
    rng = np.random.default_rng(seed)
    leads = {
        lang: tuple(map(tuple, (rng.normal(means, spread, (prompts, 2))).tolist()))
        for lang, (means, spread) in worlds.items()
    }
    lens = made_lens(dict.fromkeys(worlds, ((0.5, 0.1), (0.2, 0.4), (0.6, 0.2))), leads)
    data = {lang: DataInfo("made up", prompts, "ab" * 16) for lang in worlds}
    lens = replace(lens, provenance=replace(lens.provenance, data=data))
    return lens if columns is None else replace(lens, labels=LabelsInfo(columns, dict.fromkeys(columns, 1)))


@pytest.fixture(autouse=True)
def _columns(monkeypatch):
    monkeypatch.setattr("support.made_results.LANGUAGES", ("en", *LANGUAGES, "fr", "ru"))


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize(
    ("worlds", "kind"),
    [
        ((THROUGH,) * 4, "holds"),
        ((NEVER,) * 4, "does not hold"),
        ((STAYS,) * 4, "does not hold"),
        ((THROUGH, THROUGH, NEVER, NEVER), "differs"),
        ((UNCLEAR,) * 4, "undecided"),
        ((THROUGH, THROUGH, UNCLEAR, UNCLEAR), "undecided"),
    ],
)
def test_worlds_that_support_contradict_and_do_not_decide(worlds, kind, seed):
    pattern = english_pattern(simulated(dict(zip(LANGUAGES, worlds, strict=True)), seed=seed))
    assert pattern.kind == kind
    assert bool(pattern.missing) == (kind == "undecided")


def test_a_lead_is_tested_as_textbooks_do_it():
    lens = simulated(dict.fromkeys(LANGUAGES, ((0.15, -0.2), 0.12)), prompts=6)
    pattern = english_pattern(lens)
    leads = {s.language: np.asarray(s.english_lead) * (1, -1) for s in lens.shares}
    p = [stats.ttest_1samp(leads[lang][:, side], MARGIN).pvalue for lang in LANGUAGES for side in (0, 1)]
    ranks = np.argsort(np.argsort(p))
    holm = [max((len(p) - j) * sorted(p)[j] for j in range(rank + 1)) for rank in ranks]
    found = [lead for lang in LANGUAGES for lead in (pattern.languages[lang].inside, pattern.languages[lang].end)]
    np.testing.assert_allclose([lead.p_holm for lead in found], np.minimum(holm, 1))
    interval = stats.ttest_1samp(leads["de"][:, 0], 0).confidence_interval()
    np.testing.assert_allclose(pattern.languages["de"].inside.ci95, interval)
    assert pattern.languages["de"].inside.value == pytest.approx(leads["de"][:, 0].mean())


def test_where_nothing_leads_by_more_than_the_margin_there_is_hardly_ever_a_finding():
    at_margin = dict.fromkeys(LANGUAGES, ((MARGIN, -MARGIN), 0.2))
    found = [english_pattern(simulated(at_margin, seed=seed)) for seed in range(200)]
    assert np.mean([any(o.finding != "undecided" for o in one.languages.values()) for one in found]) <= 0.08
    assert all(one.kind == "undecided" for one in found)


@pytest.mark.parametrize(
    ("changes", "missing"),
    [
        ({"languages": LANGUAGES[:2]}, "prompts in 3 languages other than English (there are 2)"),
        ({"prompts": 4}, "5 prompts in each language (there are 4)"),
        ({"prompts": 1}, "5 prompts in each language (there are 1)"),
        ({"columns": (*LANGUAGES, "fr", "ru", "other", "unclear", "none", "aa")}, "English among the languages"),
    ],
)
def test_what_is_missing(changes, missing):
    worlds = dict.fromkeys(changes.pop("languages", LANGUAGES), THROUGH)
    pattern = english_pattern(simulated(worlds, **changes))
    assert pattern.kind == "no verdict"
    assert missing in pattern.missing[0]


def test_an_older_file_says_what_it_lacks():
    lens = simulated(dict.fromkeys(LANGUAGES, THROUGH))
    old = replace(lens, shares=tuple(replace(s, english_lead=()) for s in lens.shares))
    pattern = english_pattern(old)
    assert (pattern.kind, pattern.languages) == ("no verdict", {})
    assert "run mwork lens again" in pattern.missing[0]


def test_prompts_that_all_say_the_same_have_no_spread_to_go_by():
    lens = simulated(dict.fromkeys(LANGUAGES, ((0.3, -0.6), 0.0)))
    assert english_pattern(lens).kind == "undecided"


def test_the_lead_of_a_prompt():
    shares = np.zeros((9, 3))
    shares[:, 0] = [0, 0, 0.4, 0.4, 0.4, 0.4, 0.4, 0, 0.1]  # English
    shares[:, 2] = [1, 0, 0.1, 0.1, 0.1, 0.1, 0.1, 0, 0.7]
    assert list(inner_layers(8)) == [2, 3, 4, 5, 6]
    assert english_lead(shares, ("en", "th", "de"), "de") == pytest.approx((0.3, -0.6))
    assert all(len(inner_layers(depth)) for depth in range(2, 100))
