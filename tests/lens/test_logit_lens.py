"""The logit lens: its logits against HF PyTorch, its shares against counting one by one, and the command."""

import json

import jax
import numpy as np
import pytest

import mwork_jax as mw
from mwork_jax.cli import main
from mwork_jax.corpus import own_corpus
from mwork_jax.lens.logit_lens import _count_labels, language_shares, lens_logits, run_lens
from mwork_jax.lens.vocabulary import VocabularyLabels
from mwork_jax.neurons import NeuronMask, NeuronSet
from mwork_jax.results import LensResults, read_results, versions, write_results
from mwork_jax.runtime.progress import Progress
from mwork_jax.settings import LensSettings
from support.slow_deactivation import hf_logits, random_neurons
from support.tiny import BASE, DISTINCT, pair, tokens, torch

VOCABULARY = BASE["vocab_size"]


def some_labels(size=VOCABULARY):
    return VocabularyLabels(("aa", "bb"), np.random.default_rng(0).integers(0, 5, size))


def documents():
    return [tokens(1, length, seed=seed)[0] for seed, length in enumerate((9, 30, 9, 30))]


@pytest.mark.parametrize("family", DISTINCT)
def test_every_layer_s_logits_equal_hf(family):
    both = pair(family, 2)
    ids = tokens(2, 11)
    theirs = hf_logits(both.hf, ids, output_hidden_states=True)
    ours = lens_logits(both.model, ids, NeuronMask.keep_all(both.config))
    assert ours.shape == (both.config.num_layers + 1, 2, 11, VOCABULARY)
    np.testing.assert_allclose(ours[-1], theirs.logits.numpy(), atol=1e-5)
    cap = both.config.final_softcap
    with torch.no_grad():
        for layer, hidden in enumerate(theirs.hidden_states[:-1]):  # HF's last one has gone through the norm
            norm = both.hf.transformer.ln_f if hasattr(both.hf, "transformer") else both.hf.model.norm
            logits = both.hf.lm_head(norm(hidden)) * both.config.logit_scale
            logits = logits if cap is None else cap * torch.tanh(logits / cap)
            np.testing.assert_allclose(ours[layer], logits.numpy(), atol=1e-5)


def test_the_last_layer_s_logits_are_the_model_s():
    model = pair("gemma2", 2).model
    mask = NeuronMask.keep_all(model.config).drop(random_neurons(model.config))
    ids = tokens(2, 13)
    np.testing.assert_array_equal(lens_logits(model, ids, mask)[-1], mw.forward(model, jax.numpy.asarray(ids), mask))


@pytest.mark.parametrize("family", ["llama", "gemma2"])
@pytest.mark.parametrize("masked", [False, True])
def test_shares_equal_counting_one_by_one(family, masked):
    model, labels, k = pair(family, 2).model, some_labels(), 4
    mask = NeuronMask.keep_all(model.config)
    mask = mask.drop(random_neurons(model.config)) if masked else mask
    each = {}
    found = language_shares(
        model, documents(), mask, labels, k=k, each=lambda number, shares: each.update({number: shares})
    )
    top_k, top_1, positions = 0.0, 0.0, 0
    for number, document in enumerate(documents()):
        logits = np.asarray(lens_logits(model, document[None], mask))[:, 0, 1:]  # without BOS
        best = np.argsort(-logits, axis=-1, kind="stable")[..., :k]
        hot = np.eye(5)[labels.codes[best]]
        top_k, top_1 = top_k + hot.mean(axis=2).sum(axis=1), top_1 + hot[:, :, 0].sum(axis=1)
        positions += document.size - 1
        np.testing.assert_allclose(each[number], hot.mean(axis=2).mean(axis=1), atol=1e-6)
    assert found.positions == positions
    np.testing.assert_allclose(found.top_k, top_k / positions, atol=1e-6)
    np.testing.assert_allclose(found.top_1, top_1 / positions, atol=1e-6)
    np.testing.assert_allclose(found.top_k.sum(axis=1), 1, atol=1e-6)


def test_the_top_tokens_of_every_layer():
    model = pair("gemma2", 2).model
    mask = NeuronMask.keep_all(model.config)
    document = tokens(1, 9)[0]
    found, probability = mw.top_tokens(model, document, mask, k=3)
    logits = np.asarray(lens_logits(model, document[None], mask))[:, 0]
    np.testing.assert_array_equal(found, np.argsort(-logits, axis=-1, kind="stable")[..., :3])
    every = np.exp(logits - logits.max(-1, keepdims=True))
    every /= every.sum(-1, keepdims=True)
    np.testing.assert_allclose(probability, np.take_along_axis(every, found, axis=-1), rtol=1e-5)
    with pytest.raises(mw.InputError, match="0 tokens"):
        mw.top_tokens(model, document[:0], mask)
    for k, says in ((0, "from 1 to 97"), (98, "from 1 to 97"), (2.5, "whole number")):
        with pytest.raises(mw.InputError, match=says):
            mw.top_tokens(model, document, mask, k=k)


def test_one_program_for_every_mask():
    model, before = pair("llama", 2).model, None
    for seed in range(3):
        mask = NeuronMask.keep_all(model.config).drop(random_neurons(model.config, seed=seed))
        language_shares(model, documents(), mask, some_labels(), k=3)
        if not seed:
            before = _count_labels._cache_size()
    assert _count_labels._cache_size() == before


def test_documents_stream():
    model = pair("llama", 2).model
    mask, labels = NeuronMask.keep_all(model.config), some_labels()
    twice = language_shares(model, (d for _ in range(2) for d in documents()), mask, labels)
    once = language_shares(model, documents(), mask, labels)
    assert twice.positions == 2 * once.positions
    np.testing.assert_allclose(twice.top_k, once.top_k, atol=1e-6)


def test_what_cannot_be_counted():
    model = pair("llama", 2).model
    mask = NeuronMask.keep_all(model.config)
    with pytest.raises(mw.InputError, match="the labels are of 7 tokens, the model's vocabulary has 97"):
        language_shares(model, documents(), mask, some_labels(7))
    with pytest.raises(mw.InputError, match="top 98: it must be between 1 and"):
        language_shares(model, documents(), mask, some_labels(), k=98)
    with pytest.raises(mw.InputError, match="no documents"):
        language_shares(model, [], mask, some_labels())


def lens(tiny_folder, out, *more, expect=0):
    arguments = ("--model", tiny_folder, "--languages", "en,de,th", "--documents", 2, "--max-tokens", 20, "--out", out)
    assert main([str(a) for a in ("lens", *arguments, *more)]) == expect


def test_two_languages_of_one_file_are_told_apart(tiny_folder, tmp_path):
    (tmp_path / "one.txt").write_text("some text\nand more of it\n")
    both = [f"{lang}={tmp_path}/one.txt" for lang in ("en", "de")]
    arguments = ("--languages", "en,de", "--corpus", both[0], "--corpus", both[1], "--documents", "2")
    lens(tiny_folder, tmp_path, *arguments, "--labeller", "scripts")
    results = read_results(tmp_path / "lens.json")
    assert [shares.language for shares in results.shares] == ["en", "de"]
    assert {data.origin for data in results.provenance.data.values()} == {f"{tmp_path}/one.txt"}
    assert "--corpus" in results.provenance.command


@pytest.fixture(scope="module")
def finished(tiny_folder, tmp_path_factory):
    """A folder with the neurons of German and a lens."""
    out = tmp_path_factory.mktemp("lens")
    random_neurons(mw.load_model(tiny_folder).config, seed=1).save(out / "neurons" / "de.json")
    lens(tiny_folder, out, "--neurons", out, "--labeller", "scripts")
    return out


def test_the_command(finished, tiny_folder, capsys, monkeypatch):
    results = read_results(finished / "lens.json")
    assert isinstance(results, LensResults)
    assert [(s.language, s.neurons_off > 0) for s in results.shares] == [
        ("en", False), ("de", False), ("de", True), ("th", False),
    ]  # fmt: skip
    assert results.labels.columns == ("en", "de", "th", "other", "unclear", "none")
    for shares in results.shares:
        assert np.asarray(shares.top_k).shape == (5, 6)
        np.testing.assert_allclose(np.sum(shares.top_1, axis=1), 1, atol=1e-5)
        assert len(shares.english_lead) == (0 if shares.language == "en" else 2), "of each prompt"
    assert [len(example.tokens) for example in results.examples] == [8, 8, 8], "without BOS"
    # Again: the labels and the shares are there already.
    before = (finished / "lens.json").read_bytes()
    monkeypatch.setattr("mwork_jax.lens.logit_lens.language_shares", lambda *a, **k: pytest.fail("computed again"))
    monkeypatch.setattr("mwork_jax.lens.logit_lens.label_vocabulary", lambda *a, **k: pytest.fail("labelled again"))
    lens(tiny_folder, finished, "--neurons", finished, "--labeller", "scripts")
    assert "Layer 0 is the embeddings" in capsys.readouterr().out
    assert (finished / "lens.json").read_bytes() == before


SETTINGS = LensSettings(max_tokens=20, labeller="scripts")


def from_python(tiny_folder, out, settings=SETTINGS, **options):
    """What the command did, without it."""
    corpora = {lang: own_corpus(lang) for lang in ("en", "de", "th")}
    return run_lens(
        mw.load_model(tiny_folder), {lang: c.held_out[:2] for lang, c in corpora.items()},
        {lang: f"{c.origin}, held out" for lang, c in corpora.items()},
        {"de": NeuronSet.load(out / "neurons" / "de.json")}, settings, out, progress=Progress(quiet=True), **options,
    )  # fmt: skip


def test_from_python_it_returns_what_the_file_holds(finished, tiny_folder, tmp_path, monkeypatch):
    written = read_results(finished / "lens.json")
    monkeypatch.setattr("mwork_jax.lens.logit_lens.language_shares", lambda *a, **k: pytest.fail("computed again"))
    results = from_python(tiny_folder, finished, command=written.provenance.command)
    assert results == written
    write_results(tmp_path / "lens.json", results)
    assert read_results(tmp_path / "lens.json") == results
    assert LensResults.from_json(json.loads(json.dumps(results.to_json())), "lens") == results


def test_what_made_it(finished, tiny_folder):
    provenance = read_results(finished / "lens.json").provenance
    assert provenance.command[:2] == ("mwork", "lens")
    assert provenance.command[-4:] == ("--neurons", str(finished), "--labeller", "scripts")
    assert provenance.settings == SETTINGS
    assert provenance.versions == versions()
    assert provenance.model.weights == mw.load_model(tiny_folder).key["weights"]
    assert [(data.origin, data.items) for data in provenance.data.values()] == [
        (f"mwork-jax data, documents.{lang}.jsonl, held out", 2) for lang in ("en", "de", "th")
    ]


def test_prompts_cut_elsewhere_are_other_prompts(finished, tiny_folder, monkeypatch):
    """The cache knows what was counted: with another max_tokens nothing of it is taken for the same."""
    positions = []
    for longest in (20, 12):
        results = from_python(tiny_folder, finished, LensSettings(max_tokens=longest, labeller="scripts"))
        positions.append({shares.positions for shares in results.shares})
    assert positions == [{2 * 19}, {2 * 11}]


BAD = {
    "top": (["--top", "0"], "--top 0: it must be at least 1"),
    "documents": (["--documents", "17"], "17 prompts asked, there are 16"),
    "language": (["--languages", "en,it"], "language 'it' is not in the built-in data"),
    "labeller": (["--labeller", "magic"], "--labeller magic: it must be one of lingua, scripts"),
    "neurons": (
        ["--neurons", "nowhere"],
        "nowhere/neurons/en.json: no such file; `mwork run` and `mwork select` write it",
    ),
    "corpus": (["--corpus", "en=nowhere.txt"], "--corpus has no prompts for 'de'"),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_input_is_one_line_and_status_2(case, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    arguments, message = BAD[case]
    assert main(["lens", "--languages", "en,de", *arguments]) == 2
    errors = capsys.readouterr().err
    assert message in errors
    assert errors.count("\n") == 1
    assert list(tmp_path.iterdir()) == []


def test_neurons_of_another_model(tiny_folder, tmp_path, capsys):
    random_neurons(pair("llama", 2).config).save(tmp_path / "neurons" / "th.json")
    lens(tiny_folder, tmp_path / "out", "--neurons", tmp_path, expect=2)
    assert "the set is of another model" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_a_model_without_a_tokenizer(tiny_folder, tmp_path, capsys):
    import shutil

    folder = tmp_path / "model"
    shutil.copytree(tiny_folder, folder, ignore=shutil.ignore_patterns("tokenizer*"))
    lens(folder, tmp_path / "out", expect=2)
    assert "the model has no tokenizer" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()
