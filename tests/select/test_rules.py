"""Rules and modes, against doing it document by document."""

from dataclasses import replace
from itertools import pairwise

import numpy as np
import pytest

from mwork_jax.detect.scores import NeuronScores
from mwork_jax.errors import InputError
from mwork_jax.neurons import GROUPS
from mwork_jax.select.modes import Mode, select_neurons
from mwork_jax.select.rules import Rule, activated

LAYERS, WIDTH, DOCUMENTS, KEPT = 3, 20, 12, 4


def per_document(seed: int) -> np.ndarray:
    """Importances [documents, layers, width], a few neurons steadily important."""
    rng = np.random.default_rng(seed)
    values = rng.random((DOCUMENTS, LAYERS, WIDTH)).astype(np.float32)
    values[:, :, rng.choice(WIDTH, 6, replace=False)] += 0.8
    return values


def ranks(values: np.ndarray) -> np.ndarray:
    return np.argsort(np.argsort(-values, axis=-1, kind="stable"), axis=-1, kind="stable")


def scores_of(values: np.ndarray, **provenance) -> NeuronScores:
    lowest = np.sort(values, axis=0)[:KEPT]
    worst = -np.sort(-ranks(values), axis=0)[:KEPT].astype(np.int32)
    return NeuronScores(
        dict.fromkeys(GROUPS, lowest),
        dict.fromkeys(GROUPS, worst),
        dict.fromkeys(GROUPS, values.mean(axis=0)),
        values.mean(axis=0),
        values.mean(axis=0),
        DOCUMENTS,
        100,
        provenance,
    )


@pytest.mark.parametrize("share", [1.0, 0.9, 0.75])
@pytest.mark.parametrize("kind", ["epsilon:0.8", "top_k:5", "top_fraction:0.25"])
def test_activated_equals_counting_documents(kind, share):
    values = per_document(0)
    rule = Rule.parse(f"{kind}@{share}")
    if rule.kind == "epsilon":
        active = values >= np.float32(rule.value)
    else:
        limit = rule.value if rule.kind == "top_k" else round(rule.value * WIDTH)
        active = ranks(values) < limit
    expected = active.sum(axis=0) >= share * DOCUMENTS - 1e-9
    found = activated(scores_of(values), rule)
    assert 0 < expected.sum() < expected.size
    for group in GROUPS:
        np.testing.assert_array_equal(found.groups[group], expected)


def test_more_tolerance_than_remembered_is_refused():
    with pytest.raises(InputError, match="kept=7"):
        activated(scores_of(per_document(0)), "top_k:5@0.5")


@pytest.mark.parametrize(
    "text",
    ["", "top_k", "top_k:", "top_k:0", "top_k:2.5", "top_fraction:1.5", "top_fraction:0", "epsilon:-1", "top_k:3@0",
     "top_k:3@1.2", "lape:1.5", "lape:0.01@0.9", "epsilon:nan", "epsilon:inf"],
)  # fmt: skip
def test_rules_that_make_no_sense(text):
    with pytest.raises(InputError, match="is not one of"):
        Rule.parse(text)


@pytest.mark.parametrize(
    "make",
    [
        lambda: Rule("top_p", 0.05),  # once taken for top_fraction
        lambda: Rule("top_k", "5"),
        lambda: Rule("top_k", 5, None),
        lambda: Rule("top_k", True),
        lambda: Rule.parse(5),
        lambda: activated(scores_of(per_document(0)), None),
        lambda: select_neurons({"en": scores_of(per_document(0))}, 0.05),
    ],
)
def test_what_is_no_rule_is_refused(make):
    with pytest.raises(InputError, match="is not one of epsilon:X, top_k:K"):
        make()


@pytest.mark.parametrize(
    ("scores", "message"), [(["en"], "scores are a list"), ({"en": "en.safetensors"}, "scores of 'en' are a str")]
)
def test_what_is_no_table_of_scores_is_refused(scores, message):
    with pytest.raises(InputError, match=message):
        select_neurons(scores)


@pytest.mark.parametrize(
    "text", ["top_fraction:0.05@0.66666666", "epsilon:0.12345678", "top_k:7", "top_fraction:1e-05"]
)
def test_a_printed_rule_is_the_rule(text):
    assert str(Rule.parse(text)) == text
    assert Rule.parse(str(Rule.parse(text))) == Rule.parse(text)


def test_rules_print_as_they_are_read():
    for text in ("top_fraction:0.25", "top_k:100@0.9", "epsilon:0.5", "lape:0.01"):
        assert str(Rule.parse(text)) == text


def test_modes():
    scores = {lang: scores_of(per_document(seed)) for seed, lang in enumerate(("en", "de", "ru"))}
    active = {lang: activated(s, "top_k:8") for lang, s in scores.items()}
    all_, minus_en, minus_shared = (
        select_neurons(scores, "top_k:8", mode) for mode in ("all", "minus_english", "minus_shared")
    )
    shared = active["en"] & active["de"] & active["ru"]
    for lang in scores:
        assert all_[lang] == active[lang]
        assert minus_shared[lang] == active[lang] - shared
        assert minus_en[lang] == (active[lang] if lang == "en" else active[lang] - active["en"])
        assert minus_en[lang].provenance["language"] == lang
        assert minus_en[lang].provenance["rule"] == "top_k:8"
    assert minus_en["de"].count() > 0


@pytest.mark.parametrize(
    ("languages", "mode", "message"),
    [
        (("de", "ru"), "minus_english", "needs scores of 'en'"),
        (("de",), "minus_shared", "at least two languages"),
        (("en", "de"), "minus_everything", "is not one of"),
        (("en", "de"), 2, "mode 2 is not one of"),
        (("en", "de"), "shared_by:3", "mode shared_by:3 needs at least 3 languages; there are en, de"),
        (("en", "de"), "shared_by:=3", "mode shared_by:=3 needs at least 3 languages; there are en, de"),
        ((), "all", "no scores"),
    ],
)
def test_modes_that_cannot_be(languages, mode, message):
    with pytest.raises(InputError, match=message):
        select_neurons({lang: scores_of(per_document(0)) for lang in languages}, "top_k:8", mode)


SEVERAL = ("en", "de", "ru", "th")
LAX = "top_k:15@0.75"  # so lax that some neurons are activated for all four


@pytest.fixture(scope="module")
def several():
    return {lang: scores_of(per_document(seed)) for seed, lang in enumerate(SEVERAL)}


@pytest.mark.parametrize("exactly", [False, True])
@pytest.mark.parametrize("number", range(1, len(SEVERAL) + 1))
def test_shared_by_equals_asking_every_language_of_every_neuron(several, number, exactly):
    active = {lang: activated(s, LAX) for lang, s in several.items()}
    mode = f"shared_by:{'=' * exactly}{number}"
    selected = select_neurons(several, LAX, mode)
    for lang, own in selected.items():
        for group in GROUPS:
            for place in np.ndindex(LAYERS, WIDTH):
                having = [other for other in SEVERAL if active[other].groups[group][place]]
                enough = len(having) == number if exactly else len(having) >= number
                assert own.groups[group][place] == (lang in having and enough)
        assert own.provenance["mode"] == mode
    assert any(own.count() for own in selected.values())


def test_shared_by_more_is_fewer_neurons_and_its_ends_are_other_modes(several):
    at_least, exactly = (
        [select_neurons(several, LAX, f"shared_by:{sign}{n}") for n in range(1, len(SEVERAL) + 1)] for sign in ("", "=")
    )
    everything = select_neurons(several, LAX, "all")
    not_by_all = select_neurons(several, LAX, "minus_shared")
    for lang in SEVERAL:
        for fewer, more in pairwise(at_least):
            assert (more[lang] - fewer[lang]).count() == 0, (
                "shared by more languages: not one neuron that was not there"
            )
        assert at_least[0][lang] == everything[lang]
        assert sum(one[lang].count() for one in exactly) == everything[lang].count()
        assert at_least[-1][lang] == everything[lang] - not_by_all[lang] == exactly[-1][lang]
        assert at_least[-1][lang] == at_least[-1]["en"], "what all have is the same for all"


@pytest.mark.parametrize("text", ["minus_english", "minus_shared", "all", "shared_by:2", "shared_by:=3"])
def test_a_printed_mode_is_the_mode(text):
    assert str(Mode.parse(text)) == text
    assert Mode.of(Mode.parse(text)) == Mode.parse(text)


@pytest.mark.parametrize(
    "text",
    ["shared_by", "shared_by:", "shared_by:0", "shared_by:=0", "shared_by:-1", "shared_by:2.0", "shared_by:two",
     "shared_by:==2", "shared_by:>2", "shared_by:1e1", "shared_by:２", "shared_by:1_0", "shared_by:2:3", "all:1",
     "shared_by:" + "9" * 5000, "shared by:2", "", None, 2, ["all"]],
)  # fmt: skip
def test_modes_that_make_no_sense(text):
    with pytest.raises(InputError, match=r"N is 0; it must be 1 or more|is not one of minus_english") as caught:
        Mode.parse(text)
    assert len(str(caught.value)) < 250
    assert "\n" not in str(caught.value)


def test_a_mode_made_by_hand_makes_sense_too():
    for arguments in (("minus_everything",), ("all", 2), ("shared_by",), ("shared_by", 1.5), ("shared_by", True)):
        with pytest.raises(InputError):
            Mode(*arguments)


def test_scores_of_different_models_are_refused():
    scores = {"en": scores_of(per_document(0), model="a"), "de": scores_of(per_document(1), model="b")}
    with pytest.raises(InputError, match="different models"):
        select_neurons(scores)


def test_lape_finds_the_neurons_that_act_in_one_language():
    rng = np.random.default_rng(0)
    scores = {}
    for i, lang in enumerate(("en", "de", "ru")):
        active = rng.uniform(0.2, 0.3, (LAYERS, WIDTH)).astype(np.float32)
        active[:, 0] = 0.01
        active[:, 1 + i] = 0.9  # the others act on it at 0.2 to 0.3: unequal, but less than those at 0.01
        active[1, 10 + i], active[1, 13] = 0.95, 0.95  # own and shared
        for other in range(3):
            if other != i:
                active[1, 10 + other] = 0.001
        scores[lang] = replace(scores_of(per_document(i)), active=active)
    found = select_neurons(scores, f"lape:{3 / (LAYERS * WIDTH)}")
    for i, lang in enumerate(scores):
        expected = np.zeros((LAYERS, WIDTH), bool)
        expected[1, 10 + i] = True
        np.testing.assert_array_equal(found[lang].groups["ffn_up"], expected)
        np.testing.assert_array_equal(found[lang].groups["ffn_down"], expected)
        assert found[lang].counts()["attn_q"].sum() == 0
    with pytest.raises(InputError, match="at least two"):
        select_neurons({"en": scores["en"]}, "lape:0.01")
    with pytest.raises(InputError, match="compares languages"):
        activated(scores["en"], "lape:0.01")
