"""The programs of each stage, with arguments that are shapes only: the functions that the commands run."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from math import ceil
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from mwork_jax.config import FULL_ATTENTION, ModelConfig
from mwork_jax.detect.order_statistics import OrderStatistics, order_statistics_axes
from mwork_jax.detect.scores import DEFAULT_KEPT, score_batch
from mwork_jax.enhance.neuron_params import parameters_of
from mwork_jax.enhance.optimizer import Rates, adamw
from mwork_jax.enhance.packing import PackedRows
from mwork_jax.enhance.train import Frozen, Program, State, train_step
from mwork_jax.errors import InputError
from mwork_jax.model.attention import KEY_BLOCK, KEY_BLOCKS_LOOP
from mwork_jax.model.decode_slots import SlotState, StopTable, decode_slots
from mwork_jax.model.mixture import BLOCKS_LOOP, rows_of_a_block
from mwork_jax.model.predictions import LOGIT_ROWS, predicted
from mwork_jax.model.slot_sizes import ACCELERATOR, time_for
from mwork_jax.model.slots import BLOCK, LAYERS_LOOP, Blocks, Places, SlotCache, Span, advance_blocks
from mwork_jax.plan.topology import abstract, abstract_decoder, abstract_masks
from mwork_jax.runtime.compiled import Cost, Instruction, Trips, no_unknown_loops
from mwork_jax.sharding import EXPERT, MASK, MODEL, parts_of

STAGES = ("detect", "evaluate", "generate", "enhance")
# Vector operations that the query and key kernel takes for each change of a score where none can be over 40 nats;
# others take a third more (docs/detection.md).
_KERNEL_OPERATIONS = 36
# The same on a GPU, where a product and a sum are one operation: 15, and one exponential.
_GPU_KERNEL_OPERATIONS = 15


@dataclass(frozen=True)
class Size:
    """What one group of devices that holds a whole model works on at a time.

    batch: documents, prompts or packed rows; length: their tokens; masks: masks side by side, or tuning runs; new:
    tokens that generation adds; tuned: neurons of each layer and group that tuning makes room for; int8: whether the
    layers' matrices are kept as 8-bit whole numbers.
    """

    batch: int
    length: int = 512
    masks: int = 1
    new: int = 64
    tuned: int = 128
    int8: bool = False

    def __post_init__(self) -> None:
        for name in ("batch", "length", "masks", "new", "tuned"):
            if getattr(self, name) < 1:
                raise InputError(f"--{name} {getattr(self, name)}: it must be at least 1")


# Small enough for the smallest chip that holds the weights, large enough to keep its matrix units busy.
DEFAULTS: Mapping[str, Size] = {
    "detect": Size(batch=2),
    "evaluate": Size(batch=1, masks=8),
    "generate": Size(batch=1, masks=8),
    "enhance": Size(batch=4, masks=1),
}


_NOTHING = Cost()


@dataclass(frozen=True)
class StageProgram:
    """A function to lower and compile on a mesh, how often the loops run whose bounds it gets as arguments, and what a
    call of a kernel does inside, at least, which the program's text does not show. chosen: of the rows in blocks for a
    chip's experts, the part that goes to them. To run it: the values of arguments that are numbers, or their leaves,
    {place: value}, and the places of those that are tokens."""

    name: str
    function: Any
    arguments: tuple[Any, ...]
    trips: Trips = no_unknown_loops
    inside: Cost = _NOTHING
    chosen: float = 1.0
    values: Mapping[int, Any] = field(default_factory=dict)
    tokens: tuple[int, ...] = ()


def programs(stage: str, config: ModelConfig, mesh: Mesh, size: Size) -> list[StageProgram]:
    """The programs that one step of a stage runs, one after the other."""
    if stage == "enhance" and size.int8:
        raise InputError("--weights int8: they cannot be tuned; leave it out for the stage enhance")
    return {"detect": _detect, "evaluate": _evaluate, "generate": _generate, "enhance": _enhance}[stage](
        config, mesh, size
    )


def _detect(config: ModelConfig, mesh: Mesh, size: Size) -> list[StageProgram]:
    if mesh.shape[MASK] > 1:
        raise InputError("detection has no masks to share out; put the devices on data and model")
    shards = parts_of(mesh, "shards")
    rows = size.batch * shards
    state = jax.eval_shape(lambda: OrderStatistics.empty(config, DEFAULT_KEPT, shards))
    state = jax.tree.map(lambda x: abstract(mesh, x.shape, x.dtype, *order_statistics_axes(x.ndim)), state)
    batch = (
        abstract(mesh, (rows, size.length), jnp.int32, "batch", "time"),
        abstract(mesh, (rows, size.length), jnp.float32, "batch", "time"),
        abstract(mesh, (rows,), jnp.bool_, "batch"),
    )
    arguments = (abstract_decoder(config, mesh, int8=size.int8), state, *batch)
    return [StageProgram("score a batch", score_batch, arguments, inside=_kernel(config, mesh, size), tokens=(2,))]


def _kernel(config: ModelConfig, mesh: Mesh, size: Size) -> Cost:
    """What the query and key kernel does at least in one layer, on average, on one chip."""
    heads = config.num_heads // (1 if config.num_heads % mesh.shape[MODEL] else mesh.shape[MODEL])
    seen = sum(_keys_seen(size.length, window) for window in config.windows) / config.num_layers
    changes = 2.0 * size.batch * heads * config.head_dim * size.length * seen
    if mesh.devices.flat[0].platform == "gpu":
        return Cost(vector=(_GPU_KERNEL_OPERATIONS - 1) * changes, transcendental=changes)
    return Cost(vector=_KERNEL_OPERATIONS * changes)


def _groups(mesh: Mesh) -> int:
    """Groups of devices that have rows, and with them slots, of their own."""
    return parts_of(mesh, "slots")


def _through_slots(config: ModelConfig, mesh: Mesh, size: Size, room: int = 0) -> StageProgram:
    """All layers over prompts that share nothing, each under its own mask, in blocks."""
    groups, blocks = _groups(mesh), size.batch * size.masks * -(-size.length // BLOCK)

    def of_blocks(*shape: int) -> Any:
        axes = ("slots", None, "time")[: 2 + len(shape)]
        return abstract(mesh, (groups, blocks, *shape), jnp.int32, *axes)

    number = abstract(mesh, (), jnp.int32)
    own = Blocks(of_blocks(BLOCK), Places(of_blocks(), of_blocks()), of_blocks(), of_blocks(), of_blocks())
    streams = (time_for(size.length + room), 1, groups, 1, config.hidden_size)
    arguments = (
        abstract_decoder(config, mesh, int8=size.int8),
        _slot_cache(config, mesh, size, room),
        abstract(mesh, streams, jnp.float32, "time", None, "slots", None, "hidden"),
        abstract_masks(config, mesh, size.masks),
        own,
        Span(number, number, number, number),
    )
    trips = _loops(config, mesh, size.length, blocks * BLOCK)
    per_row = -(-size.length // BLOCK)
    number_of = np.broadcast_to(np.arange(blocks, dtype=np.int32), (groups, blocks))
    nothing = np.zeros((groups, blocks), np.int32)
    at = Places(number_of // per_row, number_of % per_row * BLOCK)
    tokens = np.ones((groups, blocks, BLOCK), np.int32)
    real = Blocks(tokens, at, at.slots % size.masks, nothing + np.int32(size.length + room), nothing)
    span = Span(*(np.int32(value) for value in (0, config.num_layers, 0, 0)))
    _, chosen = _blocks_of_experts(config, mesh, blocks * BLOCK)
    layers = StageProgram("layers over the prompts", advance_blocks, arguments, trips, chosen=chosen)
    return replace(layers, values={4: real, 5: span})


def _loops(config: ModelConfig, mesh: Mesh, length: int, tokens: int, steps: int = 1) -> Trips:
    """How often the loops of slots run where the longest row has so many tokens, and a group of devices computes so
    many at a time."""
    blocks = -(-length // KEY_BLOCK)
    seen = [blocks if w == FULL_ATTENTION else min(blocks, -(-w // KEY_BLOCK) + 1) for w in config.windows]

    def trips(loop: Instruction) -> float:
        if KEY_BLOCKS_LOOP in loop.where:
            return sum(seen) / len(seen)
        if BLOCKS_LOOP in loop.where:
            return _blocks_of_experts(config, mesh, tokens)[0]
        return config.num_layers if LAYERS_LOOP in loop.where else steps

    return trips


def _blocks_of_experts(config: ModelConfig, mesh: Mesh, tokens: int) -> tuple[int, float]:
    """How many blocks of rows a device goes through for its experts, where as many rows go to each, and which part of
    their rows is of its experts."""
    if not config.num_experts:
        return 0, 1.0
    rows = tokens * mesh.shape[EXPERT] * config.experts_per_token
    held = config.num_experts // parts_of(mesh, "experts")
    own, block = rows * held / config.num_experts, rows_of_a_block(rows, held, config.num_experts)
    blocks = ceil(own / block)
    return blocks, own / (blocks * block)


def _slot_cache(config: ModelConfig, mesh: Mesh, size: Size, room: int) -> SlotCache:
    """Slots for the rows and, where new tokens follow, for those that wait."""
    rows = size.batch * size.masks
    waiting = rows * ACCELERATOR.waiting // ACCELERATOR.decoded if room else 0
    slots = rows + waiting + 1  # and the one of what nobody reads
    time = time_for(size.length + room)
    shape = (time, config.num_layers, _groups(mesh), slots, config.num_kv_heads, config.head_dim)
    axes = ("time", "layers", "slots", None, "kv_heads", "head_dim")
    return SlotCache(*(abstract(mesh, shape, jnp.bfloat16, *axes) for _ in range(2)))


def _evaluate(config: ModelConfig, mesh: Mesh, size: Size) -> list[StageProgram]:
    groups, blocks = _groups(mesh), size.batch * size.masks * -(-size.length // BLOCK)
    places = -(-blocks * BLOCK // LOGIT_ROWS) * LOGIT_ROWS
    arguments = (
        abstract_decoder(config, mesh, int8=size.int8),
        abstract(mesh, (groups, places, config.hidden_size), jnp.float32, "slots", "positions", "hidden"),
        abstract(mesh, (groups, places), jnp.int32, "slots", "positions"),
        abstract(mesh, (), jnp.int32),
    )
    chunks = places // LOGIT_ROWS
    losses = StageProgram("losses", predicted, arguments, lambda loop: chunks, values={3: places}, tokens=(2,))
    return [_through_slots(config, mesh, size), losses]


def _generate(config: ModelConfig, mesh: Mesh, size: Size) -> list[StageProgram]:
    groups, slots = _groups(mesh), size.batch * size.masks

    def of_slots(dtype: Any, *shape: int) -> Any:
        return abstract(mesh, (groups, slots, *shape), dtype, *("slots", None, "time")[: 2 + len(shape)])

    numbers = {name: of_slots(jnp.int32) for name in SlotState._fields}
    numbers |= {"tokens": of_slots(jnp.int32, size.new), "places": of_slots(jnp.uint32)}
    state = SlotState(**numbers | {name: of_slots(jnp.bool_) for name in ("done", "stopped")})
    stops = StopTable(*(abstract(mesh, (config.vocab_size,), jnp.uint32, None) for _ in range(4)))
    arguments = (
        abstract_decoder(config, mesh, int8=size.int8),
        _slot_cache(config, mesh, size, size.new),
        state,
        abstract_masks(config, mesh, size.masks),
        stops,
        abstract(mesh, (), jnp.int32),
        abstract(mesh, (), jnp.int32),
    )
    trips = _loops(config, mesh, size.length + size.new // 2, slots, steps=size.new)
    _, chosen = _blocks_of_experts(config, mesh, slots)
    steps = StageProgram("decoding steps", decode_slots, arguments, trips, chosen=chosen)
    steps = replace(steps, values={2: _full_slots(groups, size), 6: size.new})
    return [_through_slots(config, mesh, size, room=size.new), steps]


def _full_slots(groups: int, size: Size) -> SlotState:
    """Slots with a row each that has read its prompt and may go on to the end."""
    shape = (groups, size.batch * size.masks)
    each = {name: np.zeros(shape, np.int32) for name in SlotState._fields}
    each |= {"positions": each["positions"] + size.length - 1, "prompts": each["prompts"] + size.length}
    each |= {"limits": each["limits"] + size.new + 1, "tokens": np.zeros((*shape, size.new), np.int32)}
    each |= {"slots": np.broadcast_to(np.arange(shape[1], dtype=np.int32), shape)}
    each |= {"masks": np.broadcast_to(np.arange(shape[1], dtype=np.int32) % size.masks, shape)}
    return SlotState(
        **each | {"places": np.zeros(shape, np.uint32), "done": np.zeros(shape, bool), "stopped": np.zeros(shape, bool)}
    )


def _enhance(config: ModelConfig, mesh: Mesh, size: Size) -> list[StageProgram]:
    runs, rows, layers = size.masks * mesh.shape[MASK], size.batch * parts_of(mesh, "batch"), config.num_layers

    def of_runs(shape: tuple[int, ...], dtype: Any) -> Any:
        axes = ("layers", "tuned", "hidden") if len(shape) == 3 else (None,) * len(shape)
        return abstract(mesh, (runs, *shape), dtype, "runs", *axes)

    tuned = parameters_of(config)
    values = {name: of_runs((layers, size.tuned, config.hidden_size), jnp.float32) for name in tuned}
    index = {group: of_runs((layers, size.tuned), jnp.int32) for group, _ in tuned.values()}
    rates = Rates(*(of_runs((), jnp.int32 if f == "steps" else jnp.float32) for f in Rates._fields))
    optimizer = jax.eval_shape(jax.vmap(lambda r, v: adamw(r).init(v)), rates, values)
    optimizer = jax.tree.map(lambda x: of_runs(x.shape[1:], x.dtype), optimizer)
    number, count = of_runs((), jnp.float32), of_runs((), jnp.int32)
    state = State(values, optimizer, count, values, number, count, of_runs((), jnp.bool_))
    dtypes = {"tokens": jnp.int32, "targets": jnp.int32, "counts": jnp.float32, "start": jnp.int32}
    axes = ("runs", None, "batch", "time")
    shape = (runs, 1, rows, size.length)
    batch = PackedRows(**{name: abstract(mesh, shape, dtype, *axes) for name, dtype in dtypes.items()})
    arguments = (
        Program(True, 3),
        Frozen(abstract_decoder(config, mesh), index, values, rates),
        state,
        batch,
    )
    return [StageProgram("training step", train_step, arguments)]


def own_operations(stage: str, config: ModelConfig, size: Size) -> float:
    """Operations of matrix products that a token of a stage takes by the model's definition, a multiply and an add
    each: every weight once, and of attention the half of the square that is seen. Counted per token of
    `Plan.tokens`."""
    c = config
    heads, keys = c.num_heads * c.head_dim, c.num_kv_heads * c.head_dim
    # Of a token's feed-forward: of its experts alone, where there are any, and of their router.
    inner = max(1, c.experts_per_token) * c.intermediate_size
    feed_forward = (3 if c.gated else 2) * inner + c.num_experts
    weights = c.num_layers * c.hidden_size * (2 * heads + 2 * keys + feed_forward)
    head = 2.0 * c.vocab_size * c.hidden_size
    seen = sum(_keys_seen(size.length, window) for window in c.windows)
    layers = 2.0 * weights + 4.0 * heads * seen
    if stage == "detect":
        shared, tokens = c.queries_per_group, size.batch * size.length
        # Two Gram matrices per value neuron, and the scores that query and key neurons change.
        grams = 2.0 * shared * heads * (c.num_layers + c.num_layers * c.hidden_size / tokens)
        return layers + grams
    if stage == "evaluate":
        return layers + head
    if stage == "generate":
        # A new token sees the prompt and, on average, half of the new ones; the prompt's share falls on each new one.
        later = sum(min(size.length + size.new / 2, w if w != FULL_ATTENTION else 1e18) for w in c.windows)
        return 2.0 * weights + 4.0 * heads * later + head + layers * size.length / size.new
    tuned = 6 * size.tuned * c.hidden_size * c.num_layers
    # Forward, forward again in the backward pass (remat) as far as it is needed, which the last product of a layer is
    # not, and backward with respect to the activations: frozen weights have no gradient. The head's logits are made
    # once, and their gradient.
    last = 2.0 * c.num_layers * c.hidden_size * inner
    return 3 * layers - last + 4.0 * heads * seen + 2 * head + 4 * 2.0 * tuned


def _keys_seen(length: int, window: int) -> float:
    """Keys that a query sees, on average over a document."""
    reach = length if window == FULL_ATTENTION else min(window, length)
    return (reach * (reach + 1) / 2 + (length - reach) * reach) / length


def with_given(size: Size, given: Mapping[str, int | None]) -> Size:
    """The size with the given values (other than None) instead of its own."""
    return replace(size, **{name: value for name, value in given.items() if value is not None})
