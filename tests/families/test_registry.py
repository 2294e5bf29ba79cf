"""Configurations: read as HF means them, in both of its formats, or refused by name."""

import re
from dataclasses import replace

import pytest
import transformers

from mwork_jax.config import FULL_ATTENTION
from mwork_jax.errors import InputError
from mwork_jax.families import checkpoint_names, config_from_hf, hf_config, registry
from mwork_jax.families.base import LAYER_TENSORS
from mwork_jax.families.llama import LLAMA
from mwork_jax.families.registry import FAMILIES as REGISTRY
from mwork_jax.model.parameters import parameter_specs
from support.tiny import BASE, FAMILIES, hf_model

LLAMA_HF = {
    "model_type": "llama", "vocab_size": 100, "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 4,
    "num_attention_heads": 4,
}  # fmt: skip


def test_defaults_are_those_of_hf():
    config = config_from_hf(LLAMA_HF)
    assert config.num_kv_heads == 4
    assert config.head_dim == 8
    assert config.norm_eps == 1e-6
    assert config.ropes[0].theta == 10000.0
    assert not config.tie_embeddings
    assert config.windows == (FULL_ATTENTION,) * 4
    assert (config.bos_id, config.eos_ids) == (1, (2,))


def test_gemma3_in_the_format_of_transformers_4():
    config = config_from_hf(
        {
            **LLAMA_HF, "model_type": "gemma3_text", "num_hidden_layers": 12, "num_key_value_heads": 1, "head_dim": 256,
            "sliding_window": 512, "sliding_window_pattern": 6, "rope_theta": 1e6, "rope_local_base_freq": 1e4,
            "rope_scaling": {"rope_type": "linear", "factor": 8.0}, "query_pre_attn_scalar": 256,
        }
    )  # fmt: skip
    assert config.windows == (512, 512, 512, 512, 512, FULL_ATTENTION) * 2
    assert config.layer_rope == (0, 0, 0, 0, 0, 1) * 2
    assert [r.theta for r in config.ropes] == [1e4, 1e6]
    assert [r.factor for r in config.ropes] == [1.0, 8.0]
    assert config.qk_norm
    assert config.post_norms
    assert config.tie_embeddings
    assert config.attn_scale == 1 / 16
    assert config.embed_scale == 32**0.5


def test_llama_31_in_the_format_of_transformers_4():
    scaling = {
        "rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
        "original_max_position_embeddings": 8192,
    }  # fmt: skip
    config = config_from_hf({**LLAMA_HF, "rope_theta": 5e5, "rope_scaling": scaling, "eos_token_id": [1, 2]})
    (rope,) = config.ropes
    assert (rope.kind, rope.theta, rope.factor, rope.original_length) == ("llama3", 5e5, 8.0, 8192)
    assert config.eos_ids == (1, 2)


def test_qwen_windows_only_where_they_are_switched_on():
    qwen = {
        **LLAMA_HF,
        "model_type": "qwen2",
        "num_key_value_heads": 4,
        "sliding_window": 7,
        "max_window_layers": 3,
    }
    assert config_from_hf({**qwen, "use_sliding_window": False}).windows == (0, 0, 0, 0)
    assert config_from_hf({**qwen, "use_sliding_window": True}).windows == (0, 0, 0, 7)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"model_type": "mamba"}, "model_type 'mamba' is not supported"),
        ({"model_type": None}, "model_type None is not supported"),
        ({"clip_qkv": 8.0}, "attribute 'clip_qkv' = 8.0 is not understood"),
        ({"sliding_window": 64}, "attribute 'sliding_window' = 64 is not understood for model_type 'llama'"),
        ({"quantization_config": {"quant_method": "bitsandbytes"}}, "the weights are quantised \\('bitsandbytes'\\)"),
        ({"quantization_config": {"quant_method": "bitsandbytes", "load_in_4bit": False}}, "the weights are quantised"),
        ({"quantization": {"group_size": 64, "bits": 4}}, "quantised \\('4 bits'\\).* remove quantization$"),
        ({"min_new_tokens": 5}, "attribute 'min_new_tokens' = 5"),
        ({"repetition_penalty": 1.2}, "attribute 'repetition_penalty' = 1.2"),
        ({"use_mrope": True}, "attribute 'use_mrope' = True"),
        ({"partial_rotary_factor": 0.5}, "attribute 'partial_rotary_factor' = 0.5"),
        ({"is_causal": False}, "attribute 'is_causal' = False"),
        ({"hidden_act": "relu"}, "activation 'relu'"),
        ({"rope_scaling": {"type": "dynamic", "factor": 2.0}}, "rope type 'dynamic' is not supported"),
        ({"rope_scaling": {"type": "linear"}}, "needs 'factor'"),
        ({"rope_scaling": {"type": "linear", "factor": 2.0, "short_factor": [1]}}, "rope attribute 'short_factor'"),
        ({"num_key_value_heads": 3}, "is not a multiple"),
        ({"head_dim": 7}, "odd"),
        ({"vocab_size": "many"}, "vocab_size is 'many'"),
        ({"num_hidden_layers": 0}, "num_hidden_layers is 0"),
        ({"num_hidden_layers": 1 << 32}, "num_hidden_layers is 4294967296; a positive whole number up to 10000 is"),
        ({"vocab_size": 1 << 40}, "vocab_size is 1099511627776; a positive whole number up to 2147483648 is needed"),
    ],
)
def test_what_is_not_understood_is_named(change, message):
    with pytest.raises(InputError, match=message) as error:
        config_from_hf({**LLAMA_HF, **change}, where="here/config.json")
    assert str(error.value).startswith("here/config.json: ")
    assert "\n" not in str(error.value)


# What transformers 4 writes of every configuration, at its defaults.
OF_TRANSFORMERS_4 = {
    "return_dict": True, "output_hidden_states": False, "output_attentions": False, "torchscript": False,
    "torch_dtype": "bfloat16", "use_bfloat16": False, "tf_legacy_loss": False, "pruned_heads": {},
    "chunk_size_feed_forward": 0, "is_encoder_decoder": False, "is_decoder": False, "is_causal": True,
    "cross_attention_hidden_size": None, "add_cross_attention": False, "tie_encoder_decoder": False, "max_length": 20,
    "min_length": 0, "do_sample": False, "early_stopping": False, "num_beams": 1, "num_beam_groups": 1,
    "diversity_penalty": 0.0, "temperature": 1.0, "top_k": 50, "top_p": 1.0, "typical_p": 1.0,
    "repetition_penalty": 1.0, "length_penalty": 1.0, "no_repeat_ngram_size": 0, "encoder_no_repeat_ngram_size": 0,
    "bad_words_ids": None, "num_return_sequences": 1, "output_scores": False, "return_dict_in_generate": False,
    "forced_bos_token_id": None, "forced_eos_token_id": None, "remove_invalid_values": False,
    "exponential_decay_length_penalty": None, "suppress_tokens": None, "begin_suppress_tokens": None,
    "architectures": ["LlamaForCausalLM"], "finetuning_task": None, "id2label": {"0": "LABEL_0"},
    "label2id": {"LABEL_0": 0}, "tokenizer_class": None, "prefix": None, "pad_token_id": 0, "sep_token_id": None,
    "decoder_start_token_id": None, "task_specific_params": None, "problem_type": None, "_name_or_path": "x",
    "_attn_implementation_autoset": True, "transformers_version": "4.57.0",
}  # fmt: skip


@pytest.mark.parametrize(
    "more",
    [
        OF_TRANSFORMERS_4,
        {"use_mrope": False},
        {"quantization_config": None},
        {"_attn_implementation": "sdpa", "_commit_hash": "0" * 40},
        {"do_sample": True, "temperature": 0.6, "max_length": 4096},
        {"tokenizer_model_max_length": 4096, "neftune_noise_alpha": 5.0, "use_flash_attn": True, "eos_token": "</s>"},
        {"quantization_config": {}},
        {"quantization_config": {"quant_method": "bitsandbytes", "load_in_4bit": False, "load_in_8bit": False}},
    ],
    ids=[
        "transformers 4",
        "a switch that is off",
        "no quantisation",
        "bookkeeping",
        "sampling",
        "of tuning",
        "an empty quantisation",
        "a quantisation that is off",
    ],
)
def test_what_has_no_effect_is_taken(more):
    assert config_from_hf({**LLAMA_HF, **more}) == config_from_hf(LLAMA_HF)


@pytest.mark.parametrize("family", FAMILIES)
def test_every_attribute_of_a_saved_config_is_understood(family, tmp_path):
    import json

    hf_model(family, 2).config.save_pretrained(tmp_path)
    saved = json.loads((tmp_path / "config.json").read_text())
    from_file, from_memory = config_from_hf(saved), config_from_hf(hf_model(family, 2).config.to_dict())
    assert from_file == from_memory
    assert hash(from_file) == hash(from_memory)


FAMILY_CONFIGS = {
    name: family.hf_class.replace("ForCausalLM", "TextConfig" if name == "gemma3_text" else "Config")
    for name, family in REGISTRY.items()
}
REQUIRED = {
    "model_type", "vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads",
}  # fmt: skip


def unusual(family):
    """A saved configuration in which every attribute that is read has a value other than its default."""
    rope = {"rope_type": "linear", "rope_theta": 500.0, "factor": 2.0}
    settings = {
        **BASE, "num_attention_heads": 64, "hidden_size": 256, "num_key_value_heads": 16, "head_dim": 6,
        "rms_norm_eps": 1e-3, "bos_token_id": 7, "eos_token_id": [8, 9], "rope_parameters": rope,
    }  # fmt: skip
    attributes = REGISTRY[family].attributes | REGISTRY[family].renamed.keys()
    settings["tie_word_embeddings"] = not REGISTRY[family].defaults.get("tie_word_embeddings", False)
    more = {
        "attention_bias": True, "mlp_bias": True, "sliding_window": 11, "use_sliding_window": True,
        "max_window_layers": 1, "query_pre_attn_scalar": 9, "layer_types": ["full_attention"] * 3,
        "attn_logit_softcapping": 3.0, "final_logit_softcapping": 4.0, "logit_scale": 0.3, "use_qk_norm": True,
        "no_rope_layers": [1, 0, 0], "no_rope_layer_interval": 2, "embedding_multiplier": 2.0,
        "attention_multiplier": 3.0, "residual_multiplier": 4.0, "logits_scaling": 5.0, "layer_norm_eps": 1e-3,
        "layer_norm_epsilon": 1e-3, "n_layer": 5, "n_head": 32, "hidden_activation": "gelu",
    }  # fmt: skip
    settings |= {name: value for name, value in more.items() if name in attributes}
    if family in ("qwen2", "qwen3"):
        settings["layer_types"] = None
    for own, common in REGISTRY[family].renamed.items():  # one value under both names
        if own in settings:
            settings[common] = settings[own]
    if family in ("gemma3_text", "olmo3"):
        settings["rope_parameters"] = {"full_attention": rope, "sliding_attention": {**rope, "rope_theta": 50.0}}
    if family == "phi3":
        long = {"short_factor": [1.5, 1.6], "long_factor": [2.5, 2.6], "rope_type": "longrope", "rope_theta": 500.0}
        settings |= {"rope_parameters": long, "original_max_position_embeddings": 32, "max_position_embeddings": 128}
        settings["head_dim"] = 4
    if family == "ministral3":
        yarn = {**rope, "rope_type": "yarn", "llama_4_scaling_beta": 0.2, "original_max_position_embeddings": 8}
        settings["rope_parameters"] = yarn
    if family == "apertus":
        settings["hidden_act"] = "xielu"
    return getattr(transformers, FAMILY_CONFIGS[family])(**settings).to_dict()


@pytest.mark.parametrize("family", FAMILY_CONFIGS)
def test_an_absent_attribute_is_what_hf_takes_for_it(family):
    saved, whole = unusual(family), config_from_hf(unusual(family))
    differing = 0
    renamed = REGISTRY[family].renamed
    for name in sorted(name for name in saved if renamed.get(name, name) not in REQUIRED):
        without = {key: value for key, value in saved.items() if key not in (name, renamed.get(name))}
        hf = getattr(transformers, FAMILY_CONFIGS[family])(**without).to_dict()
        expected = config_from_hf(hf)
        assert config_from_hf(without) == expected, name
        differing += expected != whole
    assert differing >= (5 if family == "bloom" else 7)  # BLOOM has fewer attributes


@pytest.mark.parametrize("family", FAMILY_CONFIGS)
def test_what_has_no_default_is_required_by_name(family):
    renamed = {common: own for own, common in REGISTRY[family].renamed.items()}
    follows = {"intermediate_size"} if family == "bloom" else set()
    for name in REQUIRED - follows:
        without = {key: value for key, value in unusual(family).items() if key not in (name, renamed.get(name))}
        with pytest.raises(InputError, match=name):
            config_from_hf(without)


def test_null_is_not_absent():
    mistral = {**LLAMA_HF, "model_type": "mistral", "num_key_value_heads": 2}
    assert config_from_hf(mistral).windows == (4096,) * 4
    assert config_from_hf({**mistral, "sliding_window": None}).windows == (FULL_ATTENTION,) * 4
    gemma = {**LLAMA_HF, "model_type": "gemma2"}
    assert config_from_hf(gemma).attn_softcap == 50.0
    assert config_from_hf(gemma).final_softcap == 30.0
    uncapped = config_from_hf({**gemma, "attn_logit_softcapping": None, "final_logit_softcapping": None})
    assert uncapped.attn_softcap is None
    assert uncapped.final_softcap is None
    assert config_from_hf({**LLAMA_HF, "bos_token_id": None, "eos_token_id": None}).eos_ids == ()


def test_a_note_of_yarn_s_authors_changes_nothing():
    assert config_from_hf({**LLAMA_HF, **yarn(finetuned=True)}) == config_from_hf({**LLAMA_HF, **yarn()})


@pytest.mark.parametrize("model_type", ["llama", "phi3"])
def test_longrope_s_factors_are_one_for_each_pair(model_type):
    pairs = config_from_hf(LLAMA_HF).head_dim // 2
    rope = {"rope_type": "longrope", "factor": 4.0, "original_max_position_embeddings": 32}

    def config(short):
        factors = {"short_factor": [1.5] * short, "long_factor": [2.5] * pairs}
        own = {"model_type": model_type, "original_max_position_embeddings": 32} if model_type == "phi3" else {}
        return config_from_hf({**LLAMA_HF, **own, "rope_parameters": rope | factors})

    assert config(pairs).max_length == 32, "beyond it other factors hold, which are not here"
    with pytest.raises(
        InputError, match=f"longrope has {pairs - 1} numbers in short_factor and {pairs} in long_factor"
    ):
        config(pairs - 1)


def test_one_attribute_under_two_names():
    cohere = {**LLAMA_HF, "model_type": "cohere", "layer_norm_eps": 1e-3}
    assert config_from_hf(cohere).norm_eps == 1e-3
    with pytest.raises(InputError, match=r"layer_norm_eps is 0\.001 but rms_norm_eps is 0\.01; which one holds"):
        config_from_hf({**cohere, "rms_norm_eps": 1e-2})


def yarn(**change):
    return {"rope_parameters": {"rope_type": "yarn", "factor": 4.0, **change}}


WRONG_TYPES = [
    {"head_dim": "64"}, {"head_dim": 0}, {"num_key_value_heads": "8"}, {"num_key_value_heads": -1},
    {"num_attention_heads": True}, {"rms_norm_eps": "x"}, {"rms_norm_eps": None}, {"rms_norm_eps": float("nan")},
    {"rope_parameters": [1]}, {"rope_scaling": "x"}, {"rope_theta": "x"}, {"rope_theta": 0}, {"hidden_act": ["silu"]},
    {"hidden_act": None}, {"max_position_embeddings": None}, {"max_position_embeddings": 2.5}, {"model_type": ["x"]},
    {"tie_word_embeddings": "no"}, {"attention_bias": 1}, {"bos_token_id": "x"}, {"eos_token_id": [1, "x"]},
    {"eos_token_id": {"a": 1}}, yarn(factor="4"), yarn(factor=[4]), yarn(factor=10**400), yarn(rope_type=["yarn"]),
    yarn(beta_fast="x"), yarn(truncate="x"), yarn(attention_factor=[]), yarn(mscale="x", mscale_all_dim=1.0),
    yarn(original_max_position_embeddings="x"), yarn(rope_theta={}),
    {"model_type": "gemma2", "layer_types": 3}, {"model_type": "gemma2", "layer_types": [[1]] * 4},
    {"model_type": "gemma2", "sliding_window": "x"}, {"model_type": "gemma2", "attn_logit_softcapping": "x"},
    {"model_type": "gemma2", "query_pre_attn_scalar": None}, {"model_type": "gemma2", "head_dim": None},
    {"model_type": "gemma3_text", "sliding_window_pattern": "x"}, {"model_type": "gemma3_text", "rope_scaling": [1]},
    {"model_type": "gemma3_text", "rope_parameters": {"full_attention": 3}},
    {"model_type": "gemma3_text", "rope_parameters": {"rope_type": "linear"}},
    {"model_type": "gemma3_text", "sliding_window": None}, {"model_type": "gemma3_text", "rope_local_base_freq": "x"},
    {"model_type": "qwen2", "use_sliding_window": "x"}, {"hidden_size": 2},
    {"model_type": "qwen2", "use_sliding_window": True, "num_key_value_heads": 4, "max_window_layers": "x"},
]  # fmt: skip


# What a message calls an attribute where not by its name.
OTHER_NAMES = {"rope_parameters": ["rope type", "mscale"], "hidden_size": ["head_dim"]}


@pytest.mark.parametrize("change", WRONG_TYPES, ids=lambda change: str(change)[:60])
def test_a_value_of_the_wrong_type_is_one_line(change):
    *_, name = change
    inner = list(change[name])[-1:] if isinstance(change[name], dict) else []
    with pytest.raises(InputError) as error:
        config_from_hf({**LLAMA_HF, **change}, where="here/config.json")
    message = str(error.value)
    assert message.startswith("here/config.json: ")
    assert "\n" not in message
    assert len(message) < 300
    assert re.search("|".join([name, *inner, *OTHER_NAMES.get(name, [])]), message)


def test_a_family_is_one_entry_of_the_registry(monkeypatch):
    """Reading, writing and the names of the weights follow from it, and nothing else is asked which family it is."""
    own = {**LAYER_TENSORS, "q": "attention.query.weight"}

    def normed(config, read):
        return replace(config, qk_norm="head")

    toy = replace(LLAMA, model_type="toy", hf_class="ToyForCausalLM", special=normed, layer_tensors=own)
    monkeypatch.setitem(registry.FAMILIES, "toy", toy)
    config = config_from_hf({**LLAMA_HF, "model_type": "toy"})
    assert config == replace(config_from_hf(LLAMA_HF), family="toy", qk_norm="head")
    written = hf_config(config)
    assert config_from_hf(written) == config
    assert written["architectures"] == ["ToyForCausalLM"]
    assert checkpoint_names(config, "layers.q")[1] == "model.layers.1.attention.query.weight"
    assert {"layers.q_norm", "layers.k_norm"} <= parameter_specs(config).keys()
