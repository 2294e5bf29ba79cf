"""The whole paper on a tiny model: what is measured and what is missing, the budget, going on, and the report."""

import csv
import json
from dataclasses import replace

import numpy as np
import pytest

import mwork_jax as mw
from mwork_jax.cli import main
from mwork_jax.corpus import own_corpus
from mwork_jax.evaluate.likelihood import LogLikelihood
from mwork_jax.paper import PARTS, Cost, plan_of, study_of
from mwork_jax.results import TablesResults, read_results
from mwork_jax.settings import PaperSettings

SETTINGS = PaperSettings(("en", "de"), PARTS, documents=4, held_out=3, max_tokens=48, rule="top_fraction:0.3")


@pytest.fixture(scope="module")
def study():
    return study_of({lang: own_corpus(lang) for lang in ("en", "de")}, None, SETTINGS)


def test_what_is_there_and_what_is_missing(study, tmp_path):
    """Of the project's own data, named as such; a folder's data come first, in the languages that it has."""
    assert list(study.tables) == ["1", "2", "3", "4", "5"]
    assert study.tables["1"].task == study.tables["5"].task == "headlines"
    assert all(part.is_own for part in study.tables.values())
    lines = "\n".join(study.lines)
    assert "neurons are found on the project's own documents" in lines
    assert "Table 5: headlines in place of xlsum, the project's own questions, not a benchmark" in lines
    assert "missing: Table 6: 32 documents to tune on, the paper has up to 800" in lines
    row = {"context": "Der Hund ist rot.", "qas": [{"id": "a", "question": "Was?", "answers": [
        {"text": "Der Hund", "answer_start": 0}]}]}  # fmt: skip
    for lang in ("en", "de"):
        (tmp_path / f"xquad.{lang}.json").write_text(json.dumps({"data": [{"paragraphs": [row]}]}))
    corpora = {lang: own_corpus(lang) for lang in ("en", "de", "th")}
    asked = replace(SETTINGS, languages=("en", "de", "th"), parts=("2", "4"))
    mixed = study_of(corpora, tmp_path, asked)
    assert (list(mixed.tables["2"].items), mixed.tables["2"].is_own) == (["en", "de"], False)
    assert (list(mixed.tables["4"].items), mixed.tables["4"].is_own) == (["en", "de", "th"], True)


def test_the_budget_is_shared_out(study):
    """Each table gets the same time as long as it has items, never fewer than an interval needs."""
    costs = {"detection": Cost(100.0), "2": Cost(10.0, 30.0), "4": Cost(10.0, 1.0), "5": Cost(10.0, 10.0)}
    sizes = {name: study.tables[name].available for name in ("2", "4", "5")}

    def items(budget):
        settings = replace(SETTINGS, parts=("2", "4", "5"), budget=budget)
        return plan_of(study, settings, costs).items

    assert items(1e9) == sizes
    assert items(1.0) == {name: study.tables[name].fewest for name in sizes}
    assert all(n >= 4 for n in items(1.0).values())
    some = items(500.0)
    # All items of the cheapest tables take less than their share; what they leave is for the other one.
    left = 500 - 130 - sizes["4"] - 10 * sizes["5"]
    assert some == {"2": int(left / 30), "4": sizes["4"], "5": sizes["5"]}
    assert sum(costs[name].seconds(n) for name, n in some.items()) + 100 <= 500
    tuned = {"4": costs["4"], "6": Cost(10.0, 100.0, 2.0)}
    asked = replace(SETTINGS, parts=("4", "6"), tuning=(8, 16, 32))
    whole = plan_of(study, asked, tuned)
    assert (whole.tuning, whole.tuning_tasks) == ((8, 16, 32), True)
    assert whole.seconds["6"] == 10 + 2 * 56 + 100 * whole.items["4"]
    for budget, documents in ((110.0, (8, 16)), (40.0, (8,)), (20.0, (5,)), (1.0, (4,))):
        small = plan_of(study, replace(asked, budget=budget), tuned)
        assert (small.tuning, small.tuning_tasks) == (documents, False)
    fixed = plan_of(study, replace(SETTINGS, parts=("2",), items=5), {"2": costs["2"]})
    assert fixed.items == {"2": 5}


def test_few_items_are_of_as_many_passages_as_can_be():
    part = study_of({lang: own_corpus(lang) for lang in ("en", "de")}, None, SETTINGS).tables["2"]
    for evaluation in part.first(5).values():
        assert len(set(evaluation.item_ids)) == 5
    whole = part.first(part.available)
    assert all(sorted(one.items, key=str) == sorted(part.items[lang].items, key=str) for lang, one in whole.items())
    few = part.first(part.available - 1)
    assert all(
        one.items == whole[lang].items[:-1] and one.prompts == whole[lang].prompts[:-1] for lang, one in few.items()
    )
    assert part.fewest == 4


OPTIONS = (
    "--languages", "en,de", "--documents", "4", "--held-out", "3", "--max-tokens", "48", "--rule", "top_fraction:0.3",
    "--seeds", "5",
)  # fmt: skip


def paper(model, out, *more, expect=0):
    assert main(["paper", "--model", str(model), "--out", str(out), *OPTIONS, *more]) == expect


@pytest.fixture(scope="module")
def likelihoods():
    """Choices scored by chance, as compiling would take most of the time."""

    def scored(model, contexts, continuations, masks, **_):
        numbers = np.random.default_rng(0).normal(size=(len(masks), len(contexts)))
        return [LogLikelihood(nats, np.ones(nats.size, int), np.ones(nats.size, int)) for nats in numbers]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("mwork_jax.evaluate.evaluations.log_likelihoods", scored)
        patch.setattr("mwork_jax.evaluate.evaluations.generations", lambda model, prompts, masks, **_: [
            [str(n % 3 + m % 2) for n in range(len(prompts))] for m in range(len(masks))
        ])  # fmt: skip
        yield


@pytest.fixture(scope="module")
def done(tiny_folder, likelihoods, tmp_path_factory):
    out = tmp_path_factory.mktemp("paper")
    paper(tiny_folder, out, "--items", "6", "--tables", "1,2,4,grid")
    return out


def test_every_part_has_its_folder_and_all_one_report(done):
    for name, kind, number in (("table-1", "table", 1), ("table-2", "table", 2), ("grid", "grid", 2)):
        results = read_results(done / name / "results.json")
        assert isinstance(results, TablesResults)
        (table,) = results.tables
        assert (table.kind, table.table) == (kind, number)
        assert {data.items for data in table.provenance.data.values()} == {6}
        assert table.provenance.command[:2] == ("mwork", "paper")
    assert read_results(done / "table-1" / "results.json").tables[0].neurons["de"].mode == "all"
    assert read_results(done / "table-2" / "results.json").tables[0].neurons["de"].mode == "minus_english"
    report = mw.read_report(done)
    assert {"verdicts", "printed-2", "printed-4", "table-1-headlines", "delta-held-out-loss"} <= set(report.tables)
    page = (done / "report.html").read_text()
    assert "What the paper says" in page
    assert "printed" in page
    rows = list(csv.DictReader((done / "figures" / "verdicts.csv").open()))
    assert len(rows) == 16
    kinds = {row["verdict"] for row in rows}
    assert kinds <= {"supported", "contradicted", "not decided", "not measured"}
    assert all((row["verdict"] == "not measured") == (row["table"] in "356") for row in rows)
    printed = report.tables["printed-2"]
    assert [row[5] for row in printed.rows[:3]] == ["here", "Vicuna", "Mistral"]
    assert [cell for row in printed.rows for cell in row if cell.endswith("!")] == ["-15.9!", "-0.4!", "-0.5!"]
    assert "row 4 would read +0.4" in printed.note


def test_it_goes_on_and_refuses_another_study(done, tiny_folder, monkeypatch, capsys):
    kept = {p: p.read_bytes() for p in done.glob("*/results.json")}
    for name in ("log_likelihoods", "generations", "held_out_losses"):
        monkeypatch.setattr(f"mwork_jax.evaluate.evaluations.{name}", lambda *a, **k: pytest.fail("computed again"))
    (done / "table-2" / "results.json").unlink()
    paper(tiny_folder, done, "--items", "6", "--tables", "1,2,4,grid")
    assert {p: p.read_bytes() for p in done.glob("*/results.json")} == kept
    capsys.readouterr()
    paper(tiny_folder, done, "--items", "5", "--tables", "2", expect=2)
    error = capsys.readouterr().err.splitlines()[-1]
    assert "paper.json: begun with items 6, now 5 is asked; go on with the same" in error
    (done / "broken").mkdir()
    (done / "broken" / "paper.json").write_text('{"settings": 1}')
    paper(tiny_folder, done / "broken", "--items", "6", "--tables", "4", expect=2)
    assert "paper.json: damaged" in capsys.readouterr().err
    (done / "broken" / "paper.json").unlink()


def test_what_it_would_cost_is_said_first(tiny_folder, likelihoods, tmp_path, capsys):
    paper(tiny_folder, tmp_path, "--budget", "2min", "--tables", "4", "--estimate")
    said = capsys.readouterr().out
    assert "Table 4: xcsqa, the project's own questions" in said
    assert "in all about" in said
    assert not list(tmp_path.rglob("*.json")), "an estimate settles nothing"
    paper(tiny_folder, tmp_path, "--budget", "2min", "--tables", "4", "--estimate", "--json")
    plan = json.loads(capsys.readouterr().out)
    assert (plan["settings"]["budget"], list(plan["items"])) == (120.0, ["4"])


BAD = {
    "tables": (("--tables", "2,7"), "'7' is not known; choose some of 1,2,3,4,5,grid,lens,6"),
    "budget": (("--budget", "soon"), "a time is needed, as in 2h, 30min or 1.5h"),
    "both": (("--budget", "2h", "--items", "9"), "one of them"),
    "tuning": (("--tuning", "100,x"), "numbers of documents are needed"),
    "corpus": (("--corpus", "en=nowhere.txt"), "--corpus has no documents of de"),
    "data": (("--data", "nowhere"), "nowhere: no such file or folder"),
    "documents": (("--documents", "99"), "99 detection documents asked"),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_input_is_one_line(case, tiny_folder, tmp_path, capsys):
    more, message = BAD[case]
    arguments = [*OPTIONS] if case != "documents" else [*OPTIONS[:2], *OPTIONS[4:]]
    assert main(["paper", "--model", str(tiny_folder), "--out", str(tmp_path / "out"), *arguments, *more]) == 2
    errors = capsys.readouterr().err
    assert message in errors
    assert errors.count("\n") == 1
    assert not (tmp_path / "out").exists()
