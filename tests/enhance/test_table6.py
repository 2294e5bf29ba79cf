"""Table 6 from Python: one cache for every command, rows by hand, and what the file holds is what is returned."""

from dataclasses import replace

import numpy as np
import pytest

import mwork_jax as mw
from mwork_jax.corpus import Batching, encoded, own_corpus
from mwork_jax.enhance.table6 import EvaluationSuite, HeldOut, Job, jobs, run_enhancement
from mwork_jax.evaluate import evaluations as module
from mwork_jax.evaluate.evaluations import HELD_OUT_LOSS, LossEvaluation
from mwork_jax.evaluate.likelihood import held_out_losses
from mwork_jax.evaluate.runner import Condition, measure
from mwork_jax.evaluate.table_run import prepare
from mwork_jax.evaluate.tasks import TASKS
from mwork_jax.metrics import delta
from mwork_jax.neurons import NeuronMask, NeuronSet
from mwork_jax.pipeline import run_pipeline
from mwork_jax.results import EnhanceResults, read_results, versions, write_results
from mwork_jax.runtime.cache import CACHE_FOLDER, ResultCache
from mwork_jax.runtime.progress import Progress
from mwork_jax.settings import EnhanceSettings, RunSettings, TableSettings, TuneSettings

LANGUAGES = ("en", "de", "th")
TUNE = TuneSettings(epochs=1, batch=4, max_tokens=64, learning_rate=1e-2, validate_every=2, seed=3)
SETTINGS = EnhanceSettings((16,), seeds=1, tune=TUNE)
RUN = RunSettings(LANGUAGES, documents=3, held_out=3, rule="top_fraction:0.3", seeds=1, max_tokens=64)
TASK = "xcsqa"


def suite(**tasks):
    corpora = {lang: own_corpus(lang) for lang in LANGUAGES}
    return EvaluationSuite({lang: HeldOut(c.held_out[:3], c.held_out_ids[:3]) for lang, c in corpora.items()}, tasks)


class Finished:
    """A run and, in its folder, the tuning of German; whose losses each of them computed."""

    def __init__(self, model, out):
        self.model, self.out = model, out
        self.measured: dict[str, list[str]] = {"run": [], "enhance": []}
        with pytest.MonkeyPatch.context() as patched:
            for name, work in (("run", self._run), ("enhance", self._enhance)):
                computed, losses = self.measured[name], held_out_losses

                def counted(model, *args, computed=computed, losses=losses, **options):
                    computed.append(model.source)
                    return losses(model, *args, **options)

                patched.setattr(module, "held_out_losses", counted)
                work()

    def _run(self):
        run_pipeline(self.model, {lang: own_corpus(lang) for lang in LANGUAGES}, RUN, self.out)
        self.own = NeuronSet.load(self.out / "neurons" / "de.json")

    def _enhance(self):
        self.results, self.tunings = self.enhance()

    def enhance(self, settings=SETTINGS):
        corpus = own_corpus("de")
        tasks = {TASK: prepare(TASKS[TASK], None, TableSettings(("en", "de"), 2))}
        return run_enhancement(
            self.model, {"de": corpus.detection}, {"de": corpus.origin}, {"de": self.own}, suite(**tasks), settings,
            self.out, progress=Progress(quiet=True), command=("a", "command"),
        )  # fmt: skip


@pytest.fixture(scope="module")
def finished(tiny_folder, tmp_path_factory):
    return Finished(mw.load_model(tiny_folder, dtype="float32"), tmp_path_factory.mktemp("both"))


def test_the_original_s_loss_is_computed_once_whichever_command_asks(finished, monkeypatch):
    """The run has measured the original on the same documents, so the tuning measures what it tuned and nothing else,
    in each language once; nor does a measurement of one's own compute anything."""
    source = finished.model.source
    assert set(finished.measured["run"]) == {source}
    tuned = [f"{source} (de-{kind}-16-0)" for kind in ("lang-spec", "random")]
    assert sorted(finished.measured["enhance"]) == sorted(tuned * len(LANGUAGES))
    monkeypatch.setattr(module, "held_out_losses", lambda *a, **k: pytest.fail("computed again"))
    original = Condition("original", NeuronSet.empty(finished.model.config), LANGUAGES)
    cache = ResultCache(finished.out / CACHE_FOLDER)
    losses = suite().evaluations(finished.model, 64)[HELD_OUT_LOSS]
    measured = measure(finished.model, losses, [original], cache, Progress(quiet=True))["original"]
    run = read_results(finished.out / "results.json").original
    for language in LANGUAGES:
        whole = sum(measured[language]["nats"]) / sum(measured[language]["tokens"])
        assert run[language].nats_per_token == pytest.approx(whole)
        assert finished.results.original[HELD_OUT_LOSS][language] == pytest.approx(-whole)


def test_other_documents_or_ids_are_another_matter(finished, monkeypatch):
    """Documents that are cut shorter are others; which of them are translations of each other changes no loss."""
    model, cache = finished.model, ResultCache(finished.out / CACHE_FOLDER)
    original = [Condition("original", NeuronSet.empty(model.config), ("de",))]
    texts, calls = own_corpus("de").held_out[:3], []

    def losses(*args, **options):
        calls.append(1)
        return held_out_losses(*args, **options)

    monkeypatch.setattr(module, "held_out_losses", losses)
    for longest, ids in ((64, ("x", "y", "z")), (32, ("x", "y", "z"))):
        evaluation = LossEvaluation(tuple(encoded(model, texts, longest)), Batching(longest), ids)
        measure(model, {"de": evaluation}, original, cache, Progress(quiet=True))
        assert len(calls) == (longest == 32)


def test_from_python_it_returns_what_the_file_holds(finished, tmp_path):
    results = finished.results
    write_results(tmp_path / "results.json", results)
    assert read_results(tmp_path / "results.json") == results
    assert EnhanceResults.from_json(results.to_json(), "results") == results


def test_again_it_computes_nothing_and_returns_the_same(finished, monkeypatch):
    monkeypatch.setattr("mwork_jax.enhance.tune.train_step", lambda *a: pytest.fail("trained again"))
    for name in ("held_out_losses", "log_likelihoods"):
        monkeypatch.setattr(module, name, lambda *a, **k: pytest.fail("measured again"))
    assert finished.enhance()[0] == finished.results


def test_what_made_it(finished):
    results, model = finished.results, finished.model
    assert results.kind == "enhance"
    provenance = results.provenance
    assert (provenance.model.source, provenance.model.weights) == (model.source, model.key["weights"])
    assert provenance.settings == SETTINGS
    assert (provenance.command, provenance.seed, provenance.versions) == (("a", "command"), 3, versions())
    (data,) = provenance.data.values()
    assert (data.origin, data.items) == (own_corpus("de").origin, len(own_corpus("de").detection))
    assert results.sizes == {HELD_OUT_LOSS: dict.fromkeys(LANGUAGES, 3), TASK: {"en": 2, "de": 2}}


def test_rows_by_hand(finished):
    """Each tuned model measured on each document alone."""
    model, results, keep = finished.model, finished.results, NeuronMask.keep_all(finished.model.config)
    documents = {lang: own_corpus(lang).held_out[:3] for lang in LANGUAGES}

    def points(of, language):
        return mw.held_out_loss(of, documents[language], keep, batching=Batching(64)).scores

    weights = {
        lang: mw.held_out_loss(model, texts, keep, batching=Batching(64)).tokens.astype(float)
        for lang, texts in documents.items()
    }
    before = {lang: points(model, lang) for lang in LANGUAGES}
    ids = {lang: own_corpus(lang).held_out_ids[:3] for lang in LANGUAGES}
    change = {}
    for job, tuning in finished.tunings.items():
        tuned = tuning.merged(model)
        after = {lang: points(tuned, lang) for lang in LANGUAGES}
        (row,) = (r for r in results.rows if r.task == HELD_OUT_LOSS and r.neurons == job.kind)
        expected = delta(before, {"de": {lang: after[lang] for lang in ("en", "de")}}, weights, ids)
        mean = {lang: np.average(after[lang] - before[lang], weights=weights[lang]) for lang in LANGUAGES}
        change[job.kind] = mean["de"]
        assert (row.language, row.documents, row.seeds, row.languages) == ("de", 16, 1, ("de",))
        assert (row.delta_eng, row.delta_n_eng) == pytest.approx((mean["en"], mean["de"]), abs=1e-5)
        assert (row.others, row.delta_others) == (("th",), pytest.approx(mean["th"], abs=1e-5))
        assert row.delta == pytest.approx(mean["en"] - mean["de"], abs=1e-5)
        assert row.delta_n_eng_ci95 == pytest.approx(expected.delta_n_eng_ci95, abs=1e-4)
        assert row.delta_ci95 == pytest.approx(expected.delta_ci95, abs=1e-4)
        assert row.own_by_seed == pytest.approx((np.average(after["de"], weights=weights["de"]),), abs=1e-5)
        assert (row.n_items, row.n_clusters) == (6, 3), "3 documents, in German and in English"
    own, random = (next(r for r in results.rows if r.neurons == kind) for kind in ("lang-spec", "random"))
    assert own.own_beyond_random.change == pytest.approx(change["lang-spec"] - change["random"], abs=1e-5)
    assert own.own_beyond_random.ci95 is own.own_beyond_random.p is None, "of one seed there is no interval"
    assert random.own_beyond_random is None


def test_random_neurons_are_drawn_for_the_language_s_set(finished):
    for job, tuning in finished.tunings.items():
        expected = finished.own if job.kind == "lang-spec" else finished.own.random_like(job.seed)
        assert tuning.run.neurons == expected
        run = finished.results.runs[job.name]
        assert (run.neurons, run.documents, run.best_step) == (expected.count(), 16, tuning.history.best[0])
        assert run.validation == tuple(map(tuple, tuning.history.validation))


def test_jobs_of_about_the_same_length_are_beside_each_other():
    wanted = jobs(("de", "th"), replace(SETTINGS, documents=(16, 8), seeds=2))
    assert len(wanted) == len(set(wanted)) == 16
    assert [job.documents for job in wanted] == [8] * 8 + [16] * 8
    assert jobs(("de",), replace(SETTINGS, seeds=0)) == [Job("de", "lang-spec", 16, 0)]


def test_own_neurons_against_random_ones_over_seeds():
    """Five tunings of each: the variance of both sides' seeds counts, as in two independent samples."""
    from mwork_jax.enhance.table6 import _Items, _own_beyond_random

    rng = np.random.default_rng(0)
    ids, weight = ("a", "b", "c", "d"), np.ones(4)
    own, random = {"de": rng.normal(1.0, 0.2, (5, 4))}, {"de": rng.normal(0.0, 0.2, (5, 4))}
    items = _Items({"de": weight}, {"de": ids})
    found = _own_beyond_random(own, random, "de", items)
    assert found.change == pytest.approx(own["de"].mean() - random["de"].mean())
    low, high = found.ci95
    assert low < found.change < high
    assert (found.p < 0.05) == (low > 0)
    # With four seeds on one side there is the change alone.
    few = _own_beyond_random({"de": own["de"][:4]}, random, "de", items)
    assert few.ci95 is few.p is None
    assert few.change == pytest.approx(own["de"][:4].mean() - random["de"].mean())
    # Where every tuning of a side gives the same, only the items vary: a t interval over their four differences.
    from scipy import stats

    steady = {"de": np.tile(own["de"][0], (5, 1))}, {"de": np.tile(random["de"][0], (5, 1))}
    found, difference = _own_beyond_random(*steady, "de", items), own["de"][0] - random["de"][0]
    half = stats.t.ppf(0.975, 3) * difference.std(ddof=1) / 2
    assert found.ci95 == pytest.approx((difference.mean() - half, difference.mean() + half))
    assert found.p == pytest.approx(stats.ttest_1samp(difference, 0).pvalue)
