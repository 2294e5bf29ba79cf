"""What the families share, and `Family`: what sets one apart.

A family's attributes are completed as transformers completes them: it does not write some of them when they have their
default value, so a wrong default here is another model. What is in no table is required by name.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace

import numpy as np

from mwork_jax.config import FULL_ATTENTION, ModelConfig, Rope
from mwork_jax.errors import InputError
from mwork_jax.families.gguf import GGUFForm
from mwork_jax.families.reader import ACTIVATIONS, MOST_LAYERS, Reader
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
}  # fmt: skip

# Tensors of a checkpoint by the names of `model.parameters.parameter_specs`; those of a layer after `Family.layers` and
# the layer's number.
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

# Those of a feed-forward with experts, each with all of them.
EXPERTS: Mapping[str, str] = {
    "router": "mlp.gate.weight",
    **{name: f"mlp.experts.{name}_proj.weight" for name in ("gate", "up", "down")},
}

Windows = tuple[int, ...]  # per layer, as in ModelConfig
LayerRopes = tuple[tuple[Rope, ...], tuple[int, ...]]  # the distinct rotary embeddings and, per layer, which it uses


def full_attention(read: Reader, layers: int) -> Windows:
    """Every layer sees the whole past."""
    return (FULL_ATTENTION,) * layers


def one_window(read: Reader, layers: int) -> Windows:
    """One sliding window for all layers, or none where it is null."""
    return (read.count("sliding_window", if_null=FULL_ATTENTION),) * layers


def the_rope(read: Reader) -> Rope:
    """The rotary embedding of a model that has one. As in transformers, a `rope_scaling` (its version 4) is read before
    `rope_parameters` (its version 5)."""
    theta, scaling, parameters = read.number("rope_theta"), read.table("rope_scaling"), read.table("rope_parameters")
    return read_rope(scaling or parameters, theta, read.count("max_position_embeddings"), read.where)


def one_rope(read: Reader, windows: Windows) -> LayerRopes:
    """The same rotary embedding in every layer."""
    return (the_rope(read),), (0,) * len(windows)


def hf_one_rope(config: ModelConfig) -> dict[str, object]:
    """`rope_parameters` of a model with one rotary embedding."""
    return hf_rope(config.ropes[0])


def ropes_by_layer_type(read: Reader, windows: Windows, local_theta: float) -> LayerRopes:
    """One rotary embedding for layers with a window, whose base is `local_theta` where none is given, and one for those
    without, which a `rope_scaling` (of transformers 4) stretches."""
    parameters, length = read.table("rope_parameters"), read.count("max_position_embeddings")
    for name in parameters.keys() - {"sliding_attention", "full_attention"}:
        raise InputError(
            f"{read.where}: rope_parameters has {name!r}; for {read.values['model_type']} it has 'sliding_attention' "
            "and 'full_attention'"
        )
    nested = Reader(parameters, f"{read.where}: rope_parameters")
    whole = {**nested.table("full_attention"), **read.table("rope_scaling")}
    ropes = (
        read_rope(nested.table("sliding_attention"), local_theta, length, read.where),
        read_rope(whole, read.number("rope_theta"), length, read.where),
    )
    return ropes, tuple(0 if window else 1 for window in windows)


def hf_ropes_by_layer_type(config: ModelConfig) -> dict[str, object]:
    """`rope_parameters` of such a model."""
    return {"sliding_attention": hf_rope(config.ropes[0]), "full_attention": hf_rope(config.ropes[1])}


def nothing_special(config: ModelConfig, read: Reader) -> ModelConfig:
    return config


@dataclass(frozen=True)
class FusedRows:
    """Where a parameter's rows lie in a larger tensor of a checkpoint, which is `groups` groups of `size` rows: the
    rows start <= row < stop of each group."""

    groups: int
    size: int
    start: int
    stop: int


# {the larger tensor's name within a layer: for each parameter in it, its usual name and its rows}.
Fused = Mapping[str, Mapping[str, FusedRows]]


@dataclass(frozen=True)
class Derived:
    """A parameter that is computed from other tensors of a checkpoint: their names within a layer, and how."""

    sources: tuple[str, ...]
    make: Callable[..., np.ndarray]


@dataclass(frozen=True)
class Family:
    """What sets a family of models apart: its attributes in a config.json, its structure, the names of its weights.

    model_type: its name in config.json, and the `family` of a ModelConfig.
    hf_class: its class in transformers, which `architectures` names.
    attributes: what it reads beside COMMON_ATTRIBUTES.
    defaults: its own values of attributes that a config.json leaves out, before COMMON_DEFAULTS.
    hf_attributes: the attributes beside the common ones that a config.json of a model of this family has.
    about: the models that it is of, and what sets it apart, in a few words.
    limits: what is not there, and why; empty where everything is.
    checkpoints: published models whose config.json is among the tests, as owner/name on the Hub.
    renamed: {the family's own name of a common attribute: the common one}.
    derived: common attributes that follow from others, which a config.json of this family does not have.
    inert: attributes without effect beside those of every family, each with the values at which it has none; None for
    every value.
    text_defaults: the class's values of what a `text_config` in a larger model's config.json leaves out.
    windows: per layer, how many past positions a query sees, from the attributes and the number of layers.
    ropes: the rotary embeddings, from the attributes and the windows.
    hf_ropes: `rope_parameters`, the other way; None for a family without.
    head_dim_may_be_null: a null is then hidden_size / num_attention_heads.
    kv_heads_may_be_null: a null is then num_attention_heads.
    activation: the attribute that names the activation function. activations: {its values: ModelConfig's}.
    special: the configuration with what is structurally special about this family, from the common one.
    layers: what stands before a layer's number in the names of its tensors.
    whole_tensors, layer_tensors: the names of the weights in a checkpoint.
    fused: parameters that a checkpoint keeps in one tensor together, under that tensor's name.
    expert_tensors: {a tensor of `layer_tensors`: what a checkpoint calls it}, with a place for the expert's number
    where each expert has one of its own.
    derived_tensors: {a tensor of `layer_tensors`: what it may be computed from, the first that is there}.
    rejoined: a layer's tensors as a checkpoint has them, from those of `layer_tensors`: the way back.
    quantised: the `quant_method`s whose weights are read.
    gguf: how GGUF files hold its models, one for each architecture's name that they go by; none where they are not
    read.
    """

    model_type: str
    hf_class: str
    attributes: frozenset[str]
    defaults: Mapping[str, object]
    hf_attributes: Callable[[ModelConfig], dict[str, object]]
    about: str = ""
    limits: str = ""
    checkpoints: tuple[str, ...] = ()
    renamed: Mapping[str, str] = field(default_factory=dict)
    derived: Callable[[Reader], dict[str, object]] | None = None
    inert: Mapping[str, tuple[object, ...] | None] = field(default_factory=dict)
    text_defaults: Mapping[str, object] = field(default_factory=dict)
    windows: Callable[[Reader, int], Windows] = full_attention
    ropes: Callable[[Reader, Windows], LayerRopes] = one_rope
    hf_ropes: Callable[[ModelConfig], dict[str, object]] | None = hf_one_rope
    head_dim_may_be_null: bool = True
    kv_heads_may_be_null: bool = True
    activation: str = "hidden_act"
    activations: Mapping[str, str] = field(default_factory=lambda: ACTIVATIONS)
    special: Callable[[ModelConfig, Reader], ModelConfig] = nothing_special
    layers: str = "model.layers."
    whole_tensors: Mapping[str, str] = field(default_factory=lambda: WHOLE_TENSORS)
    layer_tensors: Mapping[str, str] = field(default_factory=lambda: LAYER_TENSORS)
    fused: Callable[[ModelConfig], Fused] | None = None
    expert_tensors: Mapping[str, str] = field(default_factory=dict)
    derived_tensors: Mapping[str, tuple[Derived, ...]] = field(default_factory=dict)
    rejoined: Callable[[dict[str, np.ndarray]], dict[str, np.ndarray]] | None = None
    quantised: frozenset[str] = frozenset()
    gguf: tuple[GGUFForm, ...] = ()


def completed(hf: Mapping[str, object], family: Family, where: str) -> dict[str, object]:
    """The attributes of `hf` that a family reads under their common names, completed by its defaults; those of other
    families are off. Raises InputError where an attribute is there under both of its names."""
    own = COMMON_ATTRIBUTES | family.attributes | family.renamed.keys()
    given: dict[str, str] = {}
    for name in hf.keys() & own:
        other = given.setdefault(family.renamed.get(name, name), name)
        if hf[other] != hf[name]:
            both = " but ".join(f"{one} is {hf[one]!r:.40}" for one in sorted((name, other)))
            raise InputError(f"{where}: {both}; which one holds?")
    values = {**COMMON_DEFAULTS, **family.defaults, **{common: hf[name] for common, name in given.items()}}
    return values if family.derived is None else values | family.derived(Reader(values, where))


def read_config(family: Family, read: Reader) -> ModelConfig:
    """The configuration that the completed attributes of a model of this family describe."""
    heads, hidden = read.count("num_attention_heads"), read.count("hidden_size")
    head_dim = read.count("head_dim", if_null=hidden // heads if family.head_dim_may_be_null else None)
    windows = family.windows(read, read.count("num_hidden_layers", most=MOST_LAYERS))
    ropes, layer_rope = family.ropes(read, windows)
    attention_bias = read.flag("attention_bias")
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
        activation=read.activation(family.activation, family.activations),
        max_length=read.count("max_position_embeddings"),
        tie_embeddings=read.flag("tie_word_embeddings"),
        qkv_bias=attention_bias,
        attn_out_bias=attention_bias,
        mlp_bias=read.flag("mlp_bias"),
        attn_scale=max(head_dim, 1) ** -0.5,
        bos_id=next(iter(read.ids("bos_token_id")), None),
        eos_ids=read.ids("eos_token_id"),
    )
    config = family.special(_within_original_context(config), read)
    _check_heads(config, read.where)
    _check_pair_factors(config, read.where)
    return config


def _within_original_context(config: ModelConfig) -> ModelConfig:
    """Longrope has one set of factors within the original context and another beyond: the first is what is here, so the
    context ends there."""
    ends = [rope.original_length for rope in config.ropes if rope.kind == "longrope"]
    return replace(config, max_length=min(config.max_length, *ends)) if ends else config


def _check_heads(config: ModelConfig, where: str) -> None:
    heads, kv_heads, head_dim = config.num_heads, config.num_kv_heads, config.head_dim
    if heads % kv_heads:
        raise InputError(f"{where}: num_attention_heads {heads} is not a multiple of num_key_value_heads {kv_heads}")
    if head_dim < 1 or head_dim % 2:
        kind = "odd" if head_dim else "zero"
        raise InputError(f"{where}: head_dim {head_dim} is {kind}; rotary embeddings need a positive even one")


def _check_pair_factors(config: ModelConfig, where: str) -> None:
    pairs = (config.rotary_dim or config.head_dim) // 2
    for rope in config.ropes:
        if rope.kind == "longrope" and not len(rope.pair_factors) == len(rope.long_pair_factors) == pairs:
            counts = (
                f"{len(rope.pair_factors)} numbers in short_factor and {len(rope.long_pair_factors)} in long_factor"
            )
            raise InputError(f"{where}: longrope has {counts}; {pairs} in each are needed")


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


def full_attention_every(period: int, layers: int) -> list[str]:
    """Layer types where each `period`-th layer sees the whole past and the others have a window."""
    return ["full_attention" if (i + 1) % period == 0 else "sliding_attention" for i in range(layers)]


def windows_of(kinds: list[str], window: int) -> Windows:
    """Windows of layers of these types."""
    return tuple(window if kind == "sliding_attention" else FULL_ATTENTION for kind in kinds)


def hf_layer_types(config: ModelConfig) -> list[str]:
    """The attribute `layer_types` of a model."""
    return ["full_attention" if window == FULL_ATTENTION else "sliding_attention" for window in config.windows]


def hf_window(config: ModelConfig) -> int | None:
    """The attribute `sliding_window` of a model; None where no layer has a window."""
    return max(config.windows) or None
