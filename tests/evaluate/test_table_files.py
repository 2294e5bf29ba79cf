"""Tables as files: what a file can say and what is wrong with it, by line; the paper's tables, against the text of the
paper where it is at hand, slips known by name."""

from collections import Counter

import pytest

from mwork_jax.cli import main
from mwork_jax.errors import InputError
from mwork_jax.evaluate.delta_rows import STATISTICS
from mwork_jax.evaluate.table_files import (
    PACKAGED,
    TABLES,
    Printed,
    Slip,
    parse_table,
    read_table,
    slips,
    tables_named,
)
from mwork_jax.evaluate.tasks import TASKS
from mwork_jax.intervene.stages import StageSetting
from mwork_jax.settings import TableSettings
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
        tables_named("7")
    assert tables_named("1")[0].mode == "all", "of other sets, so not among them"


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


def slips_of(score, change):
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
    assert slips_of("eng", "delta_eng") == {
        (2, "Vicuna", 2): -16.6,  # printed -15.9
        (2, "Vicuna", 3): +0.4,  # printed -0.4
        (2, "Vicuna", 4): -1.0,  # printed -0.5
        (4, "Mistral", 2): +0.5,  # printed +0.1
    }
    assert slips_of("n_eng", "delta_n_eng") == {}
    found = {(n, s.model, s.row): s.change for n, table in TABLES.items() for s in slips(table) if s.score == "eng"}
    assert found == slips_of("eng", "delta_eng")
    assert Slip("Mistral", 2, "eng", 0.5) in slips(TABLES[4])
    assert all(slip.score == "eng" for table in TABLES.values() for slip in slips(table))
    rows = TABLES[2].rows
    assert (rows[3].setting.gen, rows[3].printed["Vicuna"].delta_eng) == (True, -0.4)
    assert (rows[4].setting.under, rows[4].printed["Vicuna"].delta_eng) == (True, -0.5)


def test_printed_delta_is_the_difference_of_the_printed_changes():
    for table in TABLES.values():
        for row in table.rows:
            for line in row.printed.values():
                assert line.delta == pytest.approx(line.delta_eng - line.delta_n_eng, abs=0.01)


MINE = """
table = "sharing"
stage = "what languages share"
task = "xcsqa"
languages = ["en", "de"]
seeds = 3
n1 = [1, 2]
statistics = ["beyond-random"]
contrasts = [[1, 2]]

[[rows]]
off = ["s_ffn", "gen"]
neurons = "shared"

[[rows]]
off = ["s_ffn", "gen"]
neurons = "random"
like = "shared"

[[rows]]
off = ["under"]
neurons = "lang-spec"
scale = 0.5
[rows.printed]
Mine = [1, 2, 3.5, 4, -0.5]
"""


def test_what_a_file_says(tmp_path):
    path = tmp_path / "mine.toml"
    path.write_text(MINE)
    (table,) = tables_named(str(path))
    assert table == read_table(path)
    assert (table.name, table.task, table.stand_in, table.statistics) == ("sharing", "xcsqa", "", ("beyond-random",))
    assert [(row.neurons, row.like, row.scale) for row in table.rows] == [
        ("shared", "lang-spec", 0.0), ("random", "shared", 0.0), ("lang-spec", "lang-spec", 0.5),
    ]  # fmt: skip
    assert table.rows[0].setting == StageSetting(s_ffn=True, gen=True)
    assert table.rows[1].of_sets == table.rows[0].matched, "the control of the first row"
    assert table.rows[2].printed == {"Mine": Printed(1.0, 2.0, 3.5, 4.0, -0.5)}
    assert table.contrasts == ((0, 1),)
    given = TableSettings(("en", "fr"), items=7, seeds=9)
    assert table.settings(given, ["items"]) == TableSettings(("en", "de"), 7, seeds=3, n1=(1, 2))
    assert table.settings(given, ["languages", "seeds", "n1"]) == given
    path.write_text('task = "mgsm"\n[[rows]]\noff = ["gen"]\nneurons = "random"\n')
    short = read_table(path)
    assert (short.name, short.stage, short.statistics, short.seeds) == ("mine", "", STATISTICS, None)


BAD = {
    "no TOML": ("table = \n", 1, "no TOML"),
    "not closed": (MINE + '"x', None, "no TOML"),
    "key": (MINE.replace("seeds =", "seed ="), 6, "'seed' is not known; did you mean seeds?"),
    "key of a row": (MINE.replace("like =", "lik ="), 18, "'lik' is not known; did you mean like?"),
    "task": (MINE.replace("xcsqa", "xcsqua"), 4, 'task = "xcsqua": did you mean xcsqa?'),
    "no task": (MINE.replace('task = "xcsqa"', ""), 1, "task: missing; one of xquad, mgsm"),
    "no rows": ('task = "mgsm"\n', 1, "rows: missing; at least one [[rows]] is needed"),
    "neurons": (MINE.replace('"lang-spec"', '"lang-sepc"'), 22, 'neurons = "lang-sepc": did you mean lang-spec?'),
    "no neurons": (MINE.replace('neurons = "shared"', ""), 11, "neurons: missing; one of random, lang-spec"),
    "part": (
        MINE.replace('["under"]', '["under", "attn"]'),
        21,
        "did you mean s_attn? a list of some of under, s_attn",
    ),
    "no part": (MINE.replace('["under"]', "[]"), 21, "at least one part is needed"),
    "like": (MINE.replace('like = "shared"', 'like = "random"'), 18, "one of lang-spec, shared, exclusive, union"),
    "like of what is not random": (MINE.replace("scale = 0.5", 'like = "union"'), 23, "goes with neurons = "),
    "scale": (MINE.replace("0.5\n", "inf\n", 1), 23, "a finite number is needed"),
    "languages": (MINE.replace('"de"', "7"), 5, 'codes of languages are needed, as in ["en", "de"]'),
    "seeds": (MINE.replace("seeds = 3", "seeds = 0"), 6, "seeds = 0: a whole number is needed, 1 or more"),
    "true is no number": (MINE.replace("seeds = 3", "seeds = true"), 6, "seeds = true: a whole number"),
    "n1": (MINE.replace("n1 = [1, 2]", "n1 = [1, -2]"), 7, "a number of layers is needed, or a list"),
    "statistics": (MINE.replace("beyond-random", "p"), 8, "a list of some of beyond-random, seed-spread"),
    "printed": (MINE.replace("3.5, ", ""), 24, "of Mine: five numbers are needed"),
    "name": (MINE.replace('"sharing"', '"../sharing"'), 2, "a word of small letters, digits and - is needed"),
    "twice": (MINE + '[[rows]]\noff = ["s_ffn", "gen"]\nneurons = "shared"\n', 26, "the same row as in line 11"),
    "contrasts": (MINE.replace("[[1, 2]]", "[[1, 1]]"), 9, "pairs of rows is needed, from 1 to 3, as in [[2, 1]]"),
    "mode": (MINE.replace("contrasts = [[1, 2]]", 'mode = "minus_all"'), 9, "one of minus_english, minus_shared, all"),
}


@pytest.mark.parametrize("case", BAD)
def test_what_is_wrong_is_named_by_line(case, tmp_path, capsys):
    text, line, message = BAD[case]
    path = tmp_path / "mine.toml"
    path.write_text(text)
    assert main(["tables", str(path)]) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    assert f"{path}:{'' if line is None else line}" in error
    assert message in error


def test_the_command_lists_and_shows_tables(tmp_path, capsys):
    assert main(["tables"]) == 0
    listed = capsys.readouterr().out
    assert all(f"\n{name} " in listed for name in PACKAGED)
    assert main(["tables", "2"]) == 0
    shown = capsys.readouterr().out
    assert "+7.4" in shown
    assert "S-ATTN + S-FFN" in shown
    assert main(["tables", "4", "--toml"]) == 0
    text = capsys.readouterr().out
    assert parse_table(text, "the command's own") == TABLES[4]
    (tmp_path / "mine.toml").write_text(MINE)
    assert main(["tables", str(tmp_path / "mine.toml")]) == 0
    assert "random like shared" in capsys.readouterr().out
    assert main(["tables", "six"]) == 2
    assert "choose 2, 3, 4, 5 or all, 1, loss, or a file of your own, NAME.toml" in capsys.readouterr().err
