"""What is in the result cache is what was put there, or is computed again."""

import hashlib
import json

import pytest

from mwork_jax.runtime import cache as module
from mwork_jax.runtime.cache import ResultCache, fingerprint

KEY, VALUE = {"model": "x", "off": None, "layers": [1, 2]}, {"nats": [0.1, 2.5e-7], "tokens": [3, 4]}


class Counted:
    """A function that counts its calls."""

    def __init__(self, value):
        self.value, self.calls = value, 0

    def __call__(self):
        self.calls += 1
        return self.value


@pytest.fixture
def stored(tmp_path):
    """The file of one result."""
    ResultCache(tmp_path).put(KEY, VALUE)
    (path,) = tmp_path.iterdir()
    return path


@pytest.mark.parametrize("value", [VALUE, None, 0, [], "text", {"1": {"2": [True, None, 0.1]}}, [1e-300, -0.0]])
def test_a_result_is_computed_once(value, tmp_path):
    function = Counted(value)
    for _ in range(3):
        assert ResultCache(tmp_path).get_or_compute(KEY, function) == value
    assert function.calls == 1
    assert ResultCache(tmp_path).get_or_compute({**KEY, "model": "y"}, function) == value
    assert function.calls == 2


def test_a_computed_value_is_what_is_read_later(tmp_path):
    function = Counted({"pair": (1, 2), 3: 0.5})
    first, second = (ResultCache(tmp_path).get_or_compute(KEY, function) for _ in range(2))
    assert first == second == {"pair": [1, 2], "3": 0.5}


def test_keys_are_json_values(tmp_path):
    cache = ResultCache(tmp_path)
    cache.put({"layers": (1, 2), "by_layer": {2: 1, 10: 3}}, 7)
    assert cache.get({"by_layer": {"10": 3, "2": 1}, "layers": [1, 2]}) == 7
    assert cache.get({"by_layer": {10: 3, 2: 1}, "layers": [1, 2]}) == 7
    by_hand = hashlib.sha256(b'{"a": 1, "b": [1]}').hexdigest()[:32]
    assert fingerprint({"a": 1, "b": [1]}) == fingerprint({"b": (1,), "a": 1}) == by_hand


@pytest.mark.parametrize("value", [float("nan"), [float("inf")], object()])
def test_what_is_not_json_is_not_kept(value, tmp_path):
    with pytest.raises((ValueError, TypeError)):
        ResultCache(tmp_path).get_or_compute(KEY, lambda: value)
    assert not list(tmp_path.iterdir())


def test_the_format_is_as_documented(stored):
    entry = json.loads(stored.read_text())
    assert stored.name == f"{fingerprint(KEY)}.json"
    assert entry.keys() == {"format", "key", "value", "sha256"}
    assert (entry["key"], entry["value"]) == (KEY, VALUE)
    for part in entry:
        assert part in module.__doc__


def test_no_changed_byte_is_read_as_a_result(stored):
    """Whichever byte changes, of the key, the value, or the checksum: what is read is what was put, or nothing."""
    whole = stored.read_bytes()
    refused = 0
    for place in range(len(whole)):
        stored.write_bytes(whole[:place] + bytes([whole[place] ^ 1]) + whole[place + 1 :])
        found = ResultCache(stored.parent).get(KEY)
        assert found in (None, VALUE)
        refused += found is None
    assert refused > 0.9 * len(whole)  # the others are white space


@pytest.mark.parametrize(
    ("before", "after"),
    [
        ('"nats": [\n   0.1', '"nats": [\n   0.2'),
        ('"tokens"', '"bytes"'),
        ("3,", "3.5,"),
        ("0.1", "NaN"),
        ('"mwork-cache-1"', '"mwork-cache-2"'),
        ('"x"', '"y"'),
    ],
)
def test_a_plausible_wrong_number_is_computed_again(before, after, stored):
    text = stored.read_text()
    assert before in text
    stored.write_text(text.replace(before, after, 1))
    function = Counted(VALUE)
    assert ResultCache(stored.parent).get_or_compute(KEY, function) == VALUE
    assert function.calls == 1
    assert stored.read_text() == text


def test_a_result_of_version_0_1_without_a_checksum_is_computed_again(stored):
    stored.write_text(json.dumps({"key": KEY, "value": VALUE}))
    function = Counted(VALUE)
    assert ResultCache(stored.parent).get_or_compute(KEY, function) == VALUE
    assert function.calls == 1


def journal_of(folder, results):
    """The journal of results, as a process leaves it that is killed before it writes the first of their files."""
    cache = ResultCache(folder)
    cache._write = lambda entries: (_ for _ in ()).throw(KeyboardInterrupt)
    with pytest.raises(KeyboardInterrupt):
        cache.put_all(results)
    (path,) = folder.glob("*.journal")
    return path


RESULTS = [({"item": i}, {"score": [float(i)]}) for i in range(3)]


def test_a_journal_is_finished(tmp_path):
    journal = journal_of(tmp_path, RESULTS)
    again = ResultCache(tmp_path)
    assert [again.get(key) for key, _ in RESULTS] == [value for _, value in RESULTS]
    assert not journal.exists()


BROKEN = {
    "a number": lambda text: text.replace("1.0", "7.0"),
    "not a number": lambda text: text.replace("1.0", "NaN"),
    "a key": lambda text: text.replace('"item": 2', '"item": 9'),
    "a key that is a text": lambda text: json.dumps(
        {"format": "mwork-cache-1", "entries": [{"key": "ab", "value": 1}]}
    ),
    "a key that is a list": lambda text: json.dumps({"format": "mwork-cache-1", "entries": [{"key": [1], "value": 1}]}),
    "no entries": lambda text: '{"format": "mwork-cache-1"}',
    "entries that are none": lambda text: '{"format": "mwork-cache-1", "entries": 3}',
    "of version 0.1": lambda text: json.dumps([{"key": {"item": 0}, "value": {"score": [0.0]}}]),
    "cut": lambda text: text[: len(text) // 2],
    "bytes": lambda text: "\x00\x01",
}


@pytest.mark.parametrize("case", BROKEN)
def test_a_damaged_journal_is_removed_and_its_results_are_computed_again(case, tmp_path):
    journal = journal_of(tmp_path, RESULTS)
    text = journal.read_text()
    assert BROKEN[case](text) != text
    journal.write_text(BROKEN[case](text))
    again = ResultCache(tmp_path)
    assert list(tmp_path.iterdir()) == []
    for key, value in RESULTS:
        assert again.get_or_compute(key, Counted(value)) == value
    assert [ResultCache(tmp_path).get(key) for key, _ in RESULTS] == [value for _, value in RESULTS]


def test_of_several_processes_all_take_the_value_of_the_first(tmp_path, monkeypatch):
    """The first has no value, this one, in a folder of its own, has: they compute together."""
    cache, function = ResultCache(tmp_path), Counted([2.0])
    cache.put(KEY, [1.0])
    answers = iter([[], [3.0]])  # of the first: nothing is known; then what it computed
    monkeypatch.setattr(module, "agreed", lambda value: next(answers))
    assert cache.get_or_compute(KEY, function) == [3.0]
    assert function.calls == 1
