"""Whether tokens and a mask can be meant: JAX takes an index beyond the end for the last one, and NaN for a number."""

from __future__ import annotations

from typing import Any, cast

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer

from mwork_jax.config import ModelConfig
from mwork_jax.errors import InputError
from mwork_jax.neurons import GROUPS, NeuronMask, NeuronSet, group_widths


def check_tokens(config: ModelConfig, tokens: Any) -> jax.Array:
    """The tokens, as an array. Raises InputError where they are not int [batch, time], longer than the model's context
    or outside its vocabulary; of traced ones only the shape and the type are known."""
    array = tokens if isinstance(tokens, jax.Array) else _as_array(tokens)
    if array.ndim != 2 or not jnp.issubdtype(array.dtype, jnp.integer):
        raise InputError(f"tokens are {array.dtype} {list(array.shape)}; whole numbers [batch, time] are needed")
    if not array.size:
        raise InputError(f"tokens are {list(array.shape)}; at least one row of one token is needed")
    if array.shape[1] > config.max_length:
        raise InputError(f"tokens: {array.shape[1]} in a row, the model's context is {config.max_length}")
    if (values := _known(array)) is not None and values.size:
        lowest, highest = int(values.min()), int(values.max())
        if lowest < 0 or highest >= config.vocab_size:
            wrong = lowest if lowest < 0 else highest
            raise InputError(f"tokens: {wrong} is not in the vocabulary, 0 to {config.vocab_size - 1}")
    return cast(jax.Array, array)  # jit takes NumPy's as well, and puts them where the weights are


def check_mask(config: ModelConfig, mask: Any) -> None:
    """Raises InputError where this is not one mask of such a model, or where it holds NaN or infinity."""
    if not isinstance(mask, NeuronMask):
        how = "; NeuronMask.keep_all(config).drop(neurons) makes one of a set" if isinstance(mask, NeuronSet) else ""
        raise InputError(f"mask is a {type(mask).__name__}; a NeuronMask is needed{how}")
    widths = group_widths(config)
    for group in GROUPS:
        values, shape = getattr(mask, group), (config.num_layers, widths[group])
        if jnp.shape(values) != shape:
            stacked = "; it is a stack: use jax.vmap over it" if jnp.shape(values)[1:] == shape else ""
            raise InputError(f"mask: {group} is {list(jnp.shape(values))}, the model needs {list(shape)}{stacked}")
        if (known := _known(values)) is not None and not np.isfinite(known).all():
            raise InputError(f"mask: {group} holds NaN or infinity; 1 keeps a neuron, 0 switches it off")


def _as_array(values: Any) -> np.ndarray:
    try:
        return np.asarray(values)
    except ValueError:
        raise InputError("tokens have rows of different lengths; pad them on the right to one length") from None


def _known(array: Any) -> np.ndarray | None:
    """The values on the host; None where they are traced, or where another process holds some of them."""
    if isinstance(array, Tracer) or not getattr(array, "is_fully_addressable", True):
        return None
    return np.asarray(array)
