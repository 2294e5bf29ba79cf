"""The supported families, and the ways in: a `config.json` read and written, the names of a checkpoint's tensors.

`config_from_hf` reads a Hugging Face `config.json` (of transformers 4 or 5) and raises on every attribute that it does
not understand: a model that is almost right is worse than a clear refusal.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import replace
from typing import Any

import numpy as np

from mwork_jax.config import ModelConfig
from mwork_jax.errors import InputError
from mwork_jax.families.apertus import APERTUS
from mwork_jax.families.base import (
    COMMON_ATTRIBUTES,
    EXPERTS,
    Derived,
    Family,
    Fused,
    FusedRows,
    completed,
    read_config,
)
from mwork_jax.families.bloom import BLOOM
from mwork_jax.families.cohere import COHERE
from mwork_jax.families.cohere2 import COHERE2
from mwork_jax.families.gemma import GEMMA
from mwork_jax.families.gemma2 import GEMMA2
from mwork_jax.families.gemma3 import GEMMA3
from mwork_jax.families.gguf import GGUFForm
from mwork_jax.families.gguf_metadata import GGUFMetadata, OpenGGUF
from mwork_jax.families.gpt_oss import GPT_OSS
from mwork_jax.families.granite import GRANITE
from mwork_jax.families.llama import LLAMA
from mwork_jax.families.ministral3 import MINISTRAL3
from mwork_jax.families.mistral import MISTRAL
from mwork_jax.families.mixtral import MIXTRAL
from mwork_jax.families.olmo2 import OLMO2
from mwork_jax.families.olmo3 import OLMO3
from mwork_jax.families.phi3 import PHI3
from mwork_jax.families.qwen2 import QWEN2
from mwork_jax.families.qwen3 import QWEN3
from mwork_jax.families.qwen3_moe import QWEN3_MOE
from mwork_jax.families.reader import Reader
from mwork_jax.families.smollm3 import SMOLLM3
from mwork_jax.families.wrappers import WRAPPERS, unwrapped

FAMILIES: Mapping[str, Family] = {
    family.model_type: family
    for family in (
        LLAMA, MISTRAL, MINISTRAL3, QWEN2, QWEN3, GEMMA, GEMMA2, GEMMA3, COHERE, COHERE2, SMOLLM3, OLMO2, OLMO3, PHI3,
        GRANITE, APERTUS, BLOOM, MIXTRAL, QWEN3_MOE, GPT_OSS,
    )
}  # fmt: skip

# Attributes that do not change what the forward pass computes: bookkeeping, training, output options.
_WITHOUT_EFFECT = {
    "architectures", "transformers_version", "torch_dtype", "dtype", "use_cache", "initializer_range", "_name_or_path",
    "attention_dropout", "hidden_dropout", "pad_token_id", "pretraining_tp", "cache_implementation", "id2label",
    "label2id", "problem_type", "output_attentions", "output_hidden_states", "return_dict", "is_encoder_decoder",
    "chunk_size_feed_forward", "unsloth_fixed", "unsloth_version", "is_llama_config",
    "transformers.js_config", "_attn_implementation_autoset", "max_sequence_length", "model_name", "base_model",
    "mlp_dropout", "task_specific_params", "tokenizer_class", "auto_map", "torchscript", "use_bfloat16",
    "tf_legacy_loss", "cross_attention_hidden_size", "tie_encoder_decoder", "finetuning_task", "prefix", "sep_token_id",
    "decoder_start_token_id", "gradient_checkpointing", "attn_implementation", "_attn_implementation",
    "_attn_implementation_internal", "_experts_implementation", "_commit_hash", "_flash_attn_2_enabled",
    # what programs for tuning and older or remote code leave there: how fast, how to tokenize, what to print
    "use_flash_attn", "use_flash_attention", "use_flash_attention_2", "flash_attention", "use_liger_kernel",
    "gradient_checkpointing_kwargs", "neftune_noise_alpha", "tokenizer_model_max_length", "tokenizer_padding_side",
    "padding_side", "model_max_length", "seq_length", "bos_token", "eos_token", "pad_token", "unk_token",
    "keys_to_ignore_at_inference", "trust_remote_code", "num_labels", "classifier_dropout", "attn_pdrop", "embd_pdrop",
    "resid_pdrop", "ignore_index", "loss_type", "max_new_tokens", "transformers_weights",
    # of sampling and of what `generate` returns: answers here are the likeliest tokens
    "max_length", "do_sample", "early_stopping", "temperature", "top_k", "top_p", "typical_p", "length_penalty",
    "num_return_sequences", "output_scores", "return_dict_in_generate", "remove_invalid_values",
}  # fmt: skip
# These would change the likeliest tokens that `generate` of transformers writes, except at these values.
_WITHOUT_EFFECT_ON_ANSWERS_AT = {
    "min_length": (None, 0),
    "num_beams": (None, 1),
    "num_beam_groups": (None, 1),
    "diversity_penalty": (None, 0),
    "repetition_penalty": (None, 1),
    "no_repeat_ngram_size": (None, 0),
    "min_new_tokens": (None, 0),
    "encoder_no_repeat_ngram_size": (None, 0),
    "bad_words_ids": (None,),
    "forced_bos_token_id": (None,),
    "forced_eos_token_id": (None,),
    "exponential_decay_length_penalty": (None,),
    "suppress_tokens": (None,),
    "begin_suppress_tokens": (None,),
}
# These have no effect only at the values given here.
_WITHOUT_EFFECT_AT = {
    "use_bidirectional_attention": (None, False),
    "rope_interleaved": (None, False),
    "partial_rotary_factor": (None, 1.0),
    "is_decoder": (None, False, True),
    "is_causal": (None, True),  # False: transformers lets tokens see what follows
    "add_cross_attention": (None, False),
    "pruned_heads": (None, {}),
    "no_rope_layers": (None, []),
    "attention_multiplier": (None,),
    **_WITHOUT_EFFECT_ON_ANSWERS_AT,
}


def config_from_hf(hf: Mapping[str, object], *, where: str = "config.json") -> ModelConfig:
    """The configuration that a Hugging Face `config.json` describes.

    Raises InputError, naming the attribute, for an architecture, an attribute or a value that is not understood.
    """
    name = hf.get("model_type")
    if isinstance(name, str) and name in WRAPPERS:
        text, rest, inside = unwrapped(hf, where)
        family = _family(text.get("model_type"), inside)
        _refuse_unknown(rest, frozenset(), _WITHOUT_EFFECT_AT | dict.fromkeys(_WITHOUT_EFFECT), name, where)
        return _config_of(family, text, family.text_defaults, inside)
    return _config_of(_family(name, where), hf, {}, where)


def _family(name: object, where: str) -> Family:
    if not isinstance(name, str) or name not in FAMILIES:
        supported = ", ".join(sorted({*FAMILIES, *WRAPPERS}))
        raise InputError(f"{where}: model_type {name!r:.80} is not supported; supported: {supported}")
    return FAMILIES[name]


def _config_of(family: Family, hf: Mapping[str, object], defaults: Mapping[str, object], where: str) -> ModelConfig:
    known = COMMON_ATTRIBUTES | family.attributes | family.renamed.keys()
    inert = {**_WITHOUT_EFFECT_AT, **dict.fromkeys(_WITHOUT_EFFECT), **family.inert}
    _refuse_unknown(hf, known, inert, family.model_type, where, family.quantised)
    return read_config(family, Reader(completed({**defaults, **hf}, family, where), where))


def _refuse_unknown(
    hf: Mapping[str, object],
    known: Collection[str],
    without_effect_at: Mapping[str, tuple[object, ...] | None],
    model_type: str,
    where: str,
    quantised: Collection[str] = (),
) -> None:
    for name, value in hf.items():
        if name in known or (name == "quantization_config" and _is_read(value, quantised)):
            continue
        if name in without_effect_at:
            values = without_effect_at[name]
            if values is None or value in values:
                continue
        elif value is None or value is False:
            continue  # a switch that is off: transformers reads none that it does not know
        if name == "quantization_config" and _says_nothing_of_bits(value):
            continue
        if name in ("quantization_config", "quantization"):  # the second is MLX's
            raise InputError(
                f"{where}: the weights are quantised ({_method(value)!r:.40}); give the checkpoint in float32, float16 "
                f"or bfloat16, or a GGUF file; where they are floats already, remove {name}"
            )
        raise InputError(f"{where}: attribute {name!r} = {value!r:.80} is not understood for model_type {model_type!r}")


def _is_read(quantisation: object, own: Collection[str]) -> bool:
    """Whether weights that are quantised so are read: those of a family's `own` methods, and floats of eight bits."""
    method = _method(quantisation)
    if method != "compressed-tensors" or not isinstance(quantisation, Mapping):
        return method == "fp8" or method in own
    groups = quantisation.get("config_groups")
    groups = list(groups.values()) if isinstance(groups, Mapping) else []
    weights = [group.get("weights") if isinstance(group, Mapping) else None for group in groups]
    return bool(weights) and all(
        isinstance(w, Mapping) and w.get("type") == "float" and w.get("num_bits") == 8 for w in weights
    )


def _method(value: object) -> object:
    """How weights are quantised, by the name that a quantization_config has for it, or by MLX's number of bits."""
    if not isinstance(value, Mapping):
        return value
    return value.get("quant_method") or (f"{value['bits']} bits" if "bits" in value else None)


def _says_nothing_of_bits(value: object) -> bool:
    """Whether a quantization_config says that nothing is quantised: an empty one, and what is left of one of
    bitsandbytes' with both of its switches off."""
    if not isinstance(value, Mapping):
        return False
    off = value.get("quant_method") == "bitsandbytes" and value.keys() >= {"load_in_4bit", "load_in_8bit"}
    return not value or (off and value["load_in_4bit"] is False and value["load_in_8bit"] is False)


def gguf_form(file: OpenGGUF) -> tuple[Family, GGUFForm, GGUFMetadata]:
    """The family of a GGUF file's model, how it is held there, and its metadata. Raises InputError for an architecture
    that no family has."""
    arch = file.metadata.get("general.architecture")
    forms = [(family, form) for family in FAMILIES.values() for form in family.gguf]
    own = [(family, form) for family, form in forms if isinstance(arch, str) and form.arch == arch]
    if not isinstance(arch, str) or not own:
        known = ", ".join(dict.fromkeys(form.arch for _, form in forms))
        raise InputError(f"{file.where}: architecture {arch!r:.80} is not supported; supported: {known}")
    metadata = GGUFMetadata(file, arch)
    family, form = next((family, form) for family, form in own if form.when(metadata))
    return family, form, metadata


def with_generation_config(config: ModelConfig, generation: Any, where: str) -> ModelConfig:
    """The configuration, ending a text also at the tokens of a generation_config.json, as `generate` of transformers
    does. Raises InputError for one that is not an object, or whose eos_token_id is not token ids."""
    if not isinstance(generation, Mapping):
        raise InputError(f"{where}: a JSON object is needed")
    ids = Reader(generation, where).ids("eos_token_id")
    return replace(config, eos_ids=tuple(dict.fromkeys((*config.eos_ids, *ids))))


def ignored_in_answers(generation: Mapping[str, object]) -> tuple[str, ...]:
    """What a generation_config.json asks for that would change the likeliest tokens, as `name value`: answers here are
    those tokens as they are."""
    return tuple(
        f"{name} {generation[name]!r:.40}"
        for name, without_effect in _WITHOUT_EFFECT_ON_ANSWERS_AT.items()
        if name in generation and generation[name] not in without_effect
    )


def hf_config(config: ModelConfig, dtype: str = "float32") -> dict[str, object]:
    """The `config.json` of a model: `config_from_hf` reads the same configuration back. dtype: of its weights."""
    c, family = config, FAMILIES[config.family]
    described: dict[str, object] = {
        "architectures": [family.hf_class],
        "model_type": family.model_type,
        "dtype": dtype,
        "vocab_size": c.vocab_size,
        "hidden_size": c.hidden_size,
        "intermediate_size": c.intermediate_size,
        "num_hidden_layers": c.num_layers,
        "num_attention_heads": c.num_heads,
        "num_key_value_heads": c.num_kv_heads,
        "head_dim": c.head_dim,
        "rms_norm_eps": c.norm_eps,
        "max_position_embeddings": c.max_length,
        "tie_word_embeddings": c.tie_embeddings,
        "pad_token_id": None,  # some classes' own would be beyond the vocabulary
        "bos_token_id": c.bos_id,
        "eos_token_id": list(c.eos_ids) if len(c.eos_ids) > 1 else next(iter(c.eos_ids), None),
        family.activation: next(name for name, own in family.activations.items() if own == c.activation),
    }
    if family.hf_ropes is not None:
        described["rope_parameters"] = family.hf_ropes(c)
    described |= family.hf_attributes(c)
    follows = family.derived(Reader(described, "")) if family.derived is not None else {}
    own_names = {
        common: own for own, common in reversed(list(family.renamed.items())) if common not in family.attributes
    }
    return {own_names.get(name, name): value for name, value in described.items() if name not in follows}


def checkpoint_names(config: ModelConfig, parameter: str) -> list[str]:
    """The tensors of a checkpoint that hold one entry of `parameter_specs`: one, or one per layer. Those
    that a checkpoint keeps in one tensor together (`Family.fused`) are named as if they were apart."""
    family = FAMILIES[config.family]
    if not parameter.startswith("layers."):
        return [family.whole_tensors[parameter]]
    name = family.layer_tensors[parameter.removeprefix("layers.")]
    return [f"{family.layers}{layer}.{name}" for layer in range(config.num_layers)]


def fused_in_layer(config: ModelConfig, layer: int) -> Fused:
    """`Family.fused` under whole names of a checkpoint's tensors; experts, which transformers 5 keeps in one tensor in
    memory, too."""
    family = FAMILIES[config.family]
    before = f"{family.layers}{layer}."
    fused = dict(family.fused(config)) if family.fused is not None else {}
    if config.num_experts and family.expert_tensors:
        inner, count = config.intermediate_size, config.num_experts
        fused["mlp.experts.gate_up_proj"] = {
            EXPERTS["gate"]: FusedRows(count, 2 * inner, 0, inner),
            EXPERTS["up"]: FusedRows(count, 2 * inner, inner, 2 * inner),
        }
        fused["mlp.experts.down_proj"] = {EXPERTS["down"]: FusedRows(count, config.hidden_size, 0, config.hidden_size)}
    return {before + name: {before + part: rows for part, rows in parts.items()} for name, parts in fused.items()}


def expert_names(config: ModelConfig, layer: int) -> dict[str, list[str]]:
    """The tensors of one layer that a checkpoint keeps under other names: {name of `checkpoint_names`: the tensor, or
    one for each expert}."""
    family = FAMILIES[config.family]
    before = f"{family.layers}{layer}."
    return {
        before + name: [before + own.format(i) for i in range(config.num_experts if "{}" in own else 1)]
        for name, own in family.expert_tensors.items()
    }


def derived_in_layer(config: ModelConfig, layer: int) -> dict[str, tuple[Derived, ...]]:
    """`Family.derived_tensors` under whole names of a checkpoint's tensors."""
    family = FAMILIES[config.family]
    before = f"{family.layers}{layer}."
    return {
        before + name: tuple(Derived(tuple(before + source for source in one.sources), one.make) for one in ways)
        for name, ways in family.derived_tensors.items()
    }


def fused_tensors(config: ModelConfig, layer: int, tensors: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """One layer's tensors under `checkpoint_names` as a checkpoint keeps them: those that are fused, in one."""
    family = FAMILIES[config.family]
    if family.rejoined is not None:
        before = f"{family.layers}{layer}."
        own = family.rejoined({name.removeprefix(before): tensor for name, tensor in tensors.items()})
        return {before + name: tensor for name, tensor in own.items()}
    kept = dict(tensors)
    for name, own_names in expert_names(config, layer).items():
        whole = kept.pop(name)
        parts = list(whole) if len(own_names) > 1 or whole.ndim == 3 else [whole]
        kept |= {own: np.ascontiguousarray(part) for own, part in zip(own_names, parts, strict=True)}
    for name, parts in fused_in_layer(config, layer).items():
        own = {part: rows for part, rows in parts.items() if part in kept}
        if not own:
            continue  # without biases there is none to fuse
        first = kept[next(iter(own))]
        groups, size = next((rows.groups, rows.size) for rows in own.values())
        whole = np.empty((groups, size, *first.shape[1:]), first.dtype)
        for part, rows in own.items():
            whole[:, rows.start : rows.stop] = kept.pop(part).reshape(groups, -1, *first.shape[1:])
        kept[name] = whole.reshape(-1, *first.shape[1:])
    return kept
