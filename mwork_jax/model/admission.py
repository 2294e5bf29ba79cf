"""Which pair of a prompt and a mask takes which slot, and what has to be computed for it.

Nothing is computed twice that is still there. A row starts from the longest beginning that a slot holds under the same
mask: few-shot examples, a passage. And below the first layer that a mask touches, a model computes what the original
model does: where several masks read one prompt, the original model reads it once, and each mask goes on from the stream
that enters its own first layer.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np

from mwork_jax.model.slots import BLOCK
from mwork_jax.model.tokens import shared_prefix_length

ORIGINAL = -1  # in place of a mask: the original model


class Prompt(NamedTuple):
    """A sequence: tokens int32 [time], of which the first `through` go through in blocks; the first `shareable` of them
    may come from another row; those from `generated_from` on count as generated."""

    tokens: np.ndarray
    through: int
    shareable: int
    generated_from: int


class Pair(NamedTuple):
    """A prompt under a mask, both as places in their lists."""

    prompt: int
    mask: int


class Resident(NamedTuple):
    """What a slot holds: the tokens int32 [time] that went through under a mask, or through the ORIGINAL."""

    mask: int
    tokens: np.ndarray


class Copy(NamedTuple):
    """A slot's first tokens in another one: of the layers below `below`; of the streams too, where it is the
    original's."""

    source: int
    target: int
    below: int
    tokens: int


class Job(NamedTuple):
    """Tokens begin to end of a prompt that go through layers first to last in a slot. original: the slot of the streams
    that are read, or written; None where none are."""

    pair: Pair
    slot: int
    begin: int
    end: int
    first: int
    last: int
    original: int | None


@dataclass
class Wave:
    """What can be computed together: first the copies, then the jobs, of each group of devices."""

    copies: list[list[Copy]]
    jobs: list[list[Job]]


class Seat(NamedTuple):
    """A pair's place: the group of devices and the slot."""

    pair: Pair
    group: int
    slot: int


@dataclass
class _Group:
    """What the slots of one group hold; a slot that nobody needs any more still holds it."""

    residents: list[Resident | None]
    originals: list[tuple[int, Resident] | None]  # the prompt's number too
    waves: list[tuple[list[Copy], list[Job]]] = field(default_factory=list)
    free: deque[int] = field(default_factory=deque)


@dataclass
class Admission:
    """The slots of all groups, and who sits in them. Decides from the lists alone, so that several processes decide
    alike.

    prompts, firsts: the first layer that each mask changes; with_original: whether a prompt is worth the original's
    pass of its own.
    """

    prompts: Sequence[Prompt]
    firsts: Sequence[int]
    with_original: Sequence[bool]
    layers: int
    slots: int
    originals: int
    groups: int = 1

    def __post_init__(self) -> None:
        self._groups = [
            _Group([None] * self.slots, [None] * self.originals, free=deque(range(self.slots)))
            for _ in range(self.groups)
        ]
        self.stops = sorted({first for first in self.firsts if first})

    @property
    def free(self) -> int:
        """How many slots nobody sits in."""
        return sum(len(group.free) for group in self._groups)

    def leave(self, seats: Iterable[Seat]) -> None:
        """The slots of these seats can be taken."""
        for seat in seats:
            self._groups[seat.group].free.append(seat.slot)

    def admit(self, queue: deque[Pair]) -> tuple[list[Seat], list[Wave]]:
        """Seats for as many pairs from the head of the queue as there is room for, and what is computed for them, one
        wave after the other."""
        seats: list[Seat] = []
        for number, group in enumerate(self._groups):
            group.waves = []
            share = -(-len(queue) // (self.groups - number))  # so that no group waits for another
            seats += self._fill(number, group, queue, share)
        count = max(len(group.waves) for group in self._groups)
        nothing: tuple[list[Copy], list[Job]] = ([], [])
        each = [[group.waves[i] if i < len(group.waves) else nothing for group in self._groups] for i in range(count)]
        return seats, [Wave([copies for copies, _ in wave], [jobs for _, jobs in wave]) for wave in each]

    def _fill(self, number: int, group: _Group, queue: deque[Pair], most: int) -> list[Seat]:
        """Seats in one group, for at most so many pairs."""
        seats: list[Seat] = []
        before, originals_before = list(group.residents), list(group.originals)
        depths: dict[int, int] = {}  # of the slots that are taken now: the wave in which each is computed
        of_originals: dict[int, tuple[int, int]] = {}  # prompt -> (slot of the original, the wave)
        while queue and group.free and len(seats) < most:
            pair = queue[0]
            original = None
            if self.with_original[pair.prompt] and self.firsts[pair.mask]:
                original = self._original(group, pair.prompt, originals_before, of_originals)
                if original is None:
                    break
            queue.popleft()
            slot = self._seat(group, pair, before, depths, original)
            seats.append(Seat(pair, number, slot))
        return seats

    def _seat(
        self,
        group: _Group,
        pair: Pair,
        before: Sequence[Resident | None],
        depths: dict[int, int],
        original: tuple[int, int] | None,
    ) -> int:
        """Gives a pair its slot, and adds what is computed for it."""
        prompt = self.prompts[pair.prompt]
        first = 0 if original is None else self.firsts[pair.mask]
        held = [resident if resident and resident.mask == pair.mask else None for resident in before]
        now = [r if i in depths and r and r.mask == pair.mask else None for i, r in enumerate(group.residents)]
        old, own = _longest(held, prompt), _longest(now, prompt)
        donor, shared, depth = (own[0], own[1], depths[own[0]] + 1) if own[1] > old[1] else (*old, 0)
        in_place = bool(shared) and not depth and donor in group.free
        slot = donor if in_place else self._least_useful(group)
        group.free.remove(slot)
        if shared and not in_place and first < self.layers:
            self._add(group, depth, copy=Copy(donor, slot, self.layers, shared))
        source = None
        if original is not None:
            source, computed_in = original
            depth = max(depth, computed_in + 1)
            self._add(group, depth, copy=Copy(self.slots + source, slot, first, prompt.through))
        if shared < prompt.through and first < self.layers:
            job = Job(pair, slot, shared, prompt.through, first, self.layers, source)
            self._add(group, depth, job=job)
        group.residents[slot] = Resident(pair.mask, prompt.tokens[: prompt.through])
        depths[slot] = depth
        return slot

    def _original(
        self,
        group: _Group,
        number: int,
        before: Sequence[tuple[int, Resident] | None],
        computed: dict[int, tuple[int, int]],
    ) -> tuple[int, int] | None:
        """(the slot that holds the original model's pass over a prompt, the wave after which it does); None where all
        are needed by pairs that are seated now."""
        if number in computed:
            return computed[number]
        for slot, held in enumerate(group.originals):
            if held and held[0] == number:
                computed[number] = (slot, -1)
                return computed[number]
        prompt, taken = self.prompts[number], {slot for slot, _ in computed.values()}
        free = [slot for slot in range(self.originals) if slot not in taken]
        if not free:
            return None
        old = _longest([held[1] if held else None for held in before], prompt)
        waves = {slot: wave for slot, wave in computed.values() if wave >= 0}
        own = _longest([h[1] if h and i in waves else None for i, h in enumerate(group.originals)], prompt)
        donor, shared, depth = (own[0], own[1], waves[own[0]] + 1) if own[1] > old[1] else (*old, 0)
        in_place = bool(shared) and not depth and donor in free
        slot = donor if in_place else free[0]
        if shared and not in_place:
            self._add(group, depth, copy=Copy(self.slots + donor, self.slots + slot, self.layers, shared))
        if shared < prompt.through:
            for first, last in zip([0, *self.stops], self.stops, strict=False):
                job = Job(Pair(number, ORIGINAL), self.slots + slot, shared, prompt.through, first, last, slot)
                self._add(group, depth, job=job)
        group.originals[slot] = (number, Resident(ORIGINAL, prompt.tokens[: prompt.through]))
        computed[number] = (slot, depth)
        return computed[number]

    def _add(self, group: _Group, depth: int, *, copy: Copy | None = None, job: Job | None = None) -> None:
        while len(group.waves) <= depth:
            group.waves.append(([], []))
        if copy is not None:
            group.waves[depth][0].append(copy)
        if job is not None:
            group.waves[depth][1].append(job)

    def _least_useful(self, group: _Group) -> int:
        """An empty slot, or the one that has been free for longest."""
        return next((slot for slot in group.free if group.residents[slot] is None), group.free[0])


def _longest(held: Sequence[Resident | None], prompt: Prompt) -> tuple[int, int]:
    """(the slot that begins most like the prompt, how many tokens it can give: whole blocks)."""
    best = (0, 0)
    for slot, resident in enumerate(held):
        if resident is not None:
            alike = min(shared_prefix_length(resident.tokens, prompt.tokens), prompt.shareable)
            if alike // BLOCK * BLOCK > best[1]:
                best = (slot, alike // BLOCK * BLOCK)
    return best


def ordered_pairs(prompts: Sequence[Prompt], masks: int, slots: int) -> list[Pair]:
    """The pairs in an order in which those that share a beginning are in the slots together: prompts by their tokens,
    each under a few masks, then under the next few."""
    order = sorted(range(len(prompts)), key=lambda i: (prompts[i].tokens.astype(">u4").tobytes(), i))
    together = max(1, slots // 4)
    return [
        Pair(prompt, mask)
        for first in range(0, masks, together)
        for prompt in order
        for mask in range(first, min(first + together, masks))
    ]
