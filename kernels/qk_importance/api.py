"""The one entry to this operation."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from importlib import import_module

import jax
import jax.numpy as jnp

IMPLEMENTATIONS = ("xla", "tpu", "gpu")


def qk_importance(
    q: jax.Array,
    k: jax.Array,
    cos: jax.Array,
    sin: jax.Array,
    token_mask: jax.Array,
    window: jax.Array,
    *,
    scale: float,
    softcap: float | None = None,
    q_gain: jax.Array | None = None,
    k_gain: jax.Array | None = None,
    implementation: str | None = None,
) -> tuple[jax.Array, jax.Array]:
    """|| softmax(S') - softmax(S) ||_F for every query and key neuron, S' being the scores with that neuron zeroed.

    q [b, t, h, k] and k [b, t, g, k] are before RoPE (and after the q/k-norm where the model has one); cos and sin [b
    or 1, t, k] are RoPE's tables in the half-split layout; token_mask [b, t] is 1 for the queries that count and 0 for
    others (padding, BOS); window, an int32 scalar, is how many positions a query sees, itself included; scale
    multiplies q . k; softcap is Gemma 2's. q_gain [b, t, h, k] and k_gain [b, t, g, k] are by how much (relative, 0 =
    not at all) zeroing the neuron rescales the rest of its head's vector at that position, which is what a q/k-norm
    does. Queries are causal. Key neurons sum the squares over all query heads of their group.
    Returns (float32 [b, h, k], float32 [b, g, k]). Raises ValueError, before anything is computed, for shapes that do
    not fit together, such as those of arrays whose axes are in another order.

    `implementation` names one of IMPLEMENTATIONS, which then runs or fails, on whatever platform; another name
    raises ValueError. None takes the kernel of the platform that the program is lowered for: "tpu" on TPUs,
    "gpu" on NVIDIA's GPUs, "xla" elsewhere.
    """
    if implementation is not None and implementation not in IMPLEMENTATIONS:
        raise ValueError(
            f"no implementation {implementation!r} of qk_importance; there are {', '.join(IMPLEMENTATIONS)}"
        )
    _check_shapes(q, k, cos, sin, token_mask, window, q_gain, k_gain)
    arrays = {"q_gain": q_gain, "k_gain": k_gain}

    def of(name: str) -> Callable[..., tuple[jax.Array, jax.Array]]:
        kernel = partial(_implementation(name), scale=scale, softcap=softcap)
        return lambda *args: kernel(*args[:-1], **args[-1])

    args = (q, k, cos, sin, token_mask, window, arrays)
    with jax.enable_x64(False):  # whatever the caller's program does: indices of the kernels are int32
        if implementation is not None:
            return of(implementation)(*args)
        return jax.lax.platform_dependent(*args, tpu=of("tpu"), cuda=of("gpu"), default=of("xla"))


def _check_shapes(
    q: jax.Array,
    k: jax.Array,
    cos: jax.Array,
    sin: jax.Array,
    token_mask: jax.Array,
    window: jax.Array,
    q_gain: jax.Array | None,
    k_gain: jax.Array | None,
) -> None:
    """Raises ValueError, one line with all shapes, for those that do not fit. Shapes are static: under jit too, and
    nothing is compiled for it."""
    if window is None:
        raise ValueError(
            "qk_importance: window is None; an int32 scalar is needed, at least t where there is no window"
        )
    given = {"q": q, "k": k, "cos": cos, "sin": sin, "token_mask": token_mask, "window": window}
    given |= {name: gain for name, gain in (("q_gain", q_gain), ("k_gain", k_gain)) if gain is not None}
    shapes = {name: jnp.shape(array) for name, array in given.items()}
    of_q, of_k = shapes["q"], shapes["k"]
    if fits := len(of_q) == len(of_k) == 4:
        batch, time, heads, size = of_q
        tables = {(rows, time, size) for rows in (1, batch)}
        fits = (
            (of_k[0], of_k[1], of_k[3]) == (batch, time, size)
            and of_k[2] > 0
            and heads % of_k[2] == 0
            and {shapes["cos"], shapes["sin"]} <= tables
            and shapes["token_mask"] == (batch, time)
            and shapes["window"] == ()
            and shapes.get("q_gain", of_q) == of_q
            and shapes.get("k_gain", of_k) == of_k
        )
    if not fits:
        named = ", ".join(f"{name} {list(shape)}" for name, shape in shapes.items())
        raise ValueError(
            f"qk_importance: the shapes do not fit together: {named}; needed are q [batch, time, heads, size], "
            "k [batch, time, key heads, size], cos and sin [batch or 1, time, size], token_mask [batch, time], window "
            "[] and gains like q and k, with heads a multiple of key heads"
        )


def _implementation(name: str) -> Callable[..., tuple[jax.Array, jax.Array]]:
    """One of IMPLEMENTATIONS. Imported when a program first uses it: importing Pallas is slow."""
    module = import_module(f".{name}", __package__)
    return getattr(module, f"qk_importance_{name}")
