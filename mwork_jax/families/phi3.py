"""Phi 3 and Phi 4 (mini too): Llama with queries, keys and values in one matrix, gate and up in another, rotary
embeddings that may turn a part of each head and be stretched by a factor for every pair."""

from __future__ import annotations

import math
from dataclasses import replace

from mwork_jax.config import ModelConfig, Rope
from mwork_jax.errors import InputError
from mwork_jax.families.base import Family, Fused, FusedRows, LayerRopes, Windows, hf_window, one_window
from mwork_jax.families.gguf import GGUF_LAYER, GGUFForm
from mwork_jax.families.gguf_metadata import SLIDING_WINDOW, GGUFMetadata
from mwork_jax.families.reader import Reader
from mwork_jax.families.rope import hf_rope, read_rope


def _rope(read: Reader) -> dict[str, object]:
    """The rotary embedding's description. "su" and "yarn" are earlier names of longrope."""
    described = dict(read.table("rope_scaling") or read.table("rope_parameters"))
    kind = described.pop("type", None)
    described["rope_type"] = kind = described.get("rope_type") or kind or "default"
    if kind in ("su", "yarn", "longrope"):
        original = read.count("original_max_position_embeddings")
        described |= {"rope_type": "longrope", "original_max_position_embeddings": original}
        if described.get("factor") is None:
            described["factor"] = read.count("max_position_embeddings") / original
    return described


def _share(read: Reader) -> float:
    """Which part of a head is rotated."""
    parameters = Reader(_rope(read), read.where)
    own = "partial_rotary_factor" in parameters.values
    return (parameters if own else read).number("partial_rotary_factor")


def _ropes(read: Reader, windows: Windows) -> LayerRopes:
    described = {name: value for name, value in _rope(read).items() if name != "partial_rotary_factor"}
    rope = read_rope(described, read.number("rope_theta"), read.count("max_position_embeddings"), read.where)
    return (rope,), (0,) * len(windows)


def _special(config: ModelConfig, read: Reader) -> ModelConfig:
    rotated = int(config.head_dim * _share(read))
    if rotated < 2 or rotated % 2 or rotated > config.head_dim or (config.head_dim - rotated) % 2:
        raise read.refusal("partial_rotary_factor", f"a share of a head's {config.head_dim} entries that is even")
    return replace(config, rotary_dim=None if rotated == config.head_dim else rotated)


def _fused(config: ModelConfig) -> Fused:
    queries, keys = config.num_heads * config.head_dim, config.num_kv_heads * config.head_dim
    width, inner = queries + 2 * keys, config.intermediate_size
    return {
        "self_attn.qkv_proj.weight": {
            "self_attn.q_proj.weight": FusedRows(1, width, 0, queries),
            "self_attn.k_proj.weight": FusedRows(1, width, queries, queries + keys),
            "self_attn.v_proj.weight": FusedRows(1, width, queries + keys, width),
        },
        "mlp.gate_up_proj.weight": {
            "mlp.gate_proj.weight": FusedRows(1, 2 * inner, 0, inner),
            "mlp.up_proj.weight": FusedRows(1, 2 * inner, inner, 2 * inner),
        },
    }


def _hf_ropes(config: ModelConfig) -> dict[str, object]:
    share = (config.rotary_dim or config.head_dim) / config.head_dim
    return hf_rope(config.ropes[0]) | {"partial_rotary_factor": share}


def _original_length(rope: Rope, config: ModelConfig) -> int:
    return rope.original_length if rope.kind == "longrope" else config.max_length


_FACTORS = {"short_factor": "rope_factors_short.weight", "long_factor": "rope_factors_long.weight"}
_TEMPERATURE = "rope.scaling.attn_factor"


def _gguf_lengths(m: GGUFMetadata) -> tuple[int, int]:
    """The context, and the one before it was stretched."""
    length = m.count("context_length")
    return length, m.get("rope.scaling.original_context_length", length)


def _gguf_scaling(m: GGUFMetadata) -> dict[str, object] | None:
    """The converter writes a factor for every pair as two tensors and does not say that this is longrope."""
    kind, factors = m.text("rope.scaling.type", "none"), any(map(m.has, _FACTORS.values()))
    if kind not in ("none", "longrope") or (kind == "longrope" and not factors):
        problem = f"rope scaling {kind!r:.80}" + (" without its factors" if kind == "longrope" else "")
        raise InputError(f"{m.where}: {problem} is not supported for {m.arch}")
    temperature = m.get(_TEMPERATURE, 1.0)
    if not factors:
        if temperature != 1.0:
            raise InputError(
                f"{m.where}: '{m.arch}.{_TEMPERATURE}' is {temperature!r:.40}, without factors of longrope"
            )
        return None
    scaling: dict[str, object] = {"rope_type": "longrope"}
    scaling |= {name: m.vector(tensor).tolist() for name, tensor in _FACTORS.items()}
    length, original = _gguf_lengths(m)
    stretched = length > original > 1
    usual = math.sqrt(1 + math.log(length / original) / math.log(original)) if stretched else 1.0
    # The usual one, to the digits of a float32, is computed again, exactly.
    return scaling if math.isclose(temperature, usual, rel_tol=1e-6) else scaling | {"attention_factor": temperature}


def _gguf_attributes(m: GGUFMetadata) -> dict[str, object]:
    m.need(SLIDING_WINDOW)  # 0 says that there is none; the first files, which have no such entry, leave it open
    rotated, head_dim = m.count("rope.dimension_count"), m.head_dim()
    if rotated % 2 or rotated > head_dim:
        raise InputError(
            f"{m.where}: '{m.arch}.rope.dimension_count' is {rotated}; an even number up to {head_dim} is needed"
        )
    return {
        "sliding_window": m.window(),
        "original_max_position_embeddings": _gguf_lengths(m)[1],
        # A little more than the share, so that int(head size * share) is the count in spite of rounding.
        "partial_rotary_factor": 1.0 if rotated == head_dim else math.nextafter(rotated / head_dim, 2.0),
    }


PHI3 = Family(
    model_type="phi3",
    hf_class="Phi3ForCausalLM",
    about="Phi 3, 3.5, 4 and 4-mini: fused matrices, partial and stretched rotary embeddings",
    limits="texts beyond the context before it was stretched (4,096 tokens in Phi-3-mini-128k)",
    checkpoints=(
        "microsoft/Phi-4-mini-instruct", "microsoft/phi-4", "microsoft/Phi-3.5-mini-instruct",
        "microsoft/Phi-3-mini-128k-instruct",
    ),
    attributes=frozenset({"sliding_window", "original_max_position_embeddings", "partial_rotary_factor"}),
    defaults={
        "rms_norm_eps": 1e-5, "max_position_embeddings": 4096, "original_max_position_embeddings": 4096,
        "partial_rotary_factor": 1.0, "bos_token_id": 1, "eos_token_id": 32000,
    },
    hf_attributes=lambda c: {
        "sliding_window": hf_window(c), "original_max_position_embeddings": _original_length(c.ropes[0], c),
    },
    inert={
        "resid_pdrop": None, "embd_pdrop": None, "interpolate_factor": (1,), "lm_head_bias": (False,),
        "full_attn_mod": (1,), "attention_bias": (False,), "mlp_bias": (False,),
    },
    windows=one_window,
    ropes=_ropes,
    hf_ropes=_hf_ropes,
    special=_special,
    fused=_fused,
    gguf=(
        GGUFForm(
            "phi3", attributes=_gguf_attributes,
            keys=frozenset({SLIDING_WINDOW, _TEMPERATURE, "rope.dimension_count"}), scaling=_gguf_scaling,
            read_tensors=frozenset(_FACTORS.values()),
            layer={**GGUF_LAYER, "attn_qkv": "self_attn.qkv_proj", "ffn_up": "mlp.gate_up_proj"},
        ),
    ),
)  # fmt: skip
