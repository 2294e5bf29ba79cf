"""Files changed at random are read, or refused with one message, in every format; scripts/fuzz.py tries more."""

import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from support.fuzzing import case, outcome, samples
from support.paths import TEST_DATA
from support.readers import FORMATS, contents

CASES = {"report": 12, "config": 150, "sets": 150, "cells": 150, "corpora": 150, "tasks": 150, "labels": 150}
FEW = 60  # of the other formats
FAULTS = sorted(path for path in (TEST_DATA / "faults").glob("*/*") if path.is_dir())
_DOCUMENTS = {  # JSON that may be anything: the file of a format's first valid folder
    "config": "config.json",
    "index": "model.safetensors.index.json",
    "tokenizer": "tokenizer_config.json",
    "sets": "de.json",
    "results": "run.json",
    "labels": "labels.json",
    "saved": "mwork.json",
    "plan": "paper.json",
}


@pytest.mark.parametrize("form", FORMATS)
def test_valid_files_are_read(form):
    for files in samples(form):
        result = outcome(form, files)
        assert not result.problem
        assert not result.refused


@pytest.mark.parametrize("form", FORMATS)
def test_changed_files_are_read_or_refused(form):
    refused = 0
    for number in range(CASES.get(form, FEW)):
        result = outcome(form, case(form, number))
        assert not result.problem, f"case {number}"
        refused += bool(result.refused)
    assert refused or form == "cells", "what is wrong in a cell is computed again"


@pytest.mark.parametrize("fault", FAULTS, ids=lambda path: f"{path.parent.name}-{path.name}")
def test_files_that_once_went_wrong_are_refused(fault):
    """Each folder holds what differs from the format's first valid folder."""
    result = outcome(fault.parent.name, {**samples(fault.parent.name)[0], **contents(fault)})
    assert not result.problem
    assert result.refused


ANYTHING = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4),
    max_leaves=12,
)


@pytest.mark.parametrize("form", _DOCUMENTS)
@settings(deadline=None, derandomize=True, database=None, max_examples=20)
@given(value=ANYTHING)
def test_any_json_in_the_place_of_a_file(form, value):
    files = {**samples(form)[0], _DOCUMENTS[form]: json.dumps(value).encode()}
    assert not outcome(form, files).problem


def test_a_failing_reader_is_noticed(monkeypatch):
    """What takes memory, what raises something else, and what says nothing."""
    from support import fuzzing
    from support.readers import Format

    def memory(folder):
        return bytearray(400 << 20).count(b"x")

    def message(folder):
        raise fuzzing.InputError(" ")

    for name, read in (("memory", memory), ("other", lambda folder: 1 // 0), ("message", message)):
        monkeypatch.setitem(FORMATS, name, Format(lambda: [{"a": b"1"}], read))
    assert "MB of memory" in outcome("memory", {"a": b"1"}).problem
    assert "ZeroDivisionError" in outcome("other", {"a": b"1"}).problem
    assert "a message of 1 characters" in outcome("message", {"a": b"1"}).problem
