"""What neurons read and write: the tokens against a column by hand, the texts, and the command."""

import json

import numpy as np
import pytest

import mwork_jax as mw
from mwork_jax.cli import main
from mwork_jax.corpus import own_corpus
from mwork_jax.detect import contexts as detect_contexts
from mwork_jax.lens.neuron_contexts import _extreme_tokens, column_logits, marked_text, neuron_contexts
from mwork_jax.neurons import NeuronSet, group_widths
from mwork_jax.results import NeuronResults, read_results
from support.made_results import identity
from support.tiny import pair

DE = own_corpus("de").detection


def chosen(config, **members):
    """A set of {group: [(layer, index)]}."""
    groups = {g: np.zeros((config.num_layers, w), bool) for g, w in group_widths(config).items()}
    for group, places in members.items():
        for place in places:
            groups[group][place] = True
    return NeuronSet(groups)


@pytest.mark.parametrize("family", ["llama", "gemma2", "cohere", "mixtral"])
def test_tokens_equal_a_column_by_hand(family):
    model = pair(family, 2).model
    config, decoder = model.config, model.decoder
    places = np.asarray([(0, 5), (2, config.ffn_width - 1), (1, 0)], np.int32)
    found = np.asarray(column_logits(decoder, places[:, 0], places[:, 1]))
    down = np.asarray(decoder.layers.down[...], np.float64)
    head = np.asarray((decoder.embed if decoder.head is None else decoder.head)[...], np.float64)
    for row, (layer, index) in zip(found, places, strict=True):
        size = config.intermediate_size
        column = down[layer, index // size, :, index % size] if config.num_experts else down[layer, :, index]
        scales = [np.asarray(decoder.final_norm[...])]
        if config.post_norms:
            scales.insert(0, np.asarray(decoder.layers.ffn_post_norm[...])[layer])
        for scale in scales:
            column = column - (column.mean() if config.norm == "layer" else 0)
            column = column * (scale + config.norm_offset)
        np.testing.assert_allclose(row, head @ column * config.residual_scale * config.logit_scale, atol=1e-5)
    best, weights = map(np.asarray, _extreme_tokens(decoder, places[:, 0], places[:, 1], 4))
    for i, row in enumerate(found):
        np.testing.assert_array_equal(best[i, 0], np.argsort(-row, kind="stable")[:4])
        np.testing.assert_array_equal(best[i, 1], np.argsort(row, kind="stable")[:4])
        np.testing.assert_array_equal(weights[i], row[best[i]])


def test_the_marked_token_is_a_whole_character(tiny_folder):
    model = mw.load_model(tiny_folder, dtype="float32")
    tokens = model.encode("a道x")  # <s> a, three bytes, x
    parts = [marked_text(model, tokens, position, 9, 9) for position in range(1, tokens.size)]
    assert parts == [("", "a", "道x"), *[("a", "道", "x")] * 3, ("a道", "x", "")]
    assert marked_text(model, model.encode("abcdefgh"), 5, 2, 1) == ("cd", "e", "f")
    assert marked_text(model, tokens, 0, 2, 1)[2].endswith("a")


def test_what_is_read_of_each_neuron(tiny_folder):
    model = mw.load_model(tiny_folder, dtype="float32")
    neurons = chosen(model.config, ffn_up=[(1, 3)], ffn_down=[(1, 3), (2, 40)], attn_q=[(0, 9)])
    query, both, down = neuron_contexts(model, {"de": list(DE[:3])}, neurons, contexts=2, tokens=3, before=4, after=2)
    assert (query.groups, query.promotes, query.suppresses) == (("attn_q",), None, None)
    assert query.by_language["de"].active is None
    assert (both.groups, both.layer, both.index) == (("ffn_up", "ffn_down"), 1, 3)
    assert (down.groups, len(down.promotes), down.importance) == (("ffn_down",), 3, {})
    for reading in (query, both, down):
        first, second = reading.by_language["de"].contexts
        assert first.value >= second.value
        assert f"{first.before}{first.token}{first.after}" in DE[first.document]
        assert len(f"{first.before}{first.token}{first.after}".encode()) <= 4 + 1 + 2 + 2
    assert 0 < both.by_language["de"].active < 1
    with pytest.raises(mw.InputError, match="read twice; a list of them"):
        neuron_contexts(model, {"de": iter(DE[:3])}, neurons)
    with pytest.raises(mw.InputError, match="no tokenizer"):
        neuron_contexts(pair("llama", 2).model, {"de": list(DE[:3])}, neurons)


@pytest.fixture(scope="module")
def folder(tiny_folder, tmp_path_factory):
    """A folder with the sets of two languages, which say where they are from."""
    out, model = tmp_path_factory.mktemp("neurons"), mw.load_model(tiny_folder)
    for language, places in {"de": [(1, 3), (2, 40)], "th": [(2, 40), (3, 1)]}.items():
        neurons = chosen(model.config, ffn_up=places, ffn_down=places, attn_v=[(0, 2)])
        origin = {"corpus": own_corpus(language).origin, "documents": 3, "max_tokens": 24}
        provenance = {"language": language, "rule": "top_k:3", "model": identity(model.info), **origin}
        NeuronSet(neurons.groups, provenance).save(out / "neurons" / f"{language}.json")
    return out


def test_the_command(folder, monkeypatch, capsys):
    assert main(["neurons", str(folder), "--contexts", "2"]) == 0
    assert "Look at" in capsys.readouterr().out
    results = read_results(folder / "neurons.json")
    assert isinstance(results, NeuronResults)
    assert [(r.layer, r.index, set(r.importance)) for r in results.readings] == [
        (1, 3, {"de"}), (2, 40, {"de", "th"}), (3, 1, {"th"}),
    ]  # fmt: skip
    assert {lang: data.items for lang, data in results.provenance.data.items()} == {"de": 3, "th": 3}
    assert results.provenance.settings.max_tokens == 24
    page = (folder / "neurons.html").read_text()
    assert page.count("<article ") == 3
    # What is found is kept: nothing is computed again, and the same comes out.
    monkeypatch.setattr(detect_contexts, "keep_strongest", None)
    before = (folder / "neurons.json").read_bytes()
    assert main(["neurons", str(folder), "--contexts", "2"]) == 0
    assert (folder / "neurons.json").read_bytes() == before
    body = json.loads(before)
    body["readings"][0]["by_language"]["de"]["contexts"][0]["value"] += 1
    (folder / "neurons.json").write_text(json.dumps(body))
    with pytest.raises(mw.InputError, match="checksum should be that of its values"):
        read_results(folder / "neurons.json")
    assert main(["neurons", str(folder), "--contexts", "2"]) == 0, "of a damaged file nothing is lost"
    assert (folder / "neurons.json").read_bytes() == before
    capsys.readouterr()
    (folder / "neurons.json").write_text('{"neurons": "of somebody else"}')
    assert main(["neurons", str(folder)]) == 2
    assert "not a file of `mwork neurons`; move it away" in capsys.readouterr().err
    (folder / "neurons.json").unlink()


def test_of_some_layers(folder):
    assert main(["neurons", str(folder), "--layers", "1,3", "--contexts", "1"]) == 0
    readings = read_results(folder / "neurons.json").readings
    assert [(r.layer, r.index) for r in readings] == [(1, 3), (3, 1)]
    assert main(["neurons", str(folder), "--layers", "2-3", "--contexts", "1"]) == 0
    assert [r.layer for r in read_results(folder / "neurons.json").readings] == [2, 3]
    (folder / "neurons.json").unlink()


BAD = {
    "layers": (["--layers", "4-2"], "--layers 4-2: 4-2 runs backwards; 2-4 is meant?"),
    "no layer": (["--layers", "99"], "--layers 99: the model has layers 0 to "),
    "top": (["--top", "0"], "--top 0: it must be at least 1"),
    "group": (["--group", "ffn"], "'ffn' is not a neuron group; the groups are attn_q"),
    "language": (["--language", "it"], "--language it: no set of it in"),
    "too many": (["--top", "1"], "the neurons of de: ffn_up has 2 neurons, and the 1 strongest are known from scores"),
    "documents": (["--documents", "4"], "documents.de.jsonl: 4 documents asked, there are 3"),
    "data": (["--data", "de=nowhere.txt"], "nowhere.txt: no such file"),
    "none": (["--group", "attn_q"], "no neurons of attn_q in the sets of de, th"),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_input_is_one_line_and_status_2(case, folder, capsys):
    arguments, message = BAD[case]
    assert main(["neurons", str(folder), *arguments]) == 2
    errors = [line for line in capsys.readouterr().err.splitlines() if line.startswith("mwork: ")]
    assert message in errors[-1]
    assert not (folder / "neurons.json").exists()


def test_a_folder_without_sets(tmp_path, capsys):
    assert main(["neurons", str(tmp_path)]) == 2
    assert "no neurons/LANG.json in it" in capsys.readouterr().err
