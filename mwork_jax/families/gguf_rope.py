"""Rotary embeddings as a GGUF file describes them, as Hugging Face's `rope_scaling` does."""

from __future__ import annotations

import math

import numpy as np

from mwork_jax.errors import InputError
from mwork_jax.families.gguf_metadata import GGUFMetadata

LLAMA3_FACTORS = "rope_freqs.weight"


def rope_scaling(m: GGUFMetadata) -> dict[str, object] | None:
    """How the context was stretched; None for plain rotary embeddings."""
    kind = m.text("rope.scaling.type", "linear" if m.get("rope.scale_linear") else "none")
    if m.has(LLAMA3_FACTORS):
        if kind != "none":
            raise InputError(f"{m.where}: both {LLAMA3_FACTORS} and rope scaling {kind!r:.80}; one was expected")
        return llama3_scaling(m.vector(LLAMA3_FACTORS), m.head_dim(), m.rope_theta(), f"{m.where}: {LLAMA3_FACTORS}")
    factor = m.get("rope.scaling.factor", m.get("rope.scale_linear", 1.0))
    if kind == "none" or (kind == "linear" and factor in (0.0, 1.0)):
        return None
    if kind == "linear":
        return {"rope_type": "linear", "factor": factor}
    if kind == "yarn":
        return _yarn(m, factor)
    raise InputError(f"{m.where}: rope scaling {kind!r:.80} is not supported; supported: none, linear, yarn, llama3")


def never_plain(m: GGUFMetadata) -> dict[str, object]:
    """`rope_scaling` for families that read none as their own default of a stretched one."""
    return rope_scaling(m) or {"rope_type": "default"}


def _yarn(m: GGUFMetadata, factor: float) -> dict[str, object]:
    temperature = m.get("rope.scaling.yarn_attn_factor", 1.0)
    usual = 0.1 * math.log(factor) + 1 if factor > 1 else 1.0
    # Converters write 1, or Hugging Face's attention_factor. llama.cpp ignores both and takes the usual temperature
    # (llama-context.cpp), so a file that means another one is not understood.
    if temperature != 1.0 and not math.isclose(temperature, usual, rel_tol=1e-5):
        raise InputError(
            f"{m.where}: '{m.arch}.rope.scaling.yarn_attn_factor' is {temperature!r:.40}; 1 or {usual:.6g} is needed"
        )
    return {
        "rope_type": "yarn",
        "factor": factor,
        "original_max_position_embeddings": m.count("rope.scaling.original_context_length"),
        "beta_fast": m.get("rope.scaling.yarn_beta_fast", 32.0),
        "beta_slow": m.get("rope.scaling.yarn_beta_slow", 1.0),
    }


def llama3_scaling(factors: np.ndarray, head_dim: int, theta: float, where: str) -> dict[str, object] | None:
    """Llama 3's rope scaling, recognised by the divisor of each pair's frequency, float64 [head_dim / 2].

    Only the two cut-off wavelengths (original length / low and / high factor) show in the divisors, so the low factor
    is taken as 1, which it is in every published model. Raises InputError where the divisors are not of this kind.
    """
    if factors.shape != (head_dim // 2,):
        raise InputError(f"{where} has shape {factors.shape}; one factor for each of {head_dim // 2} pairs is needed")
    if (factors == 1).all():
        return None
    turns = theta ** -(np.arange(0, head_dim, 2) / head_dim) / (2 * np.pi)  # per position
    factor = float(factors.max())
    for high, length in [(4.0, 8192.0), *_fit_llama3(factors, turns, factor)]:
        smooth = np.clip((length * turns - 1) / (high - 1), 0, 1)
        if np.allclose(1 / ((1 - smooth) / factor + smooth), factors, rtol=1e-4, atol=0):
            return {
                "rope_type": "llama3",
                "factor": factor,
                "low_freq_factor": 1.0,
                "high_freq_factor": high,
                "original_max_position_embeddings": int(length),
            }
    raise InputError(f"{where} is not the scaling of Llama 3 (the only one supported in this form)")


def _fit_llama3(factors: np.ndarray, turns: np.ndarray, factor: float) -> list[tuple[float, float]]:
    """(high factor, original length) from the divisors between 1 and `factor`: there 1 / divisor is linear in turns."""
    between = (factors > 1 + 1e-6) & (factors < factor * (1 - 1e-6))
    if between.sum() < 2:
        return []
    smooth = (1 / factors[between] - 1 / factor) / (1 - 1 / factor)
    slope, offset = np.polyfit(turns[between], smooth, 1)
    if offset >= 0:
        return []
    high = 1 - 1 / offset
    return [(round(float(high), 3), float(round(slope * (high - 1))))]
