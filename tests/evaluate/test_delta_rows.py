"""From measured scores to rows: matched random sets, clusters, corrected p values; by hand and in `run_pipeline`."""

import math
from dataclasses import dataclass, replace

import numpy as np
import pytest
from scipy import stats

import mwork_jax as mw
from mwork_jax.corpus import own_corpus
from mwork_jax.evaluate.delta_rows import (
    ORIGINAL,
    DeltaTable,
    RowSpec,
    condition_name,
    conditions,
    corrected_rows,
    delta_rows,
)
from mwork_jax.evaluate.evaluations import HELD_OUT_LOSS
from mwork_jax.intervene.stages import EACH_STAGE, EVERYWHERE, StageSetting, StageSplit
from mwork_jax.metrics import benjamini_hochberg, beyond_random, holm, mcnemar
from mwork_jax.neurons import GROUPS, NeuronMask, NeuronSet
from mwork_jax.pipeline import run_pipeline
from mwork_jax.report.tables.cells import NONE
from mwork_jax.report.tables.deltas import ALIKE, DIFFERS, against_random
from mwork_jax.results import McNemarPair, RunResults, read_results, write_results
from mwork_jax.settings import RunSettings
from support.slow_deactivation import random_neurons
from support.tiny import pair

SPLIT = StageSplit(3, 1, 1)
SETTINGS = (*EACH_STAGE.values(), EVERYWHERE)
ROWS = tuple(RowSpec(setting, kind) for setting in SETTINGS for kind in ("random", "lang-spec"))


@dataclass(frozen=True)
class Items:
    """An evaluation whose scores are made up."""

    item_ids: tuple[str, ...]
    weights: np.ndarray

    key = {}  # noqa: RUF012
    score_names = ("points",)

    @property
    def size(self):
        return len(self.item_ids)

    def points(self, scores):
        return np.asarray(scores["points"])


def table(seeds=6, ids=("a", "b", "c", "d"), weights=(1, 1, 1, 1), parallel=True):
    config = pair("llama", 2).config
    evaluations = {
        lang: Items(ids if parallel else tuple(f"{lang}-{name}" for name in ids), np.asarray(weights, float))
        for lang in ("en", "de", "th")
    }
    neurons = {"de": random_neurons(config, seed=1), "th": random_neurons(config, seed=2)}
    return DeltaTable("test", "made up", "tiny", evaluations, neurons, seeds)


def made_up(of, rows=ROWS, own=-1.0):
    """Scores of every condition: random sets change little, a language's own neurons by `own`."""
    rng = np.random.default_rng(0)
    items = len(of.evaluations["en"].item_ids)
    before = {lang: rng.normal(50, 5, items) for lang in of.evaluations}
    return {
        condition.name: {
            lang: {
                "points": (
                    before[lang]
                    + (condition.name != ORIGINAL) * rng.normal(0, 0.1, items)
                    + (own if "lang-spec" in condition.name and lang != "en" else 0.0)
                ).tolist()
            }
            for lang in condition.languages
        }
        for condition in conditions(of, rows, SPLIT)
    }


def test_each_row_has_its_sets_and_matched_random_ones():
    of = table(seeds=3)
    by_name = {condition.name: condition for condition in conditions(of, ROWS, SPLIT)}
    assert len(by_name) == len(list(conditions(of, ROWS, SPLIT))) == 1 + 2 * len(SETTINGS) * (1 + 3)
    assert by_name[ORIGINAL].neurons == NeuronSet.empty(pair("llama", 2).config)
    assert by_name[ORIGINAL].languages == ("en", "de", "th")
    for setting in SETTINGS:
        for language in ("de", "th"):
            own = by_name[condition_name(RowSpec(setting, "lang-spec"), SPLIT, language)]
            assert own.languages == ("en", language)
            assert own.neurons == setting.choose(of.neurons[language], SPLIT)
            drawn = [by_name[condition_name(RowSpec(setting, "random"), SPLIT, language, seed)] for seed in range(3)]
            for seed, condition in enumerate(drawn):
                assert condition.languages == own.languages
                assert condition.neurons == own.neurons.random_like(seed), "of the parts that are off, not of the whole"
                for group in GROUPS:
                    np.testing.assert_array_equal(
                        condition.neurons.counts()[group], own.neurons.counts()[group], err_msg=group
                    )
            assert len({condition.neurons.fingerprint for condition in drawn}) == 3
    for seed in range(3):
        de, th = (condition_name(RowSpec(EVERYWHERE, "random"), SPLIT, lang, seed) for lang in ("de", "th"))
        assert by_name[de].neurons != by_name[th].neurons


def test_a_row_by_hand():
    of = table()
    measured = made_up(of)
    before = {lang: np.asarray(measured[ORIGINAL][lang]["points"]) for lang in ("en", "de", "th")}
    rows = dict(zip(ROWS, delta_rows(of, ROWS, SPLIT, measured), strict=True))
    for spec, row in rows.items():
        english, own, after = [], [], {}
        for language in ("de", "th"):
            names = [condition_name(spec, SPLIT, language, seed) for seed in range(6 if spec.is_random else 1)]
            # [seeds, items] each
            after[language] = {
                at: np.asarray([measured[name][at]["points"] for name in names]) for at in ("en", language)
            }
            english.append((after[language]["en"] - before["en"]).mean(axis=0))
            own.append((after[language][language] - before[language]).mean(axis=0))
        assert row.off == (spec.setting.under, spec.setting.s_attn, spec.setting.s_ffn, spec.setting.gen)
        assert (row.neurons, row.seeds) == (spec.neurons, 6 if spec.is_random else 0)
        assert row.eng == pytest.approx(np.mean([after[lang]["en"].mean() for lang in after]))
        assert row.n_eng == pytest.approx(np.mean([after[lang][lang].mean() for lang in after]))
        assert row.delta_eng == pytest.approx(np.mean(english))
        assert row.delta_n_eng == pytest.approx(np.mean(own))
        assert row.delta == pytest.approx(row.delta_eng - row.delta_n_eng)
        assert (row.n_items, row.n_clusters, row.languages) == (12, 4, ("de", "th"))
        for language, of_english, of_own in zip(("de", "th"), english, own, strict=True):
            change = row.by_language[language]
            assert (change.own, change.english) == (pytest.approx(of_own.mean()), pytest.approx(of_english.mean()))
            if not spec.is_random:
                half = stats.t.ppf(0.975, 3) * of_own.std(ddof=1) / math.sqrt(4)
                assert change.own_ci95 == pytest.approx((change.own - half, change.own + half))
        if not spec.is_random:
            # Four independent documents, each in three languages: a t interval over four numbers.
            of_document = np.mean(english, axis=0) - np.mean(own, axis=0)
            half = stats.t.ppf(0.975, 3) * of_document.std(ddof=1) / math.sqrt(4)
            assert row.delta_ci95 == pytest.approx((row.delta - half, row.delta + half))
            assert row.p == pytest.approx(stats.ttest_1samp(of_document, 0).pvalue)
            assert row.seed_spread is None
        else:
            by_seed = [
                np.mean([after[lang]["en"][seed].mean() - before["en"].mean() for lang in after])
                - np.mean([after[lang][lang][seed].mean() - before[lang].mean() for lang in after])
                for seed in range(6)
            ]
            spread = row.seed_spread.delta
            assert (spread.mean, spread.low, spread.high) == pytest.approx(
                (np.mean(by_seed), min(by_seed), max(by_seed))
            )
            assert (spread.std, spread.seeds) == (pytest.approx(np.std(by_seed, ddof=1)), 6)
            assert row.beyond_random is None


@pytest.mark.parametrize("weights", [(1, 1, 1, 1), (1, 4, 2, 8)])
def test_vs_random_is_the_difference_to_the_matched_random_sets(weights):
    of = table(weights=weights)
    measured = made_up(of)
    rows = dict(zip(ROWS, corrected_rows(delta_rows(of, ROWS, SPLIT, measured)), strict=True))
    p_values = []
    for setting in SETTINGS:

        def after(kind, seeds, setting=setting):
            return {
                lang: {
                    at: np.asarray(
                        [
                            measured[condition_name(RowSpec(setting, kind), SPLIT, lang, seed)][at]["points"]
                            for seed in range(seeds)
                        ]
                    )
                    for at in ("en", lang)
                }
                for lang in ("de", "th")
            }

        own = {lang: {at: x[0] for at, x in runs.items()} for lang, runs in after("lang-spec", 1).items()}
        weight = {lang: np.asarray(weights, float) for lang in ("en", "de", "th")}
        expected = beyond_random(
            own, after("random", 6), weight, dict.fromkeys(("en", "de", "th"), ("a", "b", "c", "d"))
        )
        row, random = rows[RowSpec(setting, "lang-spec")], rows[RowSpec(setting, "random")]
        assert row.beyond_random.delta == pytest.approx(row.delta - random.delta)
        assert row.beyond_random.delta == pytest.approx(expected.change)
        assert row.beyond_random.ci95 == pytest.approx(expected.ci95)
        assert row.beyond_random.p == pytest.approx(expected.p)
        p_values.append(expected.p)
        assert against_random(row) == DIFFERS
    np.testing.assert_allclose([r.beyond_random.p_holm for s, r in rows.items() if not s.is_random], holm(p_values))
    np.testing.assert_allclose([r.p_holm for r in rows.values()], holm([r.p for r in rows.values()]))


def test_own_neurons_that_are_like_random_ones_do_not_differ():
    of = table()
    rows = corrected_rows(delta_rows(of, ROWS, SPLIT, made_up(of, own=0.0)))
    assert {against_random(row) for row in rows if row.neurons == "lang-spec"} == {ALIKE}


@pytest.mark.parametrize("seeds", [1, 4])
def test_with_few_seeds_there_is_a_mean_and_no_interval(seeds):
    of = table(seeds)
    rows = dict(zip(ROWS, corrected_rows(delta_rows(of, ROWS, SPLIT, made_up(of))), strict=True))
    for spec, row in rows.items():
        if spec.is_random:
            assert (row.delta_ci95, row.delta_eng_ci95, row.delta_n_eng_ci95, row.p, row.p_holm) == (None,) * 5
            assert row.seed_spread.delta.std is None
        else:
            beyond, random = row.beyond_random, rows[RowSpec(spec.setting, "random")]
            assert beyond.delta == pytest.approx(row.delta - random.delta)
            assert (beyond.ci95, beyond.p, beyond.p_holm) == (None, None, None)
            assert row.p is not None, "its own change has an interval over the items"
        assert against_random(row) == NONE


def test_one_item_has_no_interval():
    of = table(ids=("a",), weights=(1,))
    for row in corrected_rows(delta_rows(of, ROWS, SPLIT, made_up(of))):
        assert (row.n_items, row.n_clusters) == (3, 1)
        assert (row.delta_ci95, row.p, row.p_holm) == (None, None, None)
        assert against_random(row) == NONE


@pytest.mark.parametrize(
    ("ids", "parallel", "clusters"),
    [
        (("a", "b", "c", "d"), True, 4),
        (("a", "b", "c", "d"), False, 12),
        (("a", "a", "b", "b"), True, 2),
        (("a", "a", "b", "b"), False, 6),
    ],
)
def test_items_with_one_id_are_one_cluster(ids, parallel, clusters):
    of = table(ids=ids, parallel=parallel)
    assert len({name for e in of.evaluations.values() for name in e.item_ids}) == clusters
    for row in delta_rows(of, ROWS, SPLIT, made_up(of)):
        assert (row.n_items, row.n_clusters) == (12, clusters)


def test_a_row_without_its_random_row_is_compared_with_nothing():
    of = table()
    under, gen = StageSetting(under=True), StageSetting(gen=True)
    rows = (RowSpec(under, "random"), RowSpec(under, "lang-spec"), RowSpec(gen, "lang-spec"))
    compared, random, alone = (delta_rows(of, rows, SPLIT, made_up(of, rows))[i] for i in (1, 0, 2))
    assert compared.beyond_random is not None
    assert random.beyond_random is alone.beyond_random is None
    assert against_random(alone) == NONE
    assert corrected_rows([random, alone])[1].p_holm == pytest.approx(holm([random.p, alone.p])[1])


def test_mcnemar_is_corrected_over_rows_languages_and_sides():
    of = table()
    first, second = delta_rows(of, ROWS, SPLIT, made_up(of))[:2]
    tests = [mcnemar([1] * 8, [0] * k + [1] * (8 - k)) for k in (8, 6, 1, 0, 3, 5)]
    rows = (
        replace(first, mcnemar={"de": McNemarPair(tests[0], tests[1]), "th": McNemarPair(tests[2], tests[3])}),
        replace(second, mcnemar={"de": McNemarPair(tests[4], tests[5])}),
    )
    after = [
        test for row in corrected_rows(rows) for sides in row.mcnemar.values() for test in (sides.own, sides.english)
    ]
    np.testing.assert_allclose([test.p_bh for test in after], benjamini_hochberg([test.p for test in tests]))
    assert [test.p for test in after] == [test.p for test in tests]


RUN = RunSettings(("en", "de", "th"), documents=3, held_out=3, rule="top_fraction:0.25", seeds=5, max_tokens=64)


@pytest.fixture(scope="module")
def finished(tiny_folder, tmp_path_factory):
    """A run from Python: model, folder, results."""
    model, out = mw.load_model(tiny_folder, dtype="float32"), tmp_path_factory.mktemp("run")
    return model, out, run_pipeline(model, {lang: own_corpus(lang) for lang in RUN.languages}, RUN, out)


def test_a_run_from_python_returns_what_the_file_holds(finished):
    _, out, results = finished
    assert isinstance(results, RunResults)
    assert read_results(out / "results.json") == results
    assert RunResults.from_json(results.to_json(), "results") == results


def test_the_documents_of_a_run_are_parallel(finished):
    _, _, results = finished
    assert len(results.rows) == 6
    for row in results.rows:
        assert (row.n_items, row.n_clusters) == (9, 3), "3 documents in 3 languages"


def test_vs_random_in_a_run_is_measured_with_random_sets_of_the_same_parts(finished):
    """The row that switches off everything, every set switched off and measured by hand."""
    model, out, results = finished
    keep, setting = NeuronMask.keep_all(model.config), EVERYWHERE
    split = StageSplit.of(model.config.num_layers, None, None)
    documents = {lang: own_corpus(lang).held_out[:3] for lang in RUN.languages}

    def points(language, neurons):
        return mw.held_out_loss(model, documents[language], keep.drop(neurons), batching=mw.Batching(64)).scores

    own, random = {}, {}
    for language in ("de", "th"):
        part = setting.choose(NeuronSet.load(out / "neurons" / f"{language}.json"), split)
        assert part.count() > 0
        own[language] = {at: points(at, part) for at in ("en", language)}
        random[language] = {
            at: np.stack([points(at, part.random_like(seed)) for seed in range(5)]) for at in ("en", language)
        }
    nothing = NeuronSet.empty(model.config)
    before = {lang: points(lang, nothing) for lang in documents}
    weights = {
        lang: mw.held_out_loss(model, texts, keep, batching=mw.Batching(64)).tokens.astype(float)
        for lang, texts in documents.items()
    }
    groups = {lang: own_corpus(lang).held_out_ids[:3] for lang in documents}
    (row,) = (row for row in results.rows if all(row.off) and row.neurons == "lang-spec")
    expected, beyond = mw.delta(before, own, weights, groups), beyond_random(own, random, weights, groups)
    assert row.table == HELD_OUT_LOSS
    assert row.delta == pytest.approx(expected.delta, abs=1e-5)
    assert row.delta_ci95 == pytest.approx(expected.delta_ci95, abs=1e-4)
    assert row.p == pytest.approx(expected.p, abs=1e-2)
    assert row.beyond_random.delta == pytest.approx(beyond.change, abs=1e-5)
    assert row.beyond_random.ci95 == pytest.approx(beyond.ci95, abs=1e-4)
    assert row.beyond_random.p == pytest.approx(beyond.p, abs=1e-2)
    compared = [row.beyond_random for row in results.rows if row.beyond_random is not None]
    assert len(compared) == 1, "no stage has random sets of its own"
    np.testing.assert_allclose([one.p_holm for one in compared], holm([one.p for one in compared]))


def test_intervals_of_single_languages_are_those_of_the_matrix(finished):
    _, _, results = finished
    for language, row in results.languages.items():
        assert row.everywhere.own_ci95 == pytest.approx(results.matrix[language][language].ci95)
        assert row.everywhere.english_ci95 == pytest.approx(results.matrix[language]["en"].ci95)
        assert row.gen.own_ci95[0] <= row.gen.own <= row.gen.own_ci95[1]


def test_random_sets_in_every_stage(finished):
    """Asked for later in the same folder, so that only they are measured; every row then has its control."""
    model, out, results = finished
    corpora = {lang: own_corpus(lang) for lang in RUN.languages}
    again = run_pipeline(model, corpora, replace(RUN, random_stages=True), out)
    kinds = [(row.off, row.neurons) for row in again.rows]
    assert len(set(kinds)) == 10
    own = [row for row in again.rows if row.neurons == "lang-spec"]
    assert all((row.off, "random") in kinds and row.beyond_random.ci95 for row in own)
    assert [(row.delta, row.delta_ci95) for row in own] == [
        (row.delta, row.delta_ci95) for row in results.rows if row.neurons == "lang-spec"
    ]
    write_results(out / "results.json", results)


def test_a_run_with_few_seeds_claims_nothing(finished, tmp_path):
    model, _, _ = finished
    corpora = {lang: own_corpus(lang) for lang in RUN.languages}
    results = run_pipeline(model, corpora, replace(RUN, held_out=2, seeds=2), tmp_path)
    for row in results.rows:
        assert (row.n_items, row.n_clusters) == (6, 2)
        if row.neurons == "random":
            assert row.delta_ci95 is row.p is None
        elif all(row.off):
            assert row.beyond_random.ci95 is row.beyond_random.p is row.beyond_random.p_holm is None
        else:
            assert row.beyond_random is None
        assert against_random(row) == NONE
