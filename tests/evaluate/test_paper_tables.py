"""The paper's tables: the rows as printed, against the text of the paper where it is at hand, slips known by name."""

from collections import Counter

import pytest

from mwork_jax.errors import InputError
from mwork_jax.evaluate.paper_tables import TABLES, Printed, tables_named
from mwork_jax.evaluate.tasks import TASKS
from support.paths import SHARED

EXCERPT = SHARED / "paper" / "excerpt.txt"
MODELS = ("Vicuna", "Mistral")


def test_each_table_has_its_task_and_rows():
    assert {n: len(table.rows) for n, table in TABLES.items()} == {2: 5, 3: 6, 4: 5, 5: 3}
    for table in TABLES.values():
        assert table.task in TASKS
        assert table.stand_in in {"", *TASKS}
        assert all(tuple(row.printed) == MODELS for row in table.rows)
        assert len({(row.setting, row.neurons) for row in table.rows}) == len(table.rows)
    assert tables_named("all") == tuple(TABLES.values())
    assert tables_named("3") == (TABLES[3],)
    with pytest.raises(InputError, match="choose 2, 3, 4, 5 or all"):
        tables_named("1")


@pytest.mark.skipif(not EXCERPT.exists(), reason="the text of the paper is not at hand")
def test_rows_are_those_of_the_paper():
    lines = [line.split("\t")[1:] for line in EXCERPT.read_text(encoding="utf-8").split("\n")]
    printed = [line for line in lines if len(line) == 10 and line[4] in ("Random", "Lang-Spec")]
    declared = []
    for table in TABLES.values():
        for model in MODELS:
            for row in table.rows:
                s = row.setting
                declared.append(([s.under, s.s_attn, s.s_ffn, s.gen], row.neurons, row.printed[model]))
    assert len(printed) == len(declared) == 38
    for line, (off, neurons, numbers) in zip(printed, declared, strict=True):
        assert [mark != "✓" for mark in line[:4]] == off
        assert line[4].lower() == neurons
        assert Printed(*map(float, line[5:])) == numbers


def slips(score, change):
    """{(table, model, row): change under the model's common baseline} where the printed change is another one.

    The baseline is what most rows imply; a tenth more or less is rounding.
    """
    found = {}
    for n, table in TABLES.items():
        for model in MODELS:
            lines = [row.printed[model] for row in table.rows]
            implied = [round(getattr(line, score) - getattr(line, change), 1) for line in lines]
            baseline = Counter(implied).most_common(1)[0][0]
            for i, (line, of_row) in enumerate(zip(lines, implied, strict=True)):
                if abs(of_row - baseline) > 0.11:
                    found[n, model, i] = round(getattr(line, score) - baseline, 1)
    return found


def test_printed_changes_against_a_common_baseline():
    """The slips stay as they were printed: generation and understanding of Table 2, and two lines more."""
    assert slips("eng", "delta_eng") == {
        (2, "Vicuna", 2): -16.6,  # printed -15.9
        (2, "Vicuna", 3): +0.4,  # printed -0.4
        (2, "Vicuna", 4): -1.0,  # printed -0.5
        (4, "Mistral", 2): +0.5,  # printed +0.1
    }
    assert slips("n_eng", "delta_n_eng") == {}
    rows = TABLES[2].rows
    assert (rows[3].setting.gen, rows[3].printed["Vicuna"].delta_eng) == (True, -0.4)
    assert (rows[4].setting.under, rows[4].printed["Vicuna"].delta_eng) == (True, -0.5)


def test_printed_delta_is_the_difference_of_the_printed_changes():
    for table in TABLES.values():
        for row in table.rows:
            for line in row.printed.values():
                assert line.delta == pytest.approx(line.delta_eng - line.delta_n_eng, abs=0.01)
