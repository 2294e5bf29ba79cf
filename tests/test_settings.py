"""Settings from Python: what cannot be meant is one line."""

import numpy as np
import pytest

import mwork_jax as mw
from mwork_jax.errors import whole_number

WRONG = {
    "kept": (lambda: mw.DetectSettings(kept="8"), "detection: kept is '8'; a whole number is needed"),
    "max_tokens": (lambda: mw.DetectSettings(max_tokens=1), "detection: max_tokens is 1; it must be 2 or more"),
    "seeds": (lambda: mw.RunSettings(seeds=2.0), "run: seeds is 2.0; a whole number is needed"),
    "documents": (lambda: mw.RunSettings(documents=True), "run: documents is True; a whole number is needed"),
    "matrix": (lambda: mw.RunSettings(matrix_documents=-1), "run: matrix_documents is -1; it must be 0 or more"),
    "n1": (lambda: mw.RunSettings(n1="2"), "run: n1 is '2'; a whole number is needed"),
    "items": (lambda: mw.TableSettings(("en", "de"), items="3"), "table: items is '3'; a whole number"),
    "epochs": (lambda: mw.TuneSettings(epochs="3"), "tuning: epochs is '3'; a whole number is needed"),
    "learning_rate": (lambda: mw.TuneSettings(learning_rate="1e-4"), "tuning: learning_rate is '1e-4'; a number"),
    "at_once": (lambda: mw.EnhanceSettings(at_once=0), "tuning: at_once is 0; it must be 1 or more"),
    "batching": (lambda: mw.Batching(max_tokens=None), "batching: max_tokens is None; a whole number is needed"),
    "too many": (lambda: mw.score_neurons(None, [], kept=10**9), "kept is 1000000000; at most 1048576"),
    "scores": (lambda: mw.score_neurons(None, [], kept="8"), "kept is '8'; a whole number is needed"),
}


@pytest.mark.parametrize("case", WRONG)
def test_settings_that_cannot_be_meant(case):
    make, message = WRONG[case]
    with pytest.raises(mw.InputError, match=message):
        make()


def test_whole_numbers_of_any_kind_are_taken():
    assert whole_number("n", np.int64(3), 1) == 3
    assert mw.RunSettings(n1=None, seeds=np.int32(2)).seeds == 2
