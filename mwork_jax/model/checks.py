"""Whether tokens and a mask can be meant: JAX takes an index beyond the end for the last one, and NaN for a number."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, cast

import jax
import jax.numpy as jnp
import numpy as np

from mwork_jax.config import ModelConfig
from mwork_jax.errors import InputError
from mwork_jax.intervention import Intervention
from mwork_jax.model.model import Model
from mwork_jax.neurons import ATTENTION_GROUPS, GROUPS, NeuronMask, NeuronSet, group_widths
from mwork_jax.sharding import known_values


def check_model(model: Any) -> None:
    """Raises InputError for what is no model, such as its name."""
    if not isinstance(model, Model):
        raise InputError(f"model is a {type(model).__name__}; a Model is needed, as mw.load_model gives")


def check_tokens(config: ModelConfig, tokens: Any) -> jax.Array:
    """The tokens, as an array. Raises InputError where they are not int [batch, time], longer than the model's context
    or outside its vocabulary; of traced ones only the shape and the type are known."""
    array = tokens if isinstance(tokens, jax.Array) else _as_array(tokens)
    if array.ndim != 2 or not jnp.issubdtype(array.dtype, jnp.integer):
        how = _how_to_mend(array)
        raise InputError(f"tokens are {array.dtype} {list(array.shape)}; whole numbers [batch, time] are needed{how}")
    if not array.size:
        raise InputError(f"tokens are {list(array.shape)}; at least one row of one token is needed")
    if array.shape[1] > config.max_length:
        raise InputError(f"tokens: {array.shape[1]} in a row, the model's context is {config.max_length}")
    if (values := known_values(array)) is not None and values.size:
        lowest, highest = int(values.min()), int(values.max())
        if lowest < 0 or highest >= config.vocab_size:
            wrong = lowest if lowest < 0 else highest
            raise InputError(f"tokens: {wrong} is not in the vocabulary, 0 to {config.vocab_size - 1}")
    return cast(jax.Array, array)  # jit takes NumPy's as well, and puts them where the weights are


def check_mask(config: ModelConfig, mask: Any) -> None:
    """Raises InputError where this is not one mask or intervention for such a model, or where it holds NaN or
    infinity."""
    widths = group_widths(config)
    if isinstance(mask, Intervention):
        name, fields = "intervention", _arrays_of(mask, widths, config.hidden_size)
    elif isinstance(mask, NeuronMask):
        name, fields = "mask", {group: (getattr(mask, group), widths[group]) for group in GROUPS}
    else:
        how = "; NeuronMask.keep_all(config).drop(neurons) makes one of a set" if isinstance(mask, NeuronSet) else ""
        raise InputError(f"mask is a {type(mask).__name__}; a NeuronMask or an Intervention is needed{how}")
    for field, (values, width) in fields.items():
        shape = (config.num_layers, width)
        if jnp.shape(values) != shape:
            several = "; it is a stack: use jax.vmap over it, or give one" if jnp.shape(values)[1:] == shape else ""
            raise InputError(f"{name}: {field} is {list(jnp.shape(values))}, the model needs {list(shape)}{several}")
        if (known := known_values(values)) is not None and not np.isfinite(known).all():
            what = "; 1 keeps a neuron, 0 switches it off" if name == "mask" else ""
            raise InputError(f"{name}: {field} holds NaN or infinity{what}")


def _arrays_of(edit: Intervention, widths: Mapping[str, int], hidden: int) -> dict[str, tuple[Any, int]]:
    """{name: (array [layers, width], width)} of an intervention. Without a vector, `steering` may have width 1."""
    sizes = [*(widths[group] for group in ATTENTION_GROUPS), widths["ffn_up"], widths["ffn_up"]]
    arrays = {
        f"{kind} of {site}": (array, size)
        for kind, sites in (("factors", edit.factors), ("offsets", edit.offsets))
        for (site, array), size in zip(sites._asdict().items(), sizes, strict=True)
    }
    own = jnp.shape(edit.steering)[-1]
    return arrays | {"steering": (edit.steering, own if own == 1 else hidden)}


def _how_to_mend(array: Any) -> str:
    """What makes tokens of an array that is no [batch, time] of whole numbers, where that is clear."""
    if jnp.issubdtype(array.dtype, jnp.integer):
        return "; tokens[None] makes one row of them" if array.ndim == 1 else "; give one axis of rows, one of tokens"
    if jnp.issubdtype(array.dtype, jnp.floating):
        return "; tokens.astype('int32') makes them whole"
    if array.dtype.kind in "US":
        return "; model.encode(text)[None] makes them of a text"
    return f", not {type(array.item()).__name__}" if array.dtype == object and array.ndim == 0 else ""


def _as_array(values: Any) -> np.ndarray:
    try:
        return np.asarray(values)
    except ValueError:
        raise InputError("tokens have rows of different lengths; pad them on the right to one length") from None
