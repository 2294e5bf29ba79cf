"""Which row takes which slot: whatever is asked for, each slot ends with what its row has read, under its own mask."""

from collections import deque

import numpy as np
import pytest

from mwork_jax.model.admission import ORIGINAL, Admission, Pair, Prompt, ordered_pairs
from mwork_jax.model.slots import BLOCK

LAYERS = 6


class Symbols:
    """The slots without arithmetic: per slot and layer, what each block was computed from."""

    def __init__(self, admission):
        self.admission = admission
        count = admission.slots + admission.originals
        self.cache = [[[{} for _ in range(LAYERS)] for _ in range(count)] for _ in range(admission.groups)]
        self.streams = [[{} for _ in range(admission.originals)] for _ in range(admission.groups)]
        self.blocks = 0  # blocks times layers that were computed

    def run(self, waves):
        for wave in waves:
            for group, copies in enumerate(wave.copies):
                whole = [copy for copy in copies if copy.below == LAYERS]
                self._copy(group, whole)
                for below in range(LAYERS):
                    self._copy(group, [copy for copy in copies if copy.below == below])
            for group, jobs in enumerate(wave.jobs):
                for job in sorted(jobs, key=lambda job: (job.first, job.last)):
                    self._job(group, job)

    def _copy(self, group, copies):
        targets = [(copy.target, copy.below) for copy in copies]
        assert len(set(targets)) == len(targets), "which of two copies comes last is not said"
        held = [[dict(layer) for layer in self.cache[group][copy.source]] for copy in copies]
        streams = [
            dict(self.streams[group][copy.source - self.admission.slots])
            if copy.target >= self.admission.slots
            else None
            for copy in copies
        ]
        for copy, layers, stream in zip(copies, held, streams, strict=True):
            self.cache[group][copy.target][: copy.below] = layers[: copy.below]
            if stream is not None:
                self.streams[group][copy.target - self.admission.slots] = stream

    def _job(self, group, job):
        prompt = self.admission.prompts[job.pair.prompt]
        slot = self.cache[group][job.slot]
        for begin in range(job.begin, job.end, BLOCK):
            read = tuple(prompt.tokens[: min(begin + BLOCK, job.end)].tolist())
            if job.first:
                assert self.streams[group][job.original][begin, job.first] == read
            for layer in range(job.first, job.last):
                for earlier in range(0, begin, BLOCK):
                    assert slot[layer][earlier] == (self._mask(job.pair.mask, layer), read[: earlier + BLOCK])
                slot[layer][begin] = (self._mask(job.pair.mask, layer), read)
                self.blocks += 1
            if job.pair.mask == ORIGINAL:
                self.streams[group][job.original][begin, job.last] = read

    def _mask(self, mask, layer):
        # Below the first layer that a mask changes, its row is the original's, whoever has computed it.
        return mask if mask != ORIGINAL and layer >= self.admission.firsts[mask] else ORIGINAL

    def check(self, seat):
        prompt = self.admission.prompts[seat.pair.prompt]
        for layer, held in enumerate(self.cache[seat.group][seat.slot]):
            for begin in range(0, prompt.through, BLOCK):
                read = tuple(prompt.tokens[: min(begin + BLOCK, prompt.through)].tolist())
                assert held[begin] == (self._mask(seat.pair.mask, layer), read)


def texts(rng, count):
    """Prompts of which many begin alike."""
    stems = [rng.integers(0, 9, BLOCK * rng.integers(0, 4)) for _ in range(3)]
    found = []
    for _ in range(count):
        stem = stems[rng.integers(3)]
        cut = rng.integers(0, stem.size + 1) if rng.random() < 0.3 else stem.size
        tokens = np.concatenate([stem[:cut], rng.integers(0, 9, rng.integers(1, 2 * BLOCK))]).astype(np.int32)
        through = tokens.size - 1
        found.append(Prompt(tokens, through, int(rng.integers(0, through + 1)), tokens.size))
    return found


@pytest.mark.parametrize("seed", range(40))
def test_every_slot_ends_with_what_its_row_has_read(seed):
    rng = np.random.default_rng(seed)
    prompts, masks = texts(rng, int(rng.integers(1, 12))), int(rng.integers(1, 7))
    firsts = rng.integers(0, LAYERS + 1, masks).tolist()
    with_original = [bool(rng.integers(2)) and masks > 1 for _ in prompts]
    slots, groups = int(rng.integers(2, 7)), int(rng.integers(1, 3))
    admission = Admission(prompts, firsts, with_original, LAYERS, slots, 2, groups)
    symbols, sitting, seen = Symbols(admission), [], []
    queue = deque(ordered_pairs(prompts, masks, slots))
    if rng.random() < 0.3:
        rng.shuffle(queue)
    while queue or sitting:
        seats, waves = admission.admit(queue)
        symbols.run(waves)
        for seat in seats:
            symbols.check(seat)
        sitting += seats
        seen += [seat.pair for seat in seats]
        rng.shuffle(sitting)
        leaving = int(rng.integers(1, len(sitting) + 1))
        admission.leave(sitting[:leaving])
        sitting = sitting[leaving:]
    assert sorted(seen) == [Pair(p, m) for p in range(len(prompts)) for m in range(masks)]


def test_what_is_shared_is_computed_once():
    """Twelve questions on three passages behind one instruction, under four masks in as many slots as there are
    rows."""
    rng = np.random.default_rng(0)
    start = rng.integers(0, 99, 2 * BLOCK)
    passages = [rng.integers(0, 99, 3 * BLOCK) for _ in range(3)]
    prompts = []
    for i in range(12):
        tokens = np.concatenate([start, passages[i % 3], rng.integers(100, 999, BLOCK)]).astype(np.int32)
        prompts.append(Prompt(tokens, tokens.size, tokens.size - 1, tokens.size))
    firsts = [0, 2, 4, LAYERS]
    admission = Admission(prompts, firsts, [True] * 12, LAYERS, 48, 12)
    symbols = Symbols(admission)
    seats, waves = admission.admit(deque(ordered_pairs(prompts, 4, 48)))
    symbols.run(waves)
    assert len(seats) == 48
    distinct = 2 + 3 * 3 + 12
    of_original, of_masks = LAYERS, LAYERS + (LAYERS - 2) + (LAYERS - 4)
    assert symbols.blocks == distinct * (of_original + of_masks)


def test_the_order_keeps_what_begins_alike_together():
    prompts = [Prompt(np.asarray(t, np.int32), 1, 1, 2) for t in ([2, 1], [1, 5], [2, 0], [1, 4])]
    assert [pair.prompt for pair in ordered_pairs(prompts, 1, 16)] == [3, 1, 2, 0]
    pairs = ordered_pairs(prompts, 3, 8)
    assert pairs[:4] == [Pair(3, 0), Pair(3, 1), Pair(1, 0), Pair(1, 1)], "two masks of each in eight slots"
    assert len(set(pairs)) == 12
