"""The page of `mwork neurons`: what it says, what its policy lets run, and what a browser does with it."""

import base64
import hashlib
import re

import pytest

from mwork_jax.report.neurons_page import FILE, fragment, neurons_page
from mwork_jax.report.text import neurons_report
from support.browser import browser
from support.made_results import made_neurons

HOSTILE = "</bdi></article><script>document.title='taken'</script><img src=x onerror=alert(1)>\" ' & \u2028\x00"


def test_everything_is_on_the_page():
    page = neurons_page(made_neurons())
    assert page.count("<article ") == 6
    assert "<h2>2/31 <small>layer 2, neuron 31; feed-forward, up and down</small></h2>" in page
    assert "Of German (importance 0.75), Thai. In Python: layer 0, index 30 of ffn_up, ffn_down." in page
    assert "before Haus <mark>Haus1</mark> after" in page
    assert "does not apply: a query, key or value neuron" in page
    assert "active at 12.5 % of the tokens, at most 2.5" in page
    assert "never acted" in page
    assert "⏎" in page
    report = neurons_report(made_neurons())
    assert "German, 6 neurons" in report
    assert "  1/30: Haus-ffn_up-0" in report


def test_the_policy_lets_the_page_s_own_script_run_and_no_other():
    page = neurons_page(made_neurons(HOSTILE))
    (script,) = re.findall("<script>(.*?)</script>", page, re.DOTALL)
    (policy,) = re.findall('Content-Security-Policy" content="([^"]*)"', page)
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    assert f"script-src 'sha256-{digest}';" in policy
    assert "default-src 'none'" in policy
    assert "unsafe-eval" not in policy
    assert "innerHTML" not in script
    assert "<img" not in page
    assert "\u2028" not in page


@pytest.fixture(scope="module")
def window():
    with browser() as opened:
        yield opened


def shown(window):
    return window.run("return [...document.querySelectorAll('article:not([hidden])')].map(e => e.dataset.name)")


def chosen(window, **values):
    for name, value in values.items():
        window.run(
            f"const f = document.forms[0].elements['{name}']; f.value = '{value}';"
            "f.dispatchEvent(new Event('input', {bubbles: true}))"
        )
    return shown(window)


@pytest.mark.browser
def test_search_and_filters(window, tmp_path):
    path = tmp_path / FILE
    path.write_text(neurons_page(made_neurons()), encoding="utf-8")
    window.open(path)
    everything = ["1/7", "1/30", "2/7", "2/31", "3/7", "3/32"]
    assert shown(window) == everything
    assert chosen(window, language="th") == ["1/7", "1/30"]
    assert chosen(window, group="ffn_down") == ["1/30"]
    assert window.run("return location.hash") == "#language=th&group=ffn_down"
    assert chosen(window, language="", group="", layer="3") == ["3/7", "3/32"]
    assert chosen(window, layer="", q="HAUS-ffn_up-1") == ["2/31"]
    assert chosen(window, q="3/32") == ["3/32"]
    assert chosen(window, q="nothing of this") == []
    assert window.run("return !document.querySelector('#nothing').hidden")
    window.run("document.forms[0].reset()")
    assert window.driver.execute_async_script("setTimeout(arguments[0], 30)") is None
    assert shown(window) == everything
    assert window.console() == []


@pytest.mark.browser
def test_an_address_of_the_atlas_shows_one_cell(window, tmp_path):
    path = tmp_path / FILE
    path.write_text(neurons_page(made_neurons()), encoding="utf-8")
    window.open(path)
    window.driver.get(f"{path.resolve().as_uri()}{fragment('de', 'ffn_up', 2).removeprefix(FILE)}")
    assert shown(window) == ["2/31"]
    window.run("location.hash = '#group=attn_k'")
    assert window.driver.execute_async_script("setTimeout(arguments[0], 30)") is None
    assert shown(window) == [], "a group that was not read"
    assert window.run("return document.querySelector('#count').textContent") == "0 of 6 neurons"


@pytest.mark.browser
@pytest.mark.parametrize("dark", [False, True])
@pytest.mark.parametrize("width", [360, 1600])
def test_legible_and_safe(window, tmp_path, width, dark):
    path = tmp_path / FILE
    path.write_text(neurons_page(made_neurons(HOSTILE + "w" * 80)), encoding="utf-8")
    window.open(path, width, dark=dark)
    window.run("document.querySelectorAll('details').forEach(d => d.open = true)")
    assert window.console() == []
    assert window.requests() == [path.resolve().as_uri()]
    assert window.overflowing() == []
    assert window.run("return document.title").startswith("What neurons read")
    assert window.run("return document.querySelectorAll('script').length") == 1
    paper = window.run("return getComputedStyle(document.body).backgroundColor")
    assert (sum(map(int, paper.strip("rgb()").split(","))) < 200) == dark
