"""The page as a reader's browser shows it: nothing complains, nothing is fetched, nothing sticks out."""

from dataclasses import replace

import pytest

from mwork_jax.report import read_report
from mwork_jax.results import Change, write_results
from support.browser import browser
from support.foreign_results import NAMES, foreign_folder
from support.made_results import all_parts, made_matrix, made_run, real_run

pytestmark = pytest.mark.browser
WIDTHS = (390, 1280)
ALTERNATIVES = """
return [...document.querySelectorAll("svg, img")].filter(e => {
  const names = (e.getAttribute("aria-labelledby") || "").split(" ").map(id => document.getElementById(id));
  return e.getAttribute("role") !== "img" || names.length < 2 || !names.every(n => n && n.textContent.trim());
}).map(e => e.outerHTML.slice(0, 80));
"""
SMALLEST_TEXT = """
return Math.min(...[...document.querySelectorAll("svg text")].map(e => e.getBoundingClientRect().height));
"""


# Every table and wide figure: does it fit, or scroll in a box of its own from its first column to its last, with a hint
# that is seen just then?
TABLES = """
return [...document.querySelectorAll("table, .scroll > svg")].map(table => {
  const box = table.closest(".scroll");
  if (!box) return "a table in no box";
  const hint = box.querySelector(".hint");
  if (!hint) return "a box without a hint";
  const name = table.getAttribute("aria-labelledby") || box.ariaLabel;
  const seen = getComputedStyle(hint).visibility === "visible" && hint.getBoundingClientRect().height > 5;
  const wide = box.scrollWidth > box.clientWidth;
  const [inside, outside] = [() => table.getBoundingClientRect(), box.getBoundingClientRect()];
  const leftwards = getComputedStyle(box).direction === "rtl";  // its first column stands at the right
  const begins = leftwards ? outside.right - inside().right : inside().left - outside.left;
  box.scrollLeft = leftwards ? -box.scrollWidth : box.scrollWidth;
  const past = leftwards ? outside.left - inside().left : inside().right - outside.right;
  box.scrollLeft = 0;
  if (begins < -1) return `${name}: begins out of sight`;
  if (past > 1) return `${name}: ${past} px cannot be reached`;
  if (wide !== seen) return `${name}: ${box.scrollWidth} in ${box.clientWidth}, hint ${seen ? "" : "not "}shown`;
  return wide ? "scrolls" : "fits";
});
"""
FIVE_WIDTHS = (360, 390, 768, 1280, 1600)


def many_languages(folder):
    """Wide tables: a run and a lens of twelve languages, with intervals."""
    languages = ("en", "de", "fr", "es", "ru", "zh", "vi", "th", "ar", "sw", "id", "a language without a name")
    run = made_run()
    change = replace(run.languages["de"], everywhere=Change(1.0, 0.25, (0.5, 1.5), (0.0, 0.5)))
    original = dict.fromkeys(languages, run.original["en"])
    run = replace(run, original=original, languages=dict.fromkeys(languages[1:], change), matrix=made_matrix(languages))
    write_results(folder / "results.json", run)
    return folder


@pytest.fixture(scope="module")
def window():
    with browser() as opened:
        yield opened


@pytest.fixture(scope="module", params=[real_run, all_parts, many_languages])
def page(request, tmp_path_factory):
    return read_report(request.param(tmp_path_factory.mktemp("page") / "results")).write()


@pytest.mark.parametrize("dark", [False, True])
@pytest.mark.parametrize("width", WIDTHS)
def test_the_page_in_a_browser(window, page, width, dark):
    window.open(page, width, dark=dark)
    assert window.console() == []
    assert window.requests() == [page.resolve().as_uri()]
    window.run("document.querySelectorAll('details').forEach(d => d.open = true)")
    assert window.overflowing() == []
    assert window.run(ALTERNATIVES) == []
    assert window.run(SMALLEST_TEXT) > 7, "labels can be read on a phone"
    assert window.run("return !document.querySelector('table:not(:has(thead th[scope=col])), svg:has(svg)')")
    paper = window.run("return getComputedStyle(document.body).backgroundColor")
    assert (sum(map(int, paper.strip("rgb()").split(","))) < 200) == dark


def test_every_table_fits_or_scrolls_with_a_hint(window, page):
    window.open(page, FIVE_WIDTHS[0])
    window.run("document.querySelectorAll('details').forEach(d => d.open = true)")
    scrolling = {}
    for width in FIVE_WIDTHS:
        window.resize(width)
        found = window.run(TABLES)
        assert set(found) <= {"fits", "scrolls"}, width
        assert window.run("return document.documentElement.scrollWidth") == width
        scrolling[width] = found.count("scrolls")
    assert scrolling[360] > 0
    assert scrolling[360] >= scrolling[768] >= scrolling[1600]


@pytest.mark.parametrize("name", ["html", "an attribute", "a terminal's orders", "a way out"])
def test_foreign_names_do_nothing_in_a_browser(name, window, tmp_path):
    page = read_report(foreign_folder(tmp_path / "a" / "results", NAMES[name])).write()
    window.open(page, 1280)
    assert window.console() == []
    assert window.requests() == [page.resolve().as_uri()]
    assert window.run("return location.href") == page.resolve().as_uri()
    active = "script, iframe, object, meta[http-equiv=refresh], [onload]"
    assert window.run(f"return document.querySelectorAll('{active}').length") == 0


def test_it_prints(window, page):
    window.open(page, 794, media="print")
    assert window.overflowing() == []
    assert window.pdf().startswith(b"%PDF")


def test_the_test_sees_what_sticks_out(window, tmp_path):
    bad = tmp_path / "bad.html"
    bad.write_text(
        "<!doctype html><body><div style='width:2000px'>wide</div><svg></svg>"
        "<img src='https://example.invalid/x.png'><script>undefined_thing()</script>"
    )
    window.open(bad, 390)
    assert window.overflowing()
    assert window.run(ALTERNATIVES)
    assert any("undefined_thing" in line for line in window.console())
    assert "https://example.invalid/x.png" in window.requests()
