"""Decoding in slots: all rows take their next token at the same time, and each is done when it is."""

from __future__ import annotations

from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp

from mwork_jax.intervention import Edit
from mwork_jax.model.decoder import Decoder, logits_of
from mwork_jax.model.sampling import Sampling, drawn, likeliest
from mwork_jax.model.slots import Array, Places, SlotCache, Span, embedded_rows, through_layers
from mwork_jax.sharding import constrain

ALWAYS = 31  # the bit of `StopTable.ends` for tokens that hold a whole stop string


class StopTable(NamedTuple):
    """How tokens spell stop strings, uint32 [vocabulary] each. A bit is a place within a stop string: that the text so
    far ends with what comes before it.

    begins: the places that a token leads to from anywhere; goes_on: those from which a token is what comes next, and
    characters: how many bits further on it leads; ends: those from which a token completes the string.
    """

    begins: Array
    goes_on: Array
    characters: Array
    ends: Array


class SlotState(NamedTuple):
    """What the rows in slots are at, with axes [n, r] first.

    slots: where in its group a row sits; tokens int32 [n, r, room]: the new ones, 0 after the last, and lengths: how
    many; following: the token that goes through next, and positions: where; prompts: the prompt's length; limits: how
    many new tokens there may be; masks: the place in the table; numbers: the prompt's own, for sampling; places: those
    within stop strings, uint32; done: whether the row is, or there is none; stopped: whether by a stop string.
    """

    slots: Array
    tokens: Array
    lengths: Array
    following: Array
    positions: Array
    prompts: Array
    limits: Array
    masks: Array
    numbers: Array
    places: Array
    done: Array
    stopped: Array


@partial(jax.jit, donate_argnames=("cache", "state"))
def decode_slots(
    decoder: Decoder,
    cache: SlotCache,
    state: SlotState,
    table: Edit,
    stops: StopTable,
    leave_at: jax.Array,
    most_steps: jax.Array,
    sampling: Sampling | None = None,
) -> tuple[SlotCache, SlotState, jax.Array]:
    """Decodes until at most `leave_at` rows are not done, for at most so many steps: (the cache, the state, how many
    steps it took int32 []). No two rows that go on may have the same slot."""
    groups, rows, _ = state.tokens.shape
    every_layer = Span(*(jnp.int32(value) for value in (0, decoder.config.num_layers, 0, 0)))

    def goes_on(carry: tuple[SlotCache, SlotState, jax.Array]) -> jax.Array:
        _, state, steps = carry
        return (jnp.sum(~state.done) > leave_at) & (steps < most_steps)

    def step(carry: tuple[SlotCache, SlotState, jax.Array]) -> tuple[SlotCache, SlotState, jax.Array]:
        cache, state, steps = carry
        x = embedded_rows(decoder, state.following[..., None])
        # A slot whose row is done is written to where that row ended, which nobody reads.
        positions = state.positions[..., None]
        generated = positions >= state.prompts[..., None]
        at = Places(state.slots, state.positions)
        x, cache = through_layers(decoder, cache, x, table, state.masks, positions, generated, at, every_layer)
        logits = logits_of(decoder, constrain(x.reshape(groups * rows, -1), "slots", "hidden"))
        return cache, _append(decoder, state, logits, stops, sampling), steps + 1

    return jax.lax.while_loop(goes_on, step, (cache, state, jnp.int32(0)))


def _append(
    decoder: Decoder, state: SlotState, logits: jax.Array, stops: StopTable, sampling: Sampling | None
) -> SlotState:
    """With each unfinished row's next token, from logits [n * s, vocabulary]."""
    shape = state.done.shape
    token = likeliest(logits)
    if sampling is not None:
        own = sampling._replace(prompts=state.numbers.reshape(-1))
        token = drawn(logits, own, state.lengths.reshape(-1), token)
    token = token.reshape(shape)
    goes_on = ~state.done
    place = jnp.arange(state.tokens.shape[-1]) == state.lengths[..., None]
    tokens = jnp.where(place & goes_on[..., None], token[..., None], state.tokens)
    lengths = state.lengths + goes_on
    ends = jnp.isin(token, jnp.asarray(decoder.config.eos_ids, jnp.int32)) | (lengths >= state.limits)
    spelled = (state.places | jnp.uint32(1 << ALWAYS)) & stops.ends[token] != 0
    places = ((state.places & stops.goes_on[token]) << stops.characters[token]) | stops.begins[token]
    return state._replace(
        tokens=tokens,
        lengths=lengths,
        following=jnp.where(goes_on, token, state.following),
        positions=state.positions + goes_on,
        places=jnp.where(goes_on, places, state.places),
        done=state.done | ends | spelled,
        stopped=jnp.where(goes_on, spelled & ~ends, state.stopped),
    )
