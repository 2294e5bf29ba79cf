"""Runs what an admission asks for: copies and blocks of tokens, in programs of few shapes."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple, TypeVar

import jax
import numpy as np
from jax.sharding import Mesh

from mwork_jax.intervention import Edit, alike, placed, stacked
from mwork_jax.model.admission import ORIGINAL, Admission, Copy, Job, Pair, Prompt, Seat, Wave
from mwork_jax.model.buckets import bucket_length
from mwork_jax.model.checks import check_mask
from mwork_jax.model.decoder import Decoder
from mwork_jax.model.slot_sizes import Sizes, groups_of, on_cpu
from mwork_jax.model.slots import (
    BLOCK,
    Blocks,
    Places,
    SlotCache,
    Span,
    advance_blocks,
    copy_slots,
    copy_streams,
    empty_cache,
    empty_streams,
)
from mwork_jax.neurons import NeuronMask
from mwork_jax.sharding import mesh_of, on_mesh_of, put

_FEW_BLOCKS, _MANY_BLOCKS = 4, 16  # that go through together on CPUs,
_BLOCKS = 32  # and elsewhere: enough tokens for the weights to be read once for many
_FEW_COPIES = 4
_ORIGINALS = 8  # prompts of which the original's pass is kept, at most
T = TypeVar("T")
_NEVER = np.int32(np.iinfo(np.int32).max)


class BlockRun(NamedTuple):
    """One call of the blocks' program: of each group the jobs and where each one's block begins, and the residual
    stream float32 [n, b, BLOCK, hidden] that leaves the last layer of the call."""

    blocks: list[list[tuple[Job, int]]]
    x: jax.Array
    is_last: bool  # whether these are the model's last layers


@dataclass
class SlotRunner:
    """The slots of a model under a table of masks, and the queue of pairs that wait for one.

    any_generated: whether a prompt has tokens that count as generated; with_outputs: whether what leaves the last layer
    is wanted, and not only keys and values.
    """

    decoder: Decoder
    prompts: Sequence[Prompt]
    masks: Sequence[Edit]
    pairs: Sequence[Pair]
    sizes: Sizes
    any_generated: bool
    with_outputs: bool

    def __post_init__(self) -> None:
        for mask in self.masks:
            check_mask(self.decoder.config, mask)
        self.mesh = mesh_of(self.decoder)
        self.groups = groups_of(self.decoder)
        layers = self.decoder.config.num_layers
        firsts = [first_layer(mask, self.any_generated) for mask in self.masks]
        if self.with_outputs:
            # The original's row goes on from where its pass ends, as the others do, so that it has outputs too.
            latest = max((first for first in firsts if first < layers), default=0)
            firsts = [min(first, latest) for first in firsts]
        with_original = _worth_an_original(self.pairs, firsts, len(self.prompts))
        self.originals = min(_ORIGINALS, max(1, self.sizes.slots // 6)) if any(with_original) else 0
        self.admission = Admission(
            self.prompts, firsts, with_original, layers, self.sizes.slots, self.originals, self.groups
        )
        self.queue = deque(self.pairs)
        self.scratch = self.sizes.slots + self.originals  # the slot of what nobody reads
        self._stop_of = {first: number for number, first in enumerate(self.admission.stops) if first < layers}
        keep = NeuronMask.keep_all(self.decoder.config)
        self._keep = len(self.masks)
        self.table = _table([*self.masks, keep], self.decoder)
        shape = {"groups": self.groups, "time": self.sizes.time}
        stops = bucket_length(len(self._stop_of), 1 << 30, least=4) if self.originals else 0
        with on_mesh_of(self.decoder):
            self.cache: SlotCache = empty_cache(self.decoder, slots=self.scratch + 1, **shape)
            self.streams = empty_streams(self.decoder, stops=stops + 1, slots=self.originals + 1, **shape)
        self._no_stop = stops

    def admit(self) -> tuple[list[Seat], Iterator[BlockRun]]:
        """Seats for the next pairs, and what is computed for them, call by call."""
        seats, waves = self.admission.admit(self.queue)
        return seats, self._run(waves)

    def _run(self, waves: Sequence[Wave]) -> Iterator[BlockRun]:
        for wave in waves:
            self._copy(wave.copies)
            spans = sorted({(job.first, job.last) for jobs in wave.jobs for job in jobs})
            for span in spans:
                each = [
                    [
                        (job, begin)
                        for job in jobs
                        if (job.first, job.last) == span
                        for begin in range(job.begin, job.end, BLOCK)
                    ]
                    for jobs in wave.jobs
                ]
                yield from self._advance(each, span)

    def _advance(self, each: list[list[tuple[Job, int]]], span: tuple[int, int]) -> Iterator[BlockRun]:
        first, last = span
        left = max(map(len, each))
        done = 0
        while left:
            count = self._count(left)
            part = [blocks[done : done + count] for blocks in each]
            blocks, leaving = self._blocks(part, count)
            numbers = (first, last, self._stop_of.get(first, self._no_stop), leaving)
            with on_mesh_of(self.decoder):
                args = in_slots(blocks, self.mesh), put(Span(*map(np.int32, numbers)), self.mesh)
                self.cache, self.streams, x = advance_blocks(self.decoder, self.cache, self.streams, self.table, *args)
            yield BlockRun(part, x, last == self.decoder.config.num_layers)
            done, left = done + count, max(0, left - count)

    def _count(self, left: int) -> int:
        """How many blocks go through next."""
        if not on_cpu(self.decoder):
            return _BLOCKS
        return _MANY_BLOCKS if left > 3 * _FEW_BLOCKS else _FEW_BLOCKS

    def _blocks(self, part: list[list[tuple[Job, int]]], count: int) -> tuple[Blocks, int]:
        """The arguments of one call, filled up with blocks that nobody reads, and the stream that it writes."""
        shape, leaving = (self.groups, count), self._no_stop
        tokens = np.zeros((*shape, BLOCK), np.int32)
        slots, starts = np.full(shape, self.scratch, np.int32), np.zeros(shape, np.int32)
        masks, generated_from = np.full(shape, self._keep, np.int32), np.full(shape, _NEVER)
        sources = np.full(shape, self.originals, np.int32)
        for group, blocks in enumerate(part):
            for place, (job, begin) in enumerate(blocks):
                at = group, place
                prompt = self.prompts[job.pair.prompt]
                own = prompt.tokens[begin : min(begin + BLOCK, job.end)]
                tokens[at][: own.size] = own
                slots[at], starts[at], generated_from[at] = job.slot, begin, prompt.generated_from
                if job.original is not None:
                    sources[at] = job.original
                if job.pair.mask == ORIGINAL:
                    leaving = self._stop_of.get(job.last, self._no_stop)
                else:
                    masks[at] = job.pair.mask
        return Blocks(tokens, Places(slots, starts), masks, generated_from, sources), leaving

    def _copy(self, copies: list[list[Copy]]) -> None:
        """What slots hold, to other slots: whole ones first."""
        whole = self.decoder.config.num_layers
        for below in sorted({copy.below for each in copies for copy in each}, reverse=True):
            own = [[copy for copy in each if copy.below == below] for each in copies]
            sources, targets = self._places(own, self.scratch, 0)
            until = np.int32(max(copy.tokens for each in own for copy in each))
            with on_mesh_of(self.decoder):
                places = in_slots((sources, targets), self.mesh)
                self.cache = copy_slots(self.cache, *places, *put((np.int32(below), until), self.mesh))
            of_originals = [[c for c in each if c.target >= self.sizes.slots] for each in own]
            if below == whole and any(of_originals):
                sources, targets = self._places(of_originals, self.originals, self.sizes.slots)
                with on_mesh_of(self.decoder):
                    places = in_slots((sources, targets), self.mesh)
                    self.streams = copy_streams(self.streams, *places, put(until, self.mesh))

    def _places(self, copies: list[list[Copy]], scratch: int, less: int) -> tuple[np.ndarray, np.ndarray]:
        most = max(map(len, copies))
        count = _FEW_COPIES
        while count < most:
            count *= 4
        sources, targets = (np.full((self.groups, count), scratch, np.int32) for _ in range(2))
        for group, each in enumerate(copies):
            for place, copy in enumerate(each):
                sources[group, place], targets[group, place] = copy.source - less, copy.target - less
        return sources, targets


def in_slots(tree: T, mesh: Mesh | None) -> T:
    """Host arrays with one entry for each group of devices first, each group's on its own."""
    return jax.tree.map(lambda x: put(x, mesh, "slots", *(None,) * (np.ndim(x) - 1)), tree)


def _worth_an_original(pairs: Sequence[Pair], firsts: Sequence[int], prompts: int) -> list[bool]:
    """Whether the layers that a prompt's masks do not need to compute are more than those of the original's pass."""
    saved = np.zeros(prompts, int)
    for pair in pairs:
        saved[pair.prompt] += firsts[pair.mask]
    return (saved > max(firsts, default=0)).tolist()


def first_layer(mask: Edit, generated: bool = True) -> int:
    """The first layer in which a mask or an intervention changes anything; the number of layers where in none. Without
    `generated`, of texts in which no token is."""
    touched = mask.changed_layers(generated)
    return int(touched.argmax()) if touched.any() else touched.size


def _table(masks: Sequence[Edit], decoder: Decoder) -> Edit:
    """The masks with a leading axis, filled up to 4, 64, 1024 ..., so that few numbers of masks need a program."""
    size = 4
    while size < len(masks):
        size *= 16
    like = alike(masks, decoder.config)
    filled = [*like, *like[-1:] * (size - len(like))]
    return placed(stacked(filled), mesh_of(decoder), None)
