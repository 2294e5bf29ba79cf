"""Tables 2 to 5 on a small model: every result once, the same again, and the numbers worked out by hand."""

import csv
import json
import shutil
from dataclasses import replace

import numpy as np
import pytest

import mwork_jax as mw
from mwork_jax.cli import main
from mwork_jax.evaluate.likelihood import LogLikelihood, log_likelihood
from mwork_jax.evaluate.table_files import TABLES
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
    """Table 2 generates, in one language besides English, as each shape is compiled; Table 4 scores choices."""
    out, languages, less = (four, ("de", "fr"), ()) if number == 4 else (tmp_path, ("de",), ("--languages", "en,de"))
    evaluate(tiny_folder, neurons, out, *less, "--table", number)
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
        assert (row.n_items, row.n_clusters) == (3 * (1 + len(languages)), 3), "3 items in each language"
        assert row.languages == languages
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


def test_every_answer_is_saved_and_comes_from_the_cache(tiny_folder, neurons, four, tmp_path, monkeypatch):
    """Each item under each row's sets: the score is the row's, the answer the choice that was scored."""
    monkeypatch.setattr("mwork_jax.evaluate.evaluations.log_likelihoods", lambda *a, **k: pytest.fail("computed again"))
    path = four / "samples" / "table-4-xcsqa.jsonl"
    samples, (table,) = mw.read_samples(path), tables(four).tables
    assert len(samples) == 9
    german = [sample for sample in samples if sample.language == "de"]
    items = prepare_table(TABLES[4], None, TableSettings(("en", "de", "fr"), 3, seeds=2))["de"]
    assert [sample.prompt for sample in german] == list(items.prompts)
    for sample, item in zip(german, items.items, strict=True):
        options = TASKS["xcsqa"].options(item)
        assert sample.references == (options[item.answer],)
        for answer in sample.answers:
            assert answer.answer in options
            assert (answer.score == 100.0) == (answer.answer == options[item.answer])
    for row in table.rows:
        off = "+".join(p for p, o in zip(("under", "s_attn", "s_ffn", "gen"), row.off, strict=True) if o)
        under = "random" if row.neurons == "random" else "own"
        change = [
            np.mean([a.score for a in s.answers if (a.under, a.neurons, a.setting) == (under, "de", off)])
            - s.answers[0].score
            for s in german
        ]
        assert np.mean(change) == pytest.approx(row.by_language["de"].own)
    before = path.read_bytes()
    evaluate(tiny_folder, neurons, four, "--table", "4")
    assert path.read_bytes() == before
    evaluate(tiny_folder, neurons, four, "--table", "4", "--no-log-samples")
    assert not path.exists()
    evaluate(tiny_folder, neurons, four, "--table", "4")
    assert path.read_bytes() == before


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
    """Right or wrong of each item with these neurons off and no others in the batch, as points."""
    mask = NeuronMask.keep_all(model.config).drop(neurons)
    options = [continuations(evaluation.task, item) for item in evaluation.items]
    prompts = [prompt for prompt, of in zip(evaluation.prompts, options, strict=True) for _ in of]
    answers = log_likelihood(model, prompts, [option for of in options for option in of], mask)
    each = np.split(answers.scores(_normalisation(evaluation.task)), np.cumsum([len(of) for of in options])[:-1])
    return 100.0 * np.asarray([a.argmax() == i.answer for a, i in zip(each, evaluation.items, strict=True)])


def test_a_row_equals_doing_it_by_hand(tiny_folder, neurons, tmp_path):
    """A language's own S-FFN and the random sets of the same parts, each set on its own."""
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
    "language": (("--table", "4", "--languages", "en,it"), "no built-in data for language 'it'"),
    "English alone": (("--table", "4", "--languages", "en"), "must include another one than en"),
    "no table": ((), "--table, --loss or --lm-eval: one is needed"),
    "two folders": (("--table", "4", "--data", "a", "b"), "one folder, where a task is measured"),
    "loss and task": (("--loss", "--task", "mgsm"), "one of them"),
    "documents": (("--loss", "--data", "de=nowhere.txt"), "nowhere.txt: no such file"),
    "documents of a language": (("--loss", "--data", "de=README.md"), "--data has no documents of en, fr"),
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


SHARING = """
table = "sharing"
task = "xcsqa"
statistics = ["beyond-random", "by-language"]
rows = [
  {off = ["s_ffn", "gen"], neurons = "shared"},
  {off = ["s_ffn", "gen"], neurons = "random", like = "shared"},
  {off = ["s_ffn", "gen"], neurons = "exclusive"},
  {off = ["s_ffn", "gen"], neurons = "union"},
  {off = ["s_ffn", "gen"], neurons = "lang-spec", scale = 0.5},
]
"""


def test_a_table_of_one_s_own(tiny_folder, neurons, tmp_path, capsys):
    """Which sets each kind of row switches off, against sets put together by hand and measured one by one."""
    (tmp_path / "mine.toml").write_text(SHARING)
    evaluate(tiny_folder, neurons, tmp_path / "out", "--table", tmp_path / "mine.toml")
    captured = capsys.readouterr()
    assert "Table sharing: xcsqa" in captured.out
    (table,) = tables(tmp_path / "out").tables
    assert (table.table, [row.neurons for row in table.rows]) == (
        "sharing", ["shared", "random", "exclusive", "union", "lang-spec"],
    )  # fmt: skip
    sets, model = sets_in(neurons), mw.load_model(tiny_folder)
    evaluations = prepare(TASKS["xcsqa"], None, TableSettings(("en", "de", "fr"), 3))
    split, setting = StageSplit.default(4), TABLES[4].rows[0].setting
    off = replace(setting, gen=True)
    both = sets["de"] & sets["fr"]
    for row, by_hand in (
        (table.rows[0], {"de": both, "fr": both}),
        (table.rows[2], {"de": sets["de"] - sets["fr"], "fr": sets["fr"] - sets["de"]}),
        (table.rows[3], dict.fromkeys(("de", "fr"), sets["de"] | sets["fr"])),
    ):
        for language, own in by_hand.items():
            expected = accuracy(model, evaluations[language], off.choose(own, split)).mean()
            before = table.original[language][table.task.score]
            assert row.by_language[language].own == pytest.approx(expected - before)
    assert table.rows[0].beyond_random.delta == pytest.approx(table.rows[0].delta - table.rows[1].delta)
    assert table.rows[1].like == "shared"
    assert table.rows[2].beyond_random is None, "no random row is matched to it"
    assert table.rows[4].scale == 0.5
    assert not any(row.mcnemar or row.seed_spread for row in table.rows), "not asked for"
    assert "Lang-Spec ×0.5" in captured.out
    path = tmp_path / "out" / "samples" / "table-sharing-xcsqa.jsonl"
    settings = {answer.setting for answer in mw.read_samples(path)[0].answers}
    assert {"s_ffn+gen, shared neurons", "s_ffn+gen x 0.5", "s_ffn+gen, union neurons"} <= settings
    assert mw.read_report(tmp_path / "out").write().exists()
    evaluate(
        tiny_folder, neurons, tmp_path / "out", "--table", tmp_path / "mine.toml", "--languages", "en,de", expect=2
    )
    assert "compare the sets of several languages; there is de alone" in capsys.readouterr().err


def test_held_out_loss_of_sets_that_exist(tiny_folder, neurons, tmp_path, capsys):
    """Any text, without detection: scaled and whole, against each set measured alone; without English too."""
    texts = {lang: [text[:80].strip() for text in mw.own_corpus(lang).held_out[:3]] for lang in ("en", "de", "fr")}
    for lang, own in texts.items():
        (tmp_path / f"{lang}.txt").write_text("\n\n".join(own), encoding="utf-8")
    text = 'task = "held-out loss"\n' + SHARING.partition("statistics")[2].join(["statistics", ""])
    (tmp_path / "mine.toml").write_text(text)
    data = [f"{lang}={tmp_path / lang}.txt" for lang in texts]
    evaluate(tiny_folder, neurons, tmp_path / "out", "--table", tmp_path / "mine.toml", "--data", *data)
    (table,) = tables(tmp_path / "out").tables
    model, sets = mw.load_model(tiny_folder), sets_in(neurons)
    off = replace(TABLES[4].rows[0].setting, gen=True)
    part = {lang: off.choose(own, StageSplit.default(4)) for lang, own in sets.items()}

    def loss(lang, edit):
        scores = mw.held_out_loss(model, texts[lang], edit)
        return sum(scores.nats) / sum(scores.tokens)

    nothing = NeuronMask.keep_all(model.config)
    half = {lang: mw.Intervention.none(model.config).scale(own, 0.5) for lang, own in part.items()}
    row = table.rows[4]
    assert table.original["de"]["nats_per_token"] == pytest.approx(loss("de", nothing), rel=1e-5)
    for lang in ("de", "fr"):
        assert row.by_language[lang].own == pytest.approx(loss(lang, nothing) - loss(lang, half[lang]), abs=1e-5)
        assert row.by_language[lang].english == pytest.approx(loss("en", nothing) - loss("en", half[lang]), abs=1e-5)
    assert (row.n_items, table.provenance.data["de"].origin) == (9, f"{tmp_path / 'de'}.txt")
    capsys.readouterr()
    evaluate(tiny_folder, neurons, tmp_path / "two", "--loss", "--languages", "de,fr", "--data", *data[1:])
    captured = capsys.readouterr()
    assert "no English there; Delta needs it" in captured.err
    assert "Without English there is no Δ" in captured.out
    (without,) = tables(tmp_path / "two").tables
    assert (without.table, len(without.rows)) == ("loss", 10)
    for row in without.rows:
        assert row.eng is row.delta_eng is row.delta is row.delta_ci95 is None
        assert row.delta_n_eng == pytest.approx(np.mean([change.own for change in row.by_language.values()]))
        assert all(change.english is None for change in row.by_language.values())
    own, random = without.rows[1], without.rows[0]
    assert own.beyond_random.delta == pytest.approx(random.delta_n_eng - own.delta_n_eng)
    assert random.seed_spread.delta is None
    assert mw.read_report(tmp_path / "two").write().exists()


def test_a_task_without_english(tiny_folder, tmp_path, monkeypatch, capsys):
    """XCOPA has none: the table says what becomes of the languages; COPA's test set gives Delta back."""

    def likelihoods(model, contexts, continuations, masks, **_):
        numbers = np.random.default_rng(0).normal(size=(len(masks), len(contexts)))
        return [LogLikelihood(nats, np.ones(nats.size, int), np.ones(nats.size, int)) for nats in numbers]

    monkeypatch.setattr("mwork_jax.evaluate.evaluations.log_likelihoods", likelihoods)
    row = {
        "premise": "Es regnet.",
        "choice1": "Es ist nass.",
        "choice2": "Es ist rot.",
        "question": "effect",
        "label": 0,
    }
    lines = "\n".join(json.dumps({**row, "label": 0, "idx": n}) for n in range(3))
    (tmp_path / "test.th.jsonl").write_text(lines)
    (tmp_path / "neurons").mkdir()
    save_neurons(tmp_path, mw.load_model(tiny_folder), ("th",))
    more = ("--table", "4", "--data", tmp_path, "--languages", "en,th")
    evaluate(tiny_folder, tmp_path, tmp_path / "out", *more)
    errors = capsys.readouterr().err
    assert "xcopa stands in for it" in errors
    assert "COPA's test set is XCOPA's English, as test.en.jsonl" in errors
    (table,) = tables(tmp_path / "out").tables
    assert {row.delta for row in table.rows} == {None}
    assert {row.languages for row in table.rows} == {("th",)}
    assert [pair.english for row in table.rows for pair in row.mcnemar.values()] == [None, None]
    (tmp_path / "test.en.jsonl").write_text(lines)
    evaluate(tiny_folder, tmp_path, tmp_path / "out", *more)
    (whole,) = tables(tmp_path / "out").tables
    assert all(row.delta is not None for row in whole.rows)
    assert [row.delta_n_eng for row in whole.rows] == [row.delta_n_eng for row in table.rows]
