"""Tasks: readers on files in each official format and on the real ones, prompts, filters, scores and errors."""

import csv
import json
from dataclasses import FrozenInstanceError, replace

import numpy as np
import pytest

from mwork_jax.corpus import LANGUAGES, own_corpus, read_corpus
from mwork_jax.errors import InputError, InputWarning
from mwork_jax.evaluate.table_run import prepare
from mwork_jax.evaluate.tasks import (
    TASKS,
    Choices,
    continuations,
    filtered,
    prefix,
    prompt,
    questions,
    task_named,
    with_examples,
)
from mwork_jax.settings import TableSettings
from support.paths import SHARED

DATA = SHARED / "data"
BUILT_IN = [(task.name, language) for task in TASKS.values() for language in task.built_in]
REAL = {
    "xquad": ("xquad", ("en", "de", "es", "ru", "ar", "vi", "th", "zh"), 1190),
    "mgsm": ("mgsm", ("en", "de", "es", "fr", "ru", "zh", "th", "sw"), 250),
    "xcopa": ("xcopa", ("sw", "th", "vi", "zh", "it", "id", "tr"), 500),
    "headlines": ("news", ("en", "fr", "sw"), None),
}
NEWS_ITEMS = {"en": 948, "fr": 422, "sw": 476}


def write_lines(path, rows):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")
    return path


def squad(context="Die Sonne scheint.", answers=("Sonne",), **changed):
    qas = {"id": "q1", "question": "Was scheint?", "answers": [{"text": a, "answer_start": 4} for a in answers]}
    return {"version": "1.1", "data": [{"title": "t", "paragraphs": [{"context": context, "qas": [qas | changed]}]}]}


def csqa(lang="zh", **changed):
    choices = [{"label": label, "text": f"选项{label}"} for label in "ABCDE"]
    row = {"id": "a1", "lang": lang, "question": {"stem": "哪里？", "choices": choices}, "answerKey": "C"}
    return row | changed


def copa(**changed):
    row = {"premise": "那人打开水龙头。", "choice1": "满是水。", "choice2": "水流出。", "question": "effect"}
    return row | {"label": 1, "idx": 7, "changed": False} | changed


def news(path, *rows, header=("category", "headline", "text", "url")):
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", encoding="utf-8", newline="") as file:
        csv.writer(file, delimiter="\t").writerows([header, *rows])
    return path


def test_xquad_file(tmp_path):
    (tmp_path / "xquad.de.json").write_text(json.dumps(squad("\ufeffDie  Sonne\nscheint.", ("Sonne", "Sonne"))))
    (item,) = questions(TASKS["xquad"], "de", tmp_path).items
    assert (item.id, item.context, item.question) == ("q1", "Die Sonne scheint.", "Was scheint?")
    assert item.references == ("Sonne",)
    assert prompt(TASKS["xquad"], item) == (
        "Beantworten Sie die Frage mit wenigen Wörtern aus dem Text.\n\n"
        "Text: Die Sonne scheint.\nFrage: Was scheint?\nAntwort:"
    )
    with pytest.raises(FrozenInstanceError):
        item.context = ""


def test_mgsm_as_excel_saves_it(tmp_path):
    path = tmp_path / "mgsm_en.tsv"
    path.write_text('\ufeff"She said ""yes"". How many?"\t5\r\n"A" and "B"?\t6\r\n', encoding="utf-8")
    items = questions(TASKS["mgsm"], "en", path).items
    assert [item.question for item in items] == ['She said "yes". How many?', '"A" and "B"?']


def test_mgsm_file(tmp_path):
    path = tmp_path / "mgsm_zh.tsv"
    path.write_text("还剩多少？\t2,125\r\n\n温度\u2028是多少？\t-7.5", encoding="utf-8-sig")
    found = questions(TASKS["mgsm"], "zh", path)
    assert [item.references for item in found.items] == [("2125",), ("-7.5",)]
    assert found.items[1].question == "温度 是多少？"
    assert prompt(TASKS["mgsm"], found.items[0]).endswith("题目：还剩多少？\n解答：")
    assert len(found.examples) == 24, "the worked solutions of the project's own set"


def test_xcsqa_in_both_forms_of_the_hub(tmp_path):
    listed, split = csqa(), csqa(id="a2")
    split["question"] = {"stem": "哪里？", "choices": {"label": list("ABC"), "text": ["甲", "乙", "丙"]}}
    write_lines(tmp_path / "X-CSQA-zh.jsonl", [listed, split])
    first, second = questions(TASKS["xcsqa"], "zh", tmp_path).items
    assert (first.labels, first.answer, len(first.choices)) == (tuple("ABCDE"), 2, 5)
    assert (second.choices, second.answer) == (("甲", "乙", "丙"), 2)
    assert prompt(TASKS["xcsqa"], second) == "问题：哪里？\n答案："
    assert continuations(TASKS["xcsqa"], second) == ("甲", "乙", "丙")
    assert prompt(TASKS["xcsqa_letter"], second) == "问题：哪里？\nA. 甲\nB. 乙\nC. 丙\n答案："
    assert continuations(TASKS["xcsqa_letter"], second) == ("A", "B", "C")


def test_japanese_is_jap_in_xcsqa(tmp_path):
    task = replace(TASKS["xcsqa"], languages=("ja",))
    write_lines(tmp_path / "X-CSQA-jap.jsonl", [csqa("jap")])
    assert questions(task, "ja", tmp_path).items[0].language == "ja"


def test_xcopa_file(tmp_path):
    write_lines(tmp_path / "test.zh.jsonl", [copa(), copa(question="cause", label=0, idx=8)])
    effect, cause = questions(TASKS["xcopa"], "zh", tmp_path).items
    assert (effect.id, effect.answer, cause.answer) == ("7", 1, 0)
    assert prompt(TASKS["xcopa"], effect) == "情况：那人打开水龙头。\n结果："
    assert prompt(TASKS["xcopa"], cause) == "情况：那人打开水龙头。\n原因："
    write_lines(tmp_path / "en.jsonl", [copa(premise="It rained.")])
    (item,) = questions(TASKS["xcopa"], "en", tmp_path / "en.jsonl").items
    assert continuations(TASKS["xcopa"], item) == (" 满是水。", " 水流出。")


def test_xlsum_file(tmp_path):
    row = {"id": "1", "url": "u", "title": "t", "summary": "สรุป\nสั้น", "text": "บรรทัด\u2028หนึ่ง\n\nสอง"}
    write_lines(tmp_path / "thai_test.jsonl", [row])
    (item,) = questions(TASKS["xlsum"], "th", tmp_path).items
    assert (item.context, item.references) == ("บรรทัด หนึ่ง สอง", ("สรุป สั้น",))
    assert prompt(TASKS["xlsum"], item).endswith("ข้อความ: บรรทัด หนึ่ง สอง\nสรุป:")


def test_news_file(tmp_path):
    news(tmp_path / "swa" / "dev.tsv", ["c", 'Kichwa "cha" habari', 'Mstari\nwa "pili"', "u"])
    (item,) = questions(TASKS["headlines"], "sw", tmp_path).items
    assert (item.context, item.references) == ('Mstari wa "pili"', ('Kichwa "cha" habari',))


def test_news_may_be_longer_than_the_csv_module_takes(tmp_path):
    news(tmp_path / "swa" / "dev.tsv", ["c", "Kichwa", "a" * 200_000, "u"])
    (item,) = questions(TASKS["headlines"], "sw", tmp_path).items
    assert item.context == "a" * 200_000


def test_news_of_two_languages_share_no_id(tmp_path):
    """They are other articles, so no two of them are one cluster."""
    for name in ("eng", "swa"):
        news(tmp_path / name / "test.tsv", *(["c", f"Title {i}", f"Text {i}", "u"] for i in range(3)))
    english, swahili = ({i.id for i in questions(TASKS["headlines"], lang, tmp_path).items} for lang in ("en", "sw"))
    assert len(english) == len(swahili) == 3
    assert not english & swahili


@pytest.mark.parametrize("name", sorted({name for name, _ in BUILT_IN}))
def test_the_project_s_own_items_are_parallel(name):
    """8 documents in 10 languages are 8 independent items, not 80: their ids say which are translations."""
    settings = TableSettings(LANGUAGES, 8)
    ids = {lang: e.item_ids for lang, e in prepare(TASKS[name], None, settings).items()}
    assert set(ids) == set(LANGUAGES)
    assert all(of == ids["en"] for of in ids.values()), "in one order too"
    assert len({one for of in ids.values() for one in of}) == len(ids["en"]) == 8


def test_jsonl_lines_end_in_line_feeds_only(tmp_path):
    path = tmp_path / "corpus.jsonl"
    path.write_text('{"text": "one\u2028two"}\r\n{"text": "three\u0085"}\n', encoding="utf-8")
    assert read_corpus(path) == ["one\u2028two", "three\u0085"]


@pytest.mark.parametrize(("name", "language"), BUILT_IN)
def test_built_in_questions(name, language):
    task = TASKS[name]
    found = questions(task, language)
    assert len(found.items) == (24 if name in ("mgsm", "xcsqa", "xcsqa_letter") else 16)
    check_prompts(task, language, found)
    if name in ("xquad", "headlines"):
        held_out = own_corpus(language).held_out
        assert [item.context for item in found.items] == list(held_out), "not those that neurons are found on"
    for item in found.items:
        if task.kind == "generate":
            assert max(task.score(item, filtered(task, language, " " + task.reply(item))).values()) == pytest.approx(1)


@pytest.mark.parametrize("name", REAL)
def test_real_files(name):
    folder, languages, count = REAL[name]
    if not (DATA / folder).is_dir():
        pytest.skip(f"no {folder} in {DATA.name}: the public data sets are not at hand")
    task = TASKS[name]
    for language in languages:
        found = questions(task, language, DATA)
        assert found.origin.startswith(str(DATA / folder))
        assert len(found.items) == (count or NEWS_ITEMS[language])
        check_prompts(task, language, found, every=50)
        for item in found.items[::50]:
            assert item.language == language
            if task.kind == "generate":
                said = filtered(task, language, task.reply(item))
                assert task.score(item, said)[task.score_names[0]] == pytest.approx(1)


def check_prompts(task, language, found, every=1):
    """Each part of an item stands in its prompt once, before and after examples, and its answer is not given away."""
    examples, items = with_examples(found, 2)
    assert not {example.context for example in examples if example.context} & {item.context for item in items}
    for item in items[::every]:
        zero, few = prompt(task, item), prompt(task, item, examples)
        parts = [item.context] if task.name == "xcopa" else [item.context, item.question]
        for text in (zero, few):
            assert all(text.count(part) == 1 for part in parts if part), item.id
            assert text == text.rstrip(), "the answer brings its own space"
            assert text.startswith(task.opening(language))
        assert few.startswith(prefix(task, language, examples))
        assert all(task.reply(example) in few for example in examples)
        assert prefix(task, language) + task.ask(item) == zero
        assert not zero.endswith(task.reply(item))
        if task.name == "xcsqa_letter":
            assert all(zero.count(f"\n{label}. ") == 1 for label in item.labels)


def test_tasks_are_values():
    for name, task in TASKS.items():
        assert task.name == name
        assert task_named(name) is task
        assert task.version >= 1
        assert set(task.built_in) in (set(), set(LANGUAGES))
        assert (task.max_new_tokens > 0) == (task.kind == "generate")
        for language in {*task.languages, *task.built_in}:
            assert all(stop for stop in task.stop(language))
    with pytest.raises(InputError, match="choose xquad, mgsm"):
        task_named("squad")


def test_filter_cuts_at_the_first_stop():
    assert filtered(TASKS["xquad"], "en", "\n the sun \nQuestion: ...") == "the sun"
    assert filtered(TASKS["mgsm"], "de", " 1 + 1\n= 2.\n\nAufgabe: Noch eine") == "1 + 1\n= 2."
    assert filtered(TASKS["mgsm"], "de", "") == ""


def test_scores_have_the_names_that_the_task_declares():
    for name, text, expected in [
        ("xquad", "sun", [1, 1, 1, 1]),
        ("mgsm", "Step 1: 7 + 8 = 15. The answer is 15. Step 2", [1]),
        ("headlines", "", [0, 0]),
    ]:
        task = TASKS[name]
        item = replace(questions(task, "en").items[0], references=("15",) if name == "mgsm" else ("the sun",))
        assert list(task.score(item, text)) == list(task.score_names)
        assert list(task.score(item, text).values()) == expected
    task = TASKS["xcsqa"]
    item = replace(questions(task, "en").items[0], choices=("ab", "b"), answer=0)
    scores = task.score(item, Choices(np.array([-6.0, -4.0]), np.array([2, 1])))
    assert scores == {"accuracy_sum": 0, "accuracy_per_token": 1, "accuracy_per_byte": 1}
    assert tuple(scores) == task.score_names


def test_a_model_that_answers_in_english_is_read_in_any_language():
    task = TASKS["mgsm"]
    item = replace(questions(task, "th").items[0], references=("15",))
    assert task.score(item, "The answer is 15. 2 steps") == task.score(item, "คำตอบคือ ๑๕ ใน 2 ขั้น") == {"exact": 1}


def test_examples_are_about_other_texts(tmp_path):
    article = squad()["data"][0]
    article["paragraphs"] *= 3
    paragraphs = [json.loads(json.dumps(p)) for p in article["paragraphs"]]
    for i, paragraph in enumerate(paragraphs):
        paragraph["qas"] = [paragraph["qas"][0] | {"id": f"{i}{n}"} for n in "ab"]
    path = tmp_path / "xquad.de.json"
    path.write_text(json.dumps({"data": [{"paragraphs": paragraphs}]}))
    found = replace(questions(TASKS["xquad"], "de", path), examples=())
    examples, items = with_examples(found, 2)
    assert [item.id for item in examples] == ["0a", "1a"]
    assert [item.id for item in items] == ["2a", "2b"]
    assert with_examples(found, 0) == ((), found.items)
    for shots in (3, 4, -1):
        with pytest.raises(InputError, match="it has too few"):
            with_examples(found, shots)


def without(row, name):
    return {key: value for key, value in row.items() if key != name}


SUMMARY = {"id": "1", "url": "u", "title": "t", "summary": "s", "text": "x"}
BAD_ROWS = [
    ("xcsqa", "zh", csqa("en"), "'lang' is 'en'; 'zh' is needed"),
    ("xcsqa", "zh", csqa(answerKey=""), "use the validation file"),
    ("xcsqa", "zh", csqa(answerKey="F"), "'F' must be one of the labels A, B, C, D, E"),
    ("xcsqa", "zh", csqa(question="哪里？"), "no 'question'"),
    ("xcsqa", "zh", csqa(question={"stem": "哪里？"}), "no 'choices'"),
    ("xcsqa", "zh", csqa(question={"stem": "哪里？", "choices": ["a"]}), "must be an object with a 'label'"),
    ("xcsqa", "zh", csqa(question={"stem": "?", "choices": {"label": ["A"], "text": ["a", "b"]}}), "1 labels and 2"),
    ("xcopa", "zh", without(copa(), "premise"), "no 'premise'"),
    ("xcopa", "zh", copa(choice2=" "), "no 'choice2'"),
    ("xcopa", "zh", copa(label=2), "'label' is 2; 0 or 1"),
    ("xcopa", "zh", copa(question="why"), "'cause' or 'effect' is needed"),
    ("xcopa", "zh", without(copa(), "idx"), "no 'idx'"),
    ("xlsum", "zh", without(SUMMARY, "summary"), "no 'summary'"),
    ("xlsum", "zh", SUMMARY | {"text": 3}, "no 'text'"),
    ("xlsum", "zh", [], "a JSON object is needed"),
]


@pytest.mark.parametrize(("name", "language", "row", "message"), BAD_ROWS)
def test_bad_rows_are_named_with_their_line(tmp_path, name, language, row, message):
    good = {"xcsqa": csqa(), "xcopa": copa(), "xlsum": SUMMARY}[name]
    path = write_lines(tmp_path / "bad.jsonl", [good, row])
    with pytest.raises(InputError, match=message) as raised:
        questions(TASKS[name], language, path)
    assert str(raised.value).startswith(f"{path}:2")
    assert "\n" not in str(raised.value)


def test_questions_without_an_answer_are_left_out_and_counted(tmp_path):
    """A file of SQuAD 2; and answers that stand in lines of their own."""
    path, content = tmp_path / "xquad.de.json", squad()
    (pair,) = content["data"][0]["paragraphs"][0]["qas"]
    impossible = [{**pair, "id": f"no{n}", "answers": [], "is_impossible": True} for n in range(2)]
    words = content["data"][0]["paragraphs"][0]["context"].split()
    lines = {**pair, "id": "lines", "answers": [{"text": f"{words[-1]}\n{words[0]}", "answer_start": 0}]}
    content["data"][0]["paragraphs"][0]["qas"] = [impossible[0], {**pair, "is_impossible": False}, lines, impossible[1]]
    path.write_text(json.dumps(content))
    with pytest.warns(InputWarning, match="2 of 4 questions have no answer and are left out") as warned:
        found = questions(TASKS["xquad"], "de", path)
    assert len(warned) == 1
    assert [item.id for item in found.items] == [pair["id"], "lines"]
    assert found.items[1].references == (words[-1], words[0])
    content["data"][0]["paragraphs"][0]["qas"] = impossible
    path.write_text(json.dumps(content))
    with pytest.warns(InputWarning, match="2 of 2"), pytest.raises(InputError, match="no items of xquad in this file"):
        questions(TASKS["xquad"], "de", path)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (squad(answers=["Mond"]), r"question 1 \(q1\): the answer 'Mond' is not in its context"),
        (squad(answers=[]), "question 1: no 'answers'"),
        (squad(answers=[""]), r"\(q1\): no 'text'"),
        (squad(question=None), r"question 1 \(q1\): no 'question'"),
        (squad(id=None), "article 1, paragraph 1, question 1: no 'id'"),
        (squad(context=""), "paragraph 1: no 'context'"),
        ({"data": []}, "no 'data'"),
        ({"data": [{}]}, "article 1: no 'paragraphs'"),
        ([], "no 'data'"),
    ],
)
def test_bad_xquad(tmp_path, content, message):
    path = tmp_path / "xquad.de.json"
    path.write_text(json.dumps(content))
    with pytest.raises(InputError, match=message) as raised:
        questions(TASKS["xquad"], "de", tmp_path)
    assert str(raised.value).startswith(str(path))


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("a question\n", "mgsm_en.tsv:1: 1 fields; a question, a tab and an answer"),
        ("q\t1\nq\t1\t2\n", "mgsm_en.tsv:2: 3 fields"),
        ("q\t1\nq\tfifteen\n", "mgsm_en.tsv:2: 'fifteen' is not a number"),
        ("\n \n", "mgsm_en.tsv: no items of mgsm"),
        ("", "mgsm_en.tsv: no items of mgsm"),
    ],
)
def test_bad_mgsm(tmp_path, content, message):
    (tmp_path / "mgsm_en.tsv").write_text(content)
    with pytest.raises(InputError, match=message):
        questions(TASKS["mgsm"], "en", tmp_path)


def test_bad_news(tmp_path):
    path = tmp_path / "eng" / "dev.tsv"
    for rows, header, message in [
        ([["c", "h", "t"]], ("category", "headline", "text", "url"), "dev.tsv:2: 3 columns"),
        ([["c", "", "t", "u"]], ("category", "headline", "text", "url"), "dev.tsv:2: no 'headline'"),
        ([], ("headline", "text"), "dev.tsv:1: the columns are headline, text"),
        ([], ("category", "headline", "text", "url"), "no items of headlines"),
    ]:
        news(path, *rows, header=header)
        with pytest.raises(InputError, match=message):
            questions(TASKS["headlines"], "en", tmp_path)
    path.write_text('category\theadline\ttext\turl\nc\th\t"never closed')
    with pytest.raises(InputError, match="not valid TSV"):
        questions(TASKS["headlines"], "en", path)


@pytest.mark.parametrize("name", TASKS)
def test_wrong_encoding_and_missing_files(tmp_path, name):
    task = TASKS[name]
    language = task.languages[0]
    path = tmp_path / "latin.txt"
    path.write_bytes("Überall".encode("latin-1"))
    with pytest.raises(InputError, match="not UTF-8"):
        questions(task, language, path)
    with pytest.raises(InputError, match=f"nothing of {name} in '{language}' there"):
        questions(task, language, tmp_path)
    with pytest.raises(InputError, match="no such file or folder"):
        questions(task, language, tmp_path / "absent")
    with pytest.raises(InputError, match=f"{name} has no language 'xx'; choose from {language}"):
        questions(task, "xx", tmp_path)
    with pytest.raises(InputError, match="no built-in data for language 'xx'"):
        questions(task, "xx")
