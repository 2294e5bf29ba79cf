"""The report: made from files alone, whole or not at all, in every format. What a browser makes of it is tested in
test_browser.py, names that are more than names in test_names.py."""

import csv
import html
import io
import itertools
import json
import re
import shutil
import sys
from dataclasses import replace
from html.parser import HTMLParser
from xml.etree import ElementTree

import numpy as np
import pytest

from mwork_jax.cli import main
from mwork_jax.errors import InputError
from mwork_jax.lens.pattern import Lead, OfLanguage, Pattern
from mwork_jax.neurons import NeuronSet
from mwork_jax.report import Table, load_results, read_report, run_report
from mwork_jax.report.citation import PAPER, SOFTWARE
from mwork_jax.report.figures import plot_enhancement, plot_layer_languages, plot_losses, plot_overlap
from mwork_jax.report.lm_eval import lm_eval_table
from mwork_jax.report.neurons_page import FILE, fragment
from mwork_jax.report.page import page
from mwork_jax.report.sections import _where_section
from mwork_jax.report.svg import draw
from mwork_jax.report.tables.all import all_tables
from mwork_jax.report.tables.deltas import against_random, delta_table
from mwork_jax.report.tables.lens import lens_sentence, pattern_sentence
from mwork_jax.report.tables.losses import absolute_table, matrix_table
from mwork_jax.report.tables.steering import steer_tables
from mwork_jax.report.tables.tuning import tuning_tables
from mwork_jax.report.text import enhance_report, lens_report, paper_report, table_report
from mwork_jax.results import BeyondRandom, Change, LossRise, OriginalLoss, read_results, write_results
from mwork_jax.select.rules import activated
from support.made_results import (
    MODEL,
    all_parts,
    made_lens,
    made_lm_eval,
    made_row,
    made_run,
    made_scores,
    made_steering,
    made_table,
    made_tables,
    made_tuning,
    real_run,
)
from support.paths import ROOT

SVG = "{http://www.w3.org/2000/svg}"


class Outline(HTMLParser):
    """What a page has: tags that are open at its end, its ids, references, addresses, images without an alternative."""

    def __init__(self, text):
        super().__init__()
        self.open, self.ids, self.references, self.addresses, self.tables = [], [], [], [], []
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        found = dict(attrs)
        self.ids += [found["id"]] if "id" in found else []
        self.references += [r for name in ("aria-labelledby",) for r in found.get(name, "").split()]
        self.references += [found["href"][1:]] if found.get("href", "").startswith("#") else []
        self.addresses += [v for k, v in attrs if k in ("src", "href", "xlink:href") and not v.startswith("#")]
        if tag not in ("meta", "link", "br"):
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    folder = all_parts(tmp_path_factory.mktemp("report") / "results")
    read_report(folder).write()
    return folder


def test_the_page_is_well_formed_and_keeps_to_itself(whole):
    text = (whole / "report.html").read_text()
    page = Outline(text)
    assert page.open == []
    assert len(page.ids) == len(set(page.ids))
    assert set(page.references) <= set(page.ids)
    assert all(address.startswith("data:") for address in page.addresses)
    assert "<script" not in text
    assert not re.search(r"@import|url\((?!#)", text)


def test_it_has_every_part(whole):
    text = (whole / "report.html").read_text()
    for section in (
        "loss",
        "table-4-xcsqa",
        "tuning",
        "layers",
        "where",
        "overlap",
        "thresholds",
        "importance",
        "made",
    ):
        assert f'<section id="{section}"' in text
    for words in (
        "N1 = 4, N2 = 2 of 18 layers",
        "documents 100 200 400",
        "learning_rate 0.0001",
        "bf2ddb7e93fc6791",
        "jax 0.",
        "rule top_fraction:0.05",
        "mwork run --quick --languages en,de,es,zh,th,ar",
        "mwork evaluate --table 4 --languages en,de,zh --items 8",
        "ไทย",
        "العربية",
    ):
        assert words in text


def test_every_figure_has_a_title_a_description_and_text_that_can_be_copied(whole):
    drawings = sorted((whole / "figures").glob("*.svg"))
    assert len(drawings) >= 20
    for path in drawings:
        root = ElementTree.parse(path).getroot()
        assert root.get("role") == "img"
        title, description = root[0], root[1]
        assert (title.tag, description.tag) == (f"{SVG}title", f"{SVG}desc")
        assert title.text.strip()
        assert len(description.text) > 20
        assert [e for e in root.iter(f"{SVG}text") if e.text], "text is text"
        assert not list(root.iter(f"{SVG}image")), "no pixels"
        assert "var(" not in path.read_text(), "a paper has no page whose colours to take"
    assert (whole / "report.html").read_text().count("<svg") == len(drawings)


def test_the_data_stands_beside_the_figures(whole):
    rows = list(csv.DictReader((whole / "figures" / "languages-by-layer.csv").open()))
    assert {row["prompt"] for row in rows} == {"en", "de", "es", "zh", "th", "ar"}
    labels = ("en", "de", "es", "zh", "th", "ar", "other", "unclear", "none")
    assert all(sum(float(row[label]) for label in labels) == pytest.approx(1, abs=1e-4) for row in rows)
    deltas = list(csv.DictReader((whole / "figures" / "delta-held-out-loss.csv").open()))
    real = read_results(whole / "results.json")
    assert [float(row["delta"]) for row in deltas] == [row.delta for row in real.rows]
    neurons = list(csv.DictReader((whole / "figures" / "neurons.csv").open()))
    german = sum(int(row["neurons"]) for row in neurons if row["language"] == "de")
    assert german == real.neurons["de"].count == NeuronSet.load(whole / "neurons" / "de.json").count()


def test_the_same_files_give_the_same_page(whole):
    before = (whole / "report.html").read_bytes()
    read_report(whole).write()
    assert (whole / "report.html").read_bytes() == before


def test_a_figure_that_is_no_more_is_taken_away(whole, tmp_path):
    folder = tmp_path / "results"
    shutil.copytree(whole, folder)
    (folder / "lens.json").unlink()
    shutil.rmtree(folder / "scores")
    for name in ("mine.svg", "mine.csv"):
        (folder / "figures" / name).write_text("the reader's own")
    read_report(folder).write()
    assert not list((folder / "figures").glob("languages-by-layer*"))
    assert not list((folder / "figures").glob("importance*"))
    assert (folder / "figures" / "mine.svg").exists()
    assert (folder / "figures" / "mine.csv").exists()
    assert (folder / "figures" / "losses.svg").exists()


@pytest.mark.parametrize("form", ["md", "latex", "csv"])
def test_tables_for_papers(whole, form, capsys):
    assert main(["report", str(whole), "--format", form]) == 0
    text = capsys.readouterr().out
    if form == "md":
        heads = re.findall(r"^\| --- .*$", text, re.M)
        assert len(heads) == len(read_report(whole).tables)
        assert "| ✗ | ✗ | ✗ | ✗ | Lang-Spec |" in text
    elif form == "latex":
        assert text.count(r"\begin{tabular}") == text.count(r"\end{tabular}") >= 8
        assert not re.search(r"(?<!\\)[%#_](?![a-z-]*})", re.sub(r"\\label{.*?}", "", text))
        assert text.isascii()
    else:
        assert "delta_ci95_low" in text
        assert list(csv.reader(io.StringIO(text)))


def test_json_has_the_numbers(whole, capsys):
    assert main(["report", str(whole), "--format", "md", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["delta-held-out-loss"]["rows"][1]["neurons"] == "lang-spec"


def test_only_what_is_there_is_shown(tmp_path):
    folder = tmp_path / "detected"
    for language, scores in made_scores(model=MODEL).items():
        scores.save(folder / "scores" / f"{language}.safetensors")
    text = read_report(folder).write().read_text()
    assert 'id="thresholds"' in text
    assert 'id="loss"' not in text


@pytest.mark.parametrize(("mode", "shown"), [("shared_by:2", "shared_by:2"), ("shared_by:=3", "all")])
def test_a_mode_is_shown_where_the_scores_are_of_enough_languages(mode, shown, tmp_path):
    scores = made_scores(("en", "de"), model=MODEL)
    for language, one in scores.items():
        one.save(tmp_path / "scores" / f"{language}.safetensors")
        chosen = activated(one, "top_k:3")
        made = {**chosen.provenance, "rule": "top_k:3", "mode": mode, "language": language}
        NeuronSet(chosen.groups, made).save(tmp_path / "neurons" / f"{language}.json")
    assert f"other thresholds, mode {shown}" in read_report(tmp_path).html


def test_scores_without_english_are_shown_as_they_are(tmp_path):
    for language, scores in made_scores(("de", "th"), model=MODEL).items():
        scores.save(tmp_path / "scores" / f"{language}.safetensors")
    assert "mode all" in read_report(tmp_path).html


@pytest.mark.parametrize("rule", ["lape:0.1", "top_fraction:0.3@0.01"])
def test_a_rule_that_scores_alone_do_not_answer(rule, tmp_path):
    """lape compares languages; a tolerant rule asks of more documents than these scores remember."""
    scores = made_scores(("en", "de", "th"), model=MODEL)
    for language, one in scores.items():
        one.save(tmp_path / "scores" / f"{language}.safetensors")
        chosen = activated(one, "top_k:3")
        made = {**chosen.provenance, "rule": rule, "mode": "all", "language": language}
        NeuronSet(chosen.groups, made).save(tmp_path / "neurons" / f"{language}.json")
    report = read_report(tmp_path)
    assert f"Rule {rule}, mode all." in report.html
    assert "overlap" in report.tables


def test_signs_that_latex_would_take_for_others():
    assert r"$<$.001 \textbar{} $>$" in Table("t", "t", ("p",), (("<.001 | >",),)).latex()


def beyond(p_holm):
    return made_row(beyond_random=BeyondRandom(1.5, (0.25, 2.75), p_holm, p_holm))


def with_matrix(rises, original):
    """A run with a matrix of these numbers: {off: {measured: rise}}."""
    cells = {
        off: {lang: LossRise(rise, (rise - 1, rise + 1), 2) for lang, rise in row.items()} for off, row in rises.items()
    }
    run = made_run()
    return replace(run, original=dict.fromkeys(original, run.original["de"]), matrix=cells)


def test_the_matrix_in_every_form(tmp_path):
    run = with_matrix(
        {
            "de": {"en": 0.125, "de": 5.0, "fr": 0.5, "es": 0.25},
            "fr": {"en": -0.25, "de": 0.5, "fr": 3.0, "es": 2.0},
            "es": {"en": 0.0, "de": 0.25, "fr": 3.0, "es": 3.5},
        },
        ("en", "de", "fr", "es"),
    )
    table = matrix_table(run)
    names = [row[0] for row in table.rows]
    assert names in (
        ["German", "French", "Spanish"],
        ["French", "Spanish", "German"],
        ["German", "Spanish", "French"],
        ["Spanish", "French", "German"],
    ), "French and Spanish hurt each other"
    assert table.columns == ("off", "English", *names), "the diagonal is a language under its own neurons"
    cells = {(row[0], column): cell for row in table.rows for column, cell in zip(table.columns, row, strict=True)}
    assert (cells["French", "English"], cells["French", "Spanish"], cells["German", "German"]) == (
        "-0.25",
        "+2.00",
        "+5.00",
    )
    assert "English has no row" in table.note
    assert "over 2 held-out documents." in table.note
    first = table.records[0]
    assert (first["ci95_low"], first["ci95_high"]) == (first["rise"] - 1, first["rise"] + 1)
    write_results(tmp_path / "results.json", run)
    report = read_report(tmp_path)
    assert "language-matrix" in report.tables
    svg = report.drawings["language-matrix"].plain
    for text in ("+5.00", "-0.25", "German", "neurons off", "measured"):
        assert f">{text}</text>" in svg.replace("\u2212", "-"), text
    assert svg.count("font-weight: 700") == 3, "the diagonal"
    assert "the language itself loses most in 3 of 3 rows" in report.html
    assert "another language is +3.00 nats per token, French under the neurons of Spanish" in report.html
    assert table.text() in run_report(run)


def test_the_matrix_says_over_how_many_documents_it_is():
    note = matrix_table(made_run()).note
    assert "over 2 to 8 held-out documents in the language itself and in English, over 2 in the others" in note
    assert "no row" not in note, "English has one"


def test_a_matrix_of_one_row_says_no_more_than_the_other_table(tmp_path):
    run = with_matrix({"de": {"en": 0.1, "de": 4.0}}, ("en", "de"))
    write_results(tmp_path / "results.json", run)
    report = read_report(tmp_path)
    assert "language-matrix" not in {*report.tables, *report.drawings}
    assert "measured (columns)" not in run_report(run)


@pytest.mark.parametrize("rise", [0.0, -1.0, 12.5, 1234.5, 1e29])
def test_a_number_stays_in_its_square(rise, tmp_path):
    run = with_matrix({lang: dict.fromkeys(("en", "de"), rise) for lang in ("en", "de")}, ("en", "de"))
    write_results(tmp_path / "results.json", run)
    svg = read_report(tmp_path).drawings["language-matrix"].plain
    cells = re.findall(r">([+\-\u2212][0-9.e+]+)</text>", svg)
    assert len(cells) == 4
    assert max(map(len, cells)) <= 6


def test_a_delta_like_random_is_marked():
    assert against_random(beyond(0.04)) == "differs"
    assert against_random(beyond(0.06)) == "≈"
    assert against_random(beyond(None)) == "–", "too few seeds or items to tell"
    assert against_random(made_row(beyond_random=None)) == "–"
    assert against_random(made_row("random")) == "–"
    # The corrected p decides, not the p of the row alone.
    assert against_random(made_row(beyond_random=BeyondRandom(1.5, None, 0.04, 0.08))) == "≈"


def test_vs_random_is_the_paired_comparison_in_every_form():
    rows = [made_row("random"), beyond(0.04), beyond(0.0004), beyond(0.5), beyond(None), made_row(beyond_random=None)]
    table = delta_table(rows, 1)
    assert [row[-1] for row in table.rows] == [
        "seeds ±0.5", "+1.5 (p .040)", "+1.5 (p <.001)", "+1.5 (p .500) ≈", "+1.5", "–",
    ]  # fmt: skip
    assert table.records[1]["beyond_random_ci95_low"] == 0.25
    assert table.records[1]["beyond_random_p_holm"] == 0.04


def test_an_interval_that_cannot_be_had_is_a_dash_and_an_empty_place_in_data():
    table = delta_table([made_row(delta_ci95=None, p=None, p_holm=None), made_row()], 1)
    interval, p = table.columns.index("95% interval"), table.columns.index("p")
    assert [(row[interval], row[p]) for row in table.rows] == [("–", "–"), ("+0.5 to +3.5", ".020")]
    first = next(csv.DictReader(io.StringIO(table.csv())))
    assert (first["delta_ci95_low"], first["delta_ci95_high"], first["p"], first["p_holm"]) == ("", "", "", "")


def test_the_note_counts_clusters_and_says_where_seeds_are_too_few():
    note = delta_table([made_row("random")], 1).note
    assert "24 items in 3 languages, 8 clusters" in note
    assert "fewer than 5" not in note
    few = delta_table([made_row("random", seeds=2, n_clusters=24)], 1).note
    assert "24 items in 3 languages;" in few
    assert "With fewer than 5 random sets there is a mean and no interval" in few


def test_tuning_shows_changes_and_what_is_beyond_random():
    table = next(tuning_tables(made_tuning()))
    lines = {row[0]: row for row in table.rows}
    assert lines["Original"][1:4] == ("-3.200", "-3.300", "-3.100")
    assert table.rows[2][2] == "+0.050 (+0.000 to +0.100)"
    assert lines["  beyond Random"][2] == "+0.300 (+0.200 to +0.400)"
    alone = made_tuning()
    alone = replace(alone, rows=tuple(replace(row, own_beyond_random=None) for row in alone.rows))
    assert "  beyond Random" not in [row[0] for row in next(tuning_tables(alone)).rows]


@pytest.mark.parametrize("make", [made_run, made_tables, made_tuning, made_lens, made_steering])
def test_every_kind_of_result_is_shown_by_itself(make, tmp_path):
    write_results(tmp_path / "results.json", make())
    report = read_report(tmp_path)
    assert report.tables
    assert report.drawings
    page = report.write().read_text()
    assert "mwork made up" in page, "the command, as it was typed"
    assert "label_languages" not in page, "a setting without a value is left out"


def test_lm_eval_shows_each_metric_and_what_changes(tmp_path):
    table = lm_eval_table(made_lm_eval())
    assert table.columns[3:] == ("original", "diffmean 2", "de", "de random", "th", "th random")
    assert [row[:4] for row in table.rows] == [
        ("xnli_de", "acc", "40", "0.5 ±0.062"),
        ("sums", "exact_match, whole", "12", "0.25"),
        ("sums", "exact_match, number", "12", "0 ±0.125"),
    ]
    assert table.rows[0][4:7] == ("-0.0156", "-0.0312", "-0.0547"), "random: the mean of its seeds, 3 and 4 of 64"
    write_results(tmp_path / "results.json", made_lm_eval())
    page = read_report(tmp_path).write().read_text()
    assert "Tasks of lm-evaluation-harness" in page
    assert "mwork made up" in page


def test_steering_shows_the_best_setting_beside_its_controls(tmp_path):
    best, grid = steer_tables(made_steering())
    assert best.rows[0][:4] == ("English", "German", "original", "50")
    assert best.rows[2][2:6] == ("diffmean 2, layer 1", "50", "+25 (+12 to +38)", "+20")
    assert best.rows[3][2] == "diffmean 2, layer 1, random"
    assert len(grid.rows) == 12
    write_results(tmp_path / "results.json", made_steering())
    names = set(read_report(tmp_path).drawings)
    assert {"steering-en-de", "steering-de-th", "forcing-diffmean"} <= names


def test_the_sentence_says_what_is_seen_and_no_more():
    through_english = [[0.5, 0.1], [0.1, 0.6], [0.7, 0.1]]
    never = [[0.5, 0.1], [0.5, 0.2], [0.7, 0.1]]
    mixed = lens_sentence(made_lens({"de": through_english, "th": never}))
    assert "outweighs the prompt's own language in 1 of 2" in mixed
    assert "No verdict on the paper's Figure 1; it would need prompts in 3 languages" in mixed
    assert pattern_sentence(Pattern("undecided", {}, ("more prompts",))).endswith("; more prompts.")
    one = OfLanguage(8, Lead(0.3, (0.2, 0.4), 0.001), Lead(0.5, None, 0.001))
    against = replace(one, inside=Lead(-0.3, (-0.4, -0.2), 0.001))
    shown = pattern_sentence(Pattern("holds", {"de": one, "th": one, "es": one}))
    assert "holds here: shown by 3 of 3 languages (German, Thai, Spanish), contradicted by 0 of 3" in shown
    assert "does not hold here" in pattern_sentence(Pattern("does not hold", {"de": against}))
    differs = pattern_sentence(
        Pattern("differs", {"de": one, "th": against, "es": replace(one, end=Lead(0.1, None, None))})
    )
    assert "shown by 1 of 3 languages (German), contradicted by 1 of 3 languages (Thai), undecided in 1 of 3" in differs


def test_the_verdict_has_its_numbers_in_a_table(tmp_path):
    leads = {lang: [(0.3 + 0.01 * i, -0.6 - 0.01 * i) for i in range(8)] for lang in ("de", "th")}
    write_results(tmp_path / "lens.json", made_lens(leads=leads))
    report = read_report(tmp_path)
    table = report.tables["figure-1-pattern"]
    assert table.rows[0][:3] == ("German", "8", "+34 (+31 to +36)")
    assert table.rows[0][-1] == "shows it"
    assert table.records[0]["inside_ci95_low"] == pytest.approx(0.3145, abs=1e-3)
    assert "No verdict" in report.html, "two languages are too few"


def test_no_mark_hides_another():
    """English, a language and random neurons at one place: three marks are seen, also without colours."""
    from matplotlib.figure import Figure

    change = replace(made_run().languages["de"], everywhere=Change(1.0, 1.0, (0.5, 1.5), (0.5, 1.5)))
    change = replace(change, random=replace(change.random, own_mean=1.0))
    for count in (1, 2, 12):
        figure = Figure(figsize=(4.1, 0.42 * count + 0.75), layout="constrained")
        ax = figure.subplots()
        plot_losses(ax, {f"l{i}": change for i in range(count)})
        figure.draw_without_rendering()
        marks = []
        for mark in ax.collections:
            (_, y), half = ax.transData.transform(mark.get_offsets()[0]), mark.get_sizes()[0] ** 0.5 / 2
            marks.append((y, 1.42 * half * figure.dpi / 72, mark.get_paths()[0].vertices.shape))
        marks.sort()
        assert all(b - a >= ra + rb for (a, ra, _), (b, rb, _) in itertools.pairwise(marks))
        assert len({shape for *_, shape in marks}) == 3, "a disc, a diamond and a bar"


def test_random_and_own_tuning_at_one_place_are_both_seen():
    from matplotlib.figure import Figure

    ax = Figure().subplots()
    rows = [replace(row, delta_n_eng=0.25) for row in made_tuning().rows if row.task == "xquad"]
    plot_enhancement(ax, rows)
    random, own = (next(line for line in ax.lines if line.get_label() == name) for name in ("Random", "Lang-Spec"))
    assert random.get_markersize() > own.get_markersize() + 2
    assert random.get_markerfacecolor() == "none"


def test_captions_and_keys_are_true_in_light_and_dark(whole):
    text = (whole / "report.html").read_text()
    said = re.findall(r"<(?:figcaption|p class=.(?:note|caption).|ul class=.key.).*?</(?:figcaption|p|ul)>", text)
    assert len(said) > 40
    colours = r"\b(dark(er|est)?|light(er|est)?|orange|blue|green|grey|gray|black|white|red)\b"
    assert not re.search(colours, html_text(" ".join(said)))
    for shape in ("disc", "diamond", "bar", "ring", "scale"):
        assert f'<i class="{shape}"' in text
    for name in ("language-matrix", "neurons-de", "grid-4-xcsqa-s-ffn", "forcing-diffmean"):
        path = whole / "figures" / f"{name}.svg"
        if path.exists():  # a colour bar: seven squares beside the grid's own
            assert path.read_text().count('id="fig-') > 10
    assert read_report(whole).drawings["neurons-de"].plain.count("%</text>") == 1, "what the strongest stands for"


def html_text(page):
    """What a page says, without style and figures."""
    return re.sub(r"<style>.*?</style>|<svg.*?</svg>|<[^>]*>", " ", page, flags=re.S)


def test_no_figure_shows_a_formula_s_source(whole):
    for path in (whole / "figures").glob("*.svg"):
        assert not re.search(r">[^<]*(\$|mathdefault)[^<]*</text>", path.read_text()), path.name


OWN = "xcsqa format, the project's own questions, not a benchmark"


def test_own_questions_never_stand_under_a_benchmark_s_name(whole, capsys):
    page = html_text((whole / "report.html").read_text())
    for name in ("xcsqa", "xquad", "mgsm"):
        for found in re.finditer(rf"\b{name}\b", page):
            after = page[found.end() :].replace("&#x27;", "'")
            typed = page[: found.start()].endswith(("--task ", "--tasks ", "task "))
            mentioned = after.startswith((" format, the project's own questions, not a benchmark", ".", "-"))
            assert typed or mentioned, page[found.start() - 60 : found.end() + 60]
    report = read_report(whole)
    for name in ("table-4-xcsqa", "grid-4-xcsqa-s-ffn"):
        table = report.tables[name]
        assert OWN in table.title
        assert OWN in table.latex().replace("\n", " ")
        assert OWN in table.markdown()
        assert {record["items"] for record in table.records} == {OWN}
    assert main(["report", str(whole), "--format", "md", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert OWN in found["table-4-xcsqa"]["title"]
    assert found["table-4-xcsqa"]["rows"][0]["items"] == OWN
    assert report.tables["steering-best"].records[0]["items"].startswith("mgsm format, ")


def test_a_benchmark_s_own_items_have_its_name_and_older_tuning_says_that_it_does_not_know():
    table = made_table()
    data = {lang: replace(one, origin=f"X-CSQA/{lang}.jsonl") for lang, one in table.provenance.data.items()}
    assert replace(table, provenance=replace(table.provenance, data=data)).task_title == "xcsqa"
    tuning = made_tuning()
    titles = [table.title for table in tuning_tables(replace(tuning, items={}))]
    assert "Table 6: xquad format, whose questions this file does not say (points" in titles[-1]
    assert "xquad format, the project's own questions, not a benchmark" in list(tuning_tables(tuning))[-1].title
    assert "held-out loss (minus nats" in titles[0]


def test_the_loss_itself_per_token_and_per_byte():
    run = made_run()
    run = replace(
        run, original={"en": OriginalLoss(3.0, 0.75), "de": OriginalLoss(2.0, 0.5), "th": OriginalLoss(4.0, None)}
    )
    table = absolute_table(run)
    assert table.rows[0] == ("English", "3.00", "–", "–", "–", "0.750", "–", "–")
    assert table.rows[1] == ("German", "2.00", "3.00", "2.20", "–", "0.500", "0.750", "0.550")
    assert table.rows[2][1:3] == ("4.00", "5.00")
    assert table.rows[2][5:] == ("–", "–", "–")
    assert table.records[1]["own_off_nats_per_byte"] == pytest.approx(0.75)


def test_single_languages_have_intervals_where_the_file_has_them(tmp_path):
    run = made_run()
    write_results(tmp_path / "old" / "results.json", run)
    assert "loss-intervals" not in read_report(tmp_path / "old").tables
    change = replace(run.languages["de"], everywhere=Change(1.0, 0.25, (0.5, 1.5), (0.0, 0.5)))
    write_results(tmp_path / "new" / "results.json", replace(run, languages={"de": change, "th": change}))
    table = read_report(tmp_path / "new").tables["loss-intervals"]
    assert table.rows[0][:2] == ("German", "+1.00 (+0.50 to +1.50)")
    assert table.rows[0][-1] == "+0.25 (+0.00 to +0.50)"
    assert table.records[0]["everywhere_own_ci95_low"] == 0.5


def test_each_part_says_what_repeats_it_and_where_its_weights_are_from(tmp_path):
    run = made_run()
    model = replace(MODEL, stored="4-bit GGUF (Q4_0)")
    write_results(tmp_path / "results.json", replace(run, provenance=replace(run.provenance, model=model)))
    text = read_report(tmp_path).html
    assert html_text(text).count("To repeat this part:   mwork   made   up ") == 2
    assert text.count("float32, dequantised from 4-bit GGUF (Q4_0)") == 2
    assert "float32, dequantised from 4-bit GGUF (Q4_0)" in run_report(read_results(tmp_path / "results.json"))
    assert replace(MODEL, stored="BF16 safetensors").precision == "float32, from BF16 safetensors"


def test_what_to_cite(whole, capsys):
    assert main(["report", str(whole), "--format", "bibtex"]) == 0
    out = capsys.readouterr().out
    assert PAPER.strip() in out
    assert SOFTWARE.strip() in out
    cff = (ROOT / "CITATION.cff").read_text()
    for said in (
        "mwork-jax: how language models handle languages, in JAX",
        "How do Large Language Models Handle Multilingualism?",
        "The mwork-jax authors",
        "https://arxiv.org/abs/2402.18815",
    ):
        assert said in out
        assert said in cff
    for author in re.findall(r"given-names: (\w+), family-names: (\w+)", cff):
        assert f"{author[1]}, {author[0]}" in out
    assert out.count("{") == out.count("}")
    assert "@inproceedings{zhao2024multilingualism," in (whole / "report.html").read_text()


def test_latex_fits_a_column(whole):
    for table in read_report(whole).tables.values():
        lines = table.latex().splitlines()
        begin, end = (lines.index(rf"\end{{{part}}}") for part in ("tabular", "adjustbox"))
        assert end == begin + 1
        assert r"\begin{adjustbox}{max width=\columnwidth}" in lines
        assert lines[0] == r"\begin{table}"


def test_figures_are_the_same_whatever_the_user_s_matplotlibrc_says(monkeypatch):
    import matplotlib

    def plot(ax):
        ax.plot([1, 2], label="a")

    plain = draw("name", "label", "alt", (3, 2), plot)
    for name, value in (("font.size", 30.0), ("text.usetex", True), ("lines.linewidth", 9.0)):
        monkeypatch.setitem(matplotlib.rcParams, name, value)
    assert draw("name", "label", "alt", (3, 2), plot) == plain
    assert matplotlib.rcParams["font.size"] == 30.0


def test_a_backend_that_matplotlib_does_not_have_is_one_line(monkeypatch):
    monkeypatch.setenv("MPLBACKEND", "banana")
    for name in [name for name in sys.modules if name.split(".")[0] == "matplotlib"]:
        monkeypatch.delitem(sys.modules, name)
    with pytest.raises(InputError, match=r"^MPLBACKEND=banana: no such backend"):
        draw("name", "label", "alt", (3, 2), lambda ax: None)


def test_plots_take_an_axis_of_one_s_own(whole):
    from matplotlib.figure import Figure

    from mwork_jax.analysis import overlap

    loaded = load_results(whole)
    axes = Figure().subplots(1, 2)
    plot_layer_languages(axes[0], loaded.lens, loaded.lens.shares[2], loaded.split)
    plot_overlap(axes[1], overlap(loaded.neurons))
    assert axes[0].get_xlabel() == "layer"


def test_they_show_themselves_in_a_notebook(whole, tmp_path):
    folder = tmp_path / "results"
    shutil.copytree(whole / "neurons", folder / "neurons")
    report = read_report(folder)
    table = report.tables["overlap"]
    assert table._repr_html_().count('<th scope="col"') == len(table.columns)
    assert report.drawings["overlap"]._repr_html_().startswith("<svg")
    assert "&lt;svg" in report._repr_html_()


def damage(folder, name, change):
    path = folder / name
    body = json.loads(path.read_text())
    change(body)
    path.write_text(json.dumps(body))


def half(folder):
    text = (folder / "results.json").read_text()
    (folder / "results.json").write_text(text[: len(text) // 2])


def other_model(folder):
    damage(folder, "lens.json", lambda body: body["provenance"]["model"].update(weights="0123456789abcdef"))


def other_scores(folder):
    scores = made_scores(["de"], model=replace(MODEL, weights="other"))["de"]
    scores.save(folder / "scores" / "de.safetensors")


def change_results(change, name="results.json"):
    return lambda folder: damage(folder, name, change)


def of_version_0_1(folder):
    for name, form in (("results.json", "mwork-results-1"), ("lens.json", "mwork-lens-1")):
        damage(folder, name, lambda body, form=form: body.update(format=form))


def other_neurons(folder):
    neurons = NeuronSet.load(folder / "neurons" / "de.json")
    neurons.random_like(0).save(folder / "neurons" / "de.json")


BAD = {
    "half": (half, r"results\.json: not valid JSON \(line \d+"),
    "two models": (
        other_model,
        r"different models in one folder: .*weights bf2ddb7e93fc6791.*0123456789abcdef",
    ),
    "scores of another": (other_scores, "different models in one folder"),
    "a rule that does not exist": (
        lambda f: [
            damage(f, f"neurons/{p.name}", lambda b: b["provenance"].update(rule="best:7"))
            for p in (f / "neurons").iterdir()
        ],
        r"results: rule 'best:7' is not one of epsilon:X",
    ),
    "a mode that does not exist": (
        lambda f: [
            damage(f, f"neurons/{p.name}", lambda b: b["provenance"].update(mode="best:7"))
            for p in (f / "neurons").iterdir()
        ],
        r"results: mode 'best:7' is not one of minus_english",
    ),
    "neurons of another run": (other_neurons, r"neurons/de\.json: not the set that results\.json was measured with"),
    "foreign": (
        lambda f: (f / "results.json").write_text('{"accuracy": 1}'),
        r"results\.json: not a result of this project \(its 'format' should be 'mwork-results-2'\)",
    ),
    "a list": (lambda f: (f / "results.json").write_text("[1]"), r"results\.json: not a result of this project"),
    "version 0.1": (of_version_0_1, r"results\.json: written by version 0\.1, .*; run the command again"),
    "no kind": (
        change_results(lambda b: b.pop("kind")),
        r"results\.json: damaged \('kind' should be one of run, tables,",
    ),
    "no rows": (
        change_results(lambda b: b["rows"].clear()),
        r"results\.json: damaged \(rows should have something in it",
    ),
    "a number is text": (
        change_results(lambda b: b["rows"][2].update(delta="high")),
        r"results\.json: damaged \(Expected `float \| null`, got `str` - at `\$\.rows\[2\]\.delta`\)",
    ),
    "a field is gone": (
        change_results(lambda b: b["languages"]["de"].pop("everywhere")),
        r"results\.json: damaged \(.*missing required field `everywhere` - at `\$\.languages",
    ),
    "a field too many": (
        change_results(lambda b: b["languages"]["de"].update(extra=1)),
        r"results\.json: \$\.languages\['de'\]\.'extra' is not known",
    ),
    "no languages": (
        change_results(lambda b: b["languages"].clear()),
        r"results\.json: damaged \(languages should have something in it",
    ),
    "no shares": (
        change_results(lambda b: b.update(shares=[]), "lens.json"),
        r"lens\.json: damaged \(shares should have",
    ),
    "ragged shares": (
        change_results(lambda b: b["shares"][2]["top_k"][3].pop(), "lens.json"),
        r"lens\.json: damaged \(the shares of 'de' are not 19 rows of 9 columns",
    ),
    "neurons": (lambda f: (f / "neurons" / "de.json").write_text("{}"), r"de\.json: not a neuron set"),
    "an interval of one number": (
        change_results(lambda b: b["rows"][1].update(delta_ci95=[0.5])),
        r"results\.json: damaged \(Expected `array` of length 2, got 1 - at `\$\.rows\[1\]\.delta_ci95`\)",
    ),
    "scores": (lambda f: (f / "scores" / "de.safetensors").write_bytes(b"x"), "damaged neuron scores"),
    "two of one table": (
        lambda f: shutil.copytree(f / "tables", f / "tables again"),
        r"table 4: two results of the same kind",
    ),
    "two runs": (
        lambda f: [(f / "again").mkdir(), (f / "again" / "results.json").write_text((f / "results.json").read_text())],
        "two results of the same kind",
    ),
}


@pytest.mark.parametrize("case", BAD)
def test_damage_is_one_line_and_no_half_page(case, tmp_path, capsys):
    folder = all_parts(tmp_path / "results")
    make, message = BAD[case]
    make(folder)
    before = {p: p.read_bytes() for p in folder.rglob("*") if p.is_file()}
    assert main(["report", str(folder)]) == 2
    errors = capsys.readouterr().err
    assert re.search(message, errors), errors
    assert errors.count("\n") == 1
    assert {p: p.read_bytes() for p in folder.rglob("*") if p.is_file()} == before


@pytest.mark.parametrize("folder", ["", "nowhere", "foreign"])
def test_a_folder_with_nothing_to_report(folder, tmp_path, capsys):
    (tmp_path / "foreign").mkdir()
    (tmp_path / "foreign" / "notes.txt").write_text("hello")
    assert main(["report", str(tmp_path / folder)]) == 2
    errors = capsys.readouterr().err
    assert ("no such folder" if folder == "nowhere" else "nothing to report") in errors
    assert errors.count("\n") == 1
    assert not list(tmp_path.rglob("report.html"))


def test_a_name_that_is_html_stays_text(tmp_path):
    folder = real_run(tmp_path / "results")
    for path in [folder / "results.json", *(folder / "neurons").iterdir()]:
        path.write_text(path.read_text().replace('"gemma3-270m"', '"<b onclick=x>&"'))
    text = read_report(folder).write().read_text()
    assert "<b onclick" not in text
    assert "&lt;b onclick=x&gt;&amp;" in text


def test_the_squares_lead_to_the_page_of_neurons(tmp_path):
    folder = real_run(tmp_path / "results")
    for there in (False, True):
        loaded = load_results(folder)
        section = _where_section(loaded, {table.name: table for table in all_tables(loaded)})
        drawing = section.figures[0].drawings[0]
        (language,) = (lang for lang in loaded.neurons if drawing.name == f"neurons-{lang}")
        places = [(g, i) for g, m in loaded.neurons[language].groups.items() for i in np.flatnonzero(m.any(axis=1))]
        found = map(html.unescape, re.findall(r'<a [^>]*href="([^"]*)"', drawing.inline))
        assert sorted(found) == (sorted(fragment(language, g, int(i) + 1) for g, i in places) if there else [])
        assert drawing.inline.count('tabindex="-1"') == (len(places) if there else 0)
        assert "<a" not in drawing.plain, "a figure in a paper leads nowhere"
        listed = [address for address, _ in section.links]
        assert listed == ([fragment(lang) for lang in loaded.neurons if lang != "en"] if there else [])
        (folder / FILE).write_text("")
    assert f'<a href="{fragment(language)}">What neurons of ' in page(loaded, [section])


def test_what_the_paper_prints_has_the_tunings_and_the_lens(tmp_path):
    loaded = read_report(all_parts(tmp_path / "whole")).results
    text = paper_report(loaded)
    for part in (run_report(loaded.run), table_report(loaded.tables[0]), enhance_report(loaded.tuning)):
        assert part in text
    assert lens_report(loaded.lens) in text
