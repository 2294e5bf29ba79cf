"""The programs of each stage, with arguments that are shapes only: the functions that the commands run."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import Mesh

from mwork_jax.config import FULL_ATTENTION, ModelConfig
from mwork_jax.detect.order_statistics import OrderStatistics, order_statistics_axes
from mwork_jax.detect.scores import DEFAULT_KEPT, score_batch
from mwork_jax.enhance.neuron_params import parameters_of
from mwork_jax.enhance.optimizer import Rates, adamw
from mwork_jax.enhance.packing import PackedRows
from mwork_jax.enhance.train import Frozen, Program, State, train_step
from mwork_jax.errors import InputError
from mwork_jax.evaluate.likelihood import LOGIT_ROWS, losses_at
from mwork_jax.model.generate import Decoded, DecodeState, run_steps
from mwork_jax.model.kv_cache import KeyValueCache
from mwork_jax.model.prefill import advance
from mwork_jax.plan.topology import abstract, abstract_decoder, abstract_masks
from mwork_jax.runtime.compiled import Cost, Trips, no_unknown_loops
from mwork_jax.sharding import DATA, MASK, MODEL

STAGES = ("detect", "evaluate", "generate", "enhance")
# Vector operations that the query and key kernel takes for each change of a score where none can be over 40 nats;
# others take a third more (docs/detection.md).
_KERNEL_OPERATIONS = 36


@dataclass(frozen=True)
class Size:
    """What one group of devices that holds a whole model works on at a time.

    batch: documents, prompts or packed rows; length: their tokens; masks: masks side by side, or tuning runs; new:
    tokens that generation adds; tuned: neurons of each layer and group that tuning makes room for.
    """

    batch: int
    length: int = 512
    masks: int = 1
    new: int = 64
    tuned: int = 128

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
    call of a kernel does inside, at least, which the program's text does not show."""

    name: str
    function: Any
    arguments: tuple[Any, ...]
    trips: Trips = no_unknown_loops
    inside: Cost = _NOTHING


def programs(stage: str, config: ModelConfig, mesh: Mesh, size: Size) -> list[StageProgram]:
    """The programs that one step of a stage runs, one after the other."""
    return {"detect": _detect, "evaluate": _evaluate, "generate": _generate, "enhance": _enhance}[stage](
        config, mesh, size
    )


def _detect(config: ModelConfig, mesh: Mesh, size: Size) -> list[StageProgram]:
    shards = mesh.shape[DATA] * mesh.shape[MASK]
    if mesh.shape[MASK] > 1:
        raise InputError("detection has no masks to share out; put the devices on data and model")
    rows = size.batch * shards
    state = jax.eval_shape(lambda: OrderStatistics.empty(config, DEFAULT_KEPT, shards))
    state = jax.tree.map(lambda x: abstract(mesh, x.shape, x.dtype, *order_statistics_axes(x.ndim)), state)
    batch = (
        abstract(mesh, (rows, size.length), jnp.int32, "batch", "time"),
        abstract(mesh, (rows, size.length), jnp.float32, "batch", "time"),
        abstract(mesh, (rows,), jnp.bool_, "batch"),
    )
    arguments = (abstract_decoder(config, mesh), state, *batch)
    return [StageProgram("score a batch", score_batch, arguments, inside=_kernel(config, mesh, size))]


def _kernel(config: ModelConfig, mesh: Mesh, size: Size) -> Cost:
    """What the query and key kernel does at least in one layer, on average, on one chip."""
    heads = config.num_heads // (1 if config.num_heads % mesh.shape[MODEL] else mesh.shape[MODEL])
    seen = sum(_keys_seen(size.length, window) for window in config.windows) / config.num_layers
    changes = 2.0 * size.batch * heads * config.head_dim * size.length * seen
    return Cost(vector=_KERNEL_OPERATIONS * changes)


def _prefill(config: ModelConfig, mesh: Mesh, size: Size, room: int = 0) -> StageProgram:
    """All layers over prompts that share nothing, under every mask."""
    masks, rows = size.masks * mesh.shape[MASK], size.batch * mesh.shape[DATA]
    arguments = (
        abstract_decoder(config, mesh),
        _cache(config, mesh, masks, rows, size.length + room),
        abstract(mesh, (rows, size.length, config.hidden_size), jnp.float32, "batch", "time", "hidden"),
        abstract_masks(config, mesh, masks),
        abstract(mesh, (rows, size.length), jnp.int32, "batch", "time"),
        abstract(mesh, (), jnp.int32),
        abstract(mesh, (), jnp.int32),
    )
    return StageProgram("layers over the prompts", advance, arguments, lambda loop: config.num_layers)


def _cache(config: ModelConfig, mesh: Mesh, masks: int, rows: int, time: int) -> KeyValueCache:
    shape = (masks, config.num_layers, rows, config.num_kv_heads, time, config.head_dim)
    axes = ("masks", "layers", "batch", "kv_heads", "time", "head_dim")
    return KeyValueCache(*(abstract(mesh, shape, jnp.bfloat16, *axes) for _ in range(2)))


def _evaluate(config: ModelConfig, mesh: Mesh, size: Size) -> list[StageProgram]:
    of_masks, of_rows = mesh.shape[MASK], mesh.shape[DATA]
    masks, rows, time = size.masks * of_masks, size.batch * of_rows, size.length
    positions = -(-size.masks * size.batch * time // LOGIT_ROWS) * LOGIT_ROWS
    arguments = (
        abstract_decoder(config, mesh),
        abstract(mesh, (masks, rows, time, config.hidden_size), jnp.float32, "masks", "batch", "time", "hidden"),
        abstract(mesh, (rows, time), jnp.int32, "batch", "time"),
        abstract(mesh, (of_masks, of_rows, positions), jnp.int32, "masks", "batch", "positions"),
        abstract(mesh, (), jnp.int32),
    )
    chunks = positions // LOGIT_ROWS
    return [_prefill(config, mesh, size), StageProgram("losses", losses_at, arguments, lambda loop: chunks)]


def _generate(config: ModelConfig, mesh: Mesh, size: Size) -> list[StageProgram]:
    masks, rows = size.masks * mesh.shape[MASK], size.batch * mesh.shape[DATA]

    def whole(shape: tuple[int, ...], dtype: Any) -> Any:
        return abstract(mesh, shape, dtype, *("masks", "batch", "time")[: len(shape)])

    decoded = Decoded(
        whole((masks, rows, size.new), jnp.int32), whole((masks, rows), jnp.int32), abstract(mesh, (), jnp.int32)
    )
    cache = _cache(config, mesh, masks, rows, size.length + size.new)
    arguments = (
        abstract_decoder(config, mesh),
        DecodeState(cache, decoded, whole((masks, rows), jnp.bool_)),
        abstract(mesh, (rows, size.length + size.new), jnp.int32, "batch", "time"),
        abstract_masks(config, mesh, masks),
        abstract(mesh, (), jnp.int32),
    )
    steps = StageProgram("decoding steps", run_steps, arguments, lambda loop: size.new - 1)
    return [_prefill(config, mesh, size, room=size.new), steps]


def _enhance(config: ModelConfig, mesh: Mesh, size: Size) -> list[StageProgram]:
    runs, rows, layers = size.masks * mesh.shape[MASK], size.batch * mesh.shape[DATA], config.num_layers

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
