"""Checkpoints that cannot be written: one line of ours, and none of the library's."""

import errno
import logging
import os
from pathlib import Path

import pytest

from mwork_jax.enhance.checkpoint import _cannot_write, _without_tracebacks


def record(path):
    return logging.LogRecord("absl", logging.ERROR, path, 1, "it failed", (), None)


def test_the_library_logs_nothing_that_it_also_raises():
    logger = logging.getLogger("absl")
    before = list(logger.filters)
    with _without_tracebacks():
        assert not logger.filter(record("/lib/orbax/checkpoint/futures.py"))
        assert logger.filter(record("/lib/other/module.py"))
    assert logger.filters == before


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
