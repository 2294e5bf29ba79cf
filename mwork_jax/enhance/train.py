"""One training step of many runs at once, and the loop around it.

Every array of a run has a leading axis over runs; the frozen weights have none. A run that has made its steps, has
stopped getting better, or whose loss is no longer finite stays as it is while the others go on.
"""

from __future__ import annotations

from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from mwork_jax.enhance.neuron_params import NeuronIndex, NeuronParams, changes, gather
from mwork_jax.enhance.optimizer import Rates, adamw
from mwork_jax.enhance.packing import PackedRows
from mwork_jax.model.decoder import Decoder, head_inputs, hidden_states
from mwork_jax.model.loss import summed_nats, vocab_block
from mwork_jax.neurons import NeuronMask
from mwork_jax.sharding import num_shards, vmap_axis


class State(NamedTuple):
    """What training changes; every leaf has a leading axis over runs."""

    values: NeuronParams
    optimizer: Any
    step: jax.Array  # int32, updates made
    best: NeuronParams  # the values with the lowest validation loss so far
    best_loss: jax.Array  # float32, nats per token
    stale: jax.Array  # int32, validations since the best one
    diverged: jax.Array  # bool, whether the loss or the gradient was not finite


class Frozen(NamedTuple):
    """What training does not change. `decoder` is shared; the others have a leading axis over runs."""

    decoder: Decoder
    neuron_index: NeuronIndex
    base: NeuronParams
    rates: Rates


class Program(NamedTuple):
    """What is compiled in: another value is another program."""

    remat: bool
    patience: int


class StepReport(NamedTuple):
    """Of one step, before its update; float32 [runs]."""

    loss: jax.Array  # nats per token
    norm: jax.Array  # of the gradient, before clipping


def begin(decoder: Decoder, index: NeuronIndex, rates: Rates) -> tuple[Frozen, State]:
    """Runs at their beginning: index and rates with a leading axis over runs."""
    base = jax.jit(jax.vmap(gather, in_axes=(None, 0)))(decoder, index)

    def fresh(base: NeuronParams, rates: Rates) -> State:
        zero = jnp.zeros((), jnp.int32)
        return State(base, adamw(rates).init(base), zero, base, jnp.float32(jnp.inf), zero, jnp.bool_(False))

    state = jax.vmap(fresh)(base, rates)
    return Frozen(decoder, index, base, rates), jax.tree.map(jnp.copy, state)  # no two leaves share a buffer to donate


def _nats(
    program: Program,
    block: int,
    decoder: Decoder,
    index: NeuronIndex,
    base: NeuronParams,
    rows: PackedRows,
    values: NeuronParams,
) -> jax.Array:
    """Summed loss of packed rows [b, t] of one run; `block` as in `summed_nats`."""
    config = decoder.config
    added, keep = changes(index, base, values), NeuronMask.keep_all(config)
    tokens, start = jnp.asarray(rows.tokens), jnp.asarray(rows.start)
    positions = jnp.arange(tokens.shape[1], dtype=jnp.int32) - start
    x, _ = hidden_states(
        decoder, tokens, keep, positions=positions, documents=start, changes=added, remat=program.remat
    )
    x = head_inputs(decoder, x).reshape(-1, config.hidden_size)
    head = decoder.embed[...] if decoder.head is None else decoder.head[...]
    return summed_nats(config, block, x, head, rows.targets.reshape(-1), rows.counts.reshape(-1))


def _block(rows: PackedRows) -> int:
    """Of the vocabulary, for packed rows [runs, ..., b, t]: what is on one device counts."""
    runs, batch, time = rows.tokens.shape[0], *rows.tokens.shape[-2:]
    return vocab_block(runs // num_shards("runs", runs) * (batch // num_shards("batch", batch)) * time)


@partial(jax.jit, static_argnames="program", donate_argnames="state")
def train_step(program: Program, frozen: Frozen, state: State, rows: PackedRows) -> tuple[State, StepReport]:
    """One step of every run. rows: [runs, accumulate, b, t]; the loss is the mean over all tokens of all parts."""
    one = partial(_one_step, program, _block(rows), frozen.decoder)
    over_runs = vmap_axis("runs", state.step.shape[0])
    return jax.vmap(one, spmd_axis_name=over_runs)(frozen.neuron_index, frozen.base, frozen.rates, state, rows)


def _one_step(
    program: Program,
    block: int,
    decoder: Decoder,
    index: NeuronIndex,
    base: NeuronParams,
    rates: Rates,
    state: State,
    rows: PackedRows,
) -> tuple[State, StepReport]:
    def add_part(
        total: tuple[jax.Array, NeuronParams], part: PackedRows
    ) -> tuple[tuple[jax.Array, NeuronParams], None]:
        nats = partial(_nats, program, block, decoder, index, base, part)
        return jax.tree.map(jnp.add, total, jax.value_and_grad(nats)(state.values)), None

    zero = (jnp.zeros((), jnp.float32), jax.tree.map(jnp.zeros_like, state.values))
    (nats, gradient), _ = jax.lax.scan(add_part, zero, rows)
    tokens = jnp.maximum(rows.counts.sum(), 1.0)
    loss, gradient = nats / tokens, jax.tree.map(lambda g: g / tokens, gradient)
    norm = optax.tree.norm(gradient)
    updates, optimizer = adamw(rates).update(gradient, state.optimizer, state.values)
    after = state._replace(values=optax.apply_updates(state.values, updates), optimizer=optimizer, step=state.step + 1)
    finite = jnp.isfinite(loss) & jnp.isfinite(norm)
    going = finite & ~state.diverged & (state.stale < program.patience) & (state.step < rates.steps)
    kept = jax.tree.map(lambda new, old: jnp.where(going, new, old), after, state)
    return kept._replace(diverged=state.diverged | ~finite), StepReport(loss, norm)


@partial(jax.jit, static_argnames="program")
def validation_nats(program: Program, frozen: Frozen, values: NeuronParams, rows: PackedRows) -> jax.Array:
    """Summed loss of every run on its validation rows [runs, b, t]: float32 [runs]."""
    nats = partial(_nats, program, _block(rows), frozen.decoder)
    over_runs = vmap_axis("runs", rows.tokens.shape[0])
    return jax.vmap(nats, spmd_axis_name=over_runs)(frozen.neuron_index, frozen.base, rows, values)


@jax.jit
def note_validation(state: State, loss: jax.Array) -> State:
    """The state after a validation: loss float32 [runs]."""

    def note(state: State, loss: jax.Array) -> State:
        better = loss < state.best_loss
        best = jax.tree.map(lambda new, old: jnp.where(better, new, old), state.values, state.best)
        stale = jnp.where(better, 0, state.stale + 1)
        diverged = state.diverged | ~jnp.isfinite(loss)
        return state._replace(best=best, best_loss=jnp.minimum(loss, state.best_loss), stale=stale, diverged=diverged)

    return jax.vmap(note)(state, loss)
