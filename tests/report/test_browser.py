"""The page as a reader's browser shows it: nothing complains, nothing is fetched, nothing sticks out."""

import pytest

from mwork_jax.report import read_report
from support.browser import browser
from support.foreign_results import NAMES, foreign_folder
from support.made_results import all_parts, real_run

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


@pytest.fixture(scope="module")
def window():
    with browser() as opened:
        yield opened


@pytest.fixture(scope="module", params=[real_run, all_parts])
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
