"""How many slots there are, and what happens where a device's memory does not suffice for them."""

from dataclasses import replace

import jax
import numpy as np
import pytest

import mwork_jax as mw
from mwork_jax.errors import InputWarning
from mwork_jax.model import decode_queue, predictions, slot_runner, slot_sizes
from mwork_jax.model.admission import Pair
from mwork_jax.model.slot_sizes import Sizes, tokens_that_fit, with_recorded_memory, worked_off
from mwork_jax.neurons import NeuronMask
from support.tiny import pair, tokens


def full(*args):
    raise jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: Out of memory while trying to allocate 1 bytes.")


def test_what_is_left_goes_on_in_half_as_many_slots():
    pairs, seen = [Pair(i, 0) for i in range(7)], []

    def work(sizes, left):
        seen.append((sizes, list(left)))
        for place, one in enumerate(left):
            if sizes.slots > 3 and place == 2:
                full()
            yield one, one.prompt * 10

    with pytest.warns(InputWarning, match=r"memory does not suffice for \d+ rows at once: going on with") as said:
        found = list(worked_off(Sizes(12, 128), pairs, work))
    assert found == [(one, one.prompt * 10) for one in pairs]
    assert [sizes.slots for sizes, _ in seen] == [12, 6, 3]
    assert [left for _, left in seen] == [pairs, pairs[2:], pairs[4:]]
    assert len(said) == 2


@pytest.mark.parametrize("error", [jax.errors.JaxRuntimeError("INTERNAL: something else"), ValueError("wrong")])
def test_other_errors_are_raised(error):
    def work(sizes, left):
        raise error
        yield

    with pytest.raises(type(error), match=str(error)):
        list(worked_off(Sizes(8, 128), [Pair(0, 0)], work))


def test_the_fewest_slots_are_not_halved():
    with pytest.raises(jax.errors.JaxRuntimeError, match="RESOURCE_EXHAUSTED"):
        list(worked_off(Sizes(2, 128), [Pair(0, 0)], lambda sizes, left: full()))


ROWS = [tokens(1, n, seed=n)[0] for n in (9, 12, 7, 40, 33, 8)]


def failing(function, call):
    """The function, but for the one call in which the device has no room left."""
    calls = []

    def called(*args):
        calls.append(1)
        return full() if len(calls) == call else function(*args)

    return called


@pytest.mark.parametrize(("where", "name", "call"), [(slot_runner, "advance_blocks", 2), (predictions, "predicted", 1)])
def test_no_loss_is_changed_lost_or_doubled(where, name, call, monkeypatch):
    model = pair("llama", 2).model
    keep = NeuronMask.keep_all(model.config)
    losses = mw.held_out_loss(model, ROWS, keep).nats
    monkeypatch.setattr(where, name, failing(getattr(where, name), call))
    with pytest.warns(InputWarning, match="does not suffice"):
        np.testing.assert_array_equal(mw.held_out_loss(model, ROWS, keep).nats, losses)


def test_no_answer_is_changed_lost_or_doubled(monkeypatch):
    model = pair("llama", 2).model
    keep = NeuronMask.keep_all(model.config)
    answers = mw.generate(model, ROWS, keep, max_new_tokens=6)
    monkeypatch.setattr(decode_queue, "decode_slots", failing(decode_queue.decode_slots, 1))
    with pytest.warns(InputWarning, match="does not suffice"):
        again = mw.generate(model, ROWS, keep, max_new_tokens=6)
    assert [list(answer) for answer in again] == [list(answer) for answer in answers]


def test_a_memory_that_is_given_bounds_the_slots():
    model = pair("llama", 2).model
    here = tokens_that_fit(model.decoder)
    assert 0 < tokens_that_fit(model.decoder, 2_000_000) < tokens_that_fit(model.decoder, 20_000_000) < here
    keep = NeuronMask.keep_all(model.config)
    small = replace(model, memory=1_000_000)
    few, many = (next(slot_sizes.sizes_for(each, [100] * 20, 4, 2048))[1].slots for each in (small, model))
    assert few < many == slot_sizes.CPU.slots
    np.testing.assert_array_equal(mw.held_out_loss(small, ROWS, keep).nats, mw.held_out_loss(model, ROWS, keep).nats)


def test_a_run_that_goes_on_has_the_memory_of_its_first_start(tmp_path, monkeypatch):
    """Where results depend on shapes: on a device with more memory, later, the slots are the same."""
    model = pair("llama", 2).model
    assert with_recorded_memory(model, tmp_path) is model
    assert not list(tmp_path.iterdir()), "on CPUs shapes do not matter"
    monkeypatch.setattr(slot_sizes, "on_cpu", lambda decoder: False)
    monkeypatch.setattr(slot_sizes, "_device_memory", lambda decoder: 2_000_000)
    assert with_recorded_memory(model, tmp_path).memory == 2_000_000
    monkeypatch.setattr(slot_sizes, "_device_memory", lambda decoder: 20_000_000)
    first = with_recorded_memory(model, tmp_path)
    assert first.memory == 2_000_000
    assert tokens_that_fit(first.decoder, first.memory) == tokens_that_fit(model.decoder, 2_000_000)
    given = replace(model, memory=5_000_000)
    assert with_recorded_memory(given, tmp_path) is given
    for damaged in ("{", '{"bytes": -1}', '{"bytes": "many"}', "[]"):
        (tmp_path / "memory.json").write_text(damaged)
        assert with_recorded_memory(model, tmp_path).memory == 20_000_000


def test_no_memory_is_recorded_where_nobody_says(tmp_path, monkeypatch):
    monkeypatch.setattr(slot_sizes, "on_cpu", lambda decoder: False)
    monkeypatch.setattr(slot_sizes, "_device_memory", lambda decoder: None)
    assert with_recorded_memory(pair("llama", 2).model, tmp_path).memory is None
    assert not list(tmp_path.iterdir())
