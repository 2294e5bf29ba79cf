"""The one exception that users are meant to read, and the one warning; the check that many values need."""

from __future__ import annotations

from typing import Any, SupportsIndex

_LONGEST, _BEGIN, _END = 1000, 600, 300  # characters


class InputError(ValueError):
    """Something the user gave cannot be used.

    The message is one line that says what was wrong, where, and what would be right. The command line prints it
    and exits with status 2; it is never shown with a traceback there. What foreign names make too long is cut in its
    middle.
    """

    def __init__(self, message: str):
        super().__init__(message if len(message) <= _LONGEST else f"{message[:_BEGIN]} … {message[-_END:]}")


class InputWarning(UserWarning):
    """Something the user gave can be used, but not as they may think. Commands print its line once."""


def whole_number(name: str, value: Any, least: int) -> int:
    """The value as an int, NumPy's whole numbers too. Raises InputError for what is no whole number, such as True, 2.0
    and "2", and for one below `least`."""
    if isinstance(value, bool) or not isinstance(value, SupportsIndex):
        raise InputError(f"{name} is {value!r:.40}; a whole number is needed")
    number = value.__index__()
    if number < least:
        raise InputError(f"{name} is {number}; it must be {least} or more")
    return number
