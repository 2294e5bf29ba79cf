"""A mask, or an intervention that scales neurons, as factors of a model's weights, which a checkpoint can hold.

A neuron of queries, keys or values is a row of its matrix and an entry of its bias. A feed-forward neuron is scaled
where its product act(gate) * up is read, in the column of W_down: that holds whatever the activation and the biases.
"""

from __future__ import annotations

from collections.abc import Mapping

import jax
import numpy as np

from mwork_jax.config import ModelConfig
from mwork_jax.errors import InputError
from mwork_jax.intervention import Edit, Intervention, as_intervention
from mwork_jax.model.checks import check_mask
from mwork_jax.neurons import ATTENTION_GROUPS
from mwork_jax.sharding import known_values

Factors = Mapping[str, np.ndarray]  # {parameter of a layer: float32 [layers, rows or columns]}


def weight_factors(config: ModelConfig, edit: Edit) -> dict[str, np.ndarray]:
    """What the weights are multiplied by, for those that change: {parameter: float32 [layers, width]}, along the rows
    of q, k, v and their biases, along the columns of down.

    Raises InputError for what is no mask or intervention of such a model, one whose values are traced, and for an
    intervention that adds, replaces or steers, or acts on a part of each text: no weights do that.
    """
    check_mask(config, edit)
    if any(known_values(leaf) is None for leaf in jax.tree.leaves(edit)):
        raise InputError("the mask is traced, so its values are not known; save the folder outside of jit")
    whole = as_intervention(jax.tree.map(np.asarray, edit))
    acts = _acting_layers(whole)[:, None]
    sites = {name: np.where(acts, factor, 1).astype(np.float32) for name, factor in whole.factors._asdict().items()}
    rows = {name: sites[group] for name, group in zip("qkv", ATTENTION_GROUPS, strict=True)}
    if config.qkv_bias:
        rows |= {f"{name}_bias": factor for name, factor in rows.items()}
    factors = rows | {"down": sites["gate"] * sites["neuron"]}
    return {name: factor for name, factor in factors.items() if (factor != 1).any()}


def _acting_layers(edit: Intervention) -> np.ndarray:
    """bool [layers], where it acts. Raises InputError for what weights cannot do."""
    on_prompt, on_generated = np.asarray(edit.on_prompt), np.asarray(edit.on_generated)
    on_all, on_some = on_prompt & on_generated, on_prompt | on_generated
    added = [("a value at", site, offset) for site, offset in edit.offsets._asdict().items()]
    for what, name, values in (*added, ("a vector to", "the residual stream", edit.steering)):
        layers = np.flatnonzero(on_some & (values != 0).any(axis=-1))
        if layers.size:
            raise InputError(
                f"intervention: layer {layers[0]} adds {what} {name}; weights can hold what scales neurons, not what "
                "replaces, adds or steers"
            )
    partly = np.flatnonzero(edit.changed_layers() & (on_all != on_some))
    if partly.size:
        raise InputError(
            f"intervention: layer {partly[0]} acts on a part of each text only; weights act on all of it: use "
            '.on("all")'
        )
    return on_some


def scaled(name: str, tensor: np.ndarray, factors: Factors, layer: int) -> np.ndarray:
    """One layer's tensor, [rows, hidden], [rows], [hidden, columns] or of experts [experts, hidden, columns], times its
    factors."""
    if name not in factors:
        return tensor
    factor = factors[name][layer]
    if name == "down":
        return tensor * (factor.reshape(tensor.shape[0], 1, -1) if tensor.ndim == 3 else factor)
    return tensor * (factor[:, None] if tensor.ndim == 2 else factor)


def described(factors: Factors) -> str:
    """How many neurons are switched off and scaled, for a model card. A product of the feed-forward is one neuron here;
    a set counts its two ends, `ffn_up` and `ffn_down`."""
    kinds = {"feed-forward products": ("down",), "queries, keys and values": ("q", "k", "v")}
    of_kind = {kind: [factors[name] for name in names if name in factors] for kind, names in kinds.items()}
    off = {kind: sum(int((f == 0).sum()) for f in of) for kind, of in of_kind.items()}
    scaled_ones = {kind: sum(int(((f != 0) & (f != 1)).sum()) for f in of) for kind, of in of_kind.items()}
    counts = (("switched off", off), ("scaled", scaled_ones))
    return "; ".join(
        f"{sum(count.values()):,} {what} ({', '.join(f'{n:,} {kind}' for kind, n in count.items())})"
        for what, count in counts
        if what == "switched off" or sum(count.values())
    )
