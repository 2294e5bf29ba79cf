"""Each set on each language: by hand from made-up scores, and in a run."""

import math
from dataclasses import replace

import numpy as np
import pytest
from scipy import stats

import mwork_jax as mw
from mwork_jax.corpus import Batching, Encoded, own_corpus
from mwork_jax.evaluate.evaluations import LossEvaluation
from mwork_jax.evaluate.language_matrix import language_matrix, other_conditions, own_conditions
from mwork_jax.neurons import NeuronMask, NeuronSet
from mwork_jax.pipeline import run_pipeline
from mwork_jax.runtime.progress import Progress
from mwork_jax.settings import RunSettings
from support.slow_deactivation import random_neurons
from support.tiny import pair

LANGUAGES = ("en", "de", "th")
LENGTHS = (5, 9, 3, 7)


def sets_of(*languages):
    config = pair("llama", 2).config
    return {lang: random_neurons(config, seed=i) for i, lang in enumerate(languages)}


def made_up(rng, documents):
    tokens = [n - 1 for n in LENGTHS[:documents]]
    return {"nats": (rng.uniform(2, 4, documents) * tokens).tolist(), "tokens": tokens, "bytes": tokens}


@pytest.mark.parametrize("few", [2, 3, 4])
@pytest.mark.parametrize("off", [("de", "th"), LANGUAGES])
def test_every_cell_by_hand(off, few):
    rng = np.random.default_rng(0)
    documents = tuple(Encoded(np.arange(n, dtype=np.int32), 0) for n in LENGTHS)
    evaluations = {lang: LossEvaluation(documents, Batching(64), ("a", "b", "c", "d")) for lang in LANGUAGES}
    sets = sets_of(*off)
    original = {lang: made_up(rng, 4) for lang in LANGUAGES}
    own, others = (
        {c.name: {lang: made_up(rng, size) for lang in c.languages} for c in made}
        for made, size in ((own_conditions(sets), 4), (other_conditions(sets, LANGUAGES), few))
    )
    matrix = language_matrix(evaluations, sets, original, own, others)
    assert [*matrix] == [*off]
    for condition_of_own, condition_of_others, (language, row) in zip(own, others, matrix.items(), strict=True):
        assert tuple(row) == LANGUAGES
        for lang, cell in row.items():
            of_own = lang in ("en", language)
            after = (own[condition_of_own] if of_own else others[condition_of_others])[lang]
            size = 4 if of_own else few
            weights = np.asarray(after["tokens"]) / sum(after["tokens"])
            changes = (np.asarray(after["nats"]) - original[lang]["nats"][:size]) / after["tokens"]
            assert cell.documents == size
            assert cell.rise == pytest.approx(weights @ changes)
            low, high = cell.ci95
            assert low < cell.rise < high
            assert low + high == pytest.approx(2 * cell.rise)


def test_equal_weights_give_the_t_interval():
    documents = tuple(Encoded(np.arange(6, dtype=np.int32), 0) for _ in range(4))
    evaluations = {lang: LossEvaluation(documents, Batching(64), ("a", "b", "c", "d")) for lang in ("en", "de")}
    before = {"nats": [10.0, 12.0, 11.0, 13.0], "tokens": [5] * 4, "bytes": [9] * 4}
    after = {**before, "nats": [15.0, 16.0, 18.0, 18.0]}
    sets = sets_of("de")
    (condition,) = own_conditions(sets)
    matrix = language_matrix(
        evaluations, sets, dict.fromkeys(("en", "de"), before), {condition.name: dict.fromkeys(("en", "de"), after)},
        {condition.name: {}},
    )  # fmt: skip
    changes = np.asarray([5.0, 4.0, 7.0, 5.0]) / 5
    half = stats.t.ppf(0.975, 3) * changes.std(ddof=1) / math.sqrt(4)
    assert matrix["de"]["de"].rise == pytest.approx(changes.mean())
    assert matrix["de"]["de"].ci95 == pytest.approx((changes.mean() - half, changes.mean() + half))


def test_each_set_is_measured_on_each_language_once():
    sets = sets_of(*LANGUAGES)
    for own, others in zip(own_conditions(sets), other_conditions(sets, LANGUAGES), strict=True):
        assert own.name == others.name
        assert own.neurons is others.neurons
        assert sorted((*own.languages, *others.languages)) == sorted(LANGUAGES)


RUN = RunSettings(
    LANGUAGES, documents=3, held_out=3, rule="top_fraction:0.25", mode="all", seeds=1, max_tokens=64, matrix_documents=2
)
CORPORA = {lang: own_corpus(lang) for lang in LANGUAGES}


@pytest.fixture(scope="module")
def finished(tiny_folder, tmp_path_factory):
    """A run in whose mode English's set is like the others: model, folder, results."""
    model, out = mw.load_model(tiny_folder, dtype="float32"), tmp_path_factory.mktemp("run")
    return model, out, run_pipeline(model, CORPORA, RUN, out)


def test_a_pair_of_a_run_equals_switching_the_neurons_off_by_hand(finished):
    model, out, results = finished
    keep = NeuronMask.keep_all(model.config)
    thai = NeuronSet.load(out / "neurons" / "th.json")
    assert thai.count() > 0
    before, after = (
        mw.held_out_loss(model, CORPORA["de"].held_out[:2], mask, batching=mw.Batching(64)).per_token
        for mask in (keep, keep.drop(thai))
    )
    cell = results.matrix["th"]["de"]
    assert cell.rise == pytest.approx(after - before, abs=1e-5)
    assert abs(cell.rise) > 1e-3
    assert cell.documents == 2


def test_a_matrix_repeats_what_the_run_reports_and_adds_english_where_it_is_alike(finished):
    _, out, results = finished
    assert list(results.matrix) == [*LANGUAGES]
    for off, row in results.matrix.items():
        assert {lang: cell.documents for lang, cell in row.items()} == {
            lang: 3 if lang in ("en", off) else 2 for lang in LANGUAGES
        }
        if off != "en":
            assert row[off].rise == results.languages[off].everywhere.own
            assert row["en"].rise == results.languages[off].everywhere.english
    assert results.neurons["en"].fingerprint == NeuronSet.load(out / "neurons" / "en.json").fingerprint


@pytest.mark.parametrize(
    ("changes", "rows", "documents"),
    [
        ({"matrix_documents": 0}, [], None),
        ({"mode": "minus_english"}, ["de", "th"], 2),
        ({"matrix_documents": 9}, ["en", "de", "th"], 3),
        ({"rule": "lape:0.1", "mode": "minus_english"}, ["en", "de", "th"], 2),
    ],
)
def test_which_rows_there_are_and_over_how_many_documents(changes, rows, documents, finished):
    model, out, _ = finished
    with Progress(quiet=True) as progress:
        results = run_pipeline(model, CORPORA, replace(RUN, **changes), out, progress=progress)
    assert progress.done == progress.total, "the work that was announced"
    assert list(results.matrix) == rows
    assert ("en" in results.neurons) == ("en" in rows)
    assert {row[lang].documents for off, row in results.matrix.items() for lang in row if lang not in ("en", off)} == (
        {documents} if rows else set()
    )
