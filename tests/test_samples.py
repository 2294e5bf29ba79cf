"""Saved answers: files that read back, items side by side, and the report's section of them."""

import json
import random

import pytest

import mwork_jax as mw
from mwork_jax.metrics import main_language
from mwork_jax.report.samples import samples_section
from mwork_jax.samples import Sample, SampleAnswer, read_samples, samples_path, side_by_side, write_samples
from support.made_results import EVERYWHERE, made_sample


def test_samples_read_back(tmp_path):
    samples = tuple(made_sample(n) for n in range(3))
    write_samples(samples_path(tmp_path, "table-2-xquad"), iter(samples))
    write_samples(samples_path(tmp_path, "grid-2-xquad"), [made_sample(9, section="grid-2-xquad")])
    assert read_samples(tmp_path / "samples" / "table-2-xquad.jsonl") == samples
    assert read_samples(tmp_path) == read_samples(tmp_path / "samples") == (*read_samples(tmp_path)[:1], *samples)
    lines = (tmp_path / "samples" / "table-2-xquad.jsonl").read_text(encoding="utf-8").split("\n")
    assert json.loads(lines[1])["answers"][0] == {
        "under": "original", "score": 51.0, "neurons": "", "setting": "", "seed": None, "answer": "Antwort 1.",
        "answer_language": "de",
    }  # fmt: skip


def test_a_generator_that_fails_leaves_no_file_and_the_old_one(tmp_path):
    path = samples_path(tmp_path, "steering")
    write_samples(path, [made_sample(1)])
    before = path.read_bytes()

    def failing():
        yield made_sample(2)
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write_samples(path, failing())
    assert path.read_bytes() == before
    assert [p.name for p in path.parent.iterdir()] == [path.name]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda row: row | {"answers": "none"}, "no sample of answers"),
        (lambda row: {k: v for k, v in row.items() if k != "prompt"}, "missing required field `prompt`"),
        (lambda row: row | {"answers": [{"under": "other", "score": 1}]}, "Invalid enum value 'other'"),
        (lambda row: row | {"answers": [{"under": "own", "score": "high"}]}, "no sample of answers"),
    ],
)
def test_a_damaged_line_is_named(change, message, tmp_path):
    path = samples_path(tmp_path, "table-2-xquad")
    write_samples(path, [made_sample(1), made_sample(2)])
    rows = [json.loads(line) for line in path.read_text(encoding="utf-8").split("\n") if line]
    path.write_text("".join(json.dumps(row) + "\n" for row in (rows[0], change(rows[1]))))
    with pytest.raises(mw.InputError, match=rf"{path}:2: .*{message}"):
        read_samples(tmp_path)


def test_a_folder_without_samples_says_what_writes_them(tmp_path):
    with pytest.raises(mw.InputError, match=r"no samples/\*.jsonl; `mwork run`, `evaluate` and `steer` write it"):
        read_samples(tmp_path)


def test_items_side_by_side_are_spread_over_scores_whatever_their_order():
    samples = [made_sample(n) for n in range(21)]
    english = Sample("table-2-xquad", "e", "en", "?", (), (SampleAnswer("original", 1.0),))
    shuffled = random.Random(0).sample([*samples, english], 22)
    pairs = side_by_side(shuffled)
    assert pairs == side_by_side(samples)
    assert [pair.own.score - pair.original.score for pair in pairs] == [-20.0, -15.0, -10.0, -5.0, 0.0]
    assert {(p.own.setting, p.random.setting, p.random.neurons) for p in pairs} == {(EVERYWHERE, EVERYWHERE, "de")}
    assert len(side_by_side(samples[:3])) == 3
    assert side_by_side([english]) == []


def test_the_report_shows_them():
    (section,) = samples_section([made_sample(n) for n in range(7)])
    (table,) = section.tables
    assert table.name == "samples-table-2-xquad"
    assert table.columns == ("language", "prompt", "original", "own neurons off", "random")
    assert len(table.rows) == 5
    shown = table.html()
    assert "<b>" not in shown
    assert "&lt;b&gt;" in shown
    assert "Answer ⏎ " in shown
    assert "[56, de]" in shown
    assert table.records[0]["own_answer_language"] == "en"
    assert table.records[0]["own_off"] == EVERYWHERE
    assert list(samples_section([])) == []


def test_the_main_language_has_most_letters():
    def identify(sentence):
        return {"G": "de", "E": "en"}.get(sentence[0])

    assert main_language("Gut. English is longer. Gut.", identify) == "en"
    assert main_language("Gut. Eng.", identify) == "de", "the first of as many letters"
    assert main_language("12, 13.", identify) is None
    assert main_language("Xyz.", identify) is None
