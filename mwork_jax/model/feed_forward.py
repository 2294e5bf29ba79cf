"""The feed-forward of a layer: act(gate(x)) * up(x), or act(up(x)), through `down`. With experts: `mixture`.

Letters in shape comments as in `decoder`.
"""

from __future__ import annotations

from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp

from mwork_jax.config import ModelConfig
from mwork_jax.intervention import Edit
from mwork_jax.model.neuron_change import Changes, add_columns, add_rows
from mwork_jax.model.operations import product
from mwork_jax.model.parameters import XIELU
from mwork_jax.neurons import LayOut

Weights = dict[str, jax.Array]  # the parameters of one layer


class Fed(NamedTuple):
    """What the feed-forward computed: fields of `LayerRecord`."""

    activated: jax.Array | None = None
    product: jax.Array | None = None
    experts: jax.Array | None = None
    shares: jax.Array | None = None


def feed_forward(
    config: ModelConfig, x: jax.Array, w: Weights, edit: Edit, generated: jax.Array | None, changes: Changes
) -> tuple[jax.Array, Fed]:
    """What the feed-forward adds to the residual stream, before a norm [b, t, m], and what it computed."""

    def rows(name: str) -> jax.Array:
        out = add_rows(product("btm,fm->btf", x, w[name]), x, changes.get(name), w[name].dtype)
        return out + w[f"{name}_bias"] if config.mlp_bias else out

    gate = rows("gate") if config.gated else None
    activated, h = gated(config, w, edit, generated, gate, rows("up"), lambda of_each: of_each)
    out = add_columns(product("btf,mf->btm", h, w["down"]), h, changes.get("down"), w["down"].dtype)
    return (out + w["down_bias"] if config.mlp_bias else out), Fed(activated, h)


def gated(
    config: ModelConfig,
    w: Weights,
    edit: Edit,
    generated: jax.Array | None,
    gate: jax.Array | None,
    up: jax.Array,
    lay_out: LayOut,
) -> tuple[jax.Array, jax.Array]:
    """act(gate), and its product with up; act(up) for both where there is no gate; both after `edit`. lay_out: brings
    what an edit has per neuron into the shape of these."""
    if gate is not None and config.act_limit is not None:  # gpt-oss: a SwiGLU of clipped inputs, and (up + 1)
        gate, up = jnp.minimum(gate, config.act_limit), jnp.clip(up, -config.act_limit, config.act_limit) + 1.0
        activated = gate * jax.nn.sigmoid(config.act_slope * gate)
    else:
        activated = _activation(config, w, up if gate is None else gate)
    activated = edit.applied("gate", activated, lay_out, generated)
    whole = activated if gate is None else activated * up
    return activated, edit.applied("neuron", whole, lay_out, generated)


_ACTIVATIONS = {
    "silu": jax.nn.silu,
    "gelu": partial(jax.nn.gelu, approximate=False),
    "gelu_tanh": partial(jax.nn.gelu, approximate=True),
}


def _activation(config: ModelConfig, w: Weights, x: jax.Array) -> jax.Array:
    if config.activation == "xielu":
        return xielu(x, *(w[name] for name in XIELU))
    return _ACTIVATIONS[config.activation](x)


def xielu(x: jax.Array, positive: jax.Array, negative: jax.Array, linear: jax.Array, least: jax.Array) -> jax.Array:
    """xIELU (Huang and Schlag 2024): for x > 0 a x^2 + c x, else b (e^x - 1 - x) + c x, with a = softplus(positive),
    b = c + softplus(negative) and c = linear. The exponent is at most `least`, which is close to 0."""
    a, b = jax.nn.softplus(positive), linear + jax.nn.softplus(negative)
    return jnp.where(x > 0, a * x * x, b * (jnp.expm1(jnp.minimum(x, least)) - x)) + linear * x
