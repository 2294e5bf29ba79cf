"""What GGUF files say of a family's models, and how: `GGUFForm`, of which a family has one for each architecture's name
that its files go by. The format is what llama.cpp's converters write and its models read; what it leaves unsaid stands
in the family's file, with its source.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

import numpy as np

from mwork_jax.errors import InputError
from mwork_jax.families.gguf_metadata import GGUFMetadata
from mwork_jax.families.gguf_rope import LLAMA3_FACTORS, rope_scaling

# Tensors of a file by their names in a checkpoint, both without `.weight` and `.bias`; those of a layer after `blk.`,
# or `Family.layers`, and the layer's number. A name with its ending stands for that tensor alone.
GGUF_WHOLE: Mapping[str, str] = {"token_embd": "model.embed_tokens", "output_norm": "model.norm", "output": "lm_head"}
GGUF_LAYER: Mapping[str, str] = {
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
# Those of a feed-forward with experts, all of them in one tensor.
GGUF_EXPERTS: Mapping[str, str] = {
    "ffn_gate_inp": "mlp.gate",
    "ffn_gate_exps": "mlp.experts.gate_proj",
    "ffn_up_exps": "mlp.experts.up_proj",
    "ffn_down_exps": "mlp.experts.down_proj",
}

# Metadata below the architecture's name that `gguf_attributes` reads for every family.
_READ = {
    "block_count", "context_length", "embedding_length", "feed_forward_length", "attention.head_count",
    "attention.head_count_kv", "attention.key_length", "attention.value_length", "rope.freq_base",
    "rope.dimension_count", "rope.scaling.type", "rope.scaling.factor", "rope.scaling.original_context_length",
    "rope.scaling.yarn_beta_fast", "rope.scaling.yarn_beta_slow", "rope.scaling.yarn_attn_factor", "rope.scale_linear",
}  # fmt: skip
_WITHOUT_EFFECT = {"vocab_size", "rope.scaling.finetuned", "expert_used_count", "tensor_data_layout"}
_OF_IMAGES = ("mm.", "vision.")  # of a model that reads images too; what it does with text is the same
_ONLY_AT: Mapping[str, tuple[object, ...]] = {
    "attention.causal": (True,), "rope.scaling.attn_factor": (1.0,), "rope.scaling.yarn_ext_factor": (1.0,),
}  # fmt: skip
# llama.cpp's router of these: softmax, of which the shares of the experts that a token goes to are made to add up to 1.
SOFTMAX_ROUTER: Mapping[str, tuple[object, ...]] = {
    "expert_gating_func": (1,), "expert_weights_norm": (True,), "expert_weights_scale": (0.0, 1.0),
}  # fmt: skip

Restore = Callable[[np.ndarray, GGUFMetadata], np.ndarray]


def _nothing(m: GGUFMetadata) -> dict[str, object]:
    return {}


@dataclass(frozen=True)
class GGUFForm:
    """How a GGUF file holds a model of a family.

    arch: its `general.architecture`, which stands before the names of its metadata.
    when: whether a file of this architecture holds this family, where several share the name.
    attributes: the family's own attributes of a config.json, from the metadata; they go before those of every family.
    keys: the metadata that `when`, `attributes` and `scaling` read.
    only_at: metadata whose effect is not computed, each with the values at which it has none.
    norm_eps: the metadata with what norms add.
    scaling: the attribute `rope_scaling`, from the metadata.
    read_tensors: tensors that `scaling` reads, which are no weights.
    whole, layer: names of tensors, see `GGUF_WHOLE`. In those of layers, {} is a place for an expert's number.
    restored: {a tensor of a checkpoint, without layer and ending: what makes it from the file's}, where they differ.
    from_metadata: {a tensor of a layer: the metadata with its numbers for all layers, and its shape}.
    """

    arch: str
    when: Callable[[GGUFMetadata], bool] = lambda m: True
    attributes: Callable[[GGUFMetadata], dict[str, object]] = _nothing
    keys: frozenset[str] = frozenset()
    only_at: Mapping[str, tuple[object, ...]] = field(default_factory=dict)
    norm_eps: str = "attention.layer_norm_rms_epsilon"
    scaling: Callable[[GGUFMetadata], dict[str, object] | None] = rope_scaling
    read_tensors: frozenset[str] = frozenset({LLAMA3_FACTORS})
    whole: Mapping[str, str] = field(default_factory=lambda: GGUF_WHOLE)
    layer: Mapping[str, str] = field(default_factory=lambda: GGUF_LAYER)
    restored: Mapping[str, Restore] = field(default_factory=dict)
    from_metadata: Mapping[str, tuple[str, tuple[int, ...]]] = field(default_factory=dict)


def gguf_attributes(form: GGUFForm, m: GGUFMetadata) -> dict[str, object]:
    """The attributes of a config.json that follow from the metadata, all but the model's type, its vocabulary and its
    special tokens. Raises InputError for metadata that is missing or not understood."""
    head_dim, scaling = m.head_dim(), form.scaling(m)
    inner = "expert_feed_forward_length"  # files with experts alone may lack the other
    for key in {"attention.value_length", "rope.dimension_count"} - form.keys:
        if m.get(key, head_dim) != head_dim:
            raise InputError(f"{m.where}: {m.arch}.{key} is {m.get(key)}, not the head size {head_dim}")
    common = {
        "hidden_size": m.count("embedding_length"),
        "intermediate_size": m.count(inner if inner in form.keys else "feed_forward_length"),
        "num_hidden_layers": m.layers(),
        "num_attention_heads": m.heads(),
        "num_key_value_heads": m.kv_heads(),
        "head_dim": head_dim,
        "rms_norm_eps": m.need(form.norm_eps),
        "max_position_embeddings": m.count("context_length"),
        "tie_word_embeddings": not m.has("output.weight"),
        "rope_theta": m.rope_theta(),
    }
    return common | ({"rope_scaling": scaling} if scaling else {}) | form.attributes(m)


def refuse_unknown(form: GGUFForm, m: GGUFMetadata, metadata: Mapping[str, object]) -> None:
    """Raises InputError for metadata that may change what is computed and that is not understood."""
    prefix, read = f"{form.arch}.", _READ | form.keys | {form.norm_eps}
    only_at = {key: values for key, values in _ONLY_AT.items() if key not in form.keys} | dict(form.only_at)
    for key, value in metadata.items():
        short = key.removeprefix(prefix)
        if not key.startswith(prefix) or short.startswith(_OF_IMAGES):
            continue
        many = isinstance(value, (list, np.ndarray))
        if short in only_at:
            understood = not many and value in only_at[short]
        else:  # a switch that is off, or no experts, changes nothing
            understood = short in read or short in _WITHOUT_EFFECT or not (many or value)
        if not understood:
            raise InputError(f"{m.where}: metadata {key!r} = {value!r:.80} is not understood")


def in_halves(heads: Callable[[GGUFMetadata], int]) -> Restore:
    """Rows in Hugging Face's order. The file puts the two halves of every rotated pair next to each other: row 2i + j
    of a head is row j * (head size / 2) + i in a checkpoint."""

    def restore(rows: np.ndarray, m: GGUFMetadata) -> np.ndarray:
        count = heads(m)
        if rows.shape[0] % (2 * count):
            raise InputError(
                f"{m.where}: queries or keys have {rows.shape[0]} rows, not a multiple of 2 x {count} heads"
            )
        return rows.reshape(count, -1, 2, *rows.shape[1:]).swapaxes(1, 2).reshape(rows.shape)

    return restore


def less_one(norm: np.ndarray, m: GGUFMetadata) -> np.ndarray:
    """The weights of a norm that multiplies by 1 + w, which the file holds with the 1."""
    return norm.astype(np.float32) - 1


# Of architectures whose rotary embedding turns neighbours in llama.cpp (LLAMA_ROPE_TYPE_NORM) and halves in a
# checkpoint.
IN_HALVES: Mapping[str, Restore] = {
    "self_attn.q_proj": in_halves(GGUFMetadata.heads),
    "self_attn.k_proj": in_halves(GGUFMetadata.kv_heads),
}
