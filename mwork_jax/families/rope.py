"""Rotary embeddings as a `config.json` describes them: read and written."""

from __future__ import annotations

import math
from collections.abc import Mapping

from mwork_jax.config import Rope
from mwork_jax.errors import InputError
from mwork_jax.families.reader import Reader

_ROPE_KEYS = {
    "default": {"rope_theta"},
    "linear": {"rope_theta", "factor"},
    "llama3": {"rope_theta", "factor", "low_freq_factor", "high_freq_factor", "original_max_position_embeddings"},
    "yarn": {
        "rope_theta", "factor", "original_max_position_embeddings", "attention_factor", "beta_fast", "beta_slow",
        "mscale", "mscale_all_dim", "truncate",
    },
    "longrope": {
        "rope_theta", "factor", "original_max_position_embeddings", "attention_factor", "short_factor", "long_factor",
    },
}  # fmt: skip


_ROPE_DEFAULTS = {
    "factor": 1.0, "low_freq_factor": 1.0, "high_freq_factor": 1.0, "beta_fast": 32.0, "beta_slow": 1.0,
    "truncate": True,
}  # fmt: skip


def read_rope(described: Mapping[str, object], theta: float, max_length: int, where: str) -> Rope:
    """One rotary embedding; `theta` and `max_length` stand in for a base and an original length that are missing."""
    kind = described.get("rope_type") or described.get("type") or "default"
    if not isinstance(kind, str) or kind not in _ROPE_KEYS:
        raise InputError(f"{where}: rope type {kind!r:.80} is not supported; supported: {', '.join(_ROPE_KEYS)}")
    given = {k: v for k, v in described.items() if k not in ("rope_type", "type") and v is not None}
    given.pop("finetuned", None)  # a note of YaRN's authors, which transformers ignores
    if given.get("partial_rotary_factor", 1.0) == 1.0:
        given.pop("partial_rotary_factor", None)
    for name in given.keys() - _ROPE_KEYS[kind]:
        raise InputError(f"{where}: rope attribute {name!r} is not understood for rope type {kind!r}")
    required = {"factor", "low_freq_factor", "high_freq_factor", "short_factor", "long_factor"}
    for name in sorted(_ROPE_KEYS[kind] & required):
        if name not in given:
            raise InputError(f"{where}: rope type {kind!r} needs {name!r}")
    defaults = {**_ROPE_DEFAULTS, "rope_theta": theta, "original_max_position_embeddings": max_length}
    read = Reader({**defaults, **given}, where)
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
        attention_factor=_ATTENTION_FACTORS[kind](read) if kind in _ATTENTION_FACTORS else 1.0,
        pair_factors=read.numbers("short_factor") if kind == "longrope" else (),
        long_pair_factors=read.numbers("long_factor") if kind == "longrope" else (),
    )


def _yarn_attention_factor(read: Reader) -> float:
    """YaRN's temperature (Peng et al. 2023, section 3.4), with DeepSeek's mscale variant as HF reads it."""
    if "attention_factor" in read.values:
        return read.number("attention_factor")
    factor = read.number("factor")

    def scale(mscale: float) -> float:
        return 0.1 * mscale * math.log(factor) + 1.0 if factor > 1 else 1.0

    if read.values.get("mscale") and read.values.get("mscale_all_dim"):
        return scale(read.number("mscale")) / scale(read.number("mscale_all_dim"))
    return scale(1.0)


def _longrope_attention_factor(read: Reader) -> float:
    """LongRoPE's temperature (Ding et al. 2024, section 3.3)."""
    if "attention_factor" in read.values:
        return read.number("attention_factor")
    factor, original = read.number("factor"), read.count("original_max_position_embeddings", minimum=2)
    return math.sqrt(1 + math.log(factor) / math.log(original)) if factor > 1 else 1.0


_ATTENTION_FACTORS = {"yarn": _yarn_attention_factor, "longrope": _longrope_attention_factor}


def hf_rope(rope: Rope) -> dict[str, object]:
    """A rotary embedding as `rope_parameters` describes it; `read_rope` reads the same one back."""
    described: dict[str, object] = {"rope_type": rope.kind, "rope_theta": rope.theta}
    if rope.kind != "default":
        described["factor"] = rope.factor
    if rope.kind in ("llama3", "yarn", "longrope"):
        described["original_max_position_embeddings"] = rope.original_length
    if rope.kind == "llama3":
        described |= {"low_freq_factor": rope.low_freq_factor, "high_freq_factor": rope.high_freq_factor}
    if rope.kind == "yarn":
        described |= {"beta_fast": rope.beta_fast, "beta_slow": rope.beta_slow, "truncate": rope.truncate}
    if rope.kind in ("yarn", "longrope"):
        described["attention_factor"] = rope.attention_factor
    if rope.kind == "longrope":
        described |= {"short_factor": list(rope.pair_factors), "long_factor": list(rope.long_pair_factors)}
    return described
