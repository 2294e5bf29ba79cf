"""Greedy generation under neuron masks: a batch of prompts, a key/value cache, one compiled loop.

Every row's next token falls on the same time, after the longest prompt; positions say where in its row a token is. The
masks, the number of new tokens and the prompts are traced: one program per shape serves any of them.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.custom_batching import custom_vmap

from mwork_jax.errors import InputError, InputWarning, whole_number
from mwork_jax.model.buckets import bucket_length
from mwork_jax.model.decoder import Decoder, embedded, logits_of
from mwork_jax.model.kv_cache import KeyValueCache, extend
from mwork_jax.model.model import Model
from mwork_jax.model.prefill import Prefilled, PrefillRequest, prefill
from mwork_jax.model.tokens import Document
from mwork_jax.neurons import NeuronMask
from mwork_jax.sharding import fetch, mesh_of, on_mesh_of, put

_STOP_STEPS = 16  # steps after which the host searches the text for stop strings
_TILE = 128  # entries of the vocabulary that are searched together for the likeliest one
_TAIL = 8  # tokens of the prompt that new ones are decoded with


class Decoded(NamedTuple):
    """What greedy decoding gave: tokens int32 [batch, room], 0 after the end of a row; lengths int32 [batch], the EOS
    that ended a row included; steps int32 [], how many tokens the longest row took."""

    tokens: jax.Array
    lengths: jax.Array
    steps: jax.Array


class DecodeState(NamedTuple):
    """Decoding under way: the cache, what is decoded, and bool [batch], which rows are done."""

    cache: KeyValueCache
    decoded: Decoded
    done: jax.Array


def generate(
    model: Model,
    prompts: Sequence[Document],
    mask: NeuronMask,
    *,
    max_new_tokens: int,
    stop: Sequence[str] = (),
    tokens_per_batch: int = 8192,
    progress: Callable[[int], None] | None = None,
) -> list[str] | list[np.ndarray]:
    """The most likely next tokens of each prompt, one after the other, with the neurons of `mask` that are 0 switched
    off.

    prompts: str, or int32 [time] as they are. A row ends with an EOS token of the configuration, before the first of
    the `stop` strings, or after `max_new_tokens`; a generation_config.json's sampling and penalties do not count, as
    they would mix with what the neurons do; an InputWarning names penalties. What prompts begin with alike is computed
    once. tokens_per_batch bounds rows x (prompt + new tokens), and with it the cache; progress is called with the
    number of prompts done.
    Returns texts in the order of the prompts, without special tokens; where the model has no tokenizer, int32 [new
    tokens] each, EOS included.

    Raises InputError for no prompts, an empty prompt, one that leaves no room for the new tokens within the model's
    context, and stop strings that are empty or that no tokenizer can find.
    """
    options = {"stop": stop, "tokens_per_batch": tokens_per_batch, "progress": progress}
    return generations(model, prompts, [mask], max_new_tokens=max_new_tokens, **options)[0]


def generations(
    model: Model,
    prompts: Sequence[Document],
    masks: Sequence[NeuronMask],
    *,
    max_new_tokens: int,
    stop: Sequence[str] = (),
    tokens_per_batch: int = 8192,
    progress: Callable[[int], None] | None = None,
) -> list[list]:
    """`generate` under each mask, side by side. progress is called with the number of prompts done, those of all masks
    counted together."""
    if model.ignored_in_answers:
        ignored = ", ".join(model.ignored_in_answers)
        line = f"{model.source}: answers are the likeliest tokens, without its generation_config.json's {ignored}"
        warnings.warn(line, InputWarning, stacklevel=2)
    _check(model, prompts, max_new_tokens, stop)
    room = bucket_length(max_new_tokens, model.config.max_length)
    ready = list(_encoded_prompts(model, prompts, max_new_tokens))
    rows = [PrefillRequest(tokens, 1) for tokens in ready]
    results: list[list] = [[None] * len(rows) for _ in masks]
    done = 0
    for run in prefill(model.decoder, rows, masks, tokens_per_batch=tokens_per_batch, room=room):
        new_tokens = _new_tokens(model, run, ready, max_new_tokens, room, stop)
        # What fills the devices up comes last, and is left out.
        for mask, of_mask in zip(run.masks, new_tokens, strict=False):
            for index, tokens in zip(run.tree.indices, of_mask, strict=False):
                text = tokens if model.tokenizer is None else _cut(_text(model, ready[index], tokens), stop)
                results[mask][index] = text
        done += len(run.masks) * len(run.tree.indices)
        if progress is not None:
            progress(done)
    return results


@partial(jax.jit, static_argnames="room")
def decode_tokens(
    decoder: Decoder, tokens: jax.Array, lengths: jax.Array, mask: NeuronMask, max_new_tokens: jax.Array, room: int
) -> Decoded:
    """Greedy decoding as a pure function, for jit and for vmap over masks.

    tokens: int32 [batch, time], padded on the right; lengths: int32 [batch], each row's real tokens; max_new_tokens:
    int32, from 1 to `room`, which is a shape. Stops as soon as every row (of every mask) is done.
    """
    batch, time = tokens.shape
    times = jnp.arange(time + room, dtype=jnp.int32)[None]
    here, new = jnp.where(times < lengths[:, None], times, -1), lengths[:, None] + times - time
    positions = jnp.where(times < time, here, new)
    cache = KeyValueCache.empty(decoder, batch, time + room)
    x, cache = extend(decoder, cache, embedded(decoder, tokens), mask, positions=positions, now=0)
    return _advance(decoder, _begin(decoder, x, cache, lengths, room), positions, mask, max_new_tokens).decoded


def _begin(decoder: Decoder, x: jax.Array, cache: KeyValueCache, lengths: jax.Array, room: int) -> DecodeState:
    """The first new token of each row, from x [batch, time, hidden] of tokens of which `lengths` are real."""
    batch = x.shape[0]
    nothing = Decoded(jnp.zeros((batch, room), jnp.int32), jnp.zeros(batch, jnp.int32), jnp.int32(0))
    return _append(decoder, DecodeState(cache, nothing, lengths == 0), x[jnp.arange(batch), lengths - 1])


def _advance(
    decoder: Decoder, state: DecodeState, positions: jax.Array, mask: NeuronMask, until: jax.Array
) -> DecodeState:
    """Chooses tokens until there are `until` of them or every row is done."""
    prompt_time = state.cache.time - state.decoded.tokens.shape[1]

    def unfinished(state: DecodeState) -> jax.Array:
        return (state.decoded.steps < until) & ~_all_done(state.done)

    def step(state: DecodeState) -> DecodeState:
        last = state.decoded.steps - 1
        token = jax.lax.dynamic_slice_in_dim(state.decoded.tokens, last, 1, axis=1)
        x = embedded(decoder, token)
        x, cache = extend(decoder, state.cache, x, mask, positions=positions, now=prompt_time + last)
        return _append(decoder, state._replace(cache=cache), x[:, -1])

    return jax.lax.while_loop(unfinished, step, state)


# vmap's axes of a DecodeState under several masks: the count of steps has none, as all rows of all masks go on
# together in one loop.
_MASK_AXES = DecodeState(0, Decoded(0, 0, None), 0)  # pyright: ignore[reportArgumentType]


@partial(jax.jit, static_argnames="room", donate_argnames="cache")
def _first_tokens(decoder: Decoder, x: jax.Array, cache: KeyValueCache, lengths: jax.Array, room: int) -> DecodeState:
    """`_begin` under several masks."""

    def begin(x: jax.Array, cache: KeyValueCache) -> DecodeState:
        return _begin(decoder, x, cache, lengths, room)

    return jax.vmap(begin, out_axes=_MASK_AXES)(x, cache)


@partial(jax.jit, donate_argnames="state")  # the cache is large: it is updated where it lies
def run_steps(
    decoder: Decoder, state: DecodeState, positions: jax.Array, masks: NeuronMask, until: jax.Array
) -> DecodeState:
    """`_advance` under several masks, until all their rows are done."""

    def advance(state: DecodeState, mask: NeuronMask) -> DecodeState:
        return _advance(decoder, state, positions, mask, until)

    return jax.vmap(advance, in_axes=(_MASK_AXES, 0), out_axes=_MASK_AXES)(state, masks)


def _append(decoder: Decoder, state: DecodeState, x: jax.Array) -> DecodeState:
    """Chooses each unfinished row's next token from the residual stream x [batch, hidden] at its last token."""
    tokens, lengths, steps = state.decoded
    token = jnp.where(state.done, 0, likeliest(logits_of(decoder, x)))
    tokens = jax.lax.dynamic_update_slice_in_dim(tokens, token[:, None], steps, axis=1)
    ends = jnp.isin(token, jnp.asarray(decoder.config.eos_ids, jnp.int32))
    return DecodeState(state.cache, Decoded(tokens, lengths + ~state.done, steps + 1), state.done | ends)


def likeliest(logits: jax.Array) -> jax.Array:
    """The first token of the highest logit: float32 [batch, vocabulary] -> int32 [batch].

    XLA for CPUs computes a maximum with vector instructions, but an argmax one number after the other: 10 ms for 16
    rows of Gemma's vocabulary, whose product takes 36. There, first the tile and then the token within it, 0.7 ms.
    Elsewhere tiles would only be in the way of a vocabulary that is shared out over devices.
    """
    token = jax.lax.platform_dependent(logits, cpu=_likeliest_by_tiles, default=partial(jnp.argmax, axis=-1))
    return token.astype(jnp.int32)


def _likeliest_by_tiles(logits: jax.Array) -> jax.Array:
    batch, vocabulary = logits.shape
    padded = jnp.pad(logits, ((0, 0), (0, -vocabulary % _TILE)), constant_values=-jnp.inf)
    tiles = padded.reshape(batch, -1, _TILE)
    tile = jnp.argmax(tiles.max(axis=-1), axis=-1)
    within = jnp.argmax(tiles[jnp.arange(batch), tile], axis=-1)
    return tile * _TILE + within


@custom_vmap
def _all_done(done: jax.Array) -> jax.Array:
    """Whether no row goes on, bool []. Under vmap over masks there is one answer for all masks: a loop condition of
    each mask's own would copy the whole cache at every step, and a row that is done is not changed by going on."""
    return jnp.all(done)


@_all_done.def_vmap
def _all_done_of_all(_: int, __: list[bool], done: jax.Array) -> tuple[jax.Array, bool]:
    return _all_done(done.reshape(-1)), False


def _new_tokens(
    model: Model, run: Prefilled, prompts: Sequence[np.ndarray], max_new_tokens: int, room: int, stop: Sequence[str]
) -> list[list[np.ndarray]]:
    """The new tokens of each row under each mask. Stop strings are looked for every few steps; a row may run past one
    by then."""
    positions, mesh = run.tree.positions(room), mesh_of(model.decoder)
    rows = len(run.tree.indices)
    every = _STOP_STEPS if stop else max_new_tokens
    new: list[list[np.ndarray]] = []
    with on_mesh_of(model.decoder):
        state = _first_tokens(model.decoder, run.x, run.cache, run.tree.lengths, room)
    for until in (*range(every, max_new_tokens, every), max_new_tokens):
        with on_mesh_of(model.decoder):
            state = run_steps(model.decoder, state, positions, run.stacked, np.int32(until))
            done, tokens, lengths = map(np.array, fetch((state.done, state.decoded.tokens, state.decoded.lengths)))
        new = [[row[:n] for row, n in zip(*of_mask, strict=True)] for of_mask in zip(tokens, lengths, strict=True)]
        for mask, row in np.argwhere(~done[:, :rows]).tolist() if stop else ():
            text = _text(model, prompts[run.tree.indices[row]], new[mask][row])
            done[mask, row] = any(s in text for s in stop)
        if done.all():
            break
        state = state._replace(done=put(jnp.asarray(done), mesh, "masks", "batch"))
    return new


def _text(model: Model, prompt: np.ndarray, new: np.ndarray) -> str:
    """The text of the new tokens after the prompt. The end of the prompt is decoded with them, because some tokenizers
    drop the space before the first word of a text."""

    def decode(tokens: np.ndarray) -> str:
        return model.tokenizer.decode(tokens, skip_special_tokens=True)  # pyright: ignore[reportOptionalMemberAccess]

    before, whole = decode(prompt[-_TAIL:]), decode(np.concatenate([prompt[-_TAIL:], new]))
    # A prompt may end within a character; then its end decodes differently with the new tokens than without.
    return whole[len(before) :] if whole.startswith(before) else decode(new)


def _cut(text: str, stop: Sequence[str]) -> str:
    """The text before the first stop string in it."""
    return text[: min((at for at in map(text.find, stop) if at >= 0), default=None)]


def _check(model: Model, prompts: Sequence[Document], max_new_tokens: int, stop: Sequence[str]) -> None:
    if isinstance(prompts, str | np.ndarray | Mapping) or isinstance(stop, str | None):
        raise InputError("prompts and stop strings come as lists, also when there is only one")
    if not all(isinstance(text, str) for text in stop):
        raise InputError("stop: strings are needed, as the model writes them")
    if not len(prompts):
        raise InputError("prompts: there are none; at least one is needed")
    if not 0 < whole_number("max_new_tokens", max_new_tokens, 0) < model.config.max_length:
        raise InputError(
            f"max_new_tokens is {max_new_tokens}; from 1 to {model.config.max_length - 1} can follow a prompt here"
        )
    if "" in stop:
        raise InputError("a stop string is empty; every text contains that one")
    if stop and model.tokenizer is None:
        raise InputError("the model has no tokenizer to find stop strings with; give none")


def _encoded_prompts(model: Model, prompts: Sequence[Document], max_new_tokens: int) -> Iterator[np.ndarray]:
    longest = model.config.max_length - max_new_tokens
    for index, prompt in enumerate(prompts):
        name = f"prompt {index + 1}"
        tokens = model.encode_prompt(prompt, where=name)
        if not tokens.size:
            raise InputError(f"{name} is empty; at least one token is needed")
        if tokens.size > longest:
            raise InputError(
                f"{name} has {tokens.size} tokens; with {max_new_tokens} new ones, at most {longest} fit into the "
                f"model's context of {model.config.max_length}"
            )
        yield tokens
