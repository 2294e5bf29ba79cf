"""The report: made from files alone, whole or not at all, in every format. What a browser makes of it is tested in
test_browser.py, names that are more than names in test_names.py."""

import csv
import io
import json
import re
import shutil
import sys
from dataclasses import replace
from html.parser import HTMLParser
from xml.etree import ElementTree

import pytest

from mwork_jax.cli import main
from mwork_jax.errors import InputError
from mwork_jax.neurons import NeuronSet
from mwork_jax.report import Table, load_results, read_report
from mwork_jax.report.figures import plot_layer_languages, plot_overlap
from mwork_jax.report.svg import draw
from mwork_jax.report.tables import against_random, delta_table, lens_sentence, tuning_tables
from mwork_jax.results import BeyondRandom, read_results, write_results
from mwork_jax.select.rules import activated
from support.made_results import (
    MODEL,
    all_parts,
    made_lens,
    made_row,
    made_run,
    made_scores,
    made_tables,
    made_tuning,
    real_run,
)

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


@pytest.mark.parametrize("make", [made_run, made_tables, made_tuning, made_lens])
def test_every_kind_of_result_is_shown_by_itself(make, tmp_path):
    write_results(tmp_path / "results.json", make())
    report = read_report(tmp_path)
    assert report.tables
    assert report.drawings
    page = report.write().read_text()
    assert "mwork made up" in page, "the command, as it was typed"
    assert "label_languages" not in page, "a setting without a value is left out"


def test_the_sentence_says_what_is_seen_and_no_more():
    through_english = [[0.5, 0.1], [0.1, 0.6], [0.7, 0.1]]
    never = [[0.5, 0.1], [0.5, 0.2], [0.7, 0.1]]
    assert "this is the pattern" in lens_sentence(made_lens({"de": through_english, "th": through_english}))
    mixed = lens_sentence(made_lens({"de": through_english, "th": never}))
    assert "holds for German" in mixed
    assert "outweighs the prompt's own language in 1 of 2" in mixed
    assert "holds for none of them" in lens_sentence(made_lens({"th": never}))


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
        r"results\.json: damaged \(Expected `float`, got `str` - at `\$\.rows\[2\]\.delta`\)",
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
