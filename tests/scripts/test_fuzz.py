"""scripts/fuzz.py: what it counts when it is stopped."""

import argparse

import fuzz


def test_a_run_that_is_stopped_counts_what_it_reached(monkeypatch, tmp_path):
    asked = []

    def served(form, samples, begin, count):
        for number in range(begin, begin + count):
            asked.append(number)
            yield number, "no" if number % 2 else "", "", 0.1, 10

    monkeypatch.setattr(fuzz, "_served", served)
    args = argparse.Namespace(seed=7, cases=2000, workers=1, keep=None)
    count = fuzz._fuzzed("sets", args, lambda: len(asked) >= 600)
    assert asked == list(range(7, 607))
    assert (count.cases, count.read, count.refused, count.wrong) == (600, 300, 300, {})
    asked.clear()
    assert fuzz._fuzzed("sets", args, lambda: False).cases == 2000
