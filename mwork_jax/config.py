"""What a decoder of the Llama, Mistral, Qwen and Gemma families is, as one frozen value.

`ModelConfig.from_hf` reads a Hugging Face `config.json` (of transformers 4 or 5) and raises on every attribute that it
does not understand: a model that is almost right is worse than a clear refusal.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from numbers import Integral, Real
from typing import Any

from mwork_jax.errors import InputError

FULL_ATTENTION = 0  # the window of a layer that sees the whole past

_FAMILIES = {"llama", "mistral", "qwen2", "qwen3", "gemma2", "gemma3_text"}

# Attributes that change the architecture. Each is read below.
_READ_BY_ALL = {
    "model_type", "vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads",
    "num_key_value_heads", "head_dim", "rms_norm_eps", "max_position_embeddings", "tie_word_embeddings",
    "rope_theta", "rope_scaling", "rope_parameters", "bos_token_id", "eos_token_id", "hidden_act",
}  # fmt: skip
_READ_BY = {
    "llama": {"attention_bias", "mlp_bias"},
    "mistral": {"sliding_window"},
    "qwen2": {"use_sliding_window", "sliding_window", "max_window_layers", "layer_types"},
    "qwen3": {"use_sliding_window", "sliding_window", "max_window_layers", "layer_types", "attention_bias"},
    "gemma2": {
        "hidden_activation", "query_pre_attn_scalar", "sliding_window", "layer_types", "attention_bias",
        "attn_logit_softcapping", "final_logit_softcapping",
    },
    "gemma3_text": {
        "hidden_activation", "query_pre_attn_scalar", "sliding_window", "layer_types", "attention_bias",
        "attn_logit_softcapping", "final_logit_softcapping", "rope_local_base_freq", "sliding_window_pattern",
        "_sliding_window_pattern",
    },
}  # fmt: skip

# Attributes that do not change what the forward pass computes: bookkeeping, training, output options.
_WITHOUT_EFFECT = {
    "architectures", "transformers_version", "torch_dtype", "dtype", "use_cache", "initializer_range", "_name_or_path",
    "attention_dropout", "hidden_dropout", "pad_token_id", "pretraining_tp", "cache_implementation", "id2label",
    "label2id", "problem_type", "output_attentions", "output_hidden_states", "return_dict", "is_encoder_decoder",
    "chunk_size_feed_forward", "unsloth_fixed", "unsloth_version", "is_llama_config",
    "transformers.js_config", "_attn_implementation_autoset", "max_sequence_length", "model_name", "base_model",
    "mlp_dropout", "task_specific_params", "tokenizer_class", "auto_map",
}  # fmt: skip
# These have no effect only at the value given here.
_ONLY_AT = {
    "use_bidirectional_attention": (None, False),
    "rope_interleaved": (None, False),
    "partial_rotary_factor": (None, 1.0),
    "is_decoder": (None, False, True),
    "add_cross_attention": (None, False),
    "pruned_heads": (None, {}),
    "no_rope_layers": (None, []),
    "attention_multiplier": (None,),
}

# What transformers takes for an attribute that a config.json leaves out. It does not write some of them when they have
# these values, so a wrong default here is another model. What is in no table is required by name.
_DEFAULTS_OF_ALL = {
    "num_key_value_heads": None, "head_dim": None, "rms_norm_eps": 1e-6, "tie_word_embeddings": False,
    "rope_theta": 10000.0, "rope_scaling": None, "rope_parameters": None, "hidden_act": "silu",
    "bos_token_id": None, "eos_token_id": None, "attention_bias": False, "mlp_bias": False, "sliding_window": None,
    "use_sliding_window": False, "max_window_layers": 28, "layer_types": None,
    "attn_logit_softcapping": None, "final_logit_softcapping": None,
}  # fmt: skip
_DEFAULTS_OF_QWEN = {"num_key_value_heads": 32, "max_position_embeddings": 32768, "sliding_window": 4096}
_DEFAULTS_OF_GEMMA = {
    "num_key_value_heads": 4, "head_dim": 256, "hidden_activation": "gelu_pytorch_tanh", "query_pre_attn_scalar": 256,
    "bos_token_id": 2, "eos_token_id": 1, "tie_word_embeddings": True, "sliding_window": 4096,
}  # fmt: skip
_DEFAULTS = {
    "llama": {"max_position_embeddings": 2048, "bos_token_id": 1, "eos_token_id": 2},
    "mistral": {
        "max_position_embeddings": 131072, "bos_token_id": 1, "eos_token_id": 2,
        "num_key_value_heads": 8, "sliding_window": 4096,
    },
    "qwen2": _DEFAULTS_OF_QWEN,
    "qwen3": {**_DEFAULTS_OF_QWEN, "head_dim": 128},
    "gemma2": {
        **_DEFAULTS_OF_GEMMA, "max_position_embeddings": 8192,
        "attn_logit_softcapping": 50.0, "final_logit_softcapping": 30.0,
    },
    "gemma3_text": {
        **_DEFAULTS_OF_GEMMA, "max_position_embeddings": 131072, "rope_theta": 1_000_000.0,
        "rope_local_base_freq": 10000.0, "sliding_window_pattern": 6,
    },
}  # fmt: skip
_HEAD_DIM_MAY_BE_NULL = {"llama", "mistral", "qwen2"}  # null is hidden_size / num_attention_heads

_ACTIVATIONS = {"silu": "silu", "swish": "silu", "gelu_pytorch_tanh": "gelu_tanh", "gelu": "gelu"}


@dataclass(frozen=True)
class Rope:
    """One rotary embedding: its base and, where the model was stretched, how (names as in HF `rope_parameters`)."""

    theta: float
    kind: str = "default"  # default | linear | llama3 | yarn
    factor: float = 1.0
    low_freq_factor: float = 1.0
    high_freq_factor: float = 1.0
    original_length: int = 0
    beta_fast: float = 32.0
    beta_slow: float = 1.0
    truncate: bool = True
    attention_factor: float = 1.0  # multiplies cos and sin


@dataclass(frozen=True)
class ModelConfig:
    """The shape and the arithmetic of one decoder.

    Letters used in every shape comment: L layers, D hidden size, H query heads, G key/value heads, d head size,
    F feed-forward size, V vocabulary.
    """

    family: str
    vocab_size: int
    hidden_size: int
    num_layers: int
    num_heads: int
    num_kv_heads: int
    head_dim: int
    intermediate_size: int
    norm_eps: float
    ropes: tuple[Rope, ...]
    layer_rope: tuple[int, ...]  # per layer, an index into ropes
    windows: tuple[int, ...]  # per layer, how many past positions a query sees; FULL_ATTENTION for all
    activation: str = "silu"  # silu | gelu | gelu_tanh
    max_length: int = 2048
    tie_embeddings: bool = False
    norm_offset: float = 0.0  # Gemma's RMSNorm multiplies by (1 + w)
    post_norms: bool = False  # Gemma: a norm after attention and after the feed-forward
    qk_norm: bool = False
    qkv_bias: bool = False
    attn_out_bias: bool = False
    mlp_bias: bool = False
    attn_softcap: float | None = None
    final_softcap: float | None = None
    embed_scale: float = 1.0
    attn_scale: float = 1.0  # multiplies q . k
    bos_id: int | None = None
    eos_ids: tuple[int, ...] = ()

    @property
    def queries_per_group(self) -> int:
        """R: how many query heads share one key/value head."""
        return self.num_heads // self.num_kv_heads

    @classmethod
    def from_hf(cls, hf: Mapping[str, Any], *, where: str = "config.json") -> ModelConfig:
        """The configuration that a Hugging Face `config.json` describes.

        Raises InputError, naming the attribute, for an architecture, an attribute or a value that is not understood.
        """
        family = hf.get("model_type")
        if not isinstance(family, str) or family not in _FAMILIES:
            raise InputError(
                f"{where}: model_type {family!r:.80} is not supported; supported: {', '.join(sorted(_FAMILIES))}"
            )
        _refuse_unknown(hf, family, where)
        read = _Reader(_with_defaults(hf, family), where)
        gemma = family.startswith("gemma")
        heads, hidden = read.count("num_attention_heads"), read.count("hidden_size")
        head_dim = read.count("head_dim", if_null=hidden // heads if family in _HEAD_DIM_MAY_BE_NULL else None)
        windows = _windows(read, family, read.count("num_hidden_layers"))
        ropes, layer_rope = _ropes(read, family, windows)
        attention_bias = read.flag("attention_bias")
        config = cls(
            family=family,
            vocab_size=read.count("vocab_size"),
            hidden_size=hidden,
            num_layers=len(windows),
            num_heads=heads,
            num_kv_heads=read.count("num_key_value_heads", if_null=None if gemma else heads),
            head_dim=head_dim,
            intermediate_size=read.count("intermediate_size"),
            norm_eps=read.number("rms_norm_eps"),
            ropes=ropes,
            layer_rope=layer_rope,
            windows=windows,
            activation=_activation(read, "hidden_activation" if gemma else "hidden_act"),
            max_length=read.count("max_position_embeddings"),
            tie_embeddings=read.flag("tie_word_embeddings"),
            norm_offset=1.0 if gemma else 0.0,
            post_norms=gemma,
            qk_norm=family in ("qwen3", "gemma3_text"),
            qkv_bias=attention_bias or family == "qwen2",
            attn_out_bias=attention_bias,
            mlp_bias=read.flag("mlp_bias"),
            attn_softcap=read.number_or_none("attn_logit_softcapping"),
            final_softcap=read.number_or_none("final_logit_softcapping"),
            embed_scale=math.sqrt(hidden) if gemma else 1.0,
            attn_scale=(read.number("query_pre_attn_scalar") if gemma else max(head_dim, 1)) ** -0.5,
            bos_id=next(iter(read.ids("bos_token_id")), None),
            eos_ids=read.ids("eos_token_id"),
        )
        _check_heads(config, where)
        return config


def ending_too(config: ModelConfig, generation: Any, where: str) -> ModelConfig:
    """The configuration, ending also at the tokens of a generation_config.json, as `generate` of transformers does.
    Raises InputError for one that is not an object, or whose eos_token_id is not token ids."""
    if not isinstance(generation, Mapping):
        raise InputError(f"{where}: a JSON object is needed")
    ids = _Reader(generation, where).ids("eos_token_id")
    return replace(config, eos_ids=tuple(dict.fromkeys((*config.eos_ids, *ids))))


def _with_defaults(hf: Mapping[str, Any], family: str) -> dict[str, Any]:
    """What this family reads of `hf`, completed as transformers completes it; another family's attributes are off."""
    read = _READ_BY_ALL | _READ_BY[family]
    return {**_DEFAULTS_OF_ALL, **_DEFAULTS[family], **{name: value for name, value in hf.items() if name in read}}


def _check_heads(config: ModelConfig, where: str) -> None:
    heads, kv_heads, head_dim = config.num_heads, config.num_kv_heads, config.head_dim
    if heads % kv_heads:
        raise InputError(f"{where}: num_attention_heads {heads} is not a multiple of num_key_value_heads {kv_heads}")
    if head_dim < 1 or head_dim % 2:
        kind = "odd" if head_dim else "zero"
        raise InputError(f"{where}: head_dim {head_dim} is {kind}; rotary embeddings need a positive even one")


class _Reader:
    """Reads attributes, or says which one is missing or of the wrong type, and what it should be."""

    def __init__(self, values: Mapping[str, Any], where: str):
        self.values, self.where = values, where

    def _refuse(self, name: str, needed: str) -> InputError:
        return InputError(f"{self.where}: {name} is {self.values.get(name)!r:.80}; {needed} is needed")

    def count(self, name: str, *, if_null: int | None = None, least: int = 1) -> int:
        value = self.values.get(name)
        if value is None and if_null is not None:
            return if_null
        if not isinstance(value, Integral) or isinstance(value, bool) or value < least:
            raise self._refuse(name, "a positive whole number" if least else "a whole number from 0")
        return int(value)

    def number(self, name: str) -> float:
        value = self.values.get(name)
        if not isinstance(value, Real) or isinstance(value, bool) or not 0 < value < 1e300:  # NaN is not either
            raise self._refuse(name, "a positive number")
        return float(value)

    def number_or_none(self, name: str) -> float | None:
        return None if self.values.get(name) is None else self.number(name)

    def flag(self, name: str) -> bool:
        value = self.values.get(name)
        if not isinstance(value, bool):
            raise self._refuse(name, "true or false")
        return value

    def ids(self, name: str) -> tuple[int, ...]:
        """Token ids: none, one or a list."""
        value = self.values.get(name)
        ids = value if isinstance(value, (list, tuple)) else [] if value is None else [value]
        if not all(isinstance(i, Integral) and not isinstance(i, bool) and i >= 0 for i in ids):
            raise self._refuse(name, "a token id, a list of token ids or null")
        return tuple(int(i) for i in ids)

    def table(self, name: str) -> Mapping[str, Any]:
        """A nested object; empty where it is null or absent."""
        value = self.values.get(name)
        if value is not None and not isinstance(value, Mapping):
            raise self._refuse(name, "an object or null")
        return value or {}


def _activation(read: _Reader, name: str) -> str:
    value = read.values.get(name)
    if not isinstance(value, str) or value not in _ACTIVATIONS:
        raise InputError(
            f"{read.where}: activation {value!r:.80} is not supported; {name} can be {', '.join(_ACTIVATIONS)}"
        )
    return _ACTIVATIONS[value]


def _refuse_unknown(hf: Mapping[str, Any], family: str, where: str) -> None:
    known = _READ_BY_ALL | _READ_BY[family] | _WITHOUT_EFFECT
    for name, value in hf.items():
        if name in known and name not in _ONLY_AT:
            continue
        if name in _ONLY_AT and value in _ONLY_AT[name]:
            continue
        if name in set().union(*_READ_BY.values()) and value in (None, False):
            continue  # another family's switch, switched off
        raise InputError(f"{where}: attribute {name!r} = {value!r:.80} is not understood for model_type {family!r}")


def _windows(read: _Reader, family: str, layers: int) -> tuple[int, ...]:
    """Per layer, the sliding window (FULL_ATTENTION where there is none)."""
    qwen = family in ("qwen2", "qwen3")
    if family == "llama" or (qwen and not read.flag("use_sliding_window")):
        return (FULL_ATTENTION,) * layers
    window = read.count("sliding_window", if_null=FULL_ATTENTION)
    if family == "mistral":
        return (window,) * layers
    kinds = read.values["layer_types"]
    if kinds is None:
        kinds = _default_layer_types(read, family, layers)
    known = ("full_attention", "sliding_attention")
    if not isinstance(kinds, (list, tuple)) or len(kinds) != layers or not all(kind in known for kind in kinds):
        raise InputError(
            f"{read.where}: layer_types must name full_attention or sliding_attention for each of {layers} layers"
        )
    if family == "gemma3_text" and window == FULL_ATTENTION and "sliding_attention" in kinds:
        raise read._refuse("sliding_window", "the window of its sliding layers, whose rotary embedding is their own,")
    return tuple(window if kind == "sliding_attention" else FULL_ATTENTION for kind in kinds)


def _default_layer_types(read: _Reader, family: str, layers: int) -> list[str]:
    if family in ("qwen2", "qwen3"):
        first = read.count("max_window_layers", least=0)
        return ["sliding_attention" if i >= first else "full_attention" for i in range(layers)]
    period = 2 if family == "gemma2" else read.count("sliding_window_pattern")
    return ["full_attention" if (i + 1) % period == 0 else "sliding_attention" for i in range(layers)]


def _ropes(read: _Reader, family: str, windows: tuple[int, ...]) -> tuple[tuple[Rope, ...], tuple[int, ...]]:
    """The distinct rotary embeddings and, per layer, which one it uses.

    As in transformers, a `rope_scaling` (its version 4) is read before `rope_parameters` (its version 5).
    """
    theta, scaling, parameters = read.number("rope_theta"), read.table("rope_scaling"), read.table("rope_parameters")
    length, where = read.count("max_position_embeddings"), read.where
    if family != "gemma3_text":
        return (_rope(scaling or parameters, theta, length, where),), (0,) * len(windows)
    for name in parameters.keys() - {"sliding_attention", "full_attention"}:
        raise InputError(
            f"{where}: rope_parameters has {name!r}; for gemma3_text it has 'sliding_attention' and 'full_attention'"
        )
    nested = _Reader(parameters, f"{where}: rope_parameters")
    local, whole = nested.table("sliding_attention"), {**nested.table("full_attention"), **scaling}
    ropes = (
        _rope(local, read.number("rope_local_base_freq"), length, where),
        _rope(whole, theta, length, where),
    )
    return ropes, tuple(0 if window else 1 for window in windows)


_ROPE_KEYS = {
    "default": {"rope_theta"},
    "linear": {"rope_theta", "factor"},
    "llama3": {"rope_theta", "factor", "low_freq_factor", "high_freq_factor", "original_max_position_embeddings"},
    "yarn": {
        "rope_theta", "factor", "original_max_position_embeddings", "attention_factor", "beta_fast", "beta_slow",
        "mscale", "mscale_all_dim", "truncate",
    },
}  # fmt: skip


_ROPE_DEFAULTS = {
    "factor": 1.0, "low_freq_factor": 1.0, "high_freq_factor": 1.0, "beta_fast": 32.0, "beta_slow": 1.0,
    "truncate": True,
}  # fmt: skip


def _rope(described: Mapping[str, Any], theta: float, max_length: int, where: str) -> Rope:
    """One rotary embedding; `theta` and `max_length` hold where `described` does not say."""
    kind = described.get("rope_type") or described.get("type") or "default"
    if not isinstance(kind, str) or kind not in _ROPE_KEYS:
        raise InputError(f"{where}: rope type {kind!r:.80} is not supported; supported: {', '.join(_ROPE_KEYS)}")
    given = {k: v for k, v in described.items() if k not in ("rope_type", "type") and v is not None}
    if given.get("partial_rotary_factor", 1.0) == 1.0:
        given.pop("partial_rotary_factor", None)
    for name in given.keys() - _ROPE_KEYS[kind]:
        raise InputError(f"{where}: rope attribute {name!r} is not understood for rope type {kind!r}")
    for name in _ROPE_KEYS[kind] & {"factor", "low_freq_factor", "high_freq_factor"}:
        if name not in given:
            raise InputError(f"{where}: rope type {kind!r} needs {name!r}")
    defaults = {**_ROPE_DEFAULTS, "rope_theta": theta, "original_max_position_embeddings": max_length}
    read = _Reader({**defaults, **given}, where)
    return Rope(
        theta=read.number("rope_theta"),
        kind=kind,
        factor=read.number("factor"),
        low_freq_factor=read.number("low_freq_factor"),
        high_freq_factor=read.number("high_freq_factor"),
        original_length=read.count("original_max_position_embeddings"),
        beta_fast=read.number("beta_fast"),
        beta_slow=read.number("beta_slow"),
        truncate=read.flag("truncate"),
        attention_factor=_yarn_attention_factor(read) if kind == "yarn" else 1.0,
    )


def _yarn_attention_factor(read: _Reader) -> float:
    """YaRN's temperature (Peng et al. 2023, section 3.4), with DeepSeek's mscale variant as HF reads it."""
    if "attention_factor" in read.values:
        return read.number("attention_factor")
    factor = read.number("factor")

    def scale(mscale: float) -> float:
        return 0.1 * mscale * math.log(factor) + 1.0 if factor > 1 else 1.0

    if read.values.get("mscale") and read.values.get("mscale_all_dim"):
        return scale(read.number("mscale")) / scale(read.number("mscale_all_dim"))
    return scale(1.0)
