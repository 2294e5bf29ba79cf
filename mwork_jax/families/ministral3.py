"""Ministral 3: Mistral with a stretched rotary embedding, and queries that grow with the logarithm of the position."""

from __future__ import annotations

from dataclasses import replace

from mwork_jax.config import Rope
from mwork_jax.errors import InputError
from mwork_jax.families.base import LayerRopes, Windows
from mwork_jax.families.gguf import IN_HALVES, GGUFForm
from mwork_jax.families.gguf_metadata import GGUFMetadata
from mwork_jax.families.gguf_rope import rope_scaling
from mwork_jax.families.mistral import MISTRAL
from mwork_jax.families.reader import Reader
from mwork_jax.families.rope import hf_rope, read_rope

_PARAMETERS = {
    "rope_type": "yarn", "rope_theta": 1_000_000.0, "factor": 16.0, "original_max_position_embeddings": 16384,
    "beta_fast": 32.0, "beta_slow": 1.0, "mscale_all_dim": 1.0, "mscale": 1.0, "llama_4_scaling_beta": 0.1,
}  # fmt: skip


def _ropes(read: Reader, windows: Windows) -> LayerRopes:
    described = dict(read.table("rope_scaling") or read.table("rope_parameters") or _PARAMETERS)
    described.pop("max_position_embeddings", None)  # that of the model, repeated
    length = read.count("max_position_embeddings")
    beta = Reader(described, f"{read.where}: rope_parameters").number("llama_4_scaling_beta")
    del described["llama_4_scaling_beta"]
    rope: Rope = read_rope(described, read.number("rope_theta"), length, read.where)
    return (replace(rope, query_scaling=beta),), (0,) * len(windows)


_QUERY_SCALE, _MSCALE = "attention.temperature_scale", "rope.scaling.yarn_log_multiplier"


def _gguf_scaling(m: GGUFMetadata) -> dict[str, object]:
    scaling = rope_scaling(m) or {}
    if scaling.get("rope_type") != "yarn":
        raise InputError(f"{m.where}: '{m.arch}.{_QUERY_SCALE}' without rope scaling 'yarn' is not understood")
    # The file has mscale_all_dim; llama.cpp takes 1 for mscale (llama-context.cpp), which all published ones have.
    mscale = {"mscale": 1.0, "mscale_all_dim": m.get(_MSCALE)} if m.get(_MSCALE) else {}
    return scaling | mscale | {"llama_4_scaling_beta": m.get(_QUERY_SCALE)}


MINISTRAL3 = replace(
    MISTRAL,
    model_type="ministral3",
    hf_class="Ministral3ForCausalLM",
    about="Ministral 3: stretched rotary embedding, queries scaled by position",
    checkpoints=("mistralai/Devstral-Small-2-24B-Instruct-2512",),
    defaults={
        "max_position_embeddings": 262144, "rms_norm_eps": 1e-5, "bos_token_id": 1, "eos_token_id": 2,
        "num_key_value_heads": 8, "head_dim": 128,
    },
    ropes=_ropes,
    hf_ropes=lambda c: hf_rope(c.ropes[0]) | {"llama_4_scaling_beta": c.ropes[0].query_scaling},
    gguf=(
        GGUFForm(
            "mistral3", when=lambda m: bool(m.get(_QUERY_SCALE)), attributes=lambda m: {"sliding_window": None},
            keys=frozenset({_QUERY_SCALE, _MSCALE}), only_at={"rope.scaling.yarn_attn_factor": (1.0,)},
            scaling=_gguf_scaling, restored=IN_HALVES,
        ),
    ),
)  # fmt: skip
