"""What a compiled program does, read from its text: operations, bytes, collectives, with loops counted as often as they
run.

XLA's own cost analysis counts the body of a loop once, so a model whose layers are scanned looks as cheap as one layer.
Here every computation is counted once, and then as often as it is called: the trip count of a loop is read from its
condition or, where a bound is only known when the program runs, is asked for. `tests/plan/test_plan.py` proves the
counts against an unrolled model.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from math import prod

import numpy as np

_BYTES = {
    "pred": 1, "s4": 0.5, "u4": 0.5, "s8": 1, "u8": 1, "f8e4m3fn": 1, "f8e5m2": 1, "s16": 2, "u16": 2, "f16": 2,
    "bf16": 2, "s32": 4, "u32": 4, "f32": 4, "s64": 8, "u64": 8, "f64": 8, "c64": 8, "c128": 16,
}  # fmt: skip
_ARRAY = re.compile(r"\b([a-z]+[0-9]*(?:e[0-9]m[0-9][a-z]*)?)\[([0-9,]*)\](\{[^}]*\})?")
_SPACE = re.compile(r"S\(([0-9]+)\)")
_KERNEL = re.compile(r"tpu_custom_call|__gpu\$xla\.gpu\.triton|triton_kernel_call")
_COLLECTIVES = ("all-reduce", "all-gather", "reduce-scatter", "all-to-all", "collective-permute", "ragged-all-to-all")


# Instructions that change an array where it lies, and the place of what is new among their operands.
_UPDATES = {"dynamic-update-slice": 1, "scatter": 2}


def _words(text: str) -> frozenset[str]:
    return frozenset(text.split())


_ELEMENTWISE = _words(
    "add subtract multiply divide maximum minimum negate abs power select compare and or xor not clamp floor ceil "
    "round sign convert shift-left shift-right-logical shift-right-arithmetic round-nearest-even "
    "round-nearest-afz"
)
_TRANSCENDENTAL = _words(
    "exponential exponential-minus-one log log-plus-one tanh rsqrt sqrt cosine sine logistic cbrt erf"
)
# What moves nothing by itself: names for what is there already, and calls, whose insides are counted.
_FREE = _words(
    "parameter constant tuple get-tuple-element bitcast while conditional call after-all partition-id replica-id "
    "iota opt-barrier copy-start slice-start async-start async-update async-done domain"
)


@dataclass(frozen=True)
class Target:
    """What counting has to know of the machine that a program is compiled for.

    exact, float32: bfloat16 products that take as long as one of float32 operands, at the highest precision and at the
    usual one. in_node: devices of a node, numbered one after the other; None where all are in one.
    """

    exact: float = 6.0
    float32: float = 1.0
    in_node: int | None = None


TPU = Target()


@dataclass(frozen=True)
class Array:
    """One array: its type, its shape, and whether it lies in the main memory (HBM) of its chip."""

    kind: str
    shape: tuple[int, ...]
    in_hbm: bool

    @property
    def elements(self) -> int:
        return prod(self.shape)

    @property
    def bytes(self) -> float:
        return self.elements * _BYTES.get(self.kind, 4)


@dataclass(frozen=True)
class Instruction:
    """One line of a computation."""

    name: str
    arrays: tuple[Array, ...]  # what it gives, a tuple's parts one after the other
    opcode: str
    operands: tuple[str, ...]
    rest: str  # attributes
    root: bool

    @cached_property
    def where(self) -> str:
        """The path in the traced program that it comes from."""
        match = re.search(r'op_name="([^"]*)"', self.rest)
        return match[1] if match else ""

    def called(self, attribute: str) -> list[str]:
        match = re.search(attribute + r"=\{?(%[\w.\-]+(?:, ?%[\w.\-]+)*)", self.rest)
        return [name.strip().lstrip("%") for name in match[1].split(",")] if match else []


@dataclass(frozen=True)
class Collective:
    """Communication between chips: the kind, how many chips take part, the bytes that each of them sends, how often;
    between: of the bytes, those that go to other nodes."""

    kind: str
    chips: int
    bytes: float
    times: float = 1.0
    between: float = 0.0


@dataclass(frozen=True)
class Cost:
    """Of one chip, in one run of a program."""

    flops: float = 0.0  # of matrix products, a multiply and an add each
    passes: float = 0.0  # the same as bfloat16 operations: float32 at the highest precision takes several
    vector: float = 0.0  # element-wise operations
    transcendental: float = 0.0
    bytes: float = 0.0  # read from and written to HBM
    custom_calls: float = 0.0  # kernels, whose insides are not in the text
    collectives: tuple[Collective, ...] = ()

    def __add__(self, other: Cost) -> Cost:
        return Cost(
            *(getattr(self, n) + getattr(other, n) for n in _NUMBERS), collectives=self.collectives + other.collectives
        )

    def times(self, count: float) -> Cost:
        collectives = tuple(replace(c, times=c.times * count) for c in self.collectives)
        return Cost(*(getattr(self, n) * count for n in _NUMBERS), collectives=collectives)

    @property
    def collective_bytes(self) -> float:
        return sum(c.bytes * c.times for c in self.collectives)

    @property
    def between_bytes(self) -> float:
        """Of the collective bytes, those between nodes."""
        return sum(c.between * c.times for c in self.collectives)

    @property
    def collective_count(self) -> float:
        return sum(c.times for c in self.collectives)


_NUMBERS = ("flops", "passes", "vector", "transcendental", "bytes", "custom_calls")
Trips = Callable[[Instruction], float]  # how often a loop whose bound is not in the program runs


def no_unknown_loops(loop: Instruction) -> float:
    raise ValueError(f"how often does the loop {loop.name} ({loop.where}) run? Its bound is not in the program")


def cost_of(
    text: str,
    trips: Trips = no_unknown_loops,
    experts: int = 0,
    target: Target = TPU,
    chosen: tuple[str, float] | None = None,
) -> Cost:
    """The cost of a compiled program, from `compiled.as_text()`. experts: of the model, 0 without; a chip's products
    are taken to have an even part of the rows, as large as the chip's part of the experts. chosen: the name of a loop
    whose rows are chosen for them, and which part of these is theirs."""
    computations, entry = parse(text)
    return _Counter(computations, trips, experts, target, chosen).of(entry)


@dataclass(frozen=True)
class _Counter:
    computations: Mapping[str, Mapping[str, Instruction]]
    trips: Trips
    experts: int
    target: Target = TPU
    chosen: tuple[str, float] | None = None
    _known: dict[tuple[str, bool], Cost] = field(default_factory=dict)

    def of(self, name: str, fused: bool = False) -> Cost:
        """One run of a computation; `fused`: its values between stay on the chip, so they are not counted as bytes."""
        if (name, fused) not in self._known:
            total = Cost()
            for instruction in self.computations[name].values():
                total = total + self._instruction(name, instruction, fused)
            self._known[name, fused] = total
        return self._known[name, fused]

    def _instruction(self, computation: str, one: Instruction, fused: bool) -> Cost:
        if one.opcode == "while":
            (body,), (condition,) = one.called("body"), one.called("condition")
            count = self._trip_count(one, condition)
            return (self.of(body) + self.of(condition)).times(count)
        if one.opcode == "conditional":
            branches = [name for a in ("branch_computations", "true_computation", "false_computation") for name in
                        one.called(a)]  # fmt: skip
            return max((self.of(name) for name in branches), key=lambda cost: cost.flops + cost.vector, default=Cost())
        own = self._own(computation, one, fused)
        if one.opcode in ("fusion", "async-start"):
            inner = one.opcode == "fusion" or fused
            called = sum((self.of(name, inner) for name in one.called("calls")), Cost())
            return own + (self._of_own_experts(one, called) if _passes_over_tiles(one) else called)
        if one.opcode == "call":
            return sum((self.of(name, fused) for name in one.called("to_apply")), own)
        return own

    def _own(self, computation: str, one: Instruction, fused: bool) -> Cost:
        """What an instruction costs without what it calls."""
        bytes_ = 0.0 if fused or one.opcode in _FREE else self._bytes(computation, one)
        inputs = self._inputs(computation, one)
        size = one.arrays[0].elements if one.arrays else 0
        kind = one.opcode.removesuffix("-start")
        if kind in _COLLECTIVES:
            return Cost(bytes=bytes_, collectives=(_collective(kind, one, inputs, self.target.in_node),))
        if one.opcode in ("dot", "convolution"):
            flops = _dot_flops(one, inputs) if one.opcode == "dot" else _convolution_flops(one, inputs)
            return Cost(flops=flops, passes=flops * self._passes(one, inputs), bytes=bytes_)
        if one.opcode in ("reduce", "reduce-window"):
            return Cost(vector=max((a.elements for a in inputs), default=0), bytes=bytes_)
        if _is_library_product(one):
            flops = _library_flops(one, inputs)
            return Cost(flops=flops, passes=flops * self._passes(one, inputs), bytes=bytes_)
        if one.opcode == "custom-call" and "ragged_dot_tiling" in one.rest:
            return replace(self._by_expert(one, inputs), bytes=bytes_)
        if one.opcode == "custom-call" and _KERNEL.search(one.rest) and "ragged-dot-metadata" not in one.rest:
            return Cost(bytes=bytes_, custom_calls=1)
        return Cost(
            vector=size if one.opcode in _ELEMENTWISE else 0,
            transcendental=size if one.opcode in _TRANSCENDENTAL else 0,
            bytes=bytes_,
        )

    def _passes(self, one: Instruction, inputs: list[Array]) -> float:
        if any(a.kind != "f32" for a in inputs[:2]):
            return 1.0
        return self.target.exact if re.search('highest|"HIGHEST"', one.rest) else self.target.float32

    def _by_expert(self, one: Instruction, inputs: list[Array]) -> Cost:
        """libtpu's kernel for rows [n, a], sorted by expert, times their expert's matrix. The matrix unit goes through
        the rows in tiles; one that holds rows of several experts is computed for each."""
        rows, matrices = inputs[-2:]
        tile = int(re.findall(r'ragged_dot_tiling="(\d+)', one.rest)[0])
        own, each = (
            self._own_part(one, matrices.shape[0]) * rows.shape[0],
            2.0 * rows.shape[1] * one.arrays[0].shape[-1],
        )
        return Cost(flops=own * each, passes=(own + (matrices.shape[0] - 1) * tile) * each)

    def _of_own_experts(self, one: Instruction, called: Cost) -> Cost:
        """The same where libtpu has no kernel: its text multiplies all rows with all matrices, but tiles without a row
        of an expert are passed over."""
        loops = re.findall(r'"iteration_bounds":\[([^\]]*)\]', one.rest)
        of_mask = re.findall(r'"mask_dim_to_iteration_index":\["(\d+)","(\d+)"\]', one.rest)
        experts, tiles = (_numbers(loops[0].replace('"', ""))[int(i)] for i in of_mask[0])
        own = self._own_part(one, experts)
        visited = (own * tiles + experts - 1) / (experts * tiles)
        return replace(called.times(visited), flops=called.flops * own / experts)

    def _own_part(self, one: Instruction, held: int) -> float:
        """Of the rows, those that go to the experts which a chip holds."""
        if self.chosen and self.chosen[0] in one.where:
            return self.chosen[1]
        return held / self.experts if self.experts else 1.0

    def _inputs(self, computation: str, one: Instruction) -> list[Array]:
        instructions = self.computations[computation]
        return [array for name in one.operands if name in instructions for array in instructions[name].arrays]

    def _bytes(self, computation: str, one: Instruction) -> float:
        """Bytes between HBM and the chip: operands and results, of a slice only what is taken or put."""
        instructions = self.computations[computation]
        if one.opcode in ("copy-done", "slice-done", "async-done"):  # counted here, where the result has its place
            began = instructions.get(one.operands[0]) if one.operands else None
            read = began is not None and bool(began.arrays) and began.arrays[0].in_hbm
            return sum(a.bytes * (read + a.in_hbm) for a in one.arrays)
        if one.opcode.endswith("-done"):
            return 0.0
        if one.opcode in ("dynamic-slice", "gather", "slice"):
            return 2 * sum(a.bytes for a in one.arrays if a.in_hbm or self._from_hbm(instructions, one))
        if one.opcode in _UPDATES:
            new = self._arrays(instructions, one.operands[_UPDATES[one.opcode]])
            return 2 * sum(a.bytes for a in new if one.arrays[0].in_hbm)
        body = self.computations[one.called("calls")[0]] if one.opcode == "fusion" else None
        read = sum(self._read(instructions, name, place, body) for place, name in enumerate(one.operands))
        return read + self._written(one, body)

    def _from_hbm(self, instructions: Mapping[str, Instruction], one: Instruction) -> bool:
        return any(a.in_hbm for a in self._arrays(instructions, one.operands[0]))

    @staticmethod
    def _arrays(instructions: Mapping[str, Instruction], name: str) -> tuple[Array, ...]:
        return instructions[name].arrays if name in instructions else ()

    def _read(
        self, instructions: Mapping[str, Instruction], name: str, place: int, body: Mapping[str, Instruction] | None
    ) -> float:
        """Bytes of one operand that are read; of one that a fusion only takes slices of, the slices."""
        whole = sum(a.bytes for a in self._arrays(instructions, name) if a.in_hbm)
        if not body or not whole:
            return whole
        taken, _ = self._taken(body, place, whole)
        return min(taken, whole)

    def _taken(
        self, body: Mapping[str, Instruction], place: int, whole: float, within: bool = False
    ) -> tuple[float, bool]:
        """Bytes that a fusion reads of the parameter at `place`, and whether it gives the parameter on as it is. A copy
        `within` a larger fusion is another order to read in, as far as it is read."""
        names = {i.name for i in body.values() if i.opcode == "parameter" and i.rest == str(place)}
        taken = 0.0
        for one in body.values():  # in order of definition
            if names.isdisjoint(one.operands):
                continue
            if one.opcode == "bitcast" or (within and one.opcode == "copy"):
                names.add(one.name)
            elif one.opcode in ("dynamic-slice", "gather", "slice"):
                taken += sum(a.bytes for a in one.arrays)
            elif one.opcode == "fusion":
                inner = self.computations[one.called("calls")[0]]
                for i in (i for i, name in enumerate(one.operands) if name in names):
                    read, given_on = self._taken(inner, i, whole, within=True)
                    taken += read
                    names |= {one.name} if given_on else set()
            elif one.opcode not in _UPDATES or one.operands[0] not in names:  # those are done in place
                return whole, False
        given_on = [one for one in body.values() if one.root and one.name in names]
        if not within and any(one.opcode == "fusion" for one in given_on):
            return whole, False
        return taken, bool(given_on)

    def _written(self, one: Instruction, body: Mapping[str, Instruction] | None) -> float:
        """Bytes of the result; of one that a fusion updates where it lies, the part that is new."""
        whole = sum(a.bytes for a in _results(one) if a.in_hbm)
        if not body or not whole:
            return whole
        updates = [i for i in body.values() if i.opcode in _UPDATES]
        if not updates:
            return whole
        old = sum(a.bytes for i in updates for a in i.arrays)
        new = sum(a.bytes for i in updates for a in self._arrays(body, i.operands[_UPDATES[i.opcode]]))
        return max(0.0, whole - old) + new

    def _trip_count(self, loop: Instruction, condition: str) -> float:
        known = re.search(r'known_trip_count":?\{"?n"?:"?(\d+)', loop.rest)
        if known:
            return int(known[1])
        constants = self._bound(condition)
        return constants if constants is not None else self.trips(loop)

    def _bound(self, condition: str) -> int | None:
        """N of a loop that goes on while a counter is below the constant N; counters begin at 0 and go up by 1."""
        instructions = self.computations[condition]
        root = next(i for i in instructions.values() if i.root)
        if root.opcode == "fusion":
            inner = self.computations[root.called("calls")[0]]
            if not any(i.opcode == "compare" and "direction=LT" in i.rest for i in inner.values()):
                return None
            candidates: Iterable[Instruction] = (*instructions.values(), *inner.values())
        elif root.opcode == "compare" and "direction=LT" in root.rest:
            candidates = (instructions[name] for name in root.operands if name in instructions)
        else:
            return None
        bounds = [int(i.rest) for i in candidates if i.opcode == "constant" and re.fullmatch(r"\d+", i.rest)]
        return bounds[0] if len(bounds) == 1 else None


def _passes_over_tiles(one: Instruction) -> bool:
    return "kind=kCustom" in one.rest and '"is_ragged_dot":true' in one.rest


def _is_library_product(one: Instruction) -> bool:
    """A matrix product that XLA for GPUs leaves to cuBLAS."""
    return one.opcode == "custom-call" and '"__cublas$' in one.rest


def _library_flops(one: Instruction, inputs: list[Array]) -> float:
    match = re.search(r'"lhs_contracting_dimensions":\[([^\]]*)\]', one.rest)
    contracted = prod(inputs[0].shape[d] for d in _numbers(match[1])) if match else 1
    return 2.0 * one.arrays[0].elements * contracted


def _results(one: Instruction) -> tuple[Array, ...]:
    """What an instruction gives, without the room to work in that cuBLAS is lent."""
    if one.opcode in ("custom-call", "fusion") and len(one.arrays) > 1:
        return tuple(a for a in one.arrays if a.kind != "s8" or len(a.shape) != 1)
    return one.arrays


def _numbers(text: str) -> list[int]:
    return [int(n) for n in re.findall(r"-?\d+", text)]


def _dot_flops(one: Instruction, inputs: list[Array]) -> float:
    match = re.search(r"lhs_contracting_dims=\{([\d,]*)\}", one.rest)
    contracted = prod(inputs[0].shape[d] for d in _numbers(match[1])) if match else 1
    return 2.0 * one.arrays[0].elements * contracted


def _convolution_flops(one: Instruction, inputs: list[Array]) -> float:
    """A multiply and an add for every pair of an output and a kernel position that meet within the input; a matrix
    product with batch axes is written as a convolution with padding and dilation, most of whose pairs do not meet."""
    labels = re.search(r"dim_labels=(\w+)_(\w+)->(\w+)", one.rest)
    if labels is None:
        return 0.0
    left, right = inputs[0].shape, inputs[1].shape
    of_input, of_kernel, of_output = labels[1], labels[2], labels[3]
    window = _window(one.rest)
    meet = 1
    for axis in sorted(c for c in of_output if c.isdecimal()):
        sizes = (left[of_input.index(axis)], right[of_kernel.index(axis)], one.arrays[0].shape[of_output.index(axis)])
        meet *= _meetings(*sizes, {name: values[int(axis)] for name, values in window.items() if values})
    features = right[of_kernel.index("i")] * one.arrays[0].shape[of_output.index("f")]
    groups = re.search(r"batch_group_count=(\d+)", one.rest)
    return 2.0 * left[of_input.index("b")] * features * meet / (int(groups[1]) if groups else 1)


def _window(rest: str) -> dict[str, list]:
    match = re.search(r"window=\{([^}]*)\}", rest)
    table: dict[str, list] = {}
    for part in match[1].split() if match else ():
        name, _, values = part.partition("=")
        table[name] = [
            tuple(map(int, v.split("_"))) if name == "pad" else int(v) for v in values.split("x")
        ]  # fmt: skip
    return table


def _meetings(size: int, kernel: int, out: int, window: Mapping) -> int:
    """Pairs of output and kernel positions along one axis that meet an element of the input."""
    stride, dilate, spread = (window.get(name, 1) for name in ("stride", "lhs_dilate", "rhs_dilate"))
    low = window.get("pad", (0, 0))[0]
    end = (size - 1) * dilate + 1
    count = 0
    for k in range(kernel):
        at = [o * stride + k * spread - low for o in range(out)] if out * kernel <= 1 << 16 else None
        if at is None:
            return out * kernel
        count += sum(1 for a in at if 0 <= a < end and a % dilate == 0)
    return count


def _collective(kind: str, one: Instruction, inputs: list[Array], in_node: int | None) -> Collective:
    """Bytes that each chip sends where the chips of a group form a ring. Where they are of several nodes, the ring
    passes from each node to the next once; with a ring for each chip of a node, each sends its part of that."""
    chips = _group_size(one.rest)
    sent = sum(a.bytes for a in inputs)
    share = (chips - 1) / chips if chips else 1.0
    if kind == "all-reduce":
        sent *= 2 * share
    elif kind == "all-gather":
        sent *= max(chips - 1, 0)
    elif kind != "collective-permute":
        sent *= share
    together = 0 if in_node is None else _most_in_one_node(one.rest, in_node)
    if not together or together == chips:
        return Collective(kind, chips, sent)
    return Collective(kind, chips, sent, between=sent / together)


def _most_in_one_node(rest: str, in_node: int) -> int:
    """Of the devices of a group, how many are in one node at most, in the group that is spread the most; 0 where the
    text does not say which devices are in a group."""
    groups = _groups(rest)
    counts = [max(Counter(device // in_node for device in group).values()) for group in groups if group]
    return min(counts, default=0)


def _groups(rest: str) -> list[list[int]]:
    """The devices of each group, whatever form the text has them in."""
    match = re.search(r"replica_groups=\[(\d+),(\d+)\]<=\[([\d,]+)\](?:T\(([\d,]+)\))?", rest)
    if match:
        grid = np.arange(prod(_numbers(match[3]))).reshape(_numbers(match[3]))
        turned = grid.transpose(_numbers(match[4])) if match[4] else grid
        return turned.reshape(int(match[1]), int(match[2])).tolist()
    match = re.search(r"replica_groups=mesh\[([^\]]*)\] ?\{([^}]*)\}", rest)
    if match:
        return _groups_of_mesh(match[1], match[2])
    match = re.search(r"(?:replica_groups|source_target_pairs)=\{(\{[\d,]+\}(?:, ?\{[\d,]+\})*)\}", rest)
    return [_numbers(group) for group in re.findall(r"\{([\d,]+)\}", match[1])] if match else []


def _groups_of_mesh(mesh: str, axes: str) -> list[list[int]]:
    """`'a'=2,'b'=4` and `'b'`; of an axis that is split, `'b':(2)2` is the part of 2 behind another of 2."""
    sizes = {name: int(size) for name, size in re.findall(r"'(\w+)'=(\d+)", mesh)}
    parts = [(n, int(a or 1), int(b or 0)) for n, a, b in re.findall(r"'(\w+)'(?::\((\d+)\)(\d+))?", axes)]
    shape: list[int] = []
    taken: list[int] = []
    for name, size in sizes.items():
        split = [(before, length or size) for n, before, length in parts if n == name]
        before, length = split[0] if split else (size, 1)
        taken += [len(shape) + 1] if split else []
        shape += [before, length, size // (before * length)]
    grid = np.arange(prod(sizes.values())).reshape(shape)
    size = prod(shape[axis] for axis in taken)
    return np.moveaxis(grid, taken, range(-len(taken), 0)).reshape(-1, size).tolist()


def _group_size(rest: str) -> int:
    match = re.search(r"replica_groups=\[([\d,]+)\]<=", rest)
    if match:
        return _numbers(match[1])[-1]
    match = re.search(r"replica_groups=mesh\[([^\]]*)\] ?\{([^}]*)\}", rest)
    if match:
        sizes = {name: int(size) for name, size in re.findall(r"'(\w+)'=(\d+)", match[1])}
        parts = re.findall(r"'(\w+)'(?::\(\d+\)(\d+))?", match[2])
        return prod(int(size) if size else sizes[name] for name, size in parts)
    match = re.search(r"replica_groups=\{\{([\d,]+)\}", rest)
    if match:
        return len(match[1].split(","))
    return 2 if "source_target_pairs" in rest else 1


def parse(text: str) -> tuple[dict[str, dict[str, Instruction]], str]:
    """{computation: {name: instruction}} and the name of the computation that the program begins with."""
    computations: dict[str, dict[str, Instruction]] = {}
    entry, current = "", None
    for line in text.splitlines():
        if current is None:
            head = re.match(r"(ENTRY )?%?([\w.\-]+) \(.*\{$", line)
            if head:
                current = computations[head[2]] = {}
                entry = head[2] if head[1] else entry
        elif line.startswith("}"):
            current = None
        elif (one := _instruction(line)) is not None:
            current[one.name] = one
    if not entry:
        raise ValueError("no entry computation; is this the text of a compiled program?")
    return computations, entry


def _instruction(line: str) -> Instruction | None:
    head = re.match(r"\s*(ROOT )?%?([\w.\-]+) = ", line)
    if head is None:
        return None
    body = line[head.end() :]
    end = _closing(body, 0) + 1 if body.startswith("(") else body.index(" ")
    kind, body = body[:end], body[end:].lstrip()
    opcode, _, _ = body.partition("(")
    close = _closing(body, len(opcode))
    inner, rest = body[len(opcode) + 1 : close], body[close + 1 :].lstrip(", ")
    operands = tuple(re.findall(r"%([\w.\-]+)", inner))
    if opcode in ("constant", "parameter"):
        rest = inner
    arrays = tuple(
        Array(k, tuple(_numbers(shape)), bool(shape) and _in_hbm(layout)) for k, shape, layout in _ARRAY.findall(kind)
    )
    return Instruction(head[2], arrays, opcode, operands, rest, bool(head[1]))


def _in_hbm(layout: str) -> bool:
    space = _SPACE.search(layout)
    return space is None or space[1] == "0"


def _closing(text: str, begin: int) -> int:
    """Where the bracket that opens at `begin` closes."""
    depth = 0
    for place in range(begin, len(text)):
        depth += (text[place] == "(") - (text[place] == ")")
        if not depth:
            return place
    return len(text) - 1
