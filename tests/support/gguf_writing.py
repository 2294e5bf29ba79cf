"""Writes tiny GGUF files as llama.cpp's converter would: the independent other side of the tests of the reader."""

from __future__ import annotations

import numpy as np
from gguf import GGMLQuantizationType, GGUFWriter, quants

NORMAL, UNKNOWN, CONTROL, USER_DEFINED, BYTE = 1, 2, 3, 4, 6  # what a token is, as GGUF numbers it
_GEMMA = {
    "post_attention_layernorm": "post_attention_norm",
    "pre_feedforward_layernorm": "ffn_norm",
    "post_feedforward_layernorm": "post_ffw_norm",
}
_PARTS = {
    "input_layernorm": "attn_norm", "post_attention_layernorm": "ffn_norm", "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k", "self_attn.v_proj": "attn_v", "self_attn.o_proj": "attn_output",
    "self_attn.q_norm": "attn_q_norm", "self_attn.k_norm": "attn_k_norm", "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up", "mlp.down_proj": "ffn_down",
}  # fmt: skip
_WHOLE = {"model.embed_tokens": "token_embd", "model.norm": "output_norm", "lm_head": "output"}


def gguf_name(hf_name: str, arch: str) -> str:
    stem, kind = hf_name.rsplit(".", 1)
    if stem in _WHOLE:
        return f"{_WHOLE[stem]}.{kind}"
    _, _, layer, part = stem.split(".", 3)
    table = _PARTS | _GEMMA if arch.startswith("gemma") else _PARTS
    return f"blk.{layer}.{table[part]}.{kind}"


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
    """The numbers below the architecture's name, from a transformers configuration."""
    c = config
    head_dim = getattr(c, "head_dim", None) or c.hidden_size // c.num_attention_heads
    rope = c.rope_parameters
    rope = rope.get("full_attention", rope)
    found = {
        "block_count": c.num_hidden_layers,
        "context_length": c.max_position_embeddings,
        "embedding_length": c.hidden_size,
        "feed_forward_length": c.intermediate_size,
        "attention.head_count": c.num_attention_heads,
        "attention.head_count_kv": c.num_key_value_heads,
        "attention.layer_norm_rms_epsilon": float(c.rms_norm_eps),
        "attention.key_length": head_dim,
        "attention.value_length": head_dim,
        "rope.dimension_count": head_dim,
        "rope.freq_base": float(rope["rope_theta"]),
    }
    if rope.get("rope_type") in ("linear", "yarn"):
        found |= {"rope.scaling.type": rope["rope_type"], "rope.scaling.factor": float(rope["factor"])}
    if rope.get("rope_type") == "yarn":
        found["rope.scaling.original_context_length"] = rope["original_max_position_embeddings"]
    if arch.startswith("gemma") or (c.model_type == "mistral" and c.sliding_window):
        found["attention.sliding_window"] = c.sliding_window
    if arch == "gemma2":
        found |= {n: float(getattr(c, n)) for n in ("attn_logit_softcapping", "final_logit_softcapping")}
    return found


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
    for hf_name, tensor in hf.state_dict().items():
        array = tensor.detach().numpy()
        if hf_name == "lm_head.weight" and config.tie_word_embeddings:
            continue
        if arch == "llama" and "q_proj" in hf_name:
            array = permuted(array, config.num_attention_heads)
        if arch == "llama" and "k_proj" in hf_name:
            array = permuted(array, config.num_key_value_heads)
        if arch.startswith("gemma") and hf_name.endswith("norm.weight"):
            array = array + 1
        tensors[gguf_name(hf_name, arch)] = array
    if config.rope_parameters.get("rope_type") == "llama3":
        tensors["rope_freqs.weight"] = llama3_factors(config)
    metadata = {f"{arch}.{key}": value for key, value in scalar_metadata(config, arch).items()}
    ends = {"bos": config.bos_token_id, "eos": config.eos_token_id}
    return metadata | {f"tokenizer.ggml.{n}_token_id": i for n, i in ends.items()}, tensors


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
