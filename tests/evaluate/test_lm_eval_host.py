"""Tasks of lm-evaluation-harness under many masks: the numbers of the harness run once per mask, in one go."""

import json

import numpy as np
import pytest

import mwork_jax as mw
from mwork_jax.cli import main
from mwork_jax.errors import InputError
from mwork_jax.results import LmEvalResults, read_results
from mwork_jax.runtime.cache import ResultCache
from mwork_jax.runtime.progress import Progress
from mwork_jax.samples import read_samples
from mwork_jax.settings import LmEvalSettings
from support.paths import TEST_DATA
from support.slow_deactivation import random_neurons

pytest.importorskip("lm_eval", reason="pip install 'mwork-jax[lm-eval]'")

import lm_eval.tasks
from lm_eval.evaluator import evaluate

from mwork_jax.evaluate import lm_eval_host
from mwork_jax.evaluate.lm_eval_host import LmEvalCondition, conditions_of, lm_eval_tasks, run_lm_eval
from mwork_jax.evaluate.lm_eval_model import MworkLM

TASKS = TEST_DATA / "lm_eval"
NAMES = ("mwork_questions", "mwork_sums", "mwork_endings")


@pytest.fixture(scope="module")
def model(tiny_folder):
    return mw.load_model(tiny_folder, dtype="float32")


@pytest.fixture(scope="module")
def neurons(model):
    return {lang: random_neurons(model.config, share=0.2, seed=i) for i, lang in enumerate(("de", "th"))}


@pytest.fixture
def in_tasks(monkeypatch):
    monkeypatch.chdir(TASKS)  # they name their data by file


@pytest.fixture(scope="module")
def ran(model, neurons, tmp_path_factory):
    """Everything under the original, one language's neurons, random ones and an intervention."""
    folder = tmp_path_factory.mktemp("lm-eval")
    settings = LmEvalSettings(NAMES, ("de",), "under+gen", seeds=1, items=2)
    conditions, off = conditions_of(model, {"de": neurons["de"]}, settings)
    twice = mw.Intervention.none(model.config).scale(neurons["th"], 2.0)
    conditions.append(LmEvalCondition("steered", twice, "", "twice"))
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(TASKS)
        results = run_lm_eval(
            model,
            lm_eval_tasks(NAMES, TASKS),
            conditions,
            settings,
            ResultCache(folder / "cache"),
            neurons=off,
            samples=folder,
            progress=Progress(1, quiet=True),
        )
    return folder, settings, conditions, results


def test_each_condition_has_the_numbers_of_a_run_of_its_own(ran, model, in_tasks):
    _, settings, conditions, results = ran
    for place in (1, 3):
        tasks = lm_eval_tasks(NAMES, TASKS)
        for task in tasks.tasks.values():
            task.set_fewshot_seed(seed=1234)
        edit = conditions[place].edit  # as interventions, which are compiled already
        lm = MworkLM(model, edit if isinstance(edit, mw.Intervention) else mw.Intervention.from_mask(edit))
        alone = evaluate(lm=lm, task_dict=tasks.loaded, limit=settings.items, bootstrap_iters=0).get("results", {})
        rows = [row for row in results.rows if row.under == conditions[place].under]
        assert {row.task for row in rows} == set(alone)
        for row in rows:
            assert row.scores, row.task
            for score in row.scores:
                np.testing.assert_allclose(score.value, alone[row.task][f"{score.metric},{score.filter}"], rtol=1e-4)
    original = {row.task: row.scores for row in results.rows if row.under == "original"}
    changed = [row for row in results.rows if row.under != "original" and row.scores != original[row.task]]
    assert {row.under for row in changed} == {"own", "random", "steered"}


def test_results_say_what_was_asked_of_whom(ran, neurons, tmp_path):
    _, settings, conditions, results = ran
    assert [(one.under, one.neurons, one.setting, one.seed) for one in conditions] == [
        ("original", "", "", None), ("own", "de", "under+gen", None), ("random", "de", "under+gen", 0),
        ("steered", "", "twice", None),
    ]  # fmt: skip
    assert results.tasks["mwork_fewshot"].shots == 2
    assert results.tasks["mwork_choice"].shots == 0
    assert results.tasks["mwork_questions"].output_type == "group"
    assert results.tasks["mwork_sums"].items == settings.items
    assert results.tasks["mwork_endings"].higher_is_better == {"surprise": False, "greedy": True}
    assert results.neurons["de"].count < neurons["de"].count()
    assert results.provenance.data["mwork_sums"].items == 2
    assert "lm-eval" in results.provenance.versions
    mw.write_results(tmp_path / "results.json", results)
    assert read_results(tmp_path / "results.json") == results


def test_every_item_is_kept_with_its_answer_and_metrics(ran):
    folder, _, conditions, results = ran
    choice, sums, endings = (
        read_samples(folder / "samples" / f"lm-eval-mwork_{task}.jsonl") for task in ("choice", "sums", "endings")
    )
    assert [sample.item for sample in choice] == ["0", "1"]
    assert [sample.item for sample in sums] == [f"{n} {rule}" for rule in ("whole", "number") for n in range(2)]
    assert [answer.under for answer in choice[0].answers] == [one.under for one in conditions]
    assert choice[0].answers[0].answer in ("apple", "hammer", "river")
    accuracy = {row.under: row.scores[0].value for row in results.rows if row.task == "mwork_choice"}
    for place, one in enumerate(conditions):
        assert np.mean([s.answers[place].metrics["acc"] for s in choice]) == pytest.approx(accuracy[one.under])
    assert all(a.score == -a.metrics["surprise"] for s in endings for a in s.answers), "lower is better"


def test_what_was_answered_is_not_asked_again(ran, model, in_tasks, monkeypatch):
    folder, settings, conditions, results = ran
    asked = []
    monkeypatch.setattr(lm_eval_host.MworkLM, "answers", lambda *arguments: asked.append(arguments))
    quiet = Progress(1, quiet=True)
    again = run_lm_eval(
        model, lm_eval_tasks(NAMES, TASKS), conditions, settings, ResultCache(folder / "cache"), progress=quiet
    )
    assert asked == []
    assert again.rows == results.rows


def test_the_requests_are_made_once_and_answered_together(model, neurons, in_tasks, monkeypatch, tmp_path):
    built, answered = [], []
    answers = MworkLM.answers

    def counted(self, kind, requests, masks, progress=None):
        answered.append((kind, len(requests), len(masks)))
        return answers(self, kind, requests, masks, progress)

    monkeypatch.setattr(lm_eval_host.MworkLM, "answers", counted)
    tasks = lm_eval_tasks(("mwork_choice",), TASKS)
    task = tasks.tasks["mwork_choice"]
    of_item = task.fewshot_context
    monkeypatch.setattr(task, "fewshot_context", lambda *a, **k: built.append(a) or of_item(*a, **k))
    settings = LmEvalSettings(("mwork_choice",), ("de", "th"), seeds=1, items=2)
    conditions, _ = conditions_of(model, neurons, settings)
    run_lm_eval(model, tasks, conditions, settings, ResultCache(tmp_path), progress=Progress(1, quiet=True))
    assert (len(built), answered) == (2, [("loglikelihood", 6, 5)])


def test_the_command_prints_a_table_and_writes_results(tiny_folder, neurons, in_tasks, tmp_path, capsys):
    for language, own in neurons.items():
        own.save(tmp_path / "found" / "neurons" / f"{language}.json")
    out = tmp_path / "out"
    command = f"evaluate --lm-eval mwork_choice --include-path . --model {tiny_folder} --dtype float32 --off under "
    command += f"--neurons {tmp_path}/found --seeds 1 --items 2 --out {out}"
    assert main(command.split()) == 0
    printed = capsys.readouterr().out
    assert "mwork_choice  acc_norm" in printed
    assert "de random" in printed
    results = read_results(out / "results.json")
    assert isinstance(results, LmEvalResults)
    assert results.provenance.settings.off == "under"
    assert [row.neurons for row in results.rows] == ["", "de", "de", "th", "th"]
    assert main([*command.split(), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["kind"] == "lm_eval"


@pytest.mark.parametrize(
    ("options", "line"),
    [
        ("--lm-eval mwork_choise --include-path .", "'mwork_choise' is no task of lm-evaluation-harness; did you mean"),
        ("--lm-eval mwork_choice --include-path nowhere", "--include-path nowhere: no such folder"),
        ("--lm-eval mwork_choice --include-path . --off under+middle", "'middle' is not one of all, under"),
        ("--lm-eval mwork_choice --include-path . --n1 2,4", "--n1 2,4: with --lm-eval, one number"),
        ("--lm-eval , --include-path .", "--lm-eval: no task"),
        ("--lm-eval mwork_choice --table 2", "not allowed with argument"),
        ("--lm-eval mwork_choice --data hub", "--data belongs to --table"),
        ("--table 2 --off under", "--off belongs to --lm-eval"),
        ("--lm-eval mwork_choice --include-path . --items 0", "lm-eval: items is 0"),
    ],
)  # fmt: skip
def test_wrong_options_are_one_line(options, line, neurons, in_tasks, monkeypatch, tmp_path, capsys):
    neurons["de"].save(tmp_path / "neurons" / "de.json")
    whole = lm_eval.tasks.TaskManager  # the harness's own tasks are thousands of files, a minute to read
    monkeypatch.setattr(lm_eval.tasks, "TaskManager", lambda **given: whole(**(given | {"include_defaults": False})))
    assert main(["evaluate", *options.split(), "--neurons", str(tmp_path), "--out", str(tmp_path / "out")]) == 2
    printed = capsys.readouterr().err.splitlines()
    assert line in printed[-1]
    assert len([text for text in printed if text.startswith("mwork:")]) == 1


@pytest.mark.parametrize(
    ("text", "line"),
    [
        ("task: broken\n  doc: [", "broken.yaml: no YAML"),
        ("task: broken\noutput_type: guess\ndataset_path: json\n", "task broken: "),
        ("task: broken\ndataset_path: json\ndataset_kwargs: {data_files: no.jsonl}\ntest_split: train\n", "no.jsonl"),
        ("task: broken\ndataset_path: nobody/nothing\ntest_split: test\n", "task broken: "),
        ("task: broken\nprocess_docs: !function none.at_all\ndataset_path: json\n", "task broken: "),
    ],
    ids=["yaml", "output type", "no data", "no network", "no function"],
)  # fmt: skip
def test_a_task_that_cannot_be_set_up_is_one_line(text, line, tmp_path):
    (tmp_path / "broken.yaml").write_text(text)
    with pytest.raises(InputError) as caught:
        lm_eval_tasks(("broken",), tmp_path)
    assert line in str(caught.value)
    assert "\n" not in str(caught.value)


def test_what_a_task_does_wrong_is_one_line(model, in_tasks, tmp_path, monkeypatch):
    tasks = lm_eval_tasks(("mwork_endings",), TASKS)
    monkeypatch.setattr(tasks.tasks["mwork_endings"], "process_results", lambda doc, results: 1 // 0)
    settings = LmEvalSettings(("mwork_endings",), items=1)
    original = [LmEvalCondition("original", mw.NeuronMask.keep_all(model.config))]
    with pytest.raises(InputError, match="lm-evaluation-harness: ZeroDivisionError"):
        run_lm_eval(model, tasks, original, settings, ResultCache(tmp_path), progress=Progress(1, quiet=True))
    with pytest.raises(InputError, match="the first condition is the original model"):
        run_lm_eval(model, tasks, [], settings, ResultCache(tmp_path))
