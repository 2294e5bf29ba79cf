"""Weights in floats of eight bits with scales: their products."""

import json

import jax
import pytest
from safetensors.torch import save_file

import mwork_jax as mw
from mwork_jax.errors import InputError
from mwork_jax.families import config_from_hf
from mwork_jax.sharding import make_mesh
from support.tiny import hf_model, torch

FP8 = {"quant_method": "fp8", "weight_block_size": [20, 20], "activation_scheme": "dynamic"}
FLOAT = {"type": "float", "num_bits": 8}
COMPRESSED = {"quant_method": "compressed-tensors", "config_groups": {"group_0": {"weights": FLOAT}}}


def blocks(weight, size=20):
    """Weights in blocks, as `fp8` writes them: (floats of eight bits, scales, their product)."""
    rows, columns = (-(-n // size) for n in weight.shape)
    scale = 0.01 * (1 + torch.rand(rows, columns))
    spread = scale.repeat_interleave(size, 0).repeat_interleave(size, 1)[: weight.shape[0], : weight.shape[1]]
    small = (weight / spread).to(torch.float8_e4m3fn)
    return small, scale, small.float() * spread


def by_row(weight):
    scale = 0.01 * (1 + torch.rand(weight.shape[0], 1))
    small = (weight / scale).to(torch.float8_e4m3fn)
    return small, scale, small.float() * scale


def whole(weight):
    small = (weight / 0.02).to(torch.float8_e4m3fn)
    return small, torch.tensor(0.02), small.float() * torch.tensor(0.02)


def saved(folder, way, scale_name, quantisation):
    """A tiny model whose projections are stored in eight bits, and the same with their products as floats."""
    hf, small, plain = hf_model("llama", 2), {}, {}
    for name, tensor in hf.state_dict().items():
        plain[name] = small[name] = tensor.clone()
        if name.endswith("_proj.weight"):
            small[name], small[name + scale_name], plain[name] = way(tensor)
            small[name.replace("weight", "input_scale")] = torch.tensor(1.0)
    for kind, tensors in (("small", small), ("plain", plain)):
        hf.config.save_pretrained(folder / kind)
        save_file(tensors, folder / kind / "model.safetensors")
    path = folder / "small" / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"quantization_config": quantisation}))
    return folder / "small", folder / "plain"


@pytest.mark.parametrize(
    ("way", "scale_name", "quantisation"),
    [(blocks, "_scale_inv", FP8), (whole, "_scale_inv", FP8), (by_row, "_scale", COMPRESSED)],
    ids=["blocks", "one scale", "a scale for each row"],
)
def test_weights_are_the_products(tmp_path, way, scale_name, quantisation):
    small, plain = saved(tmp_path, way, scale_name, quantisation)
    assert mw.load_model(small, dtype="float32").key == mw.load_model(plain, dtype="float32").key
    on_mesh = mw.load_model(small, dtype="float32", mesh=make_mesh({}, jax.devices()[:1]))
    assert on_mesh.key == mw.load_model(plain, dtype="float32").key


def test_a_scale_that_does_not_fit_is_named(tmp_path):
    small, _ = saved(tmp_path, blocks, "_scale_inv", FP8)
    from safetensors.torch import load_file

    tensors, name = load_file(small / "model.safetensors"), "model.layers.0.self_attn.q_proj.weight"
    save_file(tensors | {name + "_scale_inv": torch.ones(3, 1)}, small / "model.safetensors")
    with pytest.raises(
        InputError, match=r"q_proj.weight_scale_inv is \[3, 1\], which does not fit .* blocks of 20 x 20"
    ):
        mw.load_model(small)
    save_file(tensors | {name: torch.ones(32, 32)}, small / "model.safetensors")
    with pytest.raises(InputError, match="which is stored as float32, not as floats of eight bits"):
        mw.load_model(small)
    del tensors[name + "_scale_inv"]
    save_file(tensors, small / "model.safetensors")
    with pytest.raises(InputError, match="is stored as F8_E4M3"):
        mw.load_model(small)


@pytest.mark.parametrize(
    "quantisation",
    [{"quant_method": "gptq", "bits": 4}, {"quant_method": "bitsandbytes"}, {"quant_method": "awq"},
     {"quant_method": "mxfp4"}, {"quant_method": "compressed-tensors"},
     {**COMPRESSED, "config_groups": {"group_0": {"weights": {"type": "int", "num_bits": 4}}}}],
)  # fmt: skip
def test_other_quantised_weights_are_refused_by_name(quantisation):
    hf = hf_model("llama", 2).config.to_dict()
    config_from_hf(hf)
    with pytest.raises(InputError, match=f"weights are quantised \\('{quantisation['quant_method']}'\\)"):
        config_from_hf({**hf, "quantization_config": quantisation})
