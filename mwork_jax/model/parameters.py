"""The parameters of a decoder, whatever its family: one declaration each, and what they weigh."""

from __future__ import annotations

from math import prod
from typing import Any, NamedTuple

import jax.numpy as jnp
from jax.sharding import Mesh

from mwork_jax.config import ModelConfig
from mwork_jax.model.int8 import FACTOR, INPUT_AXES
from mwork_jax.sharding import sharding

XIELU = ("act_positive", "act_negative", "act_linear", "act_least")  # the parameters of this activation function


class ParameterSpec(NamedTuple):
    """One declaration per parameter: its shape, the logical name of each axis, and whether it stays float32."""

    shape: tuple[int, ...]
    axes: tuple[str | None, ...]
    keep_float32: bool = False
    int8: bool = False

    def stored_in(self, dtype: Any) -> Any:
        """The dtype that it is stored in where matrices are read in `dtype`."""
        return jnp.dtype(jnp.float32 if self.keep_float32 else jnp.int8 if self.int8 else dtype)


def parameter_specs(config: ModelConfig, int8: bool = False) -> dict[str, ParameterSpec]:
    """Every parameter of a decoder. Names with `layers.` have a leading layer axis. int8: with the layers' matrices as
    whole numbers and factors (see `int8`)."""
    c = config
    table = ParameterSpec((c.vocab_size, c.hidden_size), ("vocab", "hidden"))
    specs = {"embed": table, **_norm_specs(c, "final_norm")}
    if c.embed_norm:
        specs |= _norm_specs(c, "embed_norm")
    if not c.tie_embeddings:
        specs["head"] = table
    for name, own in layer_specs(c).items():
        stacked = ParameterSpec((c.num_layers, *own.shape), ("layers", *own.axes), own.keep_float32)
        if int8 and name in INPUT_AXES:
            inputs = INPUT_AXES[name]
            factor = (*stacked.shape[:-inputs], *(1,) * inputs), (*stacked.axes[:-inputs], *(None,) * inputs)
            specs[f"layers.{name}{FACTOR}"] = ParameterSpec(*factor, keep_float32=True)
            stacked = stacked._replace(int8=True)
        specs[f"layers.{name}"] = stacked
    return specs


def layer_specs(config: ModelConfig) -> dict[str, ParameterSpec]:
    """Every parameter of one layer, without the axis of layers."""
    return _attention_specs(config) | _feed_forward_specs(config) | _bias_specs(config) | _layer_norm_specs(config)


def _norm_specs(c: ModelConfig, name: str) -> dict[str, ParameterSpec]:
    own = ParameterSpec((c.hidden_size,), ("hidden",), True)
    return {name: own, f"{name}_bias": own} if c.norm_biases else {name: own}


def _attention_specs(c: ModelConfig) -> dict[str, ParameterSpec]:
    queries, keys = (c.num_heads, c.head_dim), (c.num_kv_heads, c.head_dim)
    of_queries, of_keys = ("heads", "head_dim"), ("kv_heads", "head_dim")
    return {
        **(_norm_specs(c, "attn_norm") if c.pre_norms else {}),
        "q": ParameterSpec((*queries, c.hidden_size), (*of_queries, "hidden")),
        "k": ParameterSpec((*keys, c.hidden_size), (*of_keys, "hidden")),
        "v": ParameterSpec((*keys, c.hidden_size), (*of_keys, "hidden")),
        "o": ParameterSpec((c.hidden_size, *queries), ("hidden", *of_queries)),
    }


def _feed_forward_specs(c: ModelConfig) -> dict[str, ParameterSpec]:
    each, of_each, ffn = _of_each_expert(c)
    rows = ParameterSpec((*each, c.intermediate_size, c.hidden_size), (*of_each, ffn, "hidden"))
    specs = _norm_specs(c, "ffn_norm") if c.pre_norms and not c.parallel else {}
    if c.num_experts:
        specs["router"] = ParameterSpec((c.num_experts, c.hidden_size), ("experts", "hidden"), True)
    specs |= {"gate": rows, "up": rows} if c.gated else {"up": rows}
    specs["down"] = ParameterSpec((*each, c.hidden_size, c.intermediate_size), (*of_each, "hidden", ffn))
    if c.activation == "xielu":
        specs |= dict.fromkeys(XIELU[:2], ParameterSpec((1,), ("width",), True))
        specs |= dict.fromkeys(XIELU[2:], ParameterSpec((), (), True))
    return specs


def _of_each_expert(c: ModelConfig) -> tuple[tuple[int, ...], tuple[str, ...], str]:
    """What stands in front of a feed-forward matrix's shape and axes, and the axis of its neurons."""
    return ((c.num_experts,), ("experts",), "expert_ffn") if c.num_experts else ((), (), "ffn")


def _bias_specs(c: ModelConfig) -> dict[str, ParameterSpec]:
    (each, of_each, ffn), specs = _of_each_expert(c), {}
    if c.qkv_bias:
        keys = ParameterSpec((c.num_kv_heads, c.head_dim), ("kv_heads", "head_dim"), True)
        queries = ParameterSpec((c.num_heads, c.head_dim), ("heads", "head_dim"), True)
        specs |= {"q_bias": queries, "k_bias": keys, "v_bias": keys}
    if c.attn_out_bias:
        specs["o_bias"] = ParameterSpec((c.hidden_size,), ("hidden",), True)
    if c.router_bias:
        specs["router_bias"] = ParameterSpec(each, of_each, True)
    if c.mlp_bias:
        inner = ParameterSpec((*each, c.intermediate_size), (*of_each, ffn), True)
        specs |= {"gate_bias": inner, "up_bias": inner} if c.gated else {"up_bias": inner}
        specs["down_bias"] = ParameterSpec((*each, c.hidden_size), (*of_each, "hidden"), True)
    return specs


def _layer_norm_specs(c: ModelConfig) -> dict[str, ParameterSpec]:
    """What a layer has beside the norms in front of its blocks: norms on queries and keys and behind the blocks, and
    sinks."""
    specs: dict[str, ParameterSpec] = {}
    if c.qk_norm == "head":
        specs |= dict.fromkeys(("q_norm", "k_norm"), ParameterSpec((c.head_dim,), ("head_dim",), True))
    elif c.qk_norm is not None:
        specs["q_norm"] = ParameterSpec((c.num_heads, c.head_dim), ("heads", "head_dim"), True)
        specs["k_norm"] = ParameterSpec((c.num_kv_heads, c.head_dim), ("kv_heads", "head_dim"), True)
    if c.post_norms:
        specs |= _norm_specs(c, "attn_post_norm") | _norm_specs(c, "ffn_post_norm")
    if c.sinks:
        specs["sinks"] = ParameterSpec((c.num_heads,), ("heads",), True)
    return specs


def weight_bytes(config: ModelConfig, dtype: Any = jnp.bfloat16, mesh: Mesh | None = None, int8: bool = False) -> int:
    """Bytes that the parameters of a model take in `dtype`: all of them, or, with a mesh, those that each of its
    devices holds."""
    total = 0
    for parameter in parameter_specs(config, int8).values():
        axes, shape = parameter.axes, parameter.shape
        held = shape if mesh is None else sharding(mesh, axes, shape).shard_shape(shape)
        total += prod(held) * parameter.stored_in(dtype).itemsize
    return total
