"""Names that others gave: of tasks, languages and models, in results that anybody may have written. Whatever they are,
a report writes inside its folder, and they stay text in pages, tables and figures."""

import csv
import hashlib
import io
import re
from dataclasses import replace
from html.parser import HTMLParser
from xml.etree import ElementTree

import pytest

from mwork_jax.cli import main
from mwork_jax.errors import InputError
from mwork_jax.report import read_report, table_report
from mwork_jax.report.names import check_distinct, one_line, slug
from mwork_jax.report.table import Table
from mwork_jax.results import TablesResults, write_results
from support.foreign_results import NAMES, foreign_folder
from support.made_results import (
    LANGUAGES,
    MODEL,
    made_grid,
    made_scores,
    made_table,
    made_tables,
)

TAGS = {
    "a", "bdi", "body", "caption", "code", "dd", "defs", "desc", "details", "div", "dl", "dt", "figcaption", "figure",
    "footer", "g", "h1", "h2", "h3", "head", "header", "html", "i", "li", "link", "main", "meta", "nav", "p", "path",
    "clippath", "pre", "rect", "section", "span", "style", "summary", "svg", "table", "tbody", "td", "text", "th",
    "thead", "title", "tr", "tspan", "ul", "use",
}  # fmt: skip


class Page(HTMLParser):
    """Every tag and attribute of a page, and its text."""

    def __init__(self, text):
        super().__init__()
        self.tags, self.attributes, self.ids, self.text = [], [], [], ""
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.attributes += attrs
        self.ids += [value for key, value in attrs if key == "id"]

    def handle_data(self, data):
        self.text += data


@pytest.fixture(scope="module", params=NAMES)
def foreign(request, tmp_path_factory):
    """A page from foreign results, deep enough inside a folder that is watched to be left by `../../..`."""
    top = tmp_path_factory.mktemp("watched")
    folder = foreign_folder(top / "a" / "b" / "results", NAMES[request.param])
    before = set(top.rglob("*"))
    read_report(folder).write()
    return NAMES[request.param], folder, {p.relative_to(folder) for p in set(top.rglob("*")) - before}


def test_a_report_writes_inside_its_folder(foreign):
    _, folder, new = foreign
    assert folder.joinpath("report.html").exists()
    for path in new:
        assert path.parts[0] in ("report.html", "figures"), path
        assert len(path.parts) <= 2
        assert re.fullmatch(r"(report\.html|figures|[a-z0-9-]+\.(svg|csv))", path.name), path
        assert len(path.name) < 200


def test_names_stay_text_in_the_page(foreign):
    name, folder, _ = foreign
    page = Page(folder.joinpath("report.html").read_text())
    assert set(page.tags) <= TAGS
    assert page.tags.count("meta") == 4
    assert not [key for key, _ in page.attributes if key.startswith("on")]
    assert all(value.startswith(("#", "data:")) for key, value in page.attributes if key.endswith(("href", "src")))
    assert len(page.ids) == len(set(page.ids))
    of_matplotlib = r"[A-Za-z0-9_.]*"  # its own ids inside a figure's
    assert all(re.fullmatch(rf"[a-z0-9-]+{of_matplotlib}", id) for id in page.ids), page.ids
    assert one_line(name).strip() in page.text or name.strip("/.~ ") == "", "and they are shown"
    assert not re.search("[\x00-\x08\x0b-\x1f\x7f]", page.text)


def test_names_stay_text_in_figures(foreign):
    _, folder, _ = foreign
    figures = list((folder / "figures").glob("*.svg"))
    assert len(figures) >= 6
    for path in figures:
        root = ElementTree.parse(path).getroot()
        tags = {element.tag.rsplit("}", 1)[-1].lower() for element in root.iter()}
        assert tags <= TAGS
        assert not [key for element in root.iter() for key in element.attrib if key.startswith("on")]


def test_names_stay_text_in_tables_for_papers(foreign):
    name, folder, _ = foreign
    tables = read_report(folder).tables
    for key, table in tables.items():
        assert re.fullmatch(r"[a-z0-9-]+", key)
        latex = table.latex()
        assert re.search(r"\\label\{tab:[a-z0-9-]+\}", latex)
        assert "\\input" not in latex.replace(r"\textbackslash{}input", "")
        assert latex.count("\n") == len(table.rows) + 14, "a name ends no line"
        assert re.search(r"<[^.\d ]", table.markdown()) is None
        assert table.markdown().count("\n| ") == len(table.rows) + 1 + 1
        assert "\x1b" not in table.text() + latex + table.markdown() + table.csv()
        rows = list(csv.reader(io.StringIO(table.csv())))
        assert len(rows) == len(table.records or table.rows) + 1
        assert len({len(row) for row in rows}) == 1
    assert any(one_line(name) in table.title for table in tables.values())


def test_a_spreadsheet_computes_nothing():
    """A cell that begins as a formula gets an apostrophe in front; numbers stay as they are."""
    cells = ("=1+1", "@SUM(A1)", "+cmd|' /C calc'!A0", "-x", "-6.04", "+0.02", "–", "de")
    table = Table("t", "T", tuple("abcdefgh"), (cells,))
    _, row = csv.reader(io.StringIO(table.csv()))
    assert row == ["'=1+1", "'@SUM(A1)", "'+cmd|' /C calc'!A0", "'-x", "-6.04", "+0.02", "–", "de"]


@pytest.mark.parametrize("cell", ["-2+3+cmd|' /C calc'!D2", '+1+HYPERLINK("//evil")', "-.5+A1", "＝1+1", "－1+A1"])
def test_a_formula_that_begins_as_a_number_is_one(cell):
    assert Table("t", "T", ("a",), ((cell,),)).csv().splitlines()[1].startswith(("'", "\"'"))


@pytest.mark.parametrize("cell", ["+4.96 (+4.80 to +5.12)", "-0.3%", "-1,234.5", "+0.10 (-0.17 to +0.04)"])
def test_numbers_with_their_intervals_stay_as_they_are(cell):
    (row,) = list(csv.reader(io.StringIO(Table("t", "T", ("a",), ((cell,),)).csv())))[1:]
    assert row == [cell]


def test_a_terminal_is_told_nothing():
    table = made_table(NAMES["a terminal's orders"])
    provenance = replace(table.provenance, model=replace(MODEL, source="\x1b[2J"))
    table = replace(table, stage="\x1b[2J", provenance=provenance)
    assert "\x1b" not in table_report(table)
    assert "\x1b" not in table_report(replace(made_grid("\x1b[2J"), stage="\x1b[2J"))


def test_two_names_of_one_file_are_refused(tmp_path, capsys):
    write_results(tmp_path / "results.json", TablesResults.of([made_table("two words"), made_table("two-words")]))
    assert main(["report", str(tmp_path)]) == 2
    line = capsys.readouterr().err
    assert "'two words' and 'two-words' would have figures of one name; rename one of them" in line
    assert line.count("\n") == 1
    assert not (tmp_path / "report.html").exists()
    check_distinct(["de", "th", "de"], "here")
    with pytest.raises(InputError, match="here: 'DE' and 'de' would"):
        check_distinct(["DE", "de"], "here")


def test_languages_named_by_files(tmp_path):
    """The name of a file in scores/ and neurons/ is a language too, and can be nearly anything."""
    folder = tmp_path / "results"
    scores = made_scores(model=MODEL)
    for language, name in zip(LANGUAGES, ("en", '"><img src=x>', "$x\n\x1b[2J\udc80"), strict=True):
        nameless = {k: v for k, v in scores[language].provenance.items() if k != "language"}
        replace(scores[language], provenance=nameless).save(folder / "scores" / "plain")
        (folder / "scores" / "plain").rename(folder / "scores" / f"{name}.safetensors")
    before = set(tmp_path.rglob("*"))
    text = read_report(folder).write().read_text()
    assert "<img" not in text
    assert all({folder / "report.html", folder / "figures"} & {p, p.parent} for p in set(tmp_path.rglob("*")) - before)


@pytest.mark.parametrize("target", ["elsewhere", "nowhere"])
def test_figures_that_are_a_link_are_refused(target, tmp_path, capsys):
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "elsewhere" / "losses.svg").write_text("mine")
    folder = tmp_path / "results"
    write_results(folder / "results.json", made_tables())
    (folder / "figures").symlink_to(tmp_path / target, target_is_directory=True)
    before = {p: p.is_dir() or p.read_bytes() for p in tmp_path.rglob("*") if p.exists()}
    assert main(["report", str(folder)]) == 2
    line = capsys.readouterr().err
    assert "figures: a link; a folder is needed" in line
    assert line.count("\n") == 1
    assert {p: p.is_dir() or p.read_bytes() for p in tmp_path.rglob("*") if p.exists()} == before


def test_files_that_are_links_are_replaced_and_not_followed(tmp_path):
    mine = tmp_path / "mine.txt"
    mine.write_text("mine")
    folder = tmp_path / "results"
    write_results(folder / "results.json", made_tables())
    (folder / "figures").mkdir()
    for path in (folder / "report.html", folder / "figures" / "delta-table-4-xcsqa.svg"):
        path.symlink_to(mine)
    read_report(folder).write()
    assert mine.read_text() == "mine"
    assert not (folder / "report.html").is_symlink()
    assert not (folder / "figures" / "delta-table-4-xcsqa.svg").is_symlink()


@pytest.mark.parametrize("name", ["figures", "report.html"])
def test_something_else_in_the_place_of_what_is_written(name, tmp_path, capsys):
    write_results(tmp_path / "results.json", made_tables())
    if name == "figures":
        (tmp_path / name).write_text("a file")
    else:
        (tmp_path / name).mkdir()
    assert main(["report", str(tmp_path)]) == 2
    line = capsys.readouterr().err
    assert name in line
    assert line.count("\n") == 1


def test_slugs():
    assert slug("held-out loss") == "held-out-loss"
    assert slug("xcsqa") == "xcsqa"
    assert slug("zh-Hans") == "zh-hans"
    others = ("a/b", "a//b", "a/b/", "A/b", "a\\b", ".a", "a.", "ä", "ö", "a--b", "-a", "a-", "a" * 300)
    strange = (*NAMES.values(), *others)
    slugs = [slug(name) for name in strange]
    assert all(re.fullmatch(r"[a-z0-9]+(-[a-z0-9]+)*", one) for one in slugs)
    assert len(set(slugs)) == len(strange)
    assert max(map(len, slugs)) < 80
    assert [slug(name) for name in strange] == slugs, "the same in every process: no hash() of Python"
    assert slug("a/b") == f"a-b-{hashlib.sha256(b'a/b').hexdigest()[:8]}"


def test_a_table_keeps_its_shape():
    table = Table("t", "a\nb", ("x\ny", "z"), (("p|q\n", "<b>"),), note="n\x00")
    assert table.text().count("\n") == 2
    assert "| p\\|q\ufffd | &lt;b> |" in table.markdown()
    assert "&lt;b&gt;" in table.html()
    assert "\n" not in table.title + table.note
