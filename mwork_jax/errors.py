"""The one exception that users are meant to read."""

from __future__ import annotations

_LONGEST, _BEGIN, _END = 1000, 600, 300  # characters


class InputError(ValueError):
    """Something the user gave cannot be used.

    The message is one line that says what was wrong, where, and what would be right. The command line prints it
    and exits with status 2; it is never shown with a traceback there. What foreign names make too long is cut in its
    middle.
    """

    def __init__(self, message: str):
        super().__init__(message if len(message) <= _LONGEST else f"{message[:_BEGIN]} … {message[-_END:]}")
