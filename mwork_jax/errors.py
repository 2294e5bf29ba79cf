"""The one exception that users are meant to read."""

from __future__ import annotations


class InputError(ValueError):
    """Something the user gave cannot be used.

    The message is one line that says what was wrong, where, and what would be right. The command line prints it
    and exits with status 2; it is never shown with a traceback there.
    """
