"""Models that read images and text: their text model, as it is in the whole."""

import json

import jax.numpy as jnp
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

import mwork_jax as mw
from mwork_jax.errors import InputError
from mwork_jax.families import config_from_hf
from mwork_jax.neurons import NeuronMask
from support.slow_deactivation import hf_logits
from support.tiny import BASE, tokens, torch, transformers

_VISION = {
    "hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "image_size": 28,
    "patch_size": 14, "model_type": "siglip_vision_model",
}  # fmt: skip
_TEXT = {**BASE, "head_dim": 16, "num_key_value_heads": 2}
_KINDS = {
    "gemma3": ("Gemma3ForConditionalGeneration", {
        "text_config": {**_TEXT, "model_type": "gemma3_text", "sliding_window": 5, "tie_word_embeddings": True},
        "mm_tokens_per_image": 4,
    }),
    "mistral3": ("Mistral3ForConditionalGeneration", {
        "text_config": {**_TEXT, "model_type": "mistral"}, "tie_word_embeddings": False,
        "vision_config": {**_VISION, "model_type": "pixtral", "head_dim": 8},
    }),
}  # fmt: skip


def saved(folder, kind):
    """A tiny random model of images and text, and its folder."""
    class_name, settings = _KINDS[kind]
    model_class = getattr(transformers, class_name)
    config = model_class.config_class(**{"vision_config": _VISION, **settings, "image_token_index": 96})
    hf = model_class._from_config(config, attn_implementation="eager").float().eval()
    generator = torch.Generator().manual_seed(0)
    for parameter in hf.parameters():
        parameter.data += 0.1 * torch.randn(parameter.shape, generator=generator)
    hf.save_pretrained(folder)
    return hf


@pytest.mark.parametrize("kind", _KINDS)
def test_the_text_model_of_one_that_reads_images(kind, tmp_path):
    hf, ids = saved(tmp_path, kind), tokens(2, 13)
    expected = hf_logits(hf, ids % 96).logits
    model = mw.load_model(tmp_path, dtype="float32")
    ours = mw.forward(model, jnp.asarray(ids % 96), NeuronMask.keep_all(model.config))
    np.testing.assert_allclose(ours, expected, atol=1e-5, rtol=0)
    # The other way in which transformers has spelled the names.
    weights = tmp_path / "model.safetensors"
    spelled = {"language_model.model.": "model.language_model.", "language_model.lm_head.": "lm_head."}
    spelled |= {f"{part}.": f"model.{part}." for part in ("vision_tower", "multi_modal_projector")}
    renamed = {}
    for name, tensor in load_file(weights).items():
        before = next(prefix for prefix in spelled if name.startswith(prefix))
        renamed[spelled[before] + name.removeprefix(before)] = tensor
    save_file(renamed, weights)
    again = mw.load_model(tmp_path, dtype="float32")
    assert again.key == model.key


def test_what_a_text_config_leaves_out_is_the_class_s():
    """Gemma 3 4B's config.json: neither heads nor vocabulary are in it."""
    hf = {
        "model_type": "gemma3", "eos_token_id": [1, 106], "mm_tokens_per_image": 256, "vision_config": _VISION,
        "text_config": {
            "model_type": "gemma3_text", "hidden_size": 2560, "intermediate_size": 10240, "num_hidden_layers": 34,
            "sliding_window": 1024, "rope_scaling": {"factor": 8.0, "rope_type": "linear"},
        },
    }  # fmt: skip
    config = config_from_hf(hf)
    theirs = transformers.Gemma3Config(**hf).get_text_config()
    assert (config.num_heads, config.num_kv_heads, config.head_dim) == (8, 4, 256)
    assert (config.vocab_size, config.eos_ids) == (262208, (1, 106))
    assert (theirs.num_attention_heads, theirs.vocab_size) == (config.num_heads, config.vocab_size)
    assert json.loads(json.dumps(theirs.layer_types)).count("full_attention") == config.windows.count(0)
    with pytest.raises(InputError, match="num_attention_heads is None"):
        config_from_hf(hf["text_config"])  # on its own, its sizes are not guessed


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"text_config": None}, "text_config is None; an object that describes the text model"),
        ({"text_config": {"model_type": "gpt2"}}, "text_config: model_type 'gpt2' is not supported"),
        ({"text_config": {**_TEXT, "logit_scale": 2.0}}, "text_config: attribute 'logit_scale'"),
        ({"audio_scale": 3}, "config.json: attribute 'audio_scale' = 3 is not understood for model_type 'gemma3'"),
        ({"tie_word_embeddings": False}, "tie_word_embeddings is False, but that of text_config is True; which one"),
    ],
)
def test_what_is_not_understood_is_named(change, message):
    hf = {"model_type": "gemma3", "text_config": {**_TEXT, "tie_word_embeddings": True}}
    assert config_from_hf(hf).family == "gemma3_text"
    with pytest.raises(InputError, match=message):
        config_from_hf({**hf, **change})
