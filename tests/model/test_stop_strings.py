"""Stop strings as tokens spell them: the table finds what a search finds, at the token that completes it."""

import numpy as np
import pytest

from mwork_jax.model.decode_slots import ALWAYS
from mwork_jax.model.stop_strings import stop_table


def found_by_table(table, tokens):
    """The first token after which a stop string is there: what decoding does, one token after the other."""
    places = 0
    for at, token in enumerate(tokens):
        if (places | 1 << ALWAYS) & int(table.ends[token]):
            return at
        goes_on = (places & int(table.goes_on[token])) << int(table.characters[token])
        places = (goes_on | int(table.begins[token])) & 0xFFFFFFFF
    return None


def found_by_search(texts, tokens, stop):
    whole = ""
    for at, token in enumerate(tokens):
        whole += texts[token]
        if any(string in whole for string in stop):
            return at
    return None


@pytest.mark.parametrize("seed", range(30))
def test_the_table_finds_what_a_search_finds(seed):
    rng = np.random.default_rng(seed)
    texts = ["", *("".join(rng.choice(list("ab\n"), rng.integers(1, 5))) for _ in range(30)), *"ab\n"]
    stop = ["".join(rng.choice(list("ab\n"), rng.integers(1, 8))) for _ in range(rng.integers(1, 4))]
    table, complete = stop_table(texts, stop)
    assert complete
    hits = 0
    for _ in range(200):
        tokens = rng.integers(0, len(texts), 12)
        wanted = found_by_search(texts, tokens, stop)
        assert found_by_table(table, tokens) == wanted
        hits += wanted is not None
    assert hits


def test_strings_that_the_table_has_no_places_for_are_left_to_the_host():
    texts = [*"abc", "xyz"]
    table, complete = stop_table(texts, ["a" * 40, "xyz", "b" * 32])
    assert not complete
    assert found_by_table(table, [0] * 50) is None
    assert found_by_table(table, [0, 3]) == 1
    assert found_by_table(stop_table(texts, ["b" * 32])[0], [1] * 50) == 31
