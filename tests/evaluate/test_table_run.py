"""Tables 2 to 5 on a small model: every result once, the same again, and the numbers worked out by hand."""

import csv
import json
import shutil
from dataclasses import replace

import numpy as np
import pytest

import mwork_jax as mw
from mwork_jax.cli import main
from mwork_jax.evaluate.likelihood import log_likelihood
from mwork_jax.evaluate.paper_tables import TABLES
from mwork_jax.evaluate.table_run import prepare, prepare_table, run_table
from mwork_jax.evaluate.tasks import TASKS, continuations
from mwork_jax.intervene.stages import StageSplit
from mwork_jax.metrics import benjamini_hochberg, beyond_random, holm
from mwork_jax.neurons import NeuronMask, NeuronSet
from mwork_jax.results import TableResult, TablesResults, read_results, versions, write_results
from mwork_jax.runtime.cache import CACHE_FOLDER, ResultCache
from mwork_jax.runtime.progress import Progress
from mwork_jax.settings import TableSettings
from support.made_results import made_run
from support.slow_deactivation import save_neurons

SETTINGS = ("--languages", "en,de,fr", "--items", "3", "--seeds", "2")


@pytest.fixture(scope="module")
def neurons(tiny_folder, tmp_path_factory):
    out = tmp_path_factory.mktemp("neurons")
    save_neurons(out, mw.load_model(tiny_folder), ("de", "fr"))
    return out


@pytest.fixture(scope="module")
def four(tiny_folder, neurons, tmp_path_factory):
    """A folder with Table 4."""
    out = tmp_path_factory.mktemp("tables")
    evaluate(tiny_folder, neurons, out, "--table", "4")
    return out


def tables(out):
    results = read_results(out / "results.json")
    assert isinstance(results, TablesResults)
    return results


def evaluate(model, neurons, out, *more, expect=0):
    arguments = ["evaluate", "--model", model, "--neurons", neurons, "--out", out, *SETTINGS, *more]
    assert main([str(a) for a in arguments]) == expect


@pytest.mark.parametrize("number", [2, 4])
def test_a_table_has_the_paper_s_rows(number, tiny_folder, neurons, four, tmp_path, capsys):
    out = four if number == 4 else tmp_path
    evaluate(tiny_folder, neurons, out, "--table", number)
    printed = capsys.readouterr().out
    results = tables(out)
    (table,) = results.tables
    assert (table.kind, table.table, table.stages) == ("table", number, StageSplit(4, 1, 1))
    assert results.rows == table.rows
    assert len(table.rows) == len(TABLES[number].rows)
    for row, declared in zip(table.rows, TABLES[number].rows, strict=True):
        off = declared.setting
        assert row.off == (off.under, off.s_attn, off.s_ffn, off.gen)
        assert row.neurons == declared.neurons
        assert row.seeds == (2 if declared.neurons == "random" else 0)
        assert row.delta == pytest.approx(row.delta_eng - row.delta_n_eng)
        assert (row.n_items, row.n_clusters) == (9, 3), "3 items in 3 languages"
        assert row.languages == ("de", "fr")
        assert row.understanding is row.generation is None
    assert f"Table {number}" in printed
    assert printed.count("Lang-Spec") == sum(r.neurons == "lang-spec" for r in TABLES[number].rows)


def test_what_made_a_table(tiny_folder, neurons, four):
    table = tables(four).tables[0]
    provenance, model = table.provenance, mw.load_model(tiny_folder)
    assert provenance.command == (
        "mwork", "evaluate", "--model", str(tiny_folder), "--neurons", str(neurons), "--out", str(four), *SETTINGS,
        "--table", "4",
    )  # fmt: skip
    assert provenance.settings == TableSettings(("en", "de", "fr"), 3, seeds=2)
    assert provenance.versions == versions()
    assert provenance.seed == 0
    assert (provenance.model.source, provenance.model.weights) == (str(tiny_folder), model.key["weights"])
    assert list(provenance.data) == ["en", "de", "fr"]
    fingerprints = {data.fingerprint for data in provenance.data.values()}
    assert len(fingerprints) == 3
    fewer = prepare(TASKS["xcsqa"], None, TableSettings(("en", "de"), 2))["en"]
    assert fewer.key["items"] not in fingerprints
    assert [(data.origin, data.items) for data in provenance.data.values()] == [
        (f"mwork-jax data, xcsqa.{lang}", 3) for lang in ("en", "de", "fr")
    ]
    own = NeuronSet.load(neurons / "neurons" / "fr.json")
    assert list(table.neurons) == ["de", "fr"]
    assert (table.neurons["fr"].fingerprint, table.neurons["fr"].count) == (own.fingerprint, own.count())
    assert table.neurons["fr"].rule == "top_fraction:0.3"


def test_python_gives_what_the_file_holds(tiny_folder, neurons, four, tmp_path, monkeypatch):
    """From the cache of the command: both measure the same."""
    monkeypatch.setattr("mwork_jax.evaluate.evaluations.log_likelihoods", lambda *a, **k: pytest.fail("computed again"))
    settings, (written,) = TableSettings(("en", "de", "fr"), 3, seeds=2), tables(four).tables
    results = run_table(
        mw.load_model(tiny_folder), TABLES[4], prepare_table(TABLES[4], None, settings), sets_in(neurons), settings,
        ResultCache(four / CACHE_FOLDER), progress=Progress(quiet=True), command=written.provenance.command,
    )  # fmt: skip
    assert results == written
    assert TableResult.from_json(json.loads(json.dumps(results.to_json())), "a table") == results
    gathered = TablesResults.of([results])
    write_results(tmp_path / "results.json", gathered)
    assert read_results(tmp_path / "results.json") == gathered == tables(four)


def sets_in(neurons):
    return {lang: NeuronSet.load(neurons / "neurons" / f"{lang}.json") for lang in ("de", "fr")}


def test_sets_of_another_shape_and_no_seeds_are_refused_before_any_work(tiny_folder, neurons, tmp_path, monkeypatch):
    monkeypatch.setattr("mwork_jax.evaluate.evaluations.log_likelihoods", lambda *a, **k: pytest.fail("computed"))
    model, settings = mw.load_model(tiny_folder), TableSettings(("en", "de", "fr"), 1, seeds=40)
    evaluations, sets = prepare_table(TABLES[4], None, settings), sets_in(neurons)
    narrow = NeuronSet({g: m[:, :-1] for g, m in sets["fr"].groups.items()})
    for changed, other, message in (
        ({**sets, "fr": narrow}, settings, "the set is of another model"),
        ({"de": sets["de"]}, settings, "no neurons of fr"),
        (sets, replace(settings, seeds=0), "0 random sets"),
    ):
        with pytest.raises(mw.InputError, match=message):
            run_table(model, TABLES[4], evaluations, changed, other, ResultCache(tmp_path))


def accuracy(model, evaluation, neurons):
    """Right or wrong of each item with these neurons off, as points: each choice scored alone."""
    mask = NeuronMask.keep_all(model.config).drop(neurons)
    right = []
    for item, prompt in zip(evaluation.items, evaluation.prompts, strict=True):
        options = continuations(evaluation.task, item)
        answers = log_likelihood(model, [prompt] * len(options), options, mask)
        right.append(answers.scores(_normalisation(evaluation.task)).argmax() == item.answer)
    return 100.0 * np.asarray(right)


def test_a_row_equals_doing_it_by_hand(tiny_folder, neurons, tmp_path):
    """A language's own S-FFN and the random sets of the same parts, each item under each set on its own."""
    evaluate(tiny_folder, neurons, tmp_path, "--table", "4", "--seeds", "5", "--items", "4")
    rows = tables(tmp_path).rows
    row, setting = rows[-1], TABLES[4].rows[-1].setting
    assert (row.off, row.neurons) == ((False, False, True, False), "lang-spec")
    model, split = mw.load_model(tiny_folder), StageSplit.default(4)
    evaluations = prepare(TASKS["xcsqa"], None, TableSettings(("en", "de", "fr"), 4))
    before = {lang: accuracy(model, e, NeuronSet.empty(model.config)) for lang, e in evaluations.items()}
    own, random = {}, {}
    for language, neurons_of in sets_in(neurons).items():
        part = setting.choose(neurons_of, split)
        assert part.count() > 0
        drawn = [part.random_like(seed) for seed in range(5)]
        own[language] = {at: accuracy(model, evaluations[at], part) for at in ("en", language)}
        random[language] = {
            at: np.stack([accuracy(model, evaluations[at], one) for one in drawn]) for at in ("en", language)
        }
    ids = {lang: [item.group or item.id for item in e.items] for lang, e in evaluations.items()}
    assert row.delta_eng == pytest.approx(np.mean([own[lang]["en"] - before["en"] for lang in own]))
    assert row.delta_n_eng == pytest.approx(np.mean([own[lang][lang] - before[lang] for lang in own]))
    of_random = [
        (random[lang]["en"] - before["en"]).mean() - (random[lang][lang] - before[lang]).mean() for lang in random
    ]
    assert row.beyond_random.delta == pytest.approx(row.delta - np.mean(of_random))
    assert rows[0].delta == pytest.approx(np.mean(of_random))
    expected = beyond_random(own, random, None, ids)
    for found, by_hand in ((row.beyond_random.ci95, expected.ci95), (row.beyond_random.p, expected.p)):
        assert found == (None if by_hand is None else pytest.approx(by_hand, abs=1e-9))


def _normalisation(task):
    return task.score_names[0].removeprefix("accuracy_")


def test_finished_results_are_never_computed_again(tiny_folder, neurons, four, monkeypatch):
    before = (four / "results.json").read_bytes()
    monkeypatch.setattr("mwork_jax.evaluate.evaluations.log_likelihoods", lambda *a, **k: pytest.fail("computed again"))
    evaluate(tiny_folder, neurons, four, "--table", "4")
    assert (four / "results.json").read_bytes() == before


BAD = {
    "table": (("--table", "7"), "table '7' is not one of the paper's"),
    "items": (("--table", "4", "--items", "99"), "99 items asked"),
    "language": (("--table", "4", "--languages", "en,xx"), "no built-in data for language 'xx'"),
    "no English": (("--table", "4", "--languages", "de,th"), "must include en"),
    "neurons": (("--table", "4", "--languages", "en,ru"), "ru.json: no such file"),
    "task": (("--table", "4", "--task", "chess"), "task 'chess' is not known"),
    "stages": (("--table", "4", "--n1", "4", "--n2", "3"), "do not fit a model of 4 layers"),
    "data": (("--table", "2", "--data", "nowhere"), "nowhere: no such file or folder"),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_input_is_one_line(case, tiny_folder, neurons, tmp_path, capsys):
    more, message = BAD[case]
    evaluate(tiny_folder, neurons, tmp_path / "out", *more, expect=2)
    errors = capsys.readouterr().err
    assert message in errors
    assert errors.count("\n") == 1
    assert not (tmp_path / "out").exists()


def test_a_run_s_results_are_not_overwritten(tiny_folder, neurons, tmp_path, capsys):
    write_results(tmp_path / "results.json", made_run())
    evaluate(tiny_folder, neurons, tmp_path, "--table", "4", expect=2)
    assert "holds the results of `mwork run`" in capsys.readouterr().err


def test_rows_say_how_sure_they_are(tiny_folder, neurons, four, capsys):
    evaluate(tiny_folder, neurons, four, "--table", "4")
    captured = capsys.readouterr()
    assert "programs compiled" in captured.err
    (table,) = tables(four).tables
    rows = table.rows
    assert table.provenance.data["de"].items == 3
    assert (four / "table.txt").read_text() in captured.out
    known = [row for row in rows if row.p is not None]
    np.testing.assert_allclose([row.p_holm for row in known], holm([row.p for row in known]))
    assert all(row.p_holm is None for row in rows if row.p is None)
    tests = [test for row in rows for sides in row.mcnemar.values() for test in (sides.own, sides.english)]
    np.testing.assert_allclose([t.p_bh for t in tests], benjamini_hochberg([t.p for t in tests]))
    assert not any(test.ignores_clusters for test in tests), "each item of a language stands for itself"
    for row in rows:
        changes = row.by_language
        assert row.delta_n_eng == pytest.approx(np.mean([changes[lang].own for lang in ("de", "fr")]))
        assert row.delta_eng == pytest.approx(np.mean([changes[lang].english for lang in ("de", "fr")]))
        if row.neurons == "random":
            assert row.seed_spread.delta.mean == pytest.approx(row.delta)
            assert row.seed_spread.delta.seeds == 2
            assert row.delta_ci95 is row.p is None, "of two random sets there is no interval"
            assert not row.mcnemar
        else:
            assert list(row.mcnemar) == ["de", "fr"]
            for lang, sides in row.mcnemar.items():
                gained = sides.own.gained - sides.own.lost
                assert 100 * gained / 3 == pytest.approx(changes[lang].own)
    # Table 4's last row, a language's own S-FFN, has a random row with the same parts off: its first.
    assert rows[-1].beyond_random.delta == pytest.approx(rows[-1].delta - rows[0].delta)
    assert rows[-1].beyond_random.ci95 is rows[-1].beyond_random.p is None, "of two random sets there is no interval"
    assert rows[-2].beyond_random is None


def test_the_grid_runs_every_split(tiny_folder, neurons, tmp_path, capsys):
    evaluate(tiny_folder, neurons, tmp_path / "grid", "--table", "4", "--n1", "1,2", "--n2", "0,1")
    printed = capsys.readouterr().out
    (grid,) = tables(tmp_path / "grid").tables
    assert (grid.kind, grid.stages) == ("grid", None)
    assert (grid.provenance.settings.n1, grid.provenance.settings.n2) == ((1, 2), (0, 1))
    rows = grid.rows
    own = [row for row in TABLES[4].rows if row.neurons == "lang-spec"]
    assert [(r.understanding, r.generation) for r in rows[:: len(own)]] == [(1, 0), (1, 1), (2, 0), (2, 1)]
    assert len(rows) == 4 * len(own)
    assert printed.count("N2 = 1") == len(own)
    known = [row for row in rows if row.p is not None]
    np.testing.assert_allclose([row.p_holm for row in known], holm([row.p for row in known]))
    evaluate(tiny_folder, neurons, tmp_path / "one", "--table", "4", "--n1", "2", "--n2", "1")
    one = tables(tmp_path / "one").rows
    for row in rows[-len(own) :]:
        (same,) = [r for r in one if r.neurons == "lang-spec" and r.off == row.off]
        assert row.delta == pytest.approx(same.delta)
        assert row.delta_ci95 == (None if same.delta_ci95 is None else pytest.approx(same.delta_ci95))


def test_a_prompt_that_does_not_fit_is_named(tiny_folder, neurons, tmp_path, capsys):
    folder = tmp_path / "model"
    shutil.copytree(tiny_folder, folder)
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "max_position_embeddings": 300}))
    evaluate(folder, neurons, tmp_path / "out", "--table", "2", "--allow-other-model", expect=2)
    *warnings, error = capsys.readouterr().err.splitlines()
    assert "tokens with its answer, the model's context is 300" in error
    assert [line.startswith("mwork: warning: the neurons of ") for line in warnings] == [True, True]
    assert not (tmp_path / "out").exists()


def test_a_table_s_stand_in_is_named(tiny_folder, neurons, tmp_path, monkeypatch, capsys):
    def answers(model, prompts, masks, **_):
        return [["a"] * len(prompts)] * len(masks)

    monkeypatch.setattr("mwork_jax.evaluate.evaluations.generations", answers)
    evaluate(tiny_folder, neurons, tmp_path, "--table", "5")
    assert "table 5: no data of xlsum there; headlines stands in for it" in capsys.readouterr().err
    (table,) = tables(tmp_path).tables
    assert (table.task.name, table.task.score) == ("headlines", "rouge_l")
    assert {(row.n_items, row.n_clusters) for row in table.rows} == {(9, 3)}
    assert not any(row.mcnemar for row in table.rows), "it has no right and wrong"


def test_news_of_several_languages_are_no_translations(tiny_folder, neurons, tmp_path, monkeypatch):
    """MasakhaNEWS: each language's articles are others, so no two items are one cluster."""
    for name in ("eng", "swa"):
        (tmp_path / name).mkdir()
        with (tmp_path / name / "test.tsv").open("w", newline="") as file:
            texts = [["c", f"Title {i}", f"Text {i} of {name}.", "u"] for i in range(4)]
            csv.writer(file, delimiter="\t").writerows([["category", "headline", "text", "url"], *texts])
    monkeypatch.setattr(
        "mwork_jax.evaluate.evaluations.generations",
        lambda model, prompts, masks, **_: [["Title 1"] * len(prompts)] * len(masks),
    )
    settings = TableSettings(("en", "sw"), 4, seeds=1)
    evaluations = prepare_table(TABLES[5], tmp_path, settings)
    assert not set(evaluations["en"].item_ids) & set(evaluations["sw"].item_ids)
    sets = {"sw": sets_in(neurons)["de"]}
    model = mw.load_model(tiny_folder)
    results = run_table(model, TABLES[5], evaluations, sets, settings, ResultCache(tmp_path / "cache"))
    assert {(row.n_items, row.n_clusters) for row in results.rows} == {(8, 8)}


CHAT = "{{ bos_token }}{% for m in messages %}[{{ m.role }}] {{ m.content }}\n{% endfor %}[model] "


def test_tables_of_one_model_gather_in_a_folder(tiny_folder, neurons, four, tmp_path, capsys):
    out = tmp_path / "out"
    shutil.copytree(four, out)
    two = ("--languages", "en,de", "--seeds", "1")
    for more in ((*two, "--table", "3", "--items", "2"), (*two, "--table", "4", "--n1", "1,2"), ("--table", "4")):
        evaluate(tiny_folder, neurons, out, *more)
    results = tables(out)
    assert [table.identity for table in results.tables] == [
        ("table", 3, "mgsm"), ("grid", 4, "xcsqa"), ("table", 4, "xcsqa"),
    ]  # fmt: skip
    assert results.rows == tuple(row for table in results.tables for row in table.rows)
    assert results.provenance == results.tables[-1].provenance
    assert [table.provenance.settings.items for table in results.tables] == [2, 3, 3]
    assert [table.provenance.command[-2:] for table in results.tables] == [
        ("--items", "2"),
        ("--n1", "1,2"),
        ("--table", "4"),
    ]
    assert (out / "table.txt").read_text().count("Table ") == 3
    shutil.copytree(tiny_folder, tmp_path / "model")
    config = json.loads((tiny_folder / "config.json").read_text())
    (tmp_path / "model" / "config.json").write_text(json.dumps({**config, "rms_norm_eps": 0.5}))
    before = (out / "results.json").read_bytes()
    capsys.readouterr()
    evaluate(tmp_path / "model", neurons, out, "--table", "4", "--allow-other-model", expect=2)
    errors = capsys.readouterr().err
    assert "tables of another model" in errors.splitlines()[-1]
    assert "Traceback" not in errors
    assert (out / "results.json").read_bytes() == before


def test_one_file_is_not_taken_for_every_language(tiny_folder, neurons, tmp_path, capsys):
    row = {"context": "Der Hund ist rot.", "qas": [{"id": "a", "question": "Was?", "answers": [
        {"text": "Der Hund", "answer_start": 0}]}]}  # fmt: skip
    path = tmp_path / "xquad.de.json"
    path.write_text(json.dumps({"data": [{"paragraphs": [row]}]}))
    evaluate(tiny_folder, neurons, tmp_path / "out", "--table", "2", "--data", path, expect=2)
    assert "xquad.de.json: one file, where en, de, fr need one each; give their folder" in capsys.readouterr().err


def test_prompts_go_through_the_chat_template(tiny_folder, neurons, tmp_path, capsys):
    evaluate(tiny_folder, neurons, tmp_path / "out", "--table", "4", "--chat", expect=2)
    assert "the model has no chat template" in capsys.readouterr().err
    folder = tmp_path / "model"
    shutil.copytree(tiny_folder, folder)
    (folder / "chat_template.jinja").write_text(CHAT)
    model = mw.load_model(folder)
    assert model.chat_prompt("Q") == "[user] Q\n[model] "
    assert list(model.encode(model.chat_prompt("Q"))).count(1) == 1, "one BOS"
    evaluation = prepare(TASKS["xcsqa"], None, TableSettings(("en", "de"), 2))["de"]
    chat = evaluation.as_chat(model)
    assert chat.prompts == tuple(f"[user] {prompt}\n[model] " for prompt in evaluation.prompts)
    assert chat.key != evaluation.key
    thinking = "{% if enable_thinking is not defined or enable_thinking %}<think>{% endif %}"
    (folder / "chat_template.jinja").write_text(CHAT + thinking)
    assert mw.load_model(folder).chat_prompt("Q") == "[user] Q\n[model] ", "the answer begins at once"
    evaluate(folder, neurons, tmp_path / "out", "--table", "4", "--chat", "--languages", "en,de", "--items", "1")
    assert tables(tmp_path / "out").tables[0].provenance.settings.chat is True
