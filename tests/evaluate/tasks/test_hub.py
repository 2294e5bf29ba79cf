"""Rows as the Hub hands them out become the items of the official files; what the Hub cannot give is one line."""

import sys
from types import ModuleType

import pytest

from mwork_jax.errors import InputError
from mwork_jax.evaluate.tasks import TASKS, questions

ROWS = {
    "xquad": {"id": "a", "context": "Der Hund ist rot.", "question": "Was ist rot?",
              "answers": {"text": ["Der Hund"], "answer_start": [0]}},
    "mgsm": {"question": "Zwei und drei?", "answer": None, "answer_number": 5, "equation_solution": None},
    "xcsqa": {"id": "b", "lang": "de", "answerKey": "B",
              "question": {"stem": "Was?", "choices": {"label": ["A", "B"], "text": ["dies", "das"]}}},
    "xlsum": {"id": "c", "url": "", "title": "T", "summary": "Kurz.", "text": "Lang und breit."},
    "xcopa": {"premise": "P.", "choice1": "x", "choice2": "y", "question": "cause", "label": 1, "idx": 3,
              "changed": False},
    "headlines": {"category": "sports", "headline": "H", "text": "Text.", "url": ""},
}  # fmt: skip
ASKED = {
    "xquad": ("google/xquad", "xquad.de", "validation", None, "de"),
    "mgsm": ("juletxara/mgsm", "de", "test", None, "de"),
    "xcsqa": ("INK-USC/xcsr", "X-CSQA-de", "validation", None, "de"),
    "xlsum": ("csebuetnlp/xlsum", "french", "test", "refs/convert/parquet", "fr"),
    "xcopa": ("cambridgeltl/xcopa", "zh", "test", None, "zh"),
    "headlines": ("masakhane/masakhanews", "swa", "test", "refs/convert/parquet", "sw"),
}


@pytest.fixture
def hub(monkeypatch):
    """A stand-in for the `datasets` library, which needs a network: it notes what it is asked for."""
    module, calls = ModuleType("datasets"), []

    def load_dataset(repository, config, *, split, revision):
        calls.append((repository, config, split, revision))
        return module.rows

    module.load_dataset, module.calls = load_dataset, calls
    monkeypatch.setitem(sys.modules, "datasets", module)
    return module


@pytest.mark.parametrize("name", ROWS)
def test_a_row_becomes_an_item(name, hub):
    hub.rows = [ROWS[name]]
    *asked, language = ASKED[name]
    found = questions(TASKS[name], language, "hub")
    assert hub.calls == [tuple(asked)]
    (item,) = found.items
    assert item.language == language
    expected = {
        "xquad": ("Was ist rot?", ("Der Hund",), -1),
        "mgsm": ("Zwei und drei?", ("5",), -1),
        "xcsqa": ("Was?", (), 1),
        "xlsum": ("", ("Kurz.",), -1),
        "xcopa": ("cause", (), 1),
        "headlines": ("", ("H",), -1),
    }
    assert (item.question, item.references, item.answer) == expected[name]
    assert asked[0] in found.origin


def test_questions_about_one_passage_are_one_group(hub):
    hub.rows = [ROWS["xquad"], {**ROWS["xquad"], "id": "b"}, {**ROWS["xquad"], "context": "Der Hund läuft."}]
    groups = [item.group for item in questions(TASKS["xquad"], "de", "hub:me/copy").items]
    assert groups[0] == groups[1] != groups[2]
    assert hub.calls[0][0] == "me/copy"


def test_a_passage_and_its_translations_are_one_group(hub):
    """The Hub's rows are parallel and say nothing of the passage but its text, which is another in each language."""
    passages = {"en": ("The dog is red.", "The cat sleeps."), "de": ("Der Hund ist rot.", "Die Katze schläft.")}
    answers = {"en": "The", "de": "D"}
    groups = {}
    for language, (first, second) in passages.items():
        hub.rows = [
            {**ROWS["xquad"], "id": name, "context": context, "answers": {"text": [answers[language]]}}
            for name, context in (("a", first), ("b", first), ("c", second), ("d", first))
        ]
        groups[language] = [item.group for item in questions(TASKS["xquad"], language, "hub").items]
    assert groups["en"] == groups["de"] == ["1", "1", "2", "1"]


def test_items_without_a_passage_of_their_own_have_no_group(hub):
    hub.rows = [ROWS["mgsm"], ROWS["mgsm"]]
    items = questions(TASKS["mgsm"], "de", "hub").items
    assert [(item.group, item.id) for item in items] == [("", "1"), ("", "2")], "parallel: by their place"


def test_news_of_two_languages_share_no_id(hub):
    hub.rows = [ROWS["headlines"], ROWS["headlines"]]
    ids = {lang: {item.id for item in questions(TASKS["headlines"], lang, "hub").items} for lang in ("en", "sw")}
    assert all(len(of) == 2 for of in ids.values())
    assert not ids["en"] & ids["sw"]


def test_what_the_hub_cannot_give(hub, monkeypatch):
    hub.rows = []
    with pytest.raises(InputError, match="no items"):
        questions(TASKS["xquad"], "de", "hub")
    hub.rows = [{**ROWS["xquad"], "answers": {"text": ["Katze"]}}]
    with pytest.raises(InputError, match=r"row 1 .*'Katze' is not in its context"):
        questions(TASKS["xquad"], "de", "hub")
    hub.rows = [{**ROWS["xcsqa"], "answerKey": ""}]
    with pytest.raises(InputError, match="use the validation file"):
        questions(TASKS["xcsqa"], "de", "hub")

    def offline(*args, **kwargs):
        raise ConnectionError("no network\nand more")

    hub.load_dataset = offline
    with pytest.raises(InputError, match=r"google/xquad .*could not give it .no network."):
        questions(TASKS["xquad"], "de", "hub")
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(InputError, match="needs the `datasets` library"):
        questions(TASKS["xquad"], "de", "hub")
