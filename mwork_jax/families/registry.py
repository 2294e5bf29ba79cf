"""The supported families, and the ways in: a `config.json` read and written, the names of a checkpoint's tensors.

`config_from_hf` reads a Hugging Face `config.json` (of transformers 4 or 5) and raises on every attribute that it does
not understand: a model that is almost right is worse than a clear refusal.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from mwork_jax.config import ModelConfig
from mwork_jax.errors import InputError
from mwork_jax.families.base import COMMON_ATTRIBUTES, WHOLE_TENSORS, Family, completed, read_config
from mwork_jax.families.gemma2 import GEMMA2
from mwork_jax.families.gemma3 import GEMMA3
from mwork_jax.families.llama import LLAMA
from mwork_jax.families.mistral import MISTRAL
from mwork_jax.families.qwen2 import QWEN2
from mwork_jax.families.qwen3 import QWEN3
from mwork_jax.families.reader import ACTIVATIONS, Reader

FAMILIES: Mapping[str, Family] = {
    family.model_type: family for family in (LLAMA, MISTRAL, QWEN2, QWEN3, GEMMA2, GEMMA3)
}

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
    if not isinstance(name, str) or name not in FAMILIES:
        raise InputError(f"{where}: model_type {name!r:.80} is not supported; supported: {', '.join(sorted(FAMILIES))}")
    family = FAMILIES[name]
    _refuse_unknown(hf, family, where)
    return read_config(family, Reader(completed(hf, family), where))


def _refuse_unknown(hf: Mapping[str, object], family: Family, where: str) -> None:
    known = COMMON_ATTRIBUTES | family.attributes | _WITHOUT_EFFECT
    for name, value in hf.items():
        if name in known and name not in _WITHOUT_EFFECT_AT:
            continue
        if name in _WITHOUT_EFFECT_AT and value in _WITHOUT_EFFECT_AT[name]:
            continue
        if value is None or (value is False and name not in _WITHOUT_EFFECT_AT):
            continue  # a switch that is off: transformers reads none that it does not know
        if name == "quantization_config":
            raise InputError(
                f"{where}: the weights are quantised ({_quantisation(value)}); give the checkpoint in float32, float16 "
                "or bfloat16, or a GGUF file; where they are floats already, remove quantization_config"
            )
        raise InputError(
            f"{where}: attribute {name!r} = {value!r:.80} is not understood for model_type {family.model_type!r}"
        )


def _quantisation(value: object) -> str:
    method = value.get("quant_method") if isinstance(value, Mapping) else value
    return f"{method!r:.40}"


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
        "bos_token_id": c.bos_id,
        "eos_token_id": list(c.eos_ids) if len(c.eos_ids) > 1 else next(iter(c.eos_ids), None),
        family.activation: next(name for name, own in ACTIVATIONS.items() if own == c.activation),
        "rope_parameters": family.hf_ropes(c),
    }
    return described | family.hf_attributes(c)


def checkpoint_names(config: ModelConfig, parameter: str) -> list[str]:
    """The tensors of a checkpoint that hold one entry of `model.decoder.parameter_specs`: one, or one per layer."""
    if not parameter.startswith("layers."):
        return [WHOLE_TENSORS[parameter]]
    name = FAMILIES[config.family].layer_tensors[parameter.removeprefix("layers.")]
    return [f"model.layers.{layer}.{name}" for layer in range(config.num_layers)]
