"""From a checkpoint's tensors to the stacked parameters of a `Decoder`."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from mwork_jax.config import ModelConfig
from mwork_jax.errors import InputError
from mwork_jax.load.source import WeightSource
from mwork_jax.model import Decoder, parameter_specs

# Where each parameter stands in a Hugging Face checkpoint. Gemma has four norms per layer and names them its own way.
_WHOLE = {"embed": "model.embed_tokens.weight", "final_norm": "model.norm.weight", "head": "lm_head.weight"}
_LAYER = {
    "attn_norm": "input_layernorm.weight",
    "ffn_norm": "post_attention_layernorm.weight",
    "q_norm": "self_attn.q_norm.weight",
    "k_norm": "self_attn.k_norm.weight",
    **{n: f"self_attn.{n}_proj.weight" for n in "qkvo"},
    **{f"{n}_bias": f"self_attn.{n}_proj.bias" for n in "qkvo"},
    **{n: f"mlp.{n}_proj.weight" for n in ("gate", "up", "down")},
    **{f"{n}_bias": f"mlp.{n}_proj.bias" for n in ("gate", "up", "down")},
}
_LAYER_WITH_POST_NORMS = _LAYER | {
    "attn_post_norm": "post_attention_layernorm.weight",
    "ffn_norm": "pre_feedforward_layernorm.weight",
    "ffn_post_norm": "post_feedforward_layernorm.weight",
}
# Buffers that some checkpoints carry and that the configuration determines anyway.
_DERIVED = ("rotary_emb.inv_freq", "attn.masked_bias", "attn.bias")


def checkpoint_names(config: ModelConfig, parameter: str) -> list[str]:
    """The checkpoint's tensor names for one entry of `parameter_specs`: one, or one per layer."""
    if not parameter.startswith("layers."):
        return [_WHOLE[parameter]]
    table = _LAYER_WITH_POST_NORMS if config.post_norms else _LAYER
    return [f"model.layers.{i}.{table[parameter.removeprefix('layers.')]}" for i in range(config.num_layers)]


def assemble(
    config: ModelConfig, source: WeightSource, dtype: Any, place: Callable[[str, np.ndarray], jax.Array]
) -> Decoder:
    """Reads every parameter into its stacked form, one after the other, so that little more than the weights is in
    memory.

    place(parameter name, host array) puts one finished parameter on the devices. Raises InputError for a tensor that is
    missing, left over, or of another shape than the configuration says.
    """
    _check_names(config, source)
    arrays = {}
    for name, spec in parameter_specs(config).items():
        host = np.empty(spec.shape, np.float32 if spec.keep_float32 else jnp.dtype(dtype))
        names = checkpoint_names(config, name)
        rows = host if name.startswith("layers.") else host[None]
        for row, tensor_name in zip(rows, names, strict=True):
            tensor = source.read(tensor_name)
            if not _fits(tensor, row):
                shapes = f"has shape {tensor.shape}, the configuration needs {row.shape}"
                raise InputError(f"{source.where}: {tensor_name} {shapes}")
            row[...] = tensor.reshape(row.shape)
        arrays[name] = place(name, host)
        del host, rows
    return Decoder(config, arrays)


def _fits(tensor: np.ndarray, row: np.ndarray) -> bool:
    """Whether a tensor is the row, its heads merged: q [h, k, m] is [h*k, m] in a checkpoint, o [m, h, k] is [m, h*k]."""
    merged = {(row.size,)} if row.ndim == 2 else set()
    if row.ndim == 3:
        merged = {(row.shape[0] * row.shape[1], row.shape[2]), (row.shape[0], row.shape[1] * row.shape[2])}
    return tensor.shape == row.shape or tensor.shape in merged


def _check_names(config: ModelConfig, source: WeightSource) -> None:
    needed = {n for parameter in parameter_specs(config) for n in checkpoint_names(config, parameter)}
    present = source.names()
    missing = sorted(needed - present)
    if missing:
        raise InputError(f"{source.where}: {_some(missing)} missing; is it complete, and of this config?")
    extra = sorted(n for n in present - needed if not n.endswith(_DERIVED) and not _tied_copy(config, n))
    if extra:
        raise InputError(f"{source.where}: {_some(extra)} in the checkpoint that the configuration does not explain")


def _tied_copy(config: ModelConfig, name: str) -> bool:
    return config.tie_embeddings and name == _WHOLE["head"]


def _some(names: list[str]) -> str:
    shown: Iterator[str] = iter(names[:3])
    return f"tensors {', '.join(shown)}" + (f" and {len(names) - 3} more" if len(names) > 3 else "")
