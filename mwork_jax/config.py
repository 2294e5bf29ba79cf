"""What a decoder of the Llama, Mistral, Qwen and Gemma families is, as one frozen value.

`ModelConfig.from_hf` reads a Hugging Face `config.json` (of transformers 4 or 5) and raises on every attribute that it
does not understand: a model that is almost right is worse than a clear refusal.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
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
        if family not in _FAMILIES:
            raise InputError(
                f"{where}: model_type {family!r} is not supported; supported: {', '.join(sorted(_FAMILIES))}"
            )
        _refuse_unknown(hf, family, where)
        need = _Reader(hf, where)
        heads, hidden, layers = need("num_attention_heads"), need("hidden_size"), need("num_hidden_layers")
        head_dim = hf.get("head_dim") or hidden // heads
        gemma = family.startswith("gemma")
        windows = _windows(hf, family, layers, where)
        ropes, layer_rope = _ropes(hf, family, windows, where)
        activation = hf.get("hidden_activation") or hf.get("hidden_act") or ("gelu_pytorch_tanh" if gemma else "silu")
        if activation not in _ACTIVATIONS:
            raise InputError(
                f"{where}: activation {activation!r} is not supported; supported: {', '.join(_ACTIVATIONS)}"
            )
        attention_bias = bool(hf.get("attention_bias", False))
        eos = hf.get("eos_token_id")
        config = cls(
            family=family,
            vocab_size=need("vocab_size"),
            hidden_size=hidden,
            num_layers=layers,
            num_heads=heads,
            num_kv_heads=hf.get("num_key_value_heads") or heads,
            head_dim=head_dim,
            intermediate_size=need("intermediate_size"),
            norm_eps=float(hf.get("rms_norm_eps", 1e-6)),
            ropes=ropes,
            layer_rope=layer_rope,
            windows=windows,
            activation=_ACTIVATIONS[activation],
            max_length=int(hf.get("max_position_embeddings", 2048)),
            tie_embeddings=bool(hf.get("tie_word_embeddings", gemma)),
            norm_offset=1.0 if gemma else 0.0,
            post_norms=gemma,
            qk_norm=family in ("qwen3", "gemma3_text"),
            qkv_bias=attention_bias or family == "qwen2",
            attn_out_bias=attention_bias,
            mlp_bias=bool(hf.get("mlp_bias", False)),
            attn_softcap=hf.get("attn_logit_softcapping"),
            final_softcap=hf.get("final_logit_softcapping"),
            embed_scale=math.sqrt(hidden) if gemma else 1.0,
            attn_scale=(hf.get("query_pre_attn_scalar") or head_dim) ** -0.5 if gemma else head_dim**-0.5,
            bos_id=_first(hf.get("bos_token_id")),
            eos_ids=tuple(eos) if isinstance(eos, (list, tuple)) else () if eos is None else (eos,),
        )
        if config.num_heads % config.num_kv_heads:
            raise InputError(
                f"{where}: num_attention_heads {heads} is not a multiple of num_key_value_heads {config.num_kv_heads}"
            )
        if config.head_dim % 2:
            raise InputError(f"{where}: head_dim {head_dim} is odd; rotary embeddings need an even one")
        return config


class _Reader:
    """Reads a required attribute, or says which one is missing."""

    def __init__(self, hf: Mapping[str, Any], where: str):
        self.hf, self.where = hf, where

    def __call__(self, name: str) -> int:
        value = self.hf.get(name)
        if not isinstance(value, int) or value <= 0:
            raise InputError(f"{self.where}: {name} is {value!r}; a positive whole number is needed")
        return value


def _first(value: Any) -> int | None:
    return value[0] if isinstance(value, (list, tuple)) and value else value if isinstance(value, int) else None


def _refuse_unknown(hf: Mapping[str, Any], family: str, where: str) -> None:
    known = _READ_BY_ALL | _READ_BY[family] | _WITHOUT_EFFECT
    for name, value in hf.items():
        if name in known and name not in _ONLY_AT:
            continue
        if name in _ONLY_AT and value in _ONLY_AT[name]:
            continue
        if name in set().union(*_READ_BY.values()) and value in (None, False):
            continue  # another family's switch, switched off
        raise InputError(f"{where}: attribute {name!r} = {value!r} is not understood for model_type {family!r}")


def _windows(hf: Mapping[str, Any], family: str, layers: int, where: str) -> tuple[int, ...]:
    """Per layer, the sliding window (FULL_ATTENTION where there is none)."""
    window = hf.get("sliding_window") or FULL_ATTENTION
    if family in ("llama",):
        return (FULL_ATTENTION,) * layers
    if family == "mistral":
        return (window,) * layers
    if family in ("qwen2", "qwen3") and not hf.get("use_sliding_window", False):
        return (FULL_ATTENTION,) * layers
    kinds = hf.get("layer_types")
    if kinds is None:
        kinds = _default_layer_types(hf, family, layers)
    if len(kinds) != layers or not set(kinds) <= {"full_attention", "sliding_attention"}:
        raise InputError(
            f"{where}: layer_types must name full_attention or sliding_attention for each of {layers} layers"
        )
    return tuple(window if kind == "sliding_attention" else FULL_ATTENTION for kind in kinds)


def _default_layer_types(hf: Mapping[str, Any], family: str, layers: int) -> list[str]:
    if family in ("qwen2", "qwen3"):
        first = hf.get("max_window_layers", 28)
        return ["sliding_attention" if i >= first else "full_attention" for i in range(layers)]
    period = 2 if family == "gemma2" else hf.get("sliding_window_pattern") or hf.get("_sliding_window_pattern") or 6
    return ["full_attention" if (i + 1) % period == 0 else "sliding_attention" for i in range(layers)]


def _ropes(
    hf: Mapping[str, Any], family: str, windows: tuple[int, ...], where: str
) -> tuple[tuple[Rope, ...], tuple[int, ...]]:
    """The distinct rotary embeddings and, per layer, which one it uses."""
    parameters = hf.get("rope_parameters") or {}
    length = int(hf.get("max_position_embeddings", 2048))
    if family != "gemma3_text":
        described = {"rope_theta": hf.get("rope_theta", 10000.0), **(hf.get("rope_scaling") or {}), **parameters}
        return (_rope(described, length, where),), (0,) * len(windows)
    if parameters:
        local, whole = parameters.get("sliding_attention"), parameters.get("full_attention")
        if not local or not whole:
            raise InputError(f"{where}: rope_parameters needs 'sliding_attention' and 'full_attention' for gemma3_text")
    else:
        local = {"rope_theta": hf.get("rope_local_base_freq", 10000.0)}
        whole = {"rope_theta": hf.get("rope_theta", 1_000_000.0), **(hf.get("rope_scaling") or {})}
    ropes = (_rope(local, length, where), _rope(whole, length, where))
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


def _rope(described: Mapping[str, Any], max_length: int, where: str) -> Rope:
    kind = described.get("rope_type") or described.get("type") or "default"
    if kind not in _ROPE_KEYS:
        raise InputError(f"{where}: rope type {kind!r} is not supported; supported: {', '.join(_ROPE_KEYS)}")
    given = {k: v for k, v in described.items() if k not in ("rope_type", "type") and v is not None}
    if given.get("partial_rotary_factor", 1.0) == 1.0:
        given.pop("partial_rotary_factor", None)
    for name in given.keys() - _ROPE_KEYS[kind]:
        raise InputError(f"{where}: rope attribute {name!r} is not understood for rope type {kind!r}")
    for name in _ROPE_KEYS[kind] & {"factor", "low_freq_factor", "high_freq_factor"}:
        if name not in given:
            raise InputError(f"{where}: rope type {kind!r} needs {name!r}")
    factor = float(given.get("factor", 1.0))
    return Rope(
        theta=float(given["rope_theta"]),
        kind=kind,
        factor=factor,
        low_freq_factor=float(given.get("low_freq_factor", 1.0)),
        high_freq_factor=float(given.get("high_freq_factor", 1.0)),
        original_length=int(given.get("original_max_position_embeddings", max_length)),
        beta_fast=float(given.get("beta_fast", 32.0)),
        beta_slow=float(given.get("beta_slow", 1.0)),
        truncate=bool(given.get("truncate", True)),
        attention_factor=_yarn_attention_factor(given, factor) if kind == "yarn" else 1.0,
    )


def _yarn_attention_factor(given: Mapping[str, Any], factor: float) -> float:
    """YaRN's temperature (Peng et al. 2023, section 3.4), with DeepSeek's mscale variant as HF reads it."""
    if "attention_factor" in given:
        return float(given["attention_factor"])

    def scale(mscale: float) -> float:
        return 0.1 * mscale * math.log(factor) + 1.0 if factor > 1 else 1.0

    if given.get("mscale") and given.get("mscale_all_dim"):
        return scale(given["mscale"]) / scale(given["mscale_all_dim"])
    return scale(1.0)
