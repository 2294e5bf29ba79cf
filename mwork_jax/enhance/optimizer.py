"""AdamW with a schedule for a selection of neurons: over the compact form, or over a whole model's parameters.

The compact form is what training uses. `selected_only` wraps any optax optimizer for those who compose a loop of their
own over the whole model: the slow, obvious reference.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from mwork_jax.enhance.neuron_params import NeuronIndex, gather, scatter
from mwork_jax.model.decoder import Decoder


class Rates(NamedTuple):
    """The numbers of one run; traced, so that runs with other numbers share a program."""

    learning_rate: jax.Array | float  # the highest
    steps: jax.Array | int  # after them the rate is 0
    warmup: jax.Array | float  # share of the steps in which the rate rises to the highest
    weight_decay: jax.Array | float
    clip: jax.Array | float  # the largest norm that a gradient may have


def rate_at(rates: Rates, step: jax.Array) -> jax.Array:
    """The learning rate of a step: up in a line to the highest, then down along a cosine that would be 0 one step
    after the last, so that no step is without effect."""
    rising = jnp.maximum(1.0, jnp.round(rates.steps * jnp.float32(rates.warmup)))
    falling = rates.steps - rising + 1
    share = jnp.clip((step - rising + 1) / falling, 0.0, 1.0)
    return rates.learning_rate * jnp.where(step < rising, (step + 1) / rising, 0.5 * (1 + jnp.cos(jnp.pi * share)))


def adamw(rates: Rates) -> optax.GradientTransformation:
    """Clipping by the norm, Adam, decay and the schedule, in this order. Over the compact form, all of them see
    nothing but the selection."""
    return optax.chain(
        optax.clip_by_global_norm(rates.clip),
        optax.scale_by_adam(),
        optax.add_decayed_weights(rates.weight_decay),
        optax.scale_by_schedule(lambda step: -rate_at(rates, jnp.asarray(step))),
    )


def selected_only(inner: optax.GradientTransformation, selected: Any) -> optax.GradientTransformation:
    """`inner`, for the entries of the parameters where `selected`, a pytree of bool arrays like them, is True.

    The gradient is masked first, so that clipping sees the selection alone, and the update last, so that decay and
    momentum leave every other entry as it is, bit for bit.
    """

    def masked(tree: Any) -> Any:
        return jax.tree.map(lambda keep, x: jnp.where(keep, x, jnp.zeros_like(x)), selected, tree)

    def update(updates: Any, state: Any, params: Any = None) -> tuple[Any, Any]:
        updates, state = inner.update(masked(updates), state, params)
        return masked(updates), state

    return optax.GradientTransformation(inner.init, update)


def selection_in(decoder: Decoder, index: NeuronIndex) -> Decoder:
    """Which entries of a decoder's parameters the neurons at `index` are: a Decoder of bool arrays."""
    nothing = jax.tree.map(lambda array: jnp.zeros(array.shape, jnp.bool_), decoder)
    return scatter(nothing, index, {name: jnp.ones_like(rows) for name, rows in gather(decoder, index).items()})
