"""What to plan for: a configuration, without weights."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from mwork_jax.config import ModelConfig
from mwork_jax.errors import InputError
from mwork_jax.families import config_from_hf
from mwork_jax.runtime.files import read_json

_LLAMA_2 = {
    "model_type": "llama", "vocab_size": 32000, "rms_norm_eps": 1e-5, "max_position_embeddings": 4096,
    "rope_theta": 10000.0, "tie_word_embeddings": False,
}  # fmt: skip
# The shapes of the paper's models, as their authors published them; Vicuna is a Llama 2 7B.
NAMED: Mapping[str, Mapping[str, object]] = {
    "mistral-7b": {
        "model_type": "mistral", "vocab_size": 32000, "hidden_size": 4096, "intermediate_size": 14336,
        "num_hidden_layers": 32, "num_attention_heads": 32, "num_key_value_heads": 8, "rms_norm_eps": 1e-5,
        "max_position_embeddings": 32768, "sliding_window": 4096, "rope_theta": 10000.0, "tie_word_embeddings": False,
    },
    "llama-2-7b": {
        **_LLAMA_2, "hidden_size": 4096, "intermediate_size": 11008, "num_hidden_layers": 32,
        "num_attention_heads": 32, "num_key_value_heads": 32,
    },
    "llama-2-70b": {
        **_LLAMA_2, "hidden_size": 8192, "intermediate_size": 28672, "num_hidden_layers": 80,
        "num_attention_heads": 64, "num_key_value_heads": 8,
    },
}  # fmt: skip


def config_of(source: str) -> ModelConfig:
    """The configuration of a config.json, of a folder that holds one, or of one of NAMED. No weights are read. Raises
    InputError where there is none."""
    if source.lower() in NAMED:
        return config_from_hf(NAMED[source.lower()], where=source)
    path = Path(source).expanduser()
    if path.is_dir():
        path = path / "config.json"
    if not path.is_file():
        raise InputError(f"{source}: no configuration; give a config.json, a folder with one, or {', '.join(NAMED)}")
    values = read_json(path)
    if not isinstance(values, dict):
        raise InputError(f"{path}: a JSON object is needed")
    return config_from_hf(values, where=str(path))
