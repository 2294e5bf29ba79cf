"""Checkpoints that cannot be written: one line of ours, and none of the library's."""

import errno
import logging
import os
from pathlib import Path

import pytest

from mwork_jax.enhance.checkpoint import _cannot_write, _log_no_tracebacks


def record(path, error):
    return logging.LogRecord("absl", logging.ERROR, path, 1, "it failed", (), error and (type(error), error, None))


def test_the_library_logs_no_traceback_of_what_it_raises():
    _log_no_tracebacks()
    logger = logging.getLogger("absl")
    assert not logger.filter(record("/lib/orbax/checkpoint/futures.py", ValueError()))
    assert logger.filter(record("/lib/orbax/checkpoint/futures.py", None))
    assert logger.filter(record("/lib/other/module.py", ValueError()))


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        (f"RESOURCE_EXHAUSTED: {'long ' * 99}: {os.strerror(errno.ENOSPC)} [os_error_code='28']", "No space left"),
        (f"[Errno 5] {os.strerror(errno.EIO)}", "Input/output error"),
        ("", "ValueError"),
    ],
)
def test_the_reason_is_said_however_long_the_error_is(text, reason):
    line = str(_cannot_write(Path("out"), ValueError(text)))
    assert line.startswith(f"out: a checkpoint cannot be written ({reason}")
    assert len(line) < 120
