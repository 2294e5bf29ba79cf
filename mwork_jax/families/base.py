"""What the families share, and `Family`: what sets one apart.

A family's attributes are completed as transformers completes them: it does not write some of them when they have their
default value, so a wrong default here is another model. What is in no table is required by name.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from mwork_jax.config import FULL_ATTENTION, ModelConfig, Rope
from mwork_jax.errors import InputError
from mwork_jax.families.reader import Reader
from mwork_jax.families.rope import hf_rope, read_rope

# The attributes that every family has.
COMMON_ATTRIBUTES = frozenset({
    "model_type", "vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads",
    "num_key_value_heads", "head_dim", "rms_norm_eps", "max_position_embeddings", "tie_word_embeddings",
    "rope_theta", "rope_scaling", "rope_parameters", "bos_token_id", "eos_token_id", "hidden_act",
})  # fmt: skip

# Their values where a config.json leaves them out, and those of attributes that other families have: switched off.
COMMON_DEFAULTS: Mapping[str, object] = {
    "num_key_value_heads": None, "head_dim": None, "rms_norm_eps": 1e-6, "tie_word_embeddings": False,
    "rope_theta": 10000.0, "rope_scaling": None, "rope_parameters": None, "hidden_act": "silu",
    "bos_token_id": None, "eos_token_id": None, "attention_bias": False, "mlp_bias": False, "sliding_window": None,
    "use_sliding_window": False, "max_window_layers": 28, "layer_types": None,
    "attn_logit_softcapping": None, "final_logit_softcapping": None,
}  # fmt: skip

# Tensors of a checkpoint by the names of `model.decoder.parameter_specs`; those of a layer after `model.layers.N.`.
WHOLE_TENSORS: Mapping[str, str] = {
    "embed": "model.embed_tokens.weight",
    "final_norm": "model.norm.weight",
    "head": "lm_head.weight",
}
LAYER_TENSORS: Mapping[str, str] = {
    "attn_norm": "input_layernorm.weight",
    "ffn_norm": "post_attention_layernorm.weight",
    "q_norm": "self_attn.q_norm.weight",
    "k_norm": "self_attn.k_norm.weight",
    **{name: f"self_attn.{name}_proj.weight" for name in "qkvo"},
    **{f"{name}_bias": f"self_attn.{name}_proj.bias" for name in "qkvo"},
    **{name: f"mlp.{name}_proj.weight" for name in ("gate", "up", "down")},
    **{f"{name}_bias": f"mlp.{name}_proj.bias" for name in ("gate", "up", "down")},
}

MOST_LAYERS = 10_000  # a damaged number would ask for more memory than there is

Windows = tuple[int, ...]  # per layer, as in ModelConfig
LayerRopes = tuple[tuple[Rope, ...], tuple[int, ...]]  # the distinct rotary embeddings and, per layer, which it uses


def full_attention(read: Reader, layers: int) -> Windows:
    """Every layer sees the whole past."""
    return (FULL_ATTENTION,) * layers


def one_rope(read: Reader, windows: Windows) -> LayerRopes:
    """The same rotary embedding in every layer. As in transformers, a `rope_scaling` (its version 4) is read before
    `rope_parameters` (its version 5)."""
    theta, scaling, parameters = read.number("rope_theta"), read.table("rope_scaling"), read.table("rope_parameters")
    rope = read_rope(scaling or parameters, theta, read.count("max_position_embeddings"), read.where)
    return (rope,), (0,) * len(windows)


def hf_one_rope(config: ModelConfig) -> dict[str, object]:
    """`rope_parameters` of a model with one rotary embedding."""
    return hf_rope(config.ropes[0])


@dataclass(frozen=True)
class Family:
    """What sets a family of models apart: its attributes in a config.json, its structure, the names of its weights.

    model_type: its name in config.json, and the `family` of a ModelConfig.
    hf_class: its class in transformers, which `architectures` names.
    attributes: what it reads beside COMMON_ATTRIBUTES.
    defaults: its own values of attributes that a config.json leaves out, before COMMON_DEFAULTS.
    hf_attributes: the attributes beside the common ones that a config.json of a model of this family has.
    windows: per layer, how many past positions a query sees, from the attributes and the number of layers.
    ropes: the rotary embeddings, from the attributes and the windows.
    hf_ropes: `rope_parameters`, the other way.
    head_dim_may_be_null: a null is then hidden_size / num_attention_heads.
    kv_heads_may_be_null: a null is then num_attention_heads.
    activation: the attribute that names the activation function.
    attention_scale: the attribute whose inverse root multiplies q . k; None where that is the head size.
    norm_offset, post_norms, qk_norm: as in ModelConfig.
    qkv_bias: whether queries, keys and values have biases whatever `attention_bias` is.
    scaled_embeddings: whether embeddings are multiplied by the root of the hidden size.
    layer_tensors: the names of a layer's weights in a checkpoint.
    """

    model_type: str
    hf_class: str
    attributes: frozenset[str]
    defaults: Mapping[str, object]
    hf_attributes: Callable[[ModelConfig], dict[str, object]]
    windows: Callable[[Reader, int], Windows] = full_attention
    ropes: Callable[[Reader, Windows], LayerRopes] = one_rope
    hf_ropes: Callable[[ModelConfig], dict[str, object]] = hf_one_rope
    head_dim_may_be_null: bool = False
    kv_heads_may_be_null: bool = True
    activation: str = "hidden_act"
    attention_scale: str | None = None
    norm_offset: float = 0.0
    post_norms: bool = False
    qk_norm: bool = False
    qkv_bias: bool = False
    scaled_embeddings: bool = False
    layer_tensors: Mapping[str, str] = field(default_factory=lambda: LAYER_TENSORS)


def completed(hf: Mapping[str, object], family: Family) -> dict[str, object]:
    """The attributes of `hf` that a family reads, completed by its defaults; those of other families are off."""
    own = COMMON_ATTRIBUTES | family.attributes
    return {**COMMON_DEFAULTS, **family.defaults, **{name: value for name, value in hf.items() if name in own}}


def read_config(family: Family, read: Reader) -> ModelConfig:
    """The configuration that the completed attributes of a model of this family describe."""
    heads, hidden = read.count("num_attention_heads"), read.count("hidden_size")
    head_dim = read.count("head_dim", if_null=hidden // heads if family.head_dim_may_be_null else None)
    windows = family.windows(read, read.count("num_hidden_layers", most=MOST_LAYERS))
    ropes, layer_rope = family.ropes(read, windows)
    attention_bias = read.flag("attention_bias")
    scale = family.attention_scale
    config = ModelConfig(
        family=family.model_type,
        vocab_size=read.count("vocab_size"),
        hidden_size=hidden,
        num_layers=len(windows),
        num_heads=heads,
        num_kv_heads=read.count("num_key_value_heads", if_null=heads if family.kv_heads_may_be_null else None),
        head_dim=head_dim,
        intermediate_size=read.count("intermediate_size"),
        norm_eps=read.number("rms_norm_eps"),
        ropes=ropes,
        layer_rope=layer_rope,
        windows=windows,
        activation=read.activation(family.activation),
        max_length=read.count("max_position_embeddings"),
        tie_embeddings=read.flag("tie_word_embeddings"),
        norm_offset=family.norm_offset,
        post_norms=family.post_norms,
        qk_norm=family.qk_norm,
        qkv_bias=attention_bias or family.qkv_bias,
        attn_out_bias=attention_bias,
        mlp_bias=read.flag("mlp_bias"),
        attn_softcap=read.number_or_none("attn_logit_softcapping"),
        final_softcap=read.number_or_none("final_logit_softcapping"),
        embed_scale=math.sqrt(hidden) if family.scaled_embeddings else 1.0,
        attn_scale=(max(head_dim, 1) if scale is None else read.number(scale)) ** -0.5,
        bos_id=next(iter(read.ids("bos_token_id")), None),
        eos_ids=read.ids("eos_token_id"),
    )
    _check_heads(config, read.where)
    return config


def _check_heads(config: ModelConfig, where: str) -> None:
    heads, kv_heads, head_dim = config.num_heads, config.num_kv_heads, config.head_dim
    if heads % kv_heads:
        raise InputError(f"{where}: num_attention_heads {heads} is not a multiple of num_key_value_heads {kv_heads}")
    if head_dim < 1 or head_dim % 2:
        kind = "odd" if head_dim else "zero"
        raise InputError(f"{where}: head_dim {head_dim} is {kind}; rotary embeddings need a positive even one")


def layer_types(read: Reader, layers: int, default: Callable[[], list[str]]) -> list[str]:
    """Per layer, "full_attention" or "sliding_attention": the attribute `layer_types`, or `default()` without one."""
    kinds = read.values["layer_types"]
    if kinds is None:
        kinds = default()
    known = ("full_attention", "sliding_attention")
    if not isinstance(kinds, (list, tuple)) or len(kinds) != layers or not all(kind in known for kind in kinds):
        raise InputError(
            f"{read.where}: layer_types must name full_attention or sliding_attention for each of {layers} layers"
        )
    return list(kinds)


def windows_of(kinds: list[str], window: int) -> Windows:
    """Windows of layers of these types."""
    return tuple(window if kind == "sliding_attention" else FULL_ATTENTION for kind in kinds)


def hf_layer_types(config: ModelConfig) -> list[str]:
    """The attribute `layer_types` of a model."""
    return ["full_attention" if window == FULL_ATTENTION else "sliding_attention" for window in config.windows]
