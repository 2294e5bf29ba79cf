"""gpt-oss as it is published: experts in MXFP4."""

import json

import jax.numpy as jnp
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

import mwork_jax as mw
from mwork_jax.families.mxfp4 import from_mxfp4
from mwork_jax.neurons import NeuronMask
from support.tiny import hf_model, tokens, torch


def test_numbers_equal_hugging_face():
    from transformers.integrations.mxfp4 import convert_moe_packed_tensors

    rng = np.random.default_rng(0)
    blocks, scales = rng.integers(0, 256, (3, 8, 2, 16), np.uint8), rng.integers(100, 140, (3, 8, 2), np.uint8)
    ours = from_mxfp4(blocks, scales)
    assert ours.shape == (3, 8, 64)
    theirs = convert_moe_packed_tensors(torch.tensor(blocks), torch.tensor(scales), dtype=torch.float32)
    np.testing.assert_array_equal(np.swapaxes(ours, 1, 2), theirs.numpy())  # theirs is [experts, in, out]
    np.testing.assert_array_equal(ours, ours.astype(jnp.bfloat16).astype(np.float32))
    assert np.isnan(from_mxfp4(blocks, np.full_like(scales, 255))).all()


def test_a_quantised_folder_is_the_model_of_its_numbers(tmp_path):
    """The same numbers, packed and as floats."""
    hf = hf_model("gpt-oss", 2, hidden_size=64, intermediate_size=32)
    rng, packed, plain = np.random.default_rng(1), {}, {}
    for name, tensor in hf.state_dict().items():
        plain[name] = tensor.numpy()
        if name.endswith("_proj") and "experts" in name:
            shape = (tensor.shape[0], tensor.shape[2], tensor.shape[1] // 32)
            blocks, scales = rng.integers(0, 256, (*shape, 16), np.uint8), rng.integers(120, 126, shape, np.uint8)
            packed |= {f"{name}_blocks": blocks, f"{name}_scales": scales}
            plain[name] = np.ascontiguousarray(np.swapaxes(from_mxfp4(blocks, scales), 1, 2))
        else:
            packed[name] = tensor.numpy()
    for folder, tensors in (("packed", packed), ("plain", plain)):
        hf.config.save_pretrained(tmp_path / folder)
        save_file(tensors, tmp_path / folder / "model.safetensors")
    config = json.loads((tmp_path / "packed" / "config.json").read_text())
    config["quantization_config"] = {"quant_method": "mxfp4", "modules_to_not_convert": ["lm_head"]}
    (tmp_path / "packed" / "config.json").write_text(json.dumps(config))
    ids = jnp.asarray(tokens(2, 9))
    models = [mw.load_model(tmp_path / folder, dtype="float32") for folder in ("packed", "plain")]
    keep = NeuronMask.keep_all(models[0].config)
    np.testing.assert_array_equal(*(mw.forward(model, ids, keep) for model in models))
    assert models[0].key == models[1].key
    # A block that is not whole.
    tensors = load_file(tmp_path / "packed" / "model.safetensors")
    name = next(name for name in tensors if name.endswith("_blocks"))
    save_file(tensors | {name: tensors[name][..., :8].copy()}, tmp_path / "packed" / "model.safetensors")
    with pytest.raises(mw.InputError, match="has a shape that does not fit"):
        mw.load_model(tmp_path / "packed")
