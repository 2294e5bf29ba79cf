"""Conditions are measured once, all or none of a chunk are written, and any moment to be killed at gives the same."""

import json
import os
from pathlib import Path

import numpy as np
import pytest

from mwork_jax.corpus import Batching, Encoded
from mwork_jax.errors import InputError
from mwork_jax.evaluate import runner
from mwork_jax.evaluate.evaluations import LossEvaluation
from mwork_jax.evaluate.runner import Condition, measure, valid_scores
from mwork_jax.neurons import NeuronSet
from mwork_jax.runtime.cache import ResultCache
from mwork_jax.runtime.progress import Progress
from support.slow_deactivation import random_neurons
from support.tiny import pair, tokens


class CountingEvaluation:
    """An evaluation whose score is the number of neurons kept; it counts the masks it was given."""

    key = {"evaluation": "counting"}  # noqa: RUF012
    size = 2
    score_names = ("kept",)

    def __init__(self):
        self.masks = []

    def measure(self, model, masks, progress=None):
        self.masks.append(len(masks))
        if progress is not None:
            progress(2 * len(masks))
        return [{"kept": [float(mask.attn_q.sum()), 1.0]} for mask in masks]


def conditions(count=5):
    config = pair("llama", 2).config
    sets = [random_neurons(config, share=0.1 + 0.1 * i, seed=i) for i in range(count)]
    return [Condition("original", NeuronSet.empty(config), ("en", "de"))] + [
        Condition(f"c{i}", s, ("en",)) for i, s in enumerate([*sets, sets[0]])
    ]


def run(evaluations, folder, bar=None):
    model = pair("llama", 2).model
    return measure(model, evaluations, conditions(), ResultCache(folder), bar or Progress(1, quiet=True))


def test_equal_sets_are_computed_once_and_nothing_twice(tmp_path, monkeypatch):
    monkeypatch.setattr(runner, "_CHUNK", 4)
    evaluations = {"en": CountingEvaluation(), "de": CountingEvaluation()}
    bar = Progress(1, quiet=True)
    measured = run(evaluations, tmp_path, bar)
    # Both languages' evaluations have one key here, so the original's scores of "de" are those of "en".
    assert (evaluations["en"].masks, evaluations["de"].masks) == ([4, 2], [])
    assert bar.done == 2 * 8
    assert measured["c0"] == measured["c5"]
    width = pair("llama", 2).config.num_layers * 32
    assert measured["original"]["de"]["kept"] == [float(width), 1.0]
    assert run(evaluations, tmp_path) == measured
    assert evaluations["en"].masks == [4, 2]


@pytest.mark.parametrize("value", [[1], {"kept": [1.0]}, {"kept": ["x", "y"]}, {"other": [1.0, 2.0]}])
def test_a_damaged_result_is_computed_again(value, tmp_path):
    """Whether its checksum tells, or only that no such scores can be the evaluation's."""
    evaluations = {"en": CountingEvaluation(), "de": CountingEvaluation()}
    measured = run(evaluations, tmp_path)
    paths = sorted(tmp_path.glob("*.json"))
    body = json.loads(paths[0].read_text())
    paths[0].write_text(json.dumps({**body, "value": value}))
    ResultCache(tmp_path).put(json.loads(paths[1].read_text())["key"], value)
    paths[2].write_text("{")
    assert run(evaluations, tmp_path) == measured
    again = [masks for evaluation in evaluations.values() for masks in evaluation.masks[1:]]
    assert sum(again) == 3, "those alone: what a row computes does not depend on what runs beside it"
    assert run(evaluations, tmp_path) == measured
    assert [masks for evaluation in evaluations.values() for masks in evaluation.masks[1:]] == again


def test_scores_that_cannot_be_an_evaluation_s():
    evaluation = CountingEvaluation()
    assert valid_scores({"kept": [1.0, 2]}, evaluation)
    nan, infinity = float("nan"), float("inf")
    for numbers in ([1.0], [1.0, 2.0, 3.0], [1.0, nan], [infinity, 1.0], [1.0, True], [1.0, None], "12", (1.0, 2.0)):
        assert not valid_scores({"kept": numbers}, evaluation)
    for value in (None, [], {}, {"kept": [1.0, 2.0], "more": [1.0, 2.0]}, {"left": [1.0, 2.0]}):
        assert not valid_scores(value, evaluation)


def test_another_model_has_results_of_its_own(tmp_path):
    evaluation, model = CountingEvaluation(), pair("llama", 2).model
    nothing = [Condition("original", NeuronSet.empty(model.config), ("en",))]
    for key in (None, model.key, {**model.key, "tuned": "x"}, {**model.key, "tuned": "x"}, {**model.key, "tuned": "y"}):
        measure(model, {"en": evaluation}, nothing, ResultCache(tmp_path), Progress(quiet=True), key)
    assert evaluation.masks == [1, 1, 1], "the model itself, one tuning, another one"


def test_each_document_needs_an_id():
    documents = tuple(Encoded(tokens(1, 5, seed=i)[0], 0) for i in range(3))
    assert LossEvaluation(documents, Batching(), ("a", "b", "b")).item_ids == ("a", "b", "b")
    with pytest.raises(InputError, match="3 documents have 2 ids"):
        LossEvaluation(documents, Batching(), ("a", "b"))


def test_killed_while_results_are_written(tmp_path, monkeypatch):
    """Whichever file the process dies at, either all results of the chunk are there afterwards or none."""
    keys = [({"item": i}, {"value": i}) for i in range(4)]

    class Killed(BaseException):
        pass

    for moment in range(6):
        folder = tmp_path / str(moment)
        left = [moment]
        real = Path.write_text

        def write_text(self, *args, left=left, real=real, **kwargs):
            if not left[0]:
                raise Killed
            left[0] -= 1
            return real(self, *args, **kwargs)

        with monkeypatch.context() as patched:
            patched.setattr(Path, "write_text", write_text)
            try:
                ResultCache(folder).put_all(keys)
            except Killed:
                assert moment < 5
        again = ResultCache(folder)
        values = [again.get(key) for key, _ in keys]
        assert values == ([None] * 4 if moment == 0 else [value for _, value in keys])
        assert not list(folder.glob("*.journal"))


def test_two_processes_in_one_folder(tmp_path):
    first, second = ResultCache(tmp_path), ResultCache(tmp_path)
    first.put_all([({"a": 1}, [1]), ({"a": 2}, [2])])
    second.put_all([({"a": 2}, [2]), ({"a": 3}, [3])])
    assert [first.get({"a": i}) for i in (1, 2, 3)] == [[1], [2], [3]]


def test_what_was_only_begun_long_ago_is_removed(tmp_path):
    old, new = (tmp_path / f".a.json.mwork-00000000-1-{sign * 16}.part" for sign in "ab")  # of another machine
    for path in (old, new):
        path.write_text("half")
    os.utime(old, (1, 1))
    ResultCache(tmp_path)
    assert not old.exists()
    assert new.exists()  # somebody may be writing it


def test_of_several_processes_the_first_writes(tmp_path, monkeypatch):
    monkeypatch.setattr("mwork_jax.runtime.cache.is_first", lambda: False)
    (tmp_path / "x.journal").write_text("[]")
    other = ResultCache(tmp_path)
    other.put({"a": 1}, [1.0])
    assert [path.name for path in tmp_path.iterdir()] == ["x.journal"]
    assert other.get({"a": 1}) is None


@pytest.mark.parametrize("content", ["{", "[1]", '[{"key": 1}]', ""])
def test_a_damaged_journal_is_dropped(tmp_path, content):
    (tmp_path / "x.journal").write_text(content)
    assert ResultCache(tmp_path).get({"a": 1}) is None
    assert list(tmp_path.iterdir()) == []


def test_widths_are_those_of_the_model():
    config = pair("llama", 2).config
    assert config.num_heads * config.head_dim == 32
    assert np.all([s.neurons.count() > 0 for s in conditions()[1:]])
