"""GGUF files of the Llama, Mistral, Qwen and Gemma families, read as if they were Hugging Face checkpoints."""

from __future__ import annotations

import math
import re
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np

from mwork_jax.errors import InputError
from mwork_jax.families.base import MOST_LAYERS
from mwork_jax.load.gguf_format import GGUFFile
from mwork_jax.load.gguf_tokenizer import build_tokenizer
from mwork_jax.load.tokenizer import check_usable

_MODEL_TYPES = {"llama": "llama", "qwen2": "qwen2", "qwen3": "qwen3", "gemma2": "gemma2", "gemma3": "gemma3_text"}
_WHOLE = {"token_embd": "model.embed_tokens", "output_norm": "model.norm", "output": "lm_head"}
_LAYER = {
    "attn_norm": "input_layernorm",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "attn_q_norm": "self_attn.q_norm",
    "attn_k_norm": "self_attn.k_norm",
    "ffn_norm": "post_attention_layernorm",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
}
# Gemma norms both ends of each block, and HF has another name for the norm before the feed-forward in them.
_GEMMA_LAYER = _LAYER | {
    "post_attention_norm": "post_attention_layernorm",
    "ffn_norm": "pre_feedforward_layernorm",
    "post_ffw_norm": "post_feedforward_layernorm",
}
_LLAMA3_FACTORS = "rope_freqs.weight"
_IN_LAYER = re.compile(r"blk\.(\d+)\.(\w+)\.(weight|bias)")

# Metadata below the architecture's name that is read, or that does not change what the model computes.
_READ = {
    "block_count", "context_length", "embedding_length", "feed_forward_length", "attention.head_count",
    "attention.head_count_kv", "attention.layer_norm_rms_epsilon", "attention.key_length", "attention.value_length",
    "attention.sliding_window", "attention.sliding_window_pattern", "rope.freq_base", "rope.freq_base_swa",
    "rope.dimension_count", "rope.scaling.type", "rope.scaling.factor", "rope.scaling.original_context_length",
    "rope.scaling.yarn_beta_fast", "rope.scaling.yarn_beta_slow", "rope.scale_linear", "attn_logit_softcapping",
    "final_logit_softcapping",
}  # fmt: skip
_NOT_ONE_NUMBER = {"rope.scaling.type", "attention.sliding_window_pattern"}
_WITHOUT_EFFECT = {"vocab_size", "rope.scaling.finetuned", "expert_used_count", "tensor_data_layout"}
_OF_IMAGES = ("mm.", "vision.")  # of a model that reads images too; what it does with text is the same
_ONLY_AT = {"attention.causal": True, "rope.scaling.attn_factor": 1.0, "rope.scaling.yarn_attn_factor": 1.0}
# The largest Gemmas divide q . k by the root of hidden / heads, not of the head size; GGUF leaves that to the reader.
_GEMMA_27B_LAYERS = {"gemma2": 46, "gemma3": 62}


class GGUFCheckpoint:
    """The weights, configuration and tokenizer of one GGUF file (a WeightSource)."""

    def __init__(self, path: str | Path):
        """Maps the file and reads its header; tensors are read later, one by one.

        Raises InputError for a file that is not GGUF, is cut short, is one part of several, or holds an architecture or
        a tensor type that is not supported.
        """
        self._file = GGUFFile(path)
        self.where = self._file.where
        arch = self._file.metadata.get("general.architecture")
        if not isinstance(arch, str) or arch not in _MODEL_TYPES:
            known = ", ".join(_MODEL_TYPES)
            raise InputError(f"{self.where}: architecture {arch!r:.80} is not supported; supported: {known}")
        self._arch = arch
        if self._file.metadata.get("split.count", 1) not in (0, 1):
            raise InputError(f"{self.where}: one part of several; join them first with llama-gguf-split --merge")
        self._gemma = self._arch.startswith("gemma")
        self._names = {self._hf_name(name): name for name in self._file.tensors if name != _LLAMA3_FACTORS}

    def names(self) -> set[str]:
        """Tensor names as in a PyTorch checkpoint; a tensor without such a name keeps its GGUF name."""
        return set(self._names)

    def read(self, name: str, dtype: np.dtype | type = np.float32) -> np.ndarray:
        """One tensor, [out, in], as HF means it: of `dtype` where the file is quantised, else the file's own float
        type.

        Raises KeyError for a name that `names()` does not have.
        """
        array = self._file.array(self._names[name], dtype)
        if self._arch == "llama" and ".q_proj." in name:
            return self._unpermuted(array, self._count("attention.head_count"), name)
        if self._arch == "llama" and ".k_proj." in name:
            return self._unpermuted(array, self._kv_heads(), name)
        if self._gemma and name.endswith("norm.weight"):
            return array.astype(np.float32) - 1  # stored as 1 + w
        return array

    def stored(self) -> str:
        """How the file holds its matrices, the type of most weights first, and the bits of the first that is quantised:
        "4-bit GGUF (Q4_0, Q6_K)"."""
        weights: Counter[str] = Counter()
        for tensor in self._file.tensors.values():
            if len(tensor.shape) > 1:
                weights[tensor.kind] += math.prod(tensor.shape)
        kinds = [kind for kind, _ in weights.most_common()]
        bits = next((f"{kind[1]}-bit " for kind in kinds if kind.startswith("Q")), "")
        return f"{bits}GGUF ({', '.join(kinds)})"

    def tokenizer(self) -> Any | None:
        """The file's tokenizer as a transformers fast tokenizer, or None where the file has none.

        Raises InputError for a kind of tokenizer that is not supported.
        """
        tokenizer = build_tokenizer(self._file.metadata, self.where)
        if tokenizer is not None:
            check_usable(tokenizer, self.where)
        return tokenizer

    def hf_config(self) -> dict[str, object]:
        """The model as a Hugging Face `config.json` would describe it.

        Raises InputError for metadata that is missing, not understood, or beyond what this package computes.
        """
        self._refuse_unknown()
        vocab_size, hidden = self._embedding_shape()
        heads = self._count("attention.head_count")
        head_dim = self._get("attention.key_length", hidden // heads)
        for key in ("attention.value_length", "rope.dimension_count"):
            if self._get(key, head_dim) != head_dim:
                raise InputError(f"{self.where}: {self._arch}.{key} is {self._get(key)}, not the head size {head_dim}")
        bos, *ends = map(self._token_id, ("bos", "eos", "eot"))
        config = {
            "model_type": _MODEL_TYPES[self._arch],
            "vocab_size": vocab_size,
            "hidden_size": hidden,
            "intermediate_size": self._count("feed_forward_length"),
            "num_hidden_layers": self._layers(),
            "num_attention_heads": heads,
            "num_key_value_heads": self._kv_heads(),
            "head_dim": head_dim,
            "rms_norm_eps": self._need("attention.layer_norm_rms_epsilon"),
            "max_position_embeddings": self._count("context_length"),
            "tie_word_embeddings": "lm_head.weight" not in self._names,
            "rope_theta": self._get("rope.freq_base", 10000.0),
            "bos_token_id": bos,
            "eos_token_id": list(dict.fromkeys(end for end in ends if end is not None)),
        }
        scaling = self._rope_scaling(head_dim, config["rope_theta"])
        return config | ({"rope_scaling": scaling} if scaling else {}) | self._family_config(head_dim, hidden // heads)

    def _family_config(self, head_dim: int, hidden_per_head: int) -> dict[str, object]:
        """What only some families have."""
        window = self._get("attention.sliding_window")
        if self._arch == "llama":
            biases: dict[str, object] = {
                "attention_bias": "model.layers.0.self_attn.q_proj.bias" in self._names,
                "mlp_bias": "model.layers.0.mlp.up_proj.bias" in self._names,
            }
            # Mistral's files say "llama"; only a window tells them apart, and only then does it matter.
            return biases if not window else {"model_type": "mistral", "sliding_window": window}
        if not self._gemma:
            if window:
                raise InputError(
                    f"{self.where}: {self._arch}.attention.sliding_window is not supported for {self._arch}"
                )
            return {}
        largest = self._layers() == _GEMMA_27B_LAYERS[self._arch]
        scale: dict[str, object] = {"query_pre_attn_scalar": hidden_per_head if largest else head_dim}
        if self._arch == "gemma2":  # the first Gemma 2 files lack these three; all models of the family share them
            return scale | {
                "sliding_window": window or 4096,
                "attn_logit_softcapping": self._get("attn_logit_softcapping", 50.0) or None,
                "final_logit_softcapping": self._get("final_logit_softcapping", 30.0) or None,
            }
        return scale | {
            "sliding_window": self._count("attention.sliding_window"),
            "layer_types": self._layer_types(),
            "rope_local_base_freq": self._get("rope.freq_base_swa", 10000.0),
            "attn_logit_softcapping": self._get("attn_logit_softcapping") or None,
            "final_logit_softcapping": self._get("final_logit_softcapping") or None,
        }

    def _layer_types(self) -> list[str]:
        """Gemma 3: which layers slide. The pattern is a period (every n-th layer sees all), or one flag per layer."""
        layers, pattern = self._layers(), self._get("attention.sliding_window_pattern", 6)
        if isinstance(pattern, np.ndarray):
            slides = [bool(flag) for flag in pattern]
        elif isinstance(pattern, int):
            slides = [pattern > 0 and (i + 1) % pattern != 0 for i in range(layers)]
        else:
            raise InputError(f"{self.where}: '{self._arch}.attention.sliding_window_pattern' is {pattern!r:.80}")
        return ["sliding_attention" if slide else "full_attention" for slide in slides]

    def _rope_scaling(self, head_dim: int, theta: float) -> dict[str, object] | None:
        """HF's `rope_scaling`, or None for plain rotary embeddings."""
        kind = self._get("rope.scaling.type", "linear" if self._get("rope.scale_linear") else "none")
        if _LLAMA3_FACTORS in self._file.tensors:
            if kind != "none":
                raise InputError(
                    f"{self.where}: both {_LLAMA3_FACTORS} and rope scaling {kind!r:.80}; one was expected"
                )
            factors = self._file.array(_LLAMA3_FACTORS).astype(np.float64)
            return llama3_scaling(factors, head_dim, theta, f"{self.where}: {_LLAMA3_FACTORS}")
        factor = self._get("rope.scaling.factor", self._get("rope.scale_linear", 1.0))
        if kind == "none" or (kind == "linear" and factor in (0.0, 1.0)):
            return None
        if kind == "linear":
            return {"rope_type": "linear", "factor": factor}
        if kind == "yarn":
            return {
                "rope_type": "yarn",
                "factor": factor,
                "original_max_position_embeddings": self._count("rope.scaling.original_context_length"),
                "beta_fast": self._get("rope.scaling.yarn_beta_fast", 32.0),
                "beta_slow": self._get("rope.scaling.yarn_beta_slow", 1.0),
            }
        raise InputError(
            f"{self.where}: rope scaling {kind!r:.80} is not supported; supported: none, linear, yarn, llama3"
        )

    def _refuse_unknown(self) -> None:
        prefix = f"{self._arch}."
        for key, value in self._file.metadata.items():
            short = key.removeprefix(prefix)
            if not key.startswith(prefix) or short in _READ | _WITHOUT_EFFECT or short.startswith(_OF_IMAGES):
                continue
            if short in _ONLY_AT and value == _ONLY_AT[short]:
                continue
            if np.ndim(value) or value:  # a switch that is off, or no experts, changes nothing
                raise InputError(f"{self.where}: metadata {key!r} = {value!r:.80} is not understood")

    def _hf_name(self, name: str) -> str:
        if match := _IN_LAYER.fullmatch(name):
            layer, part, kind = match.groups()
            table = _GEMMA_LAYER if self._gemma else _LAYER
            return f"model.layers.{layer}.{table[part]}.{kind}" if part in table else name
        part = name.removesuffix(".weight")
        return f"{_WHOLE[part]}.weight" if part in _WHOLE and part != name else name

    def _embedding_shape(self) -> tuple[int, int]:
        hidden, table = self._count("embedding_length"), self._file.tensors.get("token_embd.weight")
        if table is None or len(table.shape) != 2 or table.shape[1] != hidden:
            problem = "is missing" if table is None else f"has shape {table.shape}"
            raise InputError(f"{self.where}: token_embd.weight {problem}; [vocabulary, {hidden}] is needed")
        return table.shape[0], hidden

    def _unpermuted(self, array: np.ndarray, heads: int, name: str) -> np.ndarray:
        """Rows in HF's order. The file puts the two halves of every rotated pair next to each other: row 2i + j of a
        head is HF's row j * (head size / 2) + i."""
        if array.shape[0] % (2 * heads):
            raise InputError(f"{self.where}: {name} has {array.shape[0]} rows, not a multiple of 2 x {heads} heads")
        return array.reshape(heads, -1, 2, *array.shape[1:]).swapaxes(1, 2).reshape(array.shape)

    def _kv_heads(self) -> int:
        grouped = self._get("attention.head_count_kv")
        return self._count("attention.head_count_kv" if grouped else "attention.head_count")

    def _get(self, key: str, default: Any = None) -> Any:
        value = self._file.metadata.get(f"{self._arch}.{key}", default)
        if isinstance(value, np.ndarray) and value.dtype != bool and value.size and (value == value[0]).all():
            return value[0].item()  # a per-layer list of one and the same number
        if key not in _NOT_ONE_NUMBER and isinstance(value, (str, list, np.ndarray)):
            raise InputError(f"{self.where}: '{self._arch}.{key}' is {value!r:.80}; one number is needed")
        return value

    def _token_id(self, kind: str) -> int | None:
        key = f"tokenizer.ggml.{kind}_token_id"
        value = self._file.metadata.get(key)
        if value is not None and type(value) is not int:
            raise InputError(f"{self.where}: {key} is {value!r:.80}; one whole number is needed")
        return value

    def _need(self, key: str) -> Any:
        value = self._get(key)
        if value is None:
            raise InputError(f"{self.where}: metadata '{self._arch}.{key}' is missing")
        return value

    def _layers(self) -> int:
        layers = self._count("block_count")
        if layers > MOST_LAYERS:
            raise InputError(f"{self.where}: '{self._arch}.block_count' is {layers}; it is {MOST_LAYERS} at most")
        return layers

    def _count(self, key: str) -> int:
        value = self._need(key)
        if not isinstance(value, int) or value <= 0:
            raise InputError(f"{self.where}: '{self._arch}.{key}' is {value!r:.80}; a positive whole number is needed")
        return value


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
