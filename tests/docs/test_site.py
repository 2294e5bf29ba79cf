"""The site: Sphinx has nothing to complain of, every link leads somewhere, nothing is fetched from elsewhere."""

import re
import subprocess
import sys
from html.parser import HTMLParser
from urllib.parse import unquote, urlsplit

import pytest

import mwork_jax
from mwork_jax.cli import _parser
from support.browser import browser
from support.paths import ROOT

ELSEWHERE = re.compile(r"""(url\(|@import )\s*['"]?(https?:)?//""")
FETCHED = {"script": "src", "img": "src", "link": "href", "iframe": "src", "source": "src", "video": "src"}


class Page(HTMLParser):
    """The ids, the links and what a browser would fetch of one page."""

    def __init__(self, text):
        super().__init__()
        self.ids, self.links, self.fetched = set(), [], []
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        values = {name: value for name, value in attrs if value}
        self.ids |= {values[name] for name in ("id", "name") if name in values}
        if tag == "a" and "href" in values:
            self.links.append(values["href"])
        if values.get(FETCHED.get(tag, "")) and values.get("rel") != "canonical":
            self.fetched.append(values[FETCHED[tag]])


def broken_links(folder):
    """What the pages of a folder link to or fetch and is not there, and what they fetch from elsewhere."""
    paths = [path for path in sorted(folder.rglob("*.html")) if path.parent.name != "_static"]  # the theme's templates
    pages = {path: Page(path.read_text(encoding="utf-8")) for path in paths}
    for path, page in pages.items():
        for address in [*page.links, *page.fetched]:
            scheme, host, target, _, anchor = urlsplit(address)
            if scheme or host:
                if address in page.fetched and scheme != "data":
                    yield f"{path.name} fetches {address}"
                continue
            there = (path.parent / unquote(target)).resolve() if target else path
            if not there.is_file():
                yield f"{path.name} -> {address}: no such file"
            elif anchor and there in pages and unquote(anchor) not in pages[there].ids:
                yield f"{path.name} -> {address}: no such place"


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    pytest.importorskip("sphinx", reason="pip install 'mwork-jax[docs]'")
    folder = tmp_path_factory.mktemp("site")
    strictly = ["-W", "--keep-going", "-q", "-b", "html"]
    command = [sys.executable, "-m", "sphinx", *strictly, str(ROOT / "docs"), str(folder)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=1800)
    assert done.returncode == 0, done.stderr
    return folder


@pytest.mark.slow
@pytest.mark.processes
def test_every_link_leads_somewhere_and_nothing_is_fetched_from_elsewhere(site):
    assert list(broken_links(site.resolve())) == []
    for path in site.rglob("*.css"):
        assert not ELSEWHERE.search(path.read_text(encoding="utf-8")), path.name


@pytest.mark.slow
def test_every_public_name_and_option_is_on_its_page(site):
    names = Page((site / "reference" / "python.html").read_text(encoding="utf-8")).ids
    for name in mwork_jax.__all__:
        if callable(getattr(mwork_jax, name)):
            assert f"mwork_jax.{name}" in names, name
    commands = (site / "reference" / "commands.md").read_text(encoding="utf-8")
    (every,) = (action.choices for action in _parser()._actions if isinstance(action.choices, dict))
    for name, parser in every.items():
        assert f"## `mwork {name}`" in commands
        for option in parser._option_string_actions:
            assert option in ("-h", "--help") or f"`{option}" in commands, option


@pytest.mark.slow
def test_equations_and_figures_are_there(site):
    method = (site / "method.html").read_text(encoding="utf-8")
    assert method.count("<math") > 20
    assert "\\frac" not in method
    assert "report.png" in (site / "index.html").read_text(encoding="utf-8")


@pytest.mark.slow
def test_the_list_of_pages_for_programs(site):
    text = (site / "llms.txt").read_text(encoding="utf-8")
    listed = re.findall(r"^- \[.+?\]\((.+?)\): .{20}", text, re.MULTILINE)
    assert len(listed) > 25
    assert all((site / name).is_file() for name in listed)
    made = (site / "reference" / "commands.md").read_text(encoding="utf-8")
    assert "made:" not in made


@pytest.mark.slow
@pytest.mark.browser
@pytest.mark.parametrize("name", ["index.html", "method.html", "reference/python.html"])
def test_a_page_in_a_browser(site, name):
    with browser() as window:
        window.open(site / name)
        assert [line for line in window.console() if "[PST]" not in line] == []  # the theme says which mode it took
        assert all(address.startswith("file:") for address in window.requests())


def test_the_checker_sees_what_is_broken(tmp_path):
    (tmp_path / "a.html").write_text('<p id="here"><a href="b.html">x</a><a href="#there">y</a><a href="#here">z</a>')
    (tmp_path / "c.html").write_text('<a href="a.html#gone">x</a><script src="https://example.invalid/x.js"></script>')
    assert list(broken_links(tmp_path)) == [
        "a.html -> b.html: no such file",
        "a.html -> #there: no such place",
        "c.html -> a.html#gone: no such place",
        "c.html fetches https://example.invalid/x.js",
    ]
