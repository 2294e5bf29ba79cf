"""Stop strings as tokens spell them, so that decoding sees one without leaving the device."""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from typing import Any

import numpy as np

from mwork_jax.model.decode_slots import ALWAYS, StopTable
from mwork_jax.model.tokens import vocabulary_texts


@lru_cache(maxsize=8)
def stop_table_of(tokenizer: Any, size: int, stop: tuple[str, ...]) -> tuple[StopTable, bool]:
    """`stop_table` of a tokenizer's vocabulary, of which the model has `size` entries."""
    if not stop:
        return no_stops(size), True
    return stop_table(vocabulary_texts(tokenizer, size), stop)


def no_stops(size: int) -> StopTable:
    """The table without a stop string, of a vocabulary of `size`."""
    return StopTable(*(np.zeros(size, np.uint32) for _ in range(4)))


def stop_table(texts: Sequence[str], stop: Sequence[str]) -> tuple[StopTable, bool]:
    """The table of tokens with these texts, and whether it knows all of the stop strings: together they have 31 places
    at most, one after each character but the last.

    A text may still decode otherwise than its tokens do one by one, so what the table finds is to be looked at.
    """
    table, base, complete = no_stops(len(texts)), 0, True
    table.goes_on[[token for token, text in enumerate(texts) if not text]] = np.uint32(0xFFFFFFFF)
    for string in stop:
        if base + len(string) - 1 > ALWAYS:
            complete = False
            continue
        _add(table, texts, string, base)
        base += len(string) - 1
    return table, complete


def _add(table: StopTable, texts: Sequence[str], stop: str, base: int) -> None:
    """Adds one stop string, whose places begin at bit `base`: bit base + i - 1 says that `stop[:i]` has been read."""
    characters = set(stop)
    for token, text in enumerate(texts):
        if not text or not (text[0] in characters or text[-1] in characters or stop in text):
            continue
        if stop in text:
            table.ends[token] |= np.uint32(1 << ALWAYS)
        for read in range(1, len(stop)):
            bit = np.uint32(1 << (base + read - 1))
            if text.endswith(stop[:read]):
                table.begins[token] |= bit
            rest = stop[read:]
            if text.startswith(rest):
                table.ends[token] |= bit
            elif rest.startswith(text):
                table.goes_on[token] |= bit
                table.characters[token] = len(text)
