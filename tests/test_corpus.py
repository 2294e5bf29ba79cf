"""Text on its way in: files, documents, tokens, batches; and finished cells on their way back."""

import json
import os

import numpy as np
import pytest

import mwork_jax as mw
from mwork_jax.corpus import Batching, Encoded, documents_key, encoded, read_corpus, warn_of_repeats
from mwork_jax.errors import InputError, InputWarning
from mwork_jax.evaluate.likelihood import held_out_loss
from mwork_jax.model.tokens import encode
from mwork_jax.neurons import NeuronMask
from mwork_jax.runtime.cache import ResultCache
from mwork_jax.runtime.files import read_json, read_jsonl
from support.tiny import pair

DEEP = "[" * 100_000


@pytest.mark.parametrize(
    ("text", "documents"),
    [
        ("one\nmore\n \t\ntwo", ["one more", "two"]),
        ("one\n\t\n\n  \n\ntwo\n \n", ["one", "two"]),
        ("one\r\nmore\r\n  \r\ntwo\r\n", ["one more", "two"]),
        ("one\rmore\r\rtwo\r", ["one more", "two"]),
        ("one\rtwo\r", ["one", "two"]),
        (" \n\none\ntwo\n\n \n", ["one", "two"]),
        ("a\x0cb\nc\x85d\ne\u2028f\ng\x1ch", ["a\x0cb", "c\x85d", "e\u2028f", "g\x1ch"]),
        ("a\x0c\x0cb\n\nc\u2028\u2028d\n\ne\x85\x85f", ["a b", "c d", "e f"]),
    ],
)
def test_plain_text_is_cut_at_lines_only(tmp_path, text, documents):
    path = tmp_path / "x.txt"
    path.write_bytes(text.encode())
    assert read_corpus(path) == documents


def test_jsonl_is_cut_at_line_feeds_only(tmp_path):
    path = tmp_path / "x.jsonl"
    texts = ["a\u2028b\u2029c", "d\x85e", "f\x0cg"]
    lines = [json.dumps({"text": t}, ensure_ascii=False) for t in texts]
    path.write_bytes("\r\n".join(lines).encode())
    assert read_corpus(path) == texts
    assert [n for n, _ in read_jsonl(path)] == [1, 2, 3]


ROWS = [{"text": "a, b", "id": "1"}, {"text": 'say "c"\nd', "id": "2"}, {"text": "  ", "id": "3"}]
LINES = "".join(json.dumps(row) + "\n" for row in ROWS)
FORMS = {
    "x.jsonl": LINES,
    "x.JSONL": LINES,
    "x.ndjson": LINES,
    "x.jsonlines": LINES,
    "x.json": json.dumps(ROWS, indent=1),
    "y.json": LINES,
    "x.csv": 'id,text\n1,"a, b"\n2,"say ""c""\nd"\n3,  \n',
    "semicolons.csv": 'id;text\r\n1;"a, b"\r\n2;"say ""c""\nd"\r\n',
    "text first.csv": 'text;id\r\na, b;1\r\n"say ""c""\nd";2\r\n',
    "stated.csv": 'sep=;\r\nid;text\r\n1;a, b\r\n2;"say ""c""\nd"\r\n',
    "put together.jsonl": "\ufeff" + LINES.replace("\n", "\n\ufeff", 1),
    "x.tsv": 'text\tid\na, b\t1\n"say ""c""\nd"\t2\n\n',
}


@pytest.mark.parametrize("name", FORMS)
def test_documents_in_rows(name, tmp_path):
    (tmp_path / name).write_bytes(FORMS[name].encode())
    corpus = mw.corpus_of_file("en", tmp_path / name, 1)
    assert (corpus.detection, corpus.held_out) == (("a, b",), ('say "c"\nd',))
    assert corpus.clusters == ("2",)


def test_a_list_of_strings_is_documents(tmp_path):
    (tmp_path / "x.json").write_text('["a", "b"]')
    assert read_corpus(tmp_path / "x.json") == ["a", "b"]


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("x.txt", LINES, r"x\.txt: JSON, where plain text is expected; name it \.jsonl"),
        ("x", json.dumps(ROWS), "x: JSON, where plain text is expected"),
        ("x.md", json.dumps(ROWS, indent=1), "JSON, where plain text is expected"),
        ("x.txt", '["a", "b"]', "JSON, where plain text is expected"),
        ("x.txt", '\n[\n ["a"]]', "JSON, where plain text is expected"),
        ("x.txt", '[{"text": "a"},\n{"te', "JSON, where plain text is expected"),
        ("x.txt", '["a",\n"b', "JSON, where plain text is expected"),
        ("x.txt", '{"text": "a"}{"text": "b"}', "JSON, where plain text is expected"),
        ("x.txt", '{"text": "a"},\n{"text": "b"},\n', "JSON, where plain text is expected"),
        ("x", '{\n "text": "a"\n}\n{\n "text": "b"\n}', "JSON, where plain text is expected"),
        ("x.txt", '<?xml version="1.0"?>\n<TEI/>', "markup, where plain text is expected"),
        ("x", "\n<!DOCTYPE html>\n<html/>", "markup, where plain text"),
        ("x.txt", '<doc id="12" title="Wiki">\nText\n</doc>', "markup, where plain text"),
        ("x.srt", "1\n00:00:01,000 --> 00:00:02,000\nHello\n", "subtitles, where plain text"),
        ("x.yaml", "---\n- text: hello\n", "YAML, where plain text"),
        ("x.csv", "Text,ID\na,1\n", r"row 2: no 'text' \(a string\) in this row; it has 'Text', 'ID'$"),
        ("x.csv", "id,text,text\n1,a,b\n", r"x\.csv, row 1: 'text' names two columns"),
        ("x.tsv", "text\tid\tid\na\t1\t2\n", r"x\.tsv, row 1: 'id' names two columns"),
        ("x.jsonl", '{"text": null}', r"x\.jsonl:1: 'text' is None; a string is needed"),
        ("x.json", '{"text": ["a", "b"]}', r"x\.json.* 'text' is \['a', 'b'\]; a string is needed"),
        ("x.json", "[1]", r"x\.json, entry 1: a JSON object or a string is needed"),
        ("x.csv", "a,b\n1,2\n", r"x\.csv, row 2: no 'text'"),
        ("x.csv", "text,b\n1\n", r"x\.csv, row 2: 1 values, where the first line has 2 names"),
        ("x.csv", "", r"x\.csv: not a table with names in its first line \(is empty\)"),
        ("x.csv", 'text\n"a', r"x\.csv: not a table with names in its first line \("),
    ],
)
def test_documents_of_another_form_are_one_line(name, text, message, tmp_path):
    (tmp_path / name).write_text(text)
    with pytest.raises(InputError, match=message):
        read_corpus(tmp_path / name)


@pytest.mark.parametrize(
    "text",
    [
        "[1] A footnote.",
        "[[link]] of a wiki",
        "{braces} in prose",
        "[link](a.html)",
        "[1]",
        "[1] see the note",
        "{note}",
    ],
)
def test_prose_may_begin_with_a_bracket(text, tmp_path):
    (tmp_path / "x.txt").write_text(text)
    assert read_corpus(tmp_path / "x.txt") == [text]


@pytest.mark.parametrize(
    ("begin", "kind"), [(b"\x1f\x8b\x08", "gzip"), (b"PK\x03\x04", r"zip \(as \.xlsx"), (b"PAR1\0", "Parquet")]
)
def test_packed_files_are_named(begin, kind, tmp_path):
    (tmp_path / "x.jsonl").write_bytes(begin + bytes(range(256)))
    with pytest.raises(InputError, match=rf"x\.jsonl: {kind}.*, where text is needed"):
        read_corpus(tmp_path / "x.jsonl")


def test_texts_without_a_sign_are_no_documents(tmp_path):
    (tmp_path / "x.jsonl").write_text(
        '{"text": "\u200b"}\n{"text": "\ufeff \u00ad"}\n{"text": "a"}\n', encoding="utf-8"
    )
    (tmp_path / "x.txt").write_bytes(b"\xef\xbb\xbfa\r\n\xef\xbb\xbfb\r\n\x1a")
    assert read_corpus(tmp_path / "x.jsonl") == ["a"]
    assert read_corpus(tmp_path / "x.txt") == ["a", "b"]


def test_documents_may_come_through_a_pipe():
    read, write = os.pipe()
    os.write(write, b"a\nb\n")
    os.close(write)
    assert read_corpus(f"/dev/fd/{read}") == ["a", "b"]
    os.close(read)


def test_texts_that_a_conversion_has_damaged_are_said(tmp_path, recwarn):
    (tmp_path / "x.txt").write_text("Gr\ufffd\ufffde\n")
    (tmp_path / "y.txt").write_text("Grüße " * 50 + "\ufffd\n")
    with pytest.warns(InputWarning, match=r"x.txt: 2 of 5 characters are U\+FFFD"):
        read_corpus(tmp_path / "x.txt")
    recwarn.clear()
    read_corpus(tmp_path / "y.txt")
    assert not recwarn.list


def test_measuring_on_what_neurons_were_detected_on_is_said(recwarn):
    warn_of_repeats({"en": ["a", "b"], "de": ["c", "d"]}, {"en": ["e"], "de": ["f"]})
    assert not recwarn.list
    with pytest.warns(InputWarning, match="^de: 1 held-out documents are among those that neurons are detected on$"):
        warn_of_repeats({"en": ["a", "b"], "de": ["c", "d"]}, {"en": ["e"], "de": ["d", "f"]})


def test_columns_without_a_name_are_nobody_s(tmp_path):
    (tmp_path / "x.csv").write_text("text,,\na,,\n")
    assert read_corpus(tmp_path / "x.csv") == ["a"]


def test_extreme_json_is_refused(tmp_path):
    path = tmp_path / "x.json"
    for text in (DEEP, '{"text":' * 100_000, "9" * 5000):
        path.write_text("\n" + text)
        with pytest.raises(InputError, match=r"x\.json: JSON that cannot be read"):
            read_json(path)
        with pytest.raises(InputError, match=r"x\.json:2: JSON that cannot be read"):
            read_jsonl(path)


@pytest.mark.parametrize("one", ["text", Encoded(np.ones(4, np.int32), 3)])
def test_one_document_instead_of_a_list_is_refused(one):
    model = pair("llama", 2).model
    keep = NeuronMask.keep_all(model.config)
    for use in (
        lambda: list(encoded(model, one, 50)),
        lambda: mw.score_neurons(model, one),
        lambda: held_out_loss(model, one, keep),
    ):
        with pytest.raises(InputError, match="documents come as a list"):
            use()


@pytest.mark.parametrize(
    ("tokens", "message"),
    [
        ([2**32 + 5, 4, 5], "document 2: token 4294967301 is outside the vocabulary"),
        (np.asarray([4, 2**63], np.uint64), "document 2: token 9223372036854775808 is outside the vocabulary"),
        ([4, -3, 96], "document 2: token -3 is outside the vocabulary"),
        ([4, -(2**32) + 5], "document 2: token -4294967291 is outside the vocabulary"),
        ([4, 97], "document 2: token 97 is outside the vocabulary of 97"),
        ([4, 2**70], "one-dimensional integer array"),
    ],
)
def test_tokens_outside_the_vocabulary_are_named(tokens, message):
    with pytest.raises(InputError, match=message):
        list(encoded(pair("llama", 2).model, [[3, 4], tokens], 50))


def test_arrays_of_any_integer_kind_are_taken():
    for kind in (np.int8, np.uint8, np.int64, np.uint64):
        tokens = encode(None, np.asarray([0, 96], kind))
        assert tokens.dtype == np.int32
        assert tokens.tolist() == [0, 96]


def test_arrays_have_no_bytes():
    (document,) = encoded(pair("llama", 2).model, [[3, 4, 5]], 50)
    assert document.bytes == 0


def test_text_that_is_not_unicode_is_named():
    def tokenizer(text):
        raise AssertionError("the tokenizer should not see this")

    with pytest.raises(InputError, match=r"corpus: document 3: character 3 is half a surrogate pair \(U\+D800\)"):
        encode(tokenizer, "a \ud800 b", where="corpus: document 3")


@pytest.mark.parametrize(
    ("sizes", "message"),
    [
        ({"max_tokens": 1}, "max_tokens is 1; it must be 2 or more"),
        ({"max_tokens": -5}, "max_tokens is -5"),
        ({"tokens_per_batch": 0}, "tokens_per_batch is 0; it must be 1 or more"),
    ],
)
def test_batches_of_nothing_are_refused(sizes, message):
    with pytest.raises(InputError, match=message):
        Batching(**sizes)
    assert Batching(max_tokens=2, tokens_per_batch=1).rows(16) == 1


def test_finished_cells_come_back(tmp_path):
    cache = ResultCache(tmp_path)
    key = {"model": "x", "layers": (1, 2), "mask": None}
    assert cache.get(key) is None
    cache.put(key, {"value": [0.5]})
    assert cache.get(key) == {"value": [0.5]}
    assert cache.get({**key, "model": "y"}) is None


@pytest.mark.parametrize(
    "text",
    ["", "{", "[]", "null", DEEP, '{"key": {"a": 1}}', '{"value": 7}', '{"key": {"a": 2}, "value": 7}'],
    ids=["empty", "cut", "list", "null", "deep", "no value", "no key", "another key"],
)
def test_damaged_cells_count_as_not_there(tmp_path, text):
    cache, key = ResultCache(tmp_path), {"a": 1}
    cache.put(key, 7)
    (cell,) = tmp_path.iterdir()
    cell.write_text(text)
    assert cache.get(key) is None
    cache.put(key, 8)
    assert cache.get(key) == 8


def test_no_document_goes_beyond_the_context_of_the_model():
    model = pair("llama", 2).model  # 64 tokens
    long = np.arange(3, 93, dtype=np.int32)
    assert [d.tokens.size for d in encoded(model, [long, Encoded(long, 5), Encoded(long[:20], 5)], 512)] == [64, 64, 20]
    assert [d.bytes for d in encoded(model, [Encoded(long, 5), Encoded(long[:20], 5)], 512)] == [0, 5]
    assert mw.held_out_loss(model, [Encoded(long, 0)], mw.NeuronMask.keep_all(model.config)).tokens == [63]


def test_the_key_of_documents_is_of_all_that_is_in_them():
    documents = [Encoded(np.asarray([1, 5, 6], np.int32), 9), Encoded(np.asarray([1, 7], np.int32), 4)]
    same = (Encoded(d.tokens.astype(np.int64), d.bytes) for d in documents)  # a stream, and of another integer type
    assert documents_key(same) == documents_key(documents)
    others = [
        documents[::-1],
        documents[:1],
        [documents[0], documents[1]._replace(bytes=5)],
        [Encoded(np.asarray([1, 5], np.int32), 9), Encoded(np.asarray([6, 1, 7], np.int32), 4)],
        [Encoded(np.asarray([1, 5, 8], np.int32), 9), documents[1]],
        [],
    ]
    assert len({documents_key(other) for other in (documents, *others)}) == 1 + len(others)


def test_an_empty_document_is_named(tiny_folder):
    """Not by the BOS that the tokenizer gives it."""
    with pytest.raises(InputError, match=r"^corpus: document 2 is empty; leave it out$"):
        list(encoded(mw.load_model(tiny_folder), ["a text", ""], 16))
