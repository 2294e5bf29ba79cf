"""Limits on what somebody else's file makes a process compute."""

import time

import pytest

from mwork_jax.errors import InputError
from mwork_jax.runtime.time_limit import memory_limit, time_limit


def waited_for_two_alarms(lost):
    begun = time.monotonic()
    with time_limit(0.05, "too long"):
        while time.monotonic() < begun + 10:
            try:
                time.sleep(2)
            except InputError as error:
                if lost:
                    raise
                lost.append(error)


def test_an_alarm_that_is_lost_comes_again():
    """As within a callback of the garbage collector, where whatever is raised is printed and forgotten."""
    lost = []
    with pytest.raises(InputError, match="too long"):
        waited_for_two_alarms(lost)
    assert len(lost) == 1


def test_memory_is_limited_within_the_block_alone():
    with memory_limit(1 << 26), pytest.raises(MemoryError):
        bytes(1 << 31)
    assert len(bytes(1 << 28)) == 1 << 28
