"""Writes tiny GGUF files as llama.cpp's converter would: the independent other side of the tests of the reader."""

from __future__ import annotations

import math
from functools import cache

import numpy as np
from gguf import GGMLQuantizationType, GGUFWriter, TensorNameMap, get_tensor_name_map, quants
from gguf.constants import MODEL_ARCH_NAMES

NORMAL, UNKNOWN, CONTROL, USER_DEFINED, BYTE = 1, 2, 3, 4, 6  # what a token is, as GGUF numbers it
# Families of `tiny` and the architecture that a converter writes for each, one for every way to read a file.
ARCHITECTURES = {
    "gemma": "gemma", "cohere-norm": "command-r", "cohere2": "cohere2", "smollm3": "smollm3", "olmo3": "olmo2",
    "phi3": "phi3", "granite": "granite", "apertus": "apertus", "bloom": "bloom", "mixtral": "llama",
    "qwen3-moe": "qwen3moe", "gpt-oss": "gpt-oss",
}  # fmt: skip
_ARCHES = {name: arch for arch, name in MODEL_ARCH_NAMES.items()}
_PERMUTED = ("llama", "mistral3", "granite", "smollm3")  # whose rotary embedding turns neighbours, other than HF's


@cache
def _names(arch: str) -> TensorNameMap:
    """llama.cpp's own table of names, which the gguf package has."""
    return get_tensor_name_map(_ARCHES[arch], 64)


def gguf_name(hf_name: str, arch: str) -> str:
    stem, _, kind = hf_name.rpartition(".")
    stem = stem.replace("transformer.", "")
    if arch == "llama" and stem.endswith("mlp.gate"):  # Mixtral's router in memory; this on disk
        stem = stem.replace("mlp.gate", "block_sparse_moe.gate")
    name = _names(arch).get_name(stem)
    assert name is not None, hf_name
    return f"{name}.{kind}"


def permuted(rows: np.ndarray, heads: int) -> np.ndarray:
    """llama.cpp rotates neighbouring rows, HF rows half a head apart: row i of the first half goes to 2i, of the second
    to 2i + 1. Written out row by row, so that it shares nothing with the reader."""
    size = len(rows) // heads
    out = np.empty_like(rows)
    for head in range(heads):
        for i in range(size // 2):
            out[head * size + 2 * i] = rows[head * size + i]
            out[head * size + 2 * i + 1] = rows[head * size + size // 2 + i]
    return out


def scalar_metadata(config, arch: str) -> dict:
    """The numbers below the architecture's name, from a transformers configuration: what every converter writes, then
    the architecture's own."""
    h = config.to_dict()
    rope = h.get("rope_parameters") or {}
    found = {
        "block_count": config.num_hidden_layers,
        "context_length": h["max_position_embeddings"],
        "embedding_length": h["hidden_size"],
        "feed_forward_length": h["intermediate_size"],
        "attention.head_count": config.num_attention_heads,
        "attention.head_count_kv": h.get("num_key_value_heads"),
        "attention.layer_norm_rms_epsilon": h.get("rms_norm_eps"),
        "attention.layer_norm_epsilon": h.get("layer_norm_eps"),
        "attention.key_length": h.get("head_dim"),
        "attention.value_length": h.get("head_dim"),
        "expert_count": h.get("num_local_experts"),
        "expert_used_count": h.get("num_experts_per_tok"),
        "rope.freq_base_swa": rope.get("sliding_attention", {}).get("rope_theta"),
        **_rope_metadata(rope.get("full_attention", rope)),
    }
    own = _OWN.get(arch, lambda h: {})(h)
    if arch in ("llama", "mistral3", "granite", "smollm3", "apertus"):
        own["rope.dimension_count"] = h.get("head_dim") or h["hidden_size"] // h["num_attention_heads"]
    return {key: value for key, value in (found | own).items() if value is not None}


def _rope_metadata(rope: dict) -> dict:
    found = {"rope.freq_base": rope.get("rope_theta")}
    if rope.get("rope_type") in ("linear", "yarn"):
        found |= {"rope.scaling.type": rope["rope_type"], "rope.scaling.factor": float(rope["factor"])}
    if rope.get("rope_type") == "yarn":
        found["rope.scaling.original_context_length"] = rope["original_max_position_embeddings"]
        found["rope.scaling.yarn_attn_factor"] = rope.get("attention_factor")
        found |= {f"rope.scaling.yarn_{name}": rope.get(name) for name in ("beta_fast", "beta_slow")}
    return found


def _phi3_metadata(h: dict) -> dict:
    rope, length = h["rope_parameters"], h["max_position_embeddings"]
    original = rope.get("original_max_position_embeddings", h["original_max_position_embeddings"])
    found = {
        "rope.scaling.original_context_length": original,
        "rope.dimension_count": int(rope.get("partial_rotary_factor", 1.0) * h["hidden_size"])
        // h["num_attention_heads"],
        "attention.sliding_window": h["sliding_window"] or 0,
    }
    if "long_factor" in rope:
        scale = length / original
        found["rope.scaling.attn_factor"] = math.sqrt(1 + math.log(scale) / math.log(original)) if scale > 1 else 1.0
    return found


def _bloom_metadata(h: dict) -> dict:
    return {
        "context_length": h.get("seq_length", h["hidden_size"]),
        "feed_forward_length": 4 * h["hidden_size"],
        "attention.head_count_kv": h["n_head"],
        "attention.layer_norm_epsilon": h["layer_norm_epsilon"],
    }


def _window(h: dict) -> dict:
    return {"attention.sliding_window": h.get("sliding_window")}


def _olmo_metadata(h: dict) -> dict:
    if "sliding_window" not in h:
        return {}
    pattern = [kind == "sliding_attention" for kind in h["layer_types"]]
    return _window(h) | {"attention.sliding_window_pattern": pattern}


# What the converters of these architectures write beside, or instead of, what all of them do.
_OWN = {
    "llama": _window,
    "gemma": lambda h: {"rope.freq_base": None},
    "gemma2": lambda h: (
        _window(h)
        | {n: float(h[n]) for n in ("attn_logit_softcapping", "final_logit_softcapping")}
        | {"rope.freq_base": None}
    ),
    "gemma3": _window,
    "command-r": lambda h: {"logit_scale": h["logit_scale"], "rope.scaling.type": "none"},
    "cohere2": lambda h: (
        _window(h)
        | {
            "logit_scale": h["logit_scale"],
            "vocab_size": h["vocab_size"],
            "rope.dimension_count": h["hidden_size"] // h["num_attention_heads"],
            "rope.scaling.type": "none",
        }
    ),
    "olmo2": _olmo_metadata,
    "phi3": _phi3_metadata,
    "granite": lambda h: {
        "attention.key_length": None,
        "attention.value_length": None,
        "attention.scale": h["attention_multiplier"],
        "embedding_scale": h["embedding_multiplier"],
        "residual_scale": h["residual_multiplier"],
        "logit_scale": h["logits_scaling"],
    },
    "bloom": _bloom_metadata,
    "qwen3moe": lambda h: {"expert_feed_forward_length": h["moe_intermediate_size"]},
    "gpt-oss": lambda h: _window(h) | {"expert_feed_forward_length": h["intermediate_size"]},
    "mistral3": lambda h: (
        {
            "rope.scaling.yarn_log_multiplier": h["rope_parameters"]["mscale_all_dim"],
            "attention.temperature_scale": h["rope_parameters"]["llama_4_scaling_beta"],
        }
        if h["model_type"] == "ministral3"
        else {}
    ),
}


def llama3_factors(config) -> np.ndarray:
    """What llama.cpp writes as rope_freqs.weight: the divisor of each pair's frequency."""
    rope, size = config.rope_parameters, config.hidden_size // config.num_attention_heads
    low, high, factor = rope["low_freq_factor"], rope["high_freq_factor"], rope["factor"]
    divisors = []
    for i in range(0, size, 2):
        wavelength = 2 * np.pi * rope["rope_theta"] ** (i / size)
        turns = rope["original_max_position_embeddings"] / wavelength
        if turns > high:
            divisors.append(1.0)
        elif turns < low:
            divisors.append(factor)
        else:
            smooth = (turns - low) / (high - low)
            divisors.append(1 / ((1 - smooth) / factor + smooth))
    return np.array(divisors, np.float32)


def add(writer: GGUFWriter, key: str, value) -> None:
    """One metadata entry, in the type that llama.cpp uses for such a value."""
    if isinstance(value, bool):
        writer.add_bool(key, value)
    elif isinstance(value, int):
        writer.add_uint32(key, value)
    elif isinstance(value, float):
        writer.add_float32(key, value)
    elif isinstance(value, str):
        writer.add_string(key, value)
    else:
        writer.add_array(key, value)


def write_gguf(path, arch: str, metadata: dict, tensors: dict, kinds: dict | None = None):
    """metadata: full keys -> values. tensors: GGUF names -> float32 arrays. kinds: names -> another type than F32."""
    writer = GGUFWriter(str(path), arch)
    for key, value in metadata.items():
        add(writer, key, value)
    for name, array in tensors.items():
        kind = (kinds or {}).get(name)
        if kind is None:
            writer.add_tensor(name, np.ascontiguousarray(array))
        elif array.dtype == np.uint8:  # quantised already
            writer.add_tensor(name, array, raw_dtype=kind)
        elif kind == GGMLQuantizationType.F16:
            writer.add_tensor(name, array.astype(np.float16))
        else:
            writer.add_tensor(name, quants.quantize(np.ascontiguousarray(array), kind), raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def model_parts(hf, arch: str) -> tuple[dict, dict]:
    """Metadata and tensors of a random HF model, as the converter would write them."""
    config, tensors = hf.config, {}
    metadata = {f"{arch}.{key}": value for key, value in scalar_metadata(config, arch).items()}
    for hf_name, tensor in hf.state_dict().items():
        array = tensor.detach().numpy()
        if hf_name == "lm_head.weight" and config.tie_word_embeddings:
            continue
        if ".act_fn." in hf_name:  # of all layers, in order
            metadata.setdefault(f"xielu.{hf_name.rpartition('.')[2]}", []).append(float(array.reshape(())))
            continue
        for name, part in _parts(hf_name, array, arch):
            tensors[gguf_name(name, arch)] = _converted(name, part, config, arch)
    rope = getattr(config, "rope_parameters", {})
    if rope.get("rope_type") == "llama3":
        tensors["rope_freqs.weight"] = llama3_factors(config)
    for length in ("long", "short"):
        if f"{length}_factor" in rope:
            tensors[f"rope_factors_{length}.weight"] = np.array(rope[f"{length}_factor"], np.float32)
    ends = {"bos": config.bos_token_id, "eos": config.eos_token_id}
    return metadata | {f"tokenizer.ggml.{n}_token_id": i for n, i in ends.items()}, tensors


def _parts(hf_name: str, array: np.ndarray, arch: str) -> list[tuple[str, np.ndarray]]:
    """A tensor of HF under the names that the table knows; those of experts, gate and up, apart."""
    if hf_name.endswith("sinks"):
        return [(f"{hf_name}.weight", array)]
    before, experts, name = hf_name.partition(".mlp.experts.")
    if not experts:
        return [(hf_name, array)]
    kind, name = ("bias", name.removesuffix("_bias")) if name.endswith("_bias") else ("weight", name)
    if arch == "gpt-oss":  # by turns, and [in, out]
        array = array if kind == "bias" else array.transpose(0, 2, 1)
        gate, up = array[:, 0::2], array[:, 1::2]
    else:
        gate, up = np.split(array, 2, axis=1)
    parts = {"gate": gate, "up": up} if name == "gate_up_proj" else {"down": array}
    before, own = f"{before}.mlp.experts", {}
    if arch == "llama":
        before, own = f"layers.{before.split('.')[2]}.feed_forward.experts", _MIXTRAL
    return [(f"{before}.{own.get(part, f'{part}_proj')}.{kind}", rows) for part, rows in parts.items()]


_MIXTRAL = {"gate": "w1", "down": "w2", "up": "w3"}


def _converted(hf_name: str, array: np.ndarray, config, arch: str) -> np.ndarray:
    """What a converter changes in a tensor."""
    if arch in _PERMUTED and "q_proj" in hf_name:
        return permuted(array, config.num_attention_heads)
    if arch in _PERMUTED and "k_proj" in hf_name:
        return permuted(array, config.num_key_value_heads)
    if arch.startswith("gemma") and hf_name.endswith("norm.weight"):
        return array + 1
    if arch == "bloom" and "query_key_value" in hf_name:
        heads, size = config.n_head, config.hidden_size // config.n_head
        rows = [(head * 3 + part) * size + i for part in range(3) for head in range(heads) for i in range(size)]
        return array[rows]
    return array


def sentencepiece_metadata(**changed) -> dict:
    """A little SentencePiece vocabulary: control tokens, bytes, letters and the pieces of a few words."""
    words = ["lower", "\u2581low", "\u2581new", "est", "\u2581the", "aaa", "aaaa", "abab"]
    letters = sorted(set("".join(words)) | set("dglmpuvy.é"))
    merged = sorted({w[:n] for w in words for n in range(2, len(w) + 1)} | {"er", "es", "we", "aa", "ab", "ba"})
    control = [
        ("<unk>", UNKNOWN),
        ("<s>", CONTROL),
        ("</s>", CONTROL),
        ("<tool>", USER_DEFINED),
        ("\n\n", USER_DEFINED),
    ]
    control += [("  ", USER_DEFINED), ("   ", USER_DEFINED)]
    pieces = control + [(f"<0x{b:02X}>", BYTE) for b in range(256)] + [(t, NORMAL) for t in merged + letters]
    scores = [0.0] * (len(pieces) - len(merged) - len(letters)) + [-float(i) for i in range(len(merged) + len(letters))]
    metadata = {
        "model": "llama", "tokens": [p for p, _ in pieces], "token_type": np.array([t for _, t in pieces], np.int32),
        "scores": np.array(scores, np.float32), "bos_token_id": 1, "eos_token_id": 2, "unknown_token_id": 0,
    }  # fmt: skip
    return {f"tokenizer.ggml.{k}": v for k, v in (metadata | changed).items() if v is not None}


def visible_bytes() -> dict[int, str]:
    """The character that stands for each byte in a byte-level vocabulary, as GPT-2 has it."""
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    others = [b for b in range(256) if b not in printable]
    return {b: chr(b) for b in printable} | {b: chr(256 + i) for i, b in enumerate(others)}


def byte_level_metadata(**changed) -> dict:
    """Bytes and a few merges."""
    visible = list(visible_bytes().values())
    merges = ["1 2", "12 3", "t h", "Ġ th", "th e", "a b", "b c", "' s"]
    tokens = ["<|end|>", "<think>", *visible, *(m.replace(" ", "") for m in merges), "abc"]
    types = np.array([CONTROL, USER_DEFINED] + [NORMAL] * (len(tokens) - 2), np.int32)
    metadata = {
        "model": "gpt2",
        "pre": "gpt-2",
        "tokens": tokens,
        "token_type": types,
        "merges": merges,
        "eos_token_id": 0,
    }
    return {f"tokenizer.ggml.{k}": v for k, v in (metadata | changed).items() if v is not None}
