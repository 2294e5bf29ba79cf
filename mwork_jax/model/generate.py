"""Generation under neuron masks, greedy or by sampling: `generate` for lists of prompts and masks, which wait for
slots, and `decode_tokens`, the same as a pure function of one batch, for programs of one's own.

There, every row's next token falls on the same time, after the longest prompt; positions say where in its row a token
is. The masks, the number of new tokens and the prompts are traced: one program per shape serves any of them, and one
more serves sampling at any temperature, top-p and key.
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
from mwork_jax.intervention import Edit
from mwork_jax.model.checks import check_model
from mwork_jax.model.decode_queue import Filling, decoded_pairs, text_after
from mwork_jax.model.decoder import Decoder, embedded, logits_of
from mwork_jax.model.kv_cache import KeyValueCache, extend
from mwork_jax.model.model import Model
from mwork_jax.model.sampling import Sampling, drawn, likeliest, sampling_of
from mwork_jax.model.tokens import Document


class Decoded(NamedTuple):
    """What decoding gave: tokens int32 [batch, room], 0 after the end of a row; lengths int32 [batch], the EOS
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
    mask: Edit,
    *,
    max_new_tokens: int,
    stop: Sequence[str] = (),
    tokens_per_batch: int = 8192,
    progress: Callable[[int], None] | None = None,
    temperature: float = 0.0,
    top_p: float = 1.0,
    key: jax.Array | None = None,
) -> list[str] | list[np.ndarray]:
    """The next tokens of each prompt, one after the other, with the neurons of `mask` that are 0 switched off: the
    most likely ones or, with a temperature, drawn at random.

    prompts: str, or int32 [time] as they are. A row ends with an EOS token of the configuration, before the first of
    the `stop` strings, or after `max_new_tokens`; a generation_config.json's sampling and penalties do not count, as
    they would mix with what the neurons do; an InputWarning names penalties. What prompts begin with alike is computed
    once. tokens_per_batch bounds the cache: it holds twelve times as many tokens at most; progress is called with the
    number of prompts done.

    temperature: divides the logits; 0 takes the likeliest token. top_p: draws among the fewest likeliest tokens that
    have this probability together, from above 0 to 1, all of them. key: a random key, jax.random.key(seed), which a
    temperature needs; with the same key, a prompt at the same place in the list draws the same numbers under every
    mask and in whatever batches.
    Returns texts in the order of the prompts, without special tokens; where the model has no tokenizer, int32 [new
    tokens] each, EOS included.

    Raises InputError for no prompts, one without tokens (an empty text is BOS alone, where there is one), one that
    leaves no room for the new tokens within the model's context, stop strings that are empty or that no tokenizer can
    find, and for rates and keys that cannot be drawn with.
    """
    sampling = sampling_of(temperature, top_p, key)
    options = {"stop": stop, "tokens_per_batch": tokens_per_batch, "progress": progress, "sampling": sampling}
    return generations(model, prompts, [mask], max_new_tokens=max_new_tokens, **options)[0]


def generations(
    model: Model,
    prompts: Sequence[Document],
    masks: Sequence[Edit],
    *,
    max_new_tokens: int,
    stop: Sequence[str] = (),
    tokens_per_batch: int = 8192,
    progress: Callable[[int], None] | None = None,
    sampling: Sampling | None = None,
    watch: Callable[[Filling], None] | None = None,
) -> list[list]:
    """`generate` under each mask, side by side; sampling: None takes the likeliest tokens. progress is called with the
    number of prompts done, those of all masks counted together; watch with how full the slots have been so far."""
    check_model(model)
    if model.ignored_in_answers:
        ignored = ", ".join(model.ignored_in_answers)
        line = f"{model.source}: answers are the likeliest tokens, without its generation_config.json's {ignored}"
        warnings.warn(line, InputWarning, stacklevel=2)
    _check(model, prompts, max_new_tokens, stop)
    ready = list(_encoded_prompts(model, prompts, max_new_tokens))
    results: list[list] = [[None] * len(ready) for _ in masks]
    answers = decoded_pairs(model, ready, masks, max_new_tokens, stop, tokens_per_batch, sampling, watch)
    for done, (pair, tokens) in enumerate(answers, 1):
        results[pair.mask][pair.prompt] = tokens
        if model.tokenizer is not None:
            text = text_after(model.tokenizer, ready[pair.prompt], tokens)
            results[pair.mask][pair.prompt] = _cut(text, stop)
        if progress is not None:
            progress(done)
    return results


@partial(jax.jit, static_argnames="room")
def decode_tokens(
    decoder: Decoder,
    tokens: jax.Array,
    lengths: jax.Array,
    mask: Edit,
    max_new_tokens: jax.Array,
    room: int,
    sampling: Sampling | None = None,
) -> Decoded:
    """Decoding as a pure function, for jit and for vmap over masks, temperatures and keys: greedy without `sampling`.

    tokens: int32 [batch, time], padded on the right; lengths: int32 [batch], each row's real tokens; max_new_tokens:
    int32, from 1 to `room`, which is a shape. Stops as soon as every row (of every mask) is done.
    """
    batch, time = tokens.shape
    times = jnp.arange(time + room, dtype=jnp.int32)[None]
    here, new = jnp.where(times < lengths[:, None], times, -1), lengths[:, None] + times - time
    positions = jnp.where(times < time, here, new)
    cache = KeyValueCache.empty(decoder, batch, time + room)
    x, cache = extend(decoder, cache, embedded(decoder, tokens), mask, positions=positions, now=0)
    state = _begin(decoder, x, cache, lengths, room, sampling)
    return _advance(decoder, state, positions, mask, max_new_tokens, sampling).decoded


def _begin(
    decoder: Decoder, x: jax.Array, cache: KeyValueCache, lengths: jax.Array, room: int, sampling: Sampling | None
) -> DecodeState:
    """The first new token of each row, from x [batch, time, hidden] of tokens of which `lengths` are real."""
    batch = x.shape[0]
    nothing = Decoded(jnp.zeros((batch, room), jnp.int32), jnp.zeros(batch, jnp.int32), jnp.int32(0))
    return _append(decoder, DecodeState(cache, nothing, lengths == 0), x[jnp.arange(batch), lengths - 1], sampling)


def _advance(
    decoder: Decoder,
    state: DecodeState,
    positions: jax.Array,
    mask: Edit,
    until: jax.Array,
    sampling: Sampling | None,
) -> DecodeState:
    """Chooses tokens until there are `until` of them or every row is done."""
    prompt_time = state.cache.time - state.decoded.tokens.shape[1]

    def unfinished(state: DecodeState) -> jax.Array:
        return (state.decoded.steps < until) & ~_all_done(state.done)

    def step(state: DecodeState) -> DecodeState:
        last = state.decoded.steps - 1
        token = jax.lax.dynamic_slice_in_dim(state.decoded.tokens, last, 1, axis=1)
        x = embedded(decoder, token)
        is_new = jnp.ones((1, 1), bool)
        x, cache = extend(decoder, state.cache, x, mask, positions=positions, now=prompt_time + last, generated=is_new)
        return _append(decoder, state._replace(cache=cache), x[:, -1], sampling)

    return jax.lax.while_loop(unfinished, step, state)


def _append(decoder: Decoder, state: DecodeState, x: jax.Array, sampling: Sampling | None) -> DecodeState:
    """Chooses each unfinished row's next token from the residual stream x [batch, hidden] at its last token."""
    tokens, lengths, steps = state.decoded
    logits = logits_of(decoder, x)
    token = likeliest(logits)
    if sampling is not None:
        token = drawn(logits, sampling, steps, token)
    token = jnp.where(state.done, 0, token)
    tokens = jax.lax.dynamic_update_slice_in_dim(tokens, token[:, None], steps, axis=1)
    ends = jnp.isin(token, jnp.asarray(decoder.config.eos_ids, jnp.int32))
    return DecodeState(state.cache, Decoded(tokens, lengths + ~state.done, steps + 1), state.done | ends)


@custom_vmap
def _all_done(done: jax.Array) -> jax.Array:
    """Whether no row goes on, bool []. Under vmap over masks there is one answer for all masks: a loop condition of
    each mask's own would copy the whole cache at every step, and a row that is done is not changed by going on."""
    return jnp.all(done)


@_all_done.def_vmap
def _all_done_of_all(_: int, __: list[bool], done: jax.Array) -> tuple[jax.Array, bool]:
    return _all_done(done.reshape(-1)), False


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
