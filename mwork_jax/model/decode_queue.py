"""Generation as a queue: pairs of a prompt and a mask wait for a slot, then in it for a row; a row that is done takes
the next."""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any, NamedTuple

import numpy as np

from mwork_jax.intervention import Edit
from mwork_jax.model.admission import Pair, Prompt, Seat, ordered_pairs
from mwork_jax.model.buckets import bucket_length
from mwork_jax.model.decode_slots import SlotState, decode_slots
from mwork_jax.model.model import Model
from mwork_jax.model.sampling import Sampling
from mwork_jax.model.slot_runner import SlotRunner, in_slots
from mwork_jax.model.slot_sizes import CPU, Sizes, groups_of, on_cpu, sizes_for, worked_off
from mwork_jax.model.stop_strings import stop_table_of
from mwork_jax.sharding import fetch, on_mesh_of, put

REFILL = 8  # one part in so many of the rows is empty before they are filled again
_STEPS_UNSEEN = 16  # steps after which the host searches texts for stop strings that the table does not hold,
STEPS_KNOWN = 64  # and where it holds all of them, for those that a text spells otherwise than its tokens do
_TAIL = 8  # tokens of the prompt that new ones are decoded with


class Filling(NamedTuple):
    """How full the rows have been: slot_steps, steps times the rows that took them; tokens, how many of these gave a
    new token; in_flight, the rows under way."""

    slot_steps: int
    tokens: int
    in_flight: int


def decoded_pairs(
    model: Model,
    prompts: Sequence[np.ndarray],
    masks: Sequence[Edit],
    max_new_tokens: int,
    stop: Sequence[str],
    tokens_per_batch: int,
    sampling: Sampling | None,
    watch: Callable[[Filling], None] | None = None,
) -> Iterator[tuple[Pair, np.ndarray]]:
    """Every prompt under every mask, in the order in which they are done, with its new tokens int32 [time], the EOS
    that ended it included. watch is called with what the slots have done so far, every few steps."""
    filling = Filling(0, 0, 0)

    def decode(
        places: Sequence[int], own: Sequence[Prompt], sizes: Sizes, pairs: Sequence[Pair]
    ) -> Iterator[tuple[Pair, np.ndarray]]:
        nonlocal filling
        runner = SlotRunner(model.decoder, own, masks, pairs, sizes, any_generated=False, with_outputs=False)
        decoding = _Decoding(model, runner, max_new_tokens, tuple(stop), sampling, places, filling)
        for done in decoding.run(watch):
            filling = decoding.filling
            yield done

    lengths = [prompt.size + max_new_tokens for prompt in prompts]
    for places, sizes in sizes_for(model, lengths, len(masks), tokens_per_batch):
        own = [Prompt(prompts[i], prompts[i].size - 1, prompts[i].size - 1, prompts[i].size) for i in places]
        pairs = ordered_pairs(own, len(masks), sizes.slots * groups_of(model.decoder))
        for pair, tokens in worked_off(sizes, pairs, partial(decode, places, own)):
            yield Pair(places[pair.prompt], pair.mask), tokens


class _Decoding:
    """The rows under way, on the host."""

    def __init__(
        self,
        model: Model,
        runner: SlotRunner,
        max_new_tokens: int,
        stop: tuple[str, ...],
        sampling: Sampling | None,
        numbers: Sequence[int],
        filling: Filling,
    ):
        self.model, self.runner, self.stop, self.limit = model, runner, stop, max_new_tokens
        self.numbers, self.sampling = numbers, sampling
        self.stops, complete = stop_table_of(model.tokenizer, model.config.vocab_size, stop)
        self.most_steps = STEPS_KNOWN if complete else _STEPS_UNSEEN
        self.state = _idle(runner.groups, runner.sizes.rows, bucket_length(max_new_tokens, 1 << 30), runner.scratch)
        self.seats: dict[tuple[int, int], Seat] = {}  # by group and row
        self.waiting = [deque[Seat]() for _ in range(runner.groups)]
        self.filling = filling

    def run(self, watch: Callable[[Filling], None] | None) -> Iterator[tuple[Pair, np.ndarray]]:
        """The pairs as they are done, with their new tokens."""
        while self.runner.queue or any(self.waiting) or self.seats:
            if self._someone_is_missing():
                self._admit()
            for group, waiting in enumerate(self.waiting):
                for row in range(self.runner.sizes.rows):
                    if waiting and (group, row) not in self.seats:
                        self._sit((group, row), waiting.popleft())
            self._decode()
            yield from self._leave()
            if watch is not None:
                watch(self.filling)

    def _someone_is_missing(self) -> bool:
        """Whether in any group fewer wait than there are empty rows."""
        seated = Counter(group for group, _ in self.seats)
        rows = self.runner.sizes.rows
        return any(len(waiting) < rows - seated[group] for group, waiting in enumerate(self.waiting))

    def _admit(self) -> None:
        """Takes the prompts of as many pairs through as there are slots for."""
        runner = self.runner
        while runner.queue and runner.admission.free:
            seats, runs = runner.admit()
            for _ in runs:
                pass
            for seat in seats:
                self.waiting[seat.group].append(seat)

    def _sit(self, at: tuple[int, int], seat: Seat) -> None:
        prompt = self.runner.prompts[seat.pair.prompt]
        self.seats[at] = seat
        state = self.state
        state.tokens[at], state.slots[at] = 0, seat.slot
        state.lengths[at], state.following[at], state.positions[at] = 0, prompt.tokens[-1], prompt.through
        state.prompts[at], state.limits[at], state.masks[at] = prompt.tokens.size, self.limit, seat.pair.mask
        state.numbers[at], state.places[at] = self.numbers[seat.pair.prompt], 0
        state.done[at], state.stopped[at] = False, False

    def _decode(self) -> None:
        """Steps until it pays to look at the slots again."""
        runner, decoder = self.runner, self.runner.decoder
        chosen, leave_at = self._next()
        most = self.most_steps if self.stop else self.limit
        with on_mesh_of(decoder):
            state = in_slots(_rows(self.state, chosen), runner.mesh)
            numbers = put((np.int32(leave_at), np.int32(most)), runner.mesh)
            stops = put(self.stops, runner.mesh, None)
            runner.cache, state, steps = decode_slots(
                decoder, runner.cache, state, runner.table, stops, *numbers, self.sampling
            )
        *arrays, steps = fetch((*state, steps))
        written = int(self.state.lengths.sum())
        self.state = _with_rows(self.state, chosen, SlotState(*arrays))
        ran, tokens, _ = self.filling
        new = int(self.state.lengths.sum()) - written
        self.filling = Filling(ran + arrays[0].size * int(steps), tokens + new, len(self.seats))

    def _next(self) -> tuple[np.ndarray | None, int]:
        """(which rows of each group go on, None for all; how many may be left when they come back): until so many rows
        are empty that it pays to fill them, or all where nobody waits. Then, as fewer and fewer rows are left, they go
        on without the others."""
        rows, going = self.runner.sizes.rows, ~self.state.done
        if self.runner.queue or any(self.waiting):
            # Where a group has nobody left who could wait for a row of its own, its rows stay empty.
            return None, max(0, int(going.sum()) - max(1, going.size // REFILL))
        fewer = [count for count in CPU.few if count < rows] if on_cpu(self.runner.decoder) else []
        left = going.sum(axis=1).max()
        together = min((count for count in fewer if left <= count), default=rows)
        leave_at = max((count for count in fewer if count < together), default=0)
        if together == rows:
            return None, leave_at
        return np.argsort(self.state.done, axis=1, kind="stable")[:, :together], leave_at

    def _leave(self) -> Iterator[tuple[Pair, np.ndarray]]:
        """The rows that are done give their slots back."""
        left = []
        for at, seat in self.seats.items():
            tokens = self.state.tokens[at][: self.state.lengths[at]]
            if self.stop and (self.state.stopped[at] or not self.state.done[at]):
                # What the table of stop strings found is looked at, and what it may have missed.
                prompt = self.runner.prompts[seat.pair.prompt].tokens
                text = text_after(self.model.tokenizer, prompt, tokens)
                self.state.done[at], self.state.stopped[at] = any(string in text for string in self.stop), False
            if self.state.done[at]:
                left.append((at, seat, tokens.copy()))
        for at, seat, tokens in left:
            del self.seats[at]
            self.state.slots[at] = self.runner.scratch
            yield seat.pair, tokens
        self.runner.admission.leave(seat for _, seat, _ in left)


def text_after(tokenizer: Any, prompt: np.ndarray, new: np.ndarray) -> str:
    """The text of the new tokens after the prompt. The end of the prompt is decoded with them, because some tokenizers
    drop the space before the first word of a text."""

    def decode(tokens: np.ndarray) -> str:
        return tokenizer.decode(tokens, skip_special_tokens=True)

    before, whole = decode(prompt[-_TAIL:]), decode(np.concatenate([prompt[-_TAIL:], new]))
    # A prompt may end within a character; then its end decodes differently with the new tokens than without.
    return whole[len(before) :] if whole.startswith(before) else decode(new)


def _idle(groups: int, rows: int, room: int, slot: int) -> SlotState:
    """Rows that nobody is in. They write to a slot that nobody reads."""
    shape = (groups, rows)
    numbers = {name: np.zeros(shape, np.int32) for name in SlotState._fields}
    numbers |= {"tokens": np.zeros((*shape, room), np.int32), "places": np.zeros(shape, np.uint32)}
    numbers |= {"slots": np.full(shape, slot, np.int32)}
    return SlotState(**numbers | {"done": np.ones(shape, bool), "stopped": np.zeros(shape, bool)})


def _rows(state: SlotState, chosen: np.ndarray | None) -> SlotState:
    """Some rows of each group, int [groups, rows]; None for all."""
    if chosen is None:
        return state
    groups = np.arange(len(chosen))[:, None]
    return SlotState(*(array[groups, chosen] for array in state))


def _with_rows(state: SlotState, chosen: np.ndarray | None, new: SlotState) -> SlotState:
    """The state with these rows in place of some of its own."""
    if chosen is None:
        return SlotState(*(np.array(array) for array in new))
    groups = np.arange(len(chosen))[:, None]
    for array, rows in zip(state, new, strict=True):
        array[groups, chosen] = rows
    return state
