"""Configurations: read as HF means them, in both of its formats, or refused by name."""

import pytest

from mwork_jax.config import FULL_ATTENTION, ModelConfig
from mwork_jax.errors import InputError
from tiny import FAMILIES, hf_model

LLAMA = {
    "model_type": "llama", "vocab_size": 100, "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 4,
    "num_attention_heads": 4,
}  # fmt: skip


def test_defaults_are_those_of_hf():
    config = ModelConfig.from_hf(LLAMA)
    assert config.num_kv_heads == 4
    assert config.head_dim == 8
    assert config.norm_eps == 1e-6
    assert config.ropes[0].theta == 10000.0
    assert not config.tie_embeddings
    assert config.windows == (FULL_ATTENTION,) * 4


def test_gemma3_in_the_format_of_transformers_4():
    config = ModelConfig.from_hf(
        {
            **LLAMA, "model_type": "gemma3_text", "num_hidden_layers": 12, "num_key_value_heads": 1, "head_dim": 256,
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
    config = ModelConfig.from_hf({**LLAMA, "rope_theta": 5e5, "rope_scaling": scaling, "eos_token_id": [1, 2]})
    (rope,) = config.ropes
    assert (rope.kind, rope.theta, rope.factor, rope.original_length) == ("llama3", 5e5, 8.0, 8192)
    assert config.eos_ids == (1, 2)


def test_qwen_windows_only_where_they_are_switched_on():
    qwen = {**LLAMA, "model_type": "qwen2", "sliding_window": 7, "max_window_layers": 3}
    assert ModelConfig.from_hf({**qwen, "use_sliding_window": False}).windows == (0, 0, 0, 0)
    assert ModelConfig.from_hf({**qwen, "use_sliding_window": True}).windows == (0, 0, 0, 7)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"model_type": "mamba"}, "model_type 'mamba' is not supported"),
        ({"model_type": None}, "model_type None is not supported"),
        ({"clip_qkv": 8.0}, "attribute 'clip_qkv' = 8.0 is not understood"),
        ({"sliding_window": 64}, "attribute 'sliding_window' = 64 is not understood for model_type 'llama'"),
        ({"quantization_config": {"bits": 4}}, "attribute 'quantization_config'"),
        ({"partial_rotary_factor": 0.5}, "attribute 'partial_rotary_factor' = 0.5"),
        ({"hidden_act": "relu"}, "activation 'relu'"),
        ({"rope_scaling": {"type": "dynamic", "factor": 2.0}}, "rope type 'dynamic' is not supported"),
        ({"rope_scaling": {"type": "linear"}}, "needs 'factor'"),
        ({"rope_scaling": {"type": "linear", "factor": 2.0, "short_factor": [1]}}, "rope attribute 'short_factor'"),
        ({"num_key_value_heads": 3}, "is not a multiple"),
        ({"head_dim": 7}, "odd"),
        ({"vocab_size": "many"}, "vocab_size is 'many'"),
        ({"num_hidden_layers": 0}, "num_hidden_layers is 0"),
    ],
)
def test_what_is_not_understood_is_named(change, message):
    with pytest.raises(InputError, match=message) as error:
        ModelConfig.from_hf({**LLAMA, **change}, where="here/config.json")
    assert str(error.value).startswith("here/config.json: ")
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("family", FAMILIES)
def test_every_attribute_of_a_saved_config_is_understood(family, tmp_path):
    import json

    hf_model(family, 2).config.save_pretrained(tmp_path)
    saved = json.loads((tmp_path / "config.json").read_text())
    from_file, from_memory = ModelConfig.from_hf(saved), ModelConfig.from_hf(hf_model(family, 2).config.to_dict())
    assert from_file == from_memory
    assert hash(from_file) == hash(from_memory)
