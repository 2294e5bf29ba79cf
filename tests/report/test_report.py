"""The report: made from files alone, whole or not at all, in every format. What a browser makes of it is tested in
test_report_browser.py."""

import csv
import io
import json
import re
import shutil
from html.parser import HTMLParser
from xml.etree import ElementTree

import numpy as np
import pytest

from mwork_jax.cli import main
from mwork_jax.neurons import NeuronSet
from mwork_jax.report import Table, load_results, read_report
from mwork_jax.report.figures import plot_layer_languages, plot_overlap
from mwork_jax.report.tables import against_random, lens_sentence
from mwork_jax.select.rules import activated
from support.made_results import all_parts, made_scores, real_run

SVG = "{http://www.w3.org/2000/svg}"


class Outline(HTMLParser):
    """What a page has: tags that are open at its end, its ids, references, addresses, images without an alternative."""

    def __init__(self, text):
        super().__init__()
        self.open, self.ids, self.references, self.addresses, self.tables = [], [], [], [], []
        self.feed(text)

    def handle_starttag(self, tag, attributes):
        found = dict(attributes)
        self.ids += [found["id"]] if "id" in found else []
        self.references += [r for name in ("aria-labelledby",) for r in found.get(name, "").split()]
        self.references += [found["href"][1:]] if found.get("href", "").startswith("#") else []
        self.addresses += [v for k, v in attributes if k in ("src", "href", "xlink:href") and not v.startswith("#")]
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
        "documents 100 200 400, learning_rate 0.0001",
        "fa97cad4b4caeee3",
        "jax 0.",
        "--rule top_fraction:0.05",
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
    real = json.loads((whole / "results.json").read_text())["rows"]
    assert [float(row["delta"]) for row in deltas] == [row["delta"] for row in real]
    neurons = list(csv.DictReader((whole / "figures" / "neurons.csv").open()))
    german = sum(int(row["neurons"]) for row in neurons if row["language"] == "de")
    assert german == json.loads((whole / "neurons" / "de.json").read_text())["count"]


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
    for language, scores in made_scores(model={"source": "x", "weights": "1", "layers": 3}).items():
        scores.save(folder / "scores" / f"{language}.safetensors")
    text = read_report(folder).write().read_text()
    assert 'id="thresholds"' in text
    assert 'id="loss"' not in text


def test_scores_without_english_are_shown_as_they_are(tmp_path):
    for language, scores in made_scores(("de", "th"), model={"source": "x", "weights": "1", "layers": 3}).items():
        scores.save(tmp_path / "scores" / f"{language}.safetensors")
    assert "mode all" in read_report(tmp_path).html


@pytest.mark.parametrize("rule", ["lape:0.1", "top_fraction:0.3@0.01"])
def test_a_rule_that_scores_alone_do_not_answer(rule, tmp_path):
    """lape compares languages; a tolerant rule asks of more documents than these scores remember."""
    scores = made_scores(("en", "de", "th"), model={"source": "x", "weights": "1", "layers": 3})
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


def row(neurons, low, high, **off):
    stages = {stage: stage in off for stage in ("under", "s_attn", "s_ffn", "gen")}
    return {"neurons": neurons, "delta_ci95": [low, high], **stages}


def test_a_delta_like_random_is_marked():
    everywhere = dict.fromkeys(("under", "s_attn", "s_ffn", "gen"), True)
    own, random = row("random", 2.0, 3.0, under=True), row("random", -1.0, 1.0, **everywhere)
    rows = [own, random]
    assert against_random(row("lang-spec", 0.5, 1.5, under=True), rows) == "differs", "its own random row counts"
    assert against_random(row("lang-spec", 0.5, 1.5, gen=True), rows) == "≈", "else that of all layers"
    assert against_random(row("lang-spec", 1.5, 2.5, gen=True), rows) == "differs"
    assert against_random(row("lang-spec", 1.5, 2.5, gen=True), [own]) == "–"
    assert against_random(random, rows) == "–"


def lens_of(shares):
    """{language: [own, English] by layer} as a lens."""
    columns, rest = ["en", "de", "th"], ["other", "unclear", "none"]
    made = []
    for language, layers in shares.items():
        top = np.zeros((len(layers), 6))
        top[:, columns.index(language)], top[:, 0] = np.transpose(layers)
        top[:, 5] = 1 - top.sum(axis=1)
        made.append({"language": language, "neurons_off": 0, "top_k": top.tolist()})
    return {"labels": {"columns": columns + rest}, "settings": {"top": 5}, "shares": made}


def test_the_sentence_says_what_is_seen_and_no_more():
    through_english = [[0.5, 0.1], [0.1, 0.6], [0.7, 0.1]]
    never = [[0.5, 0.1], [0.5, 0.2], [0.7, 0.1]]
    assert "this is the pattern" in lens_sentence(lens_of({"de": through_english, "th": through_english}))
    mixed = lens_sentence(lens_of({"de": through_english, "th": never}))
    assert "holds for German" in mixed
    assert "outweighs the prompt's own language in 1 of 2" in mixed
    assert "holds for none of them" in lens_sentence(lens_of({"th": never}))


def test_plots_take_an_axis_of_one_s_own(whole):
    from matplotlib.figure import Figure

    from mwork_jax.analysis import overlap

    loaded = load_results(whole)
    axes = Figure().subplots(1, 2)
    plot_layer_languages(axes[0], loaded.lens, loaded.lens["shares"][2], loaded.split)
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
    damage(folder, "lens.json", lambda body: body["model"].update(weights="0123456789abcdef"))


def other_scores(folder):
    scores = made_scores(["de"], model={"source": "b", "weights": "other", "layers": 3})["de"]
    scores.save(folder / "scores" / "de.safetensors")


BAD = {
    "half": (half, r"results\.json: not valid JSON \(line \d+"),
    "two models": (
        other_model,
        r"different models in one folder: .*weights fa97cad4b4caeee3.*0123456789abcdef",
    ),
    "scores of another": (other_scores, "different models in one folder"),
    "foreign": (lambda f: (f / "results.json").write_text('{"accuracy": 1}'), "not a file of this project"),
    "no rows": (lambda f: damage(f, "results.json", lambda b: b["rows"].clear()), r"damaged \(rows should be a list"),
    "a number is text": (
        lambda f: damage(f, "results.json", lambda b: b["rows"][2].update(delta="high")),
        r"damaged \(rows\[2\]\.delta should be a float, it is 'high'\)",
    ),
    "a field is gone": (
        lambda f: damage(f, "results.json", lambda b: b["languages"]["de"].pop("everywhere")),
        r"languages\.de\.everywhere is missing",
    ),
    "no languages": (
        lambda f: damage(f, "results.json", lambda b: b["languages"].clear()),
        r"languages should have something in it",
    ),
    "lens": (lambda f: damage(f, "lens.json", lambda b: b.update(shares=[])), "shares should be a list"),
    "neurons": (lambda f: (f / "neurons" / "de.json").write_text("{}"), r"de\.json: not a neuron set"),
    "an interval of one number": (
        lambda f: damage(f, "results.json", lambda b: b["rows"][1].update(delta_ci95=[0.5])),
        r"damaged \(rows\[1\]\.delta_ci95 should be a list of 2 numbers",
    ),
    "scores": (lambda f: (f / "scores" / "de.safetensors").write_bytes(b"x"), "damaged neuron scores"),
    "two of one table": (
        lambda f: shutil.copytree(f / "tables", f / "tables again"),
        r"table 4 xcsqa and .*two results of the same kind",
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
