"""Tables 2 to 5 on a small model: every cell once, the same again, and the numbers worked out by hand."""

import json
import shutil

import numpy as np
import pytest

import mwork_jax as mw
from mwork_jax.cli import main
from mwork_jax.evaluate.likelihood import log_likelihood
from mwork_jax.evaluate.paper_tables import TABLES
from mwork_jax.evaluate.table_run import SweepSettings, prepare
from mwork_jax.evaluate.tasks import TASKS, continuations
from mwork_jax.intervene.stages import StageSplit

SETTINGS = ("--languages", "en,de,th", "--items", "3", "--seeds", "2")


@pytest.fixture(scope="module")
def neurons(tiny_folder, tmp_path_factory):
    out = tmp_path_factory.mktemp("neurons")
    run = (
        "--languages",
        "en,de,th",
        "--documents",
        "2",
        "--held-out",
        "1",
        "--seeds",
        "1",
        "--rule",
        "top_fraction:0.3",
    )
    assert main(["run", "--model", str(tiny_folder), "--out", str(out), *run]) == 0
    return out


def evaluate(model, neurons, out, *more, expect=0):
    arguments = ["evaluate", "--model", model, "--neurons", neurons, "--out", out, *SETTINGS, *more]
    assert main([str(a) for a in arguments]) == expect


@pytest.mark.parametrize("number", [2, 4])
def test_a_table_has_the_paper_s_rows(number, tiny_folder, neurons, tmp_path, capsys):
    evaluate(tiny_folder, neurons, tmp_path, "--table", number)
    printed = capsys.readouterr().out
    results = json.loads((tmp_path / "results.json").read_text())
    rows = results["rows"]
    assert len(rows) == len(TABLES[number].rows)
    for row, declared in zip(rows, TABLES[number].rows, strict=True):
        off = declared.setting
        assert (row["under"], row["s_attn"], row["s_ffn"], row["gen"]) == (off.under, off.s_attn, off.s_ffn, off.gen)
        assert row["neurons"] == declared.neurons
        assert row["seeds"] == (2 if declared.neurons == "random" else 0)
        assert row["delta"] == pytest.approx(row["delta_eng"] - row["delta_n_eng"])
        assert row["n_items"] == 9
        assert row["languages"] == ["de", "th"]
    assert f"PaperTable {number}" in printed
    assert printed.count("Lang-Spec") == sum(r.neurons == "lang-spec" for r in TABLES[number].rows)


def test_a_row_equals_doing_it_by_hand(tiny_folder, neurons, tmp_path):
    evaluate(tiny_folder, neurons, tmp_path, "--table", "4")
    row = json.loads((tmp_path / "results.json").read_text())["rows"][-1]  # a language's own neurons, S-FFN
    model = mw.load_model(tiny_folder)
    task, split = TASKS["xcsqa"], StageSplit.default(4)
    evaluations = prepare(task, None, SweepSettings(("en", "de", "th"), 3))
    keep = mw.NeuronMask.keep_all(model.config)

    def accuracy(language, mask):
        right = []
        for item, prompt in zip(evaluations[language].items, evaluations[language].prompts, strict=True):
            options = continuations(task, item)
            said = log_likelihood(model, [prompt] * len(options), options, mask)
            right.append(said.scores(_normalisation(task)).argmax() == item.answer)
        return 100 * np.mean(right)

    changes = {"en": [], "n-en": []}
    for language in ("de", "th"):
        own = TABLES[4].rows[-1].setting.choose(mw.NeuronSet.load(neurons / "neurons" / f"{language}.json"), split)
        assert own.count() > 0
        changes["en"].append(accuracy("en", keep.drop(own)) - accuracy("en", keep))
        changes["n-en"].append(accuracy(language, keep.drop(own)) - accuracy(language, keep))
    assert row["delta_eng"] == pytest.approx(np.mean(changes["en"]))
    assert row["delta_n_eng"] == pytest.approx(np.mean(changes["n-en"]))


def _normalisation(task):
    return task.scores[0].removeprefix("accuracy_")


def test_finished_cells_are_never_computed_again(tiny_folder, neurons, tmp_path, monkeypatch):
    evaluate(tiny_folder, neurons, tmp_path, "--table", "4")
    before = (tmp_path / "results.json").read_bytes()
    monkeypatch.setattr("mwork_jax.evaluate.evaluations.log_likelihoods", lambda *a, **k: pytest.fail("computed again"))
    evaluate(tiny_folder, neurons, tmp_path, "--table", "4")
    assert (tmp_path / "results.json").read_bytes() == before


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


def test_a_run_s_results_are_not_overwritten(tiny_folder, neurons, capsys):
    evaluate(tiny_folder, neurons, neurons, "--table", "4", expect=2)
    assert "holds the results of `mwork run`" in capsys.readouterr().err


def test_rows_say_how_sure_they_are(tiny_folder, neurons, tmp_path, capsys):
    evaluate(tiny_folder, neurons, tmp_path, "--table", "4")
    captured = capsys.readouterr()
    assert "programs compiled" in captured.err
    results = json.loads((tmp_path / "results.json").read_text())
    rows, (table,) = results["rows"], results["tables"]
    assert table["data"]["de"]["items"] == 3
    assert (tmp_path / "table.txt").read_text() in captured.out
    from mwork_jax.metrics import benjamini_hochberg, holm

    np.testing.assert_allclose([row["p_holm"] for row in rows], holm([row["p"] for row in rows]))
    tests = [test for row in rows for sides in row.get("mcnemar", {}).values() for test in sides.values()]
    np.testing.assert_allclose([t["p_bh"] for t in tests], benjamini_hochberg([t["p"] for t in tests]))
    for row in rows:
        changes = row["by_language"]
        assert row["delta_n_eng"] == pytest.approx(np.mean([changes[lang]["own"] for lang in ("de", "th")]))
        assert row["delta_eng"] == pytest.approx(np.mean([changes[lang]["english"] for lang in ("de", "th")]))
        if row["neurons"] == "random":
            assert row["seed_spread"]["delta"]["mean"] == pytest.approx(row["delta"])
            assert row["seed_spread"]["delta"]["seeds"] == 2
        else:
            for lang, sides in row["mcnemar"].items():
                gained = sides["own"]["gained"] - sides["own"]["lost"]
                assert 100 * gained / 3 == pytest.approx(changes[lang]["own"])
    # Table 4's last row, a language's own S-FFN, has a random row with the same parts off: its first.
    assert rows[-1]["beyond_random"]["delta"] == pytest.approx(rows[-1]["delta"] - rows[0]["delta"])
    assert "beyond_random" not in rows[-2]


def test_the_grid_runs_every_split(tiny_folder, neurons, tmp_path, capsys):
    evaluate(tiny_folder, neurons, tmp_path / "grid", "--table", "4", "--n1", "1,2", "--n2", "0,1")
    printed = capsys.readouterr().out
    rows = json.loads((tmp_path / "grid" / "results.json").read_text())["rows"]
    own = [row for row in TABLES[4].rows if row.neurons == "lang-spec"]
    assert [(r["understanding"], r["generation"]) for r in rows[:: len(own)]] == [(1, 0), (1, 1), (2, 0), (2, 1)]
    assert len(rows) == 4 * len(own)
    assert printed.count("N2 = 1") == len(own)
    evaluate(tiny_folder, neurons, tmp_path / "one", "--table", "4", "--n1", "2", "--n2", "1")
    one = json.loads((tmp_path / "one" / "results.json").read_text())["rows"]
    for row in rows[-len(own) :]:
        (same,) = [r for r in one if r["neurons"] == "lang-spec" and all(r[s] == row[s] for s in ("s_attn", "s_ffn"))]
        assert row["delta"] == pytest.approx(same["delta"])


def test_a_prompt_that_does_not_fit_is_named(tiny_folder, neurons, tmp_path, capsys):
    folder = tmp_path / "model"
    shutil.copytree(tiny_folder, folder)
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "max_position_embeddings": 300}))
    evaluate(folder, neurons, tmp_path / "out", "--table", "2", expect=2)
    errors = capsys.readouterr().err
    assert "tokens with its answer, the model's context is 300" in errors
    assert errors.count("\n") == 1
    assert not (tmp_path / "out").exists()


def test_a_table_s_stand_in_is_named(tiny_folder, neurons, tmp_path, monkeypatch, capsys):
    def answers(model, prompts, masks, **_):
        return [["a"] * len(prompts)] * len(masks)

    monkeypatch.setattr("mwork_jax.evaluate.evaluations.generations", answers)
    evaluate(tiny_folder, neurons, tmp_path, "--table", "5")
    assert "table 5: no data of xlsum there; headlines stands in for it" in capsys.readouterr().err
    assert json.loads((tmp_path / "results.json").read_text())["tables"][0]["task"]["name"] == "headlines"


CHAT = "{{ bos_token }}{% for m in messages %}[{{ m.role }}] {{ m.content }}\n{% endfor %}[model] "


def test_tables_of_one_model_gather_in_a_folder(tiny_folder, neurons, tmp_path, capsys):
    for more in (("--table", "4"), ("--table", "3", "--items", "2"), ("--table", "4", "--n1", "1,2"), ("--table", "4")):
        evaluate(tiny_folder, neurons, tmp_path / "out", *more)
    results = json.loads((tmp_path / "out" / "results.json").read_text())
    assert [(t["table"], "stages" in t) for t in results["tables"]] == [(3, True), (4, False), (4, True)]
    assert len(results["rows"]) == sum(len(t["rows"]) for t in results["tables"])
    assert (tmp_path / "out" / "table.txt").read_text().count("PaperTable ") == 3
    shutil.copytree(tiny_folder, tmp_path / "model")
    config = json.loads((tiny_folder / "config.json").read_text())
    (tmp_path / "model" / "config.json").write_text(json.dumps({**config, "rms_norm_eps": 0.5}))
    before = (tmp_path / "out" / "results.json").read_bytes()
    evaluate(tmp_path / "model", neurons, tmp_path / "out", "--table", "4", expect=2)
    assert "tables of another model" in capsys.readouterr().err
    assert (tmp_path / "out" / "results.json").read_bytes() == before


def test_one_file_is_not_taken_for_every_language(tiny_folder, neurons, tmp_path, capsys):
    row = {"context": "Der Hund ist rot.", "qas": [{"id": "a", "question": "Was?", "answers": [
        {"text": "Der Hund", "answer_start": 0}]}]}  # fmt: skip
    path = tmp_path / "xquad.de.json"
    path.write_text(json.dumps({"data": [{"paragraphs": [row]}]}))
    evaluate(tiny_folder, neurons, tmp_path / "out", "--table", "2", "--data", path, expect=2)
    assert "xquad.de.json: one file, where en, de, th need one each; give their folder" in capsys.readouterr().err


def test_prompts_go_through_the_chat_template(tiny_folder, neurons, tmp_path, capsys):
    evaluate(tiny_folder, neurons, tmp_path / "out", "--table", "4", "--chat", expect=2)
    assert "the model has no chat template" in capsys.readouterr().err
    folder = tmp_path / "model"
    shutil.copytree(tiny_folder, folder)
    (folder / "chat_template.jinja").write_text(CHAT)
    model = mw.load_model(folder)
    assert model.chat_prompt("Q") == "[user] Q\n[model] "
    assert list(model.encode(model.chat_prompt("Q"))).count(1) == 1, "one BOS"
    evaluation = prepare(TASKS["xcsqa"], None, SweepSettings(("en", "de"), 2))["de"]
    chat = evaluation.as_chat(model)
    assert chat.prompts == tuple(f"[user] {prompt}\n[model] " for prompt in evaluation.prompts)
    assert chat.key != evaluation.key
    thinking = "{% if enable_thinking is not defined or enable_thinking %}<think>{% endif %}"
    (folder / "chat_template.jinja").write_text(CHAT + thinking)
    assert mw.load_model(folder).chat_prompt("Q") == "[user] Q\n[model] ", "the answer begins at once"
    evaluate(folder, neurons, tmp_path / "out", "--table", "4", "--chat")
    assert json.loads((tmp_path / "out" / "results.json").read_text())["tables"][0]["settings"]["chat"] is True
