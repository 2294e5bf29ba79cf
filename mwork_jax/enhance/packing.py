"""Documents packed into rows of one length, and the order in which training sees the rows.

Several short documents share a row; each token knows where its document begins, attends to its own document only, and
counts its positions from there, so a packed document has the loss that it has alone. The order is a function of a seed
and the step: the step number alone determines the position in the data.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from mwork_jax.corpus import Encoded


class PackedRows(NamedTuple):
    """Packed rows, all of one length; on the host. Stacks and splits along leading axes."""

    tokens: np.ndarray  # int32 [..., t]
    targets: np.ndarray  # int32 [..., t], the next token of the same document
    counts: np.ndarray  # float32 [..., t], 1 where there is a target
    start: np.ndarray  # int32 [..., t], the time at which the token's document begins

    def at(self, indices: np.ndarray) -> PackedRows:
        return PackedRows(*(field[indices] for field in self))


def pack(documents: Sequence[Encoded], time: int) -> PackedRows:
    """The documents in rows of `time` tokens: the longest first, each into the row where the least is left over
    (best fit decreasing). No document is split;
    none may be longer than `time`."""
    left: list[int] = []  # free tokens of each row
    members: list[list[np.ndarray]] = []
    for document in sorted(documents, key=lambda d: -d.tokens.size):
        size = document.tokens.size
        fitting = [(free, row) for row, free in enumerate(left) if free >= size]
        if fitting:
            _, row = min(fitting)
        else:
            row = len(left)
            left.append(time)
            members.append([])
        left[row] -= size
        members[row].append(document.tokens)
    return _rows(members, time)


def _rows(members: list[list[np.ndarray]], time: int) -> PackedRows:
    tokens, targets, start = (np.zeros((len(members), time), np.int32) for _ in range(3))
    counts = np.zeros((len(members), time), np.float32)
    for row, documents in enumerate(members):
        begin = 0
        for document in documents:
            end = begin + document.size
            tokens[row, begin:end], start[row, begin:end] = document, begin
            targets[row, begin : end - 1], counts[row, begin : end - 1] = document[1:], 1
            begin = end
        start[row, begin:] = begin  # what is left over is a document of its own
    return PackedRows(tokens, targets, counts, start)


def empty_rows(like: PackedRows, count: int) -> PackedRows:
    """Rows without anything to predict, to fill a batch with."""
    return PackedRows(*(np.zeros((count, *field.shape[1:]), field.dtype) for field in like))


def steps_per_epoch(rows: PackedRows, batch: int) -> int:
    return -(-len(rows.tokens) // batch)


def batch_at(rows: PackedRows, batch: int, seed: int, step: int) -> PackedRows:
    """The `batch` rows of one step; each epoch has its own order, and its last batch is filled up with empty rows."""
    each = steps_per_epoch(rows, batch)
    epoch, batch_of_epoch = divmod(step, each)
    order = np.random.default_rng([seed, epoch]).permutation(len(rows.tokens))
    picked = rows.at(order[batch_of_epoch * batch : (batch_of_epoch + 1) * batch])
    return PackedRows(*map(np.concatenate, zip(picked, empty_rows(rows, batch - len(picked.tokens)), strict=True)))
