"""Shapes that sequences run in: few of them, because every shape is a program to compile."""

from __future__ import annotations


def bucket_length(length: int, longest: int, *, least: int = 16) -> int:
    """The shape a document of `length` tokens runs in: `least` or more, at most a quarter longer, never over `longest`.

    Buckets are the powers of two and three steps between each two: 16, 20, 24, 28, 32, 40 ...
    """
    step = 4
    while step * 8 < length:
        step *= 2
    return min(max(least, -(-length // step) * step), longest)
