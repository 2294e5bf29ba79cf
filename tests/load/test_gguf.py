"""GGUF files: weights, configuration and errors, against HF PyTorch models written in llama.cpp's layout."""

import gguf
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest
from gguf import GGMLQuantizationType as Kind

from mwork_jax.config import ModelConfig
from mwork_jax.errors import InputError
from mwork_jax.families import config_from_hf, gguf_form
from mwork_jax.families.gguf_rope import llama3_scaling
from mwork_jax.families.mxfp4 import from_mxfp4
from mwork_jax.families.registry import FAMILIES as REGISTRY
from mwork_jax.load import load_model
from mwork_jax.load.assemble import assemble
from mwork_jax.load.gguf_file import GGUFCheckpoint
from mwork_jax.model.decoder import Decoder, forward_decoder
from mwork_jax.neurons import NeuronMask
from support.gguf_cases import CASES, MISTRAL_SMALL
from support.gguf_writing import llama3_factors, model_parts, write_gguf
from support.tiny import BASE, TorchSource, hf_model, tokens, torch

NEW = list(CASES)[list(CASES).index("gemma") :]


def assembled(config: ModelConfig, source) -> Decoder:
    return assemble(config, source, jnp.float32, lambda name, array: jnp.asarray(array))


def parameters(config: ModelConfig, source) -> dict[str, np.ndarray]:
    """The stacked parameters of a checkpoint, by name."""
    found = {}

    def put(name, array):
        found[name] = array
        return jnp.asarray(array)

    assemble(config, source, jnp.float32, put)
    return found


def compare_logits(hf, decoder: Decoder, atol: float = 1e-5) -> None:
    """Of random tokens, with Hugging Face's."""
    ids = tokens(2, 19)
    with torch.no_grad():
        expected = hf(torch.tensor(ids, dtype=torch.long)).logits.numpy()
    found = forward_decoder(decoder, ids, NeuronMask.keep_all(decoder.config))
    np.testing.assert_allclose(found, expected, rtol=0, atol=atol * max(1, np.abs(expected).max()))


@pytest.fixture(scope="module")
def llama():
    """The metadata and the tensors of one tiny Llama, for tests that change a little."""
    return model_parts(hf_model("llama", 2), "llama")


def opened(path) -> tuple[GGUFCheckpoint, ModelConfig]:
    checkpoint = GGUFCheckpoint(path)
    return checkpoint, config_from_hf(checkpoint.hf_config(), where=checkpoint.where)


def message_of(path) -> str:
    """The one line that refuses the file."""
    with pytest.raises(InputError) as error:
        opened(path)[0].tokenizer()
    assert "\n" not in str(error.value)
    assert str(path) in str(error.value)
    return str(error.value)


@pytest.mark.parametrize("kv_heads", [4, 2, 1])
@pytest.mark.parametrize(("family", "case"), [*CASES.items(), MISTRAL_SMALL])
def test_weights_and_configuration_are_those_of_the_original(family, case, kv_heads, tmp_path):
    arch, settings, extra = case
    hf = hf_model(family, kv_heads, **settings)
    metadata, tensors = model_parts(hf, arch)
    checkpoint, config = opened(write_gguf(tmp_path / "m.gguf", arch, metadata | extra, tensors))
    assert config == config_from_hf(hf.config.to_dict(), where="original")
    found, expected = parameters(config, checkpoint), parameters(config, TorchSource(hf))
    assert found.keys() == expected.keys()
    for name, parameter in expected.items():
        np.testing.assert_allclose(found[name], parameter, rtol=0, atol=2e-7, err_msg=name)
    if not config.num_experts:  # whose tensors are others in memory than on disk
        names = {name for name in hf.state_dict() if name != "lm_head.weight" or "output.weight" in tensors}
        assert checkpoint.names() == names


@pytest.mark.parametrize("family", ["llama", "llama3", "gemma3", *NEW])
def test_logits_are_those_of_the_original(family, tmp_path):
    arch, settings, extra = CASES[family]
    hf = hf_model(family, 2, **settings)
    metadata, tensors = model_parts(hf, arch)
    checkpoint, config = opened(write_gguf(tmp_path / "m.gguf", arch, metadata | extra, tensors))
    compare_logits(hf, assembled(config, checkpoint))


def test_gemma3_layers_follow_a_period_or_flags(tmp_path):
    metadata, tensors = model_parts(hf_model("gemma3", 1), "gemma3")
    key = "gemma3.attention.sliding_window_pattern"
    for pattern, full in [(None, []), (3, [2]), ([True, False, False], [1, 2])]:
        extra = {} if pattern is None else {key: pattern}
        _, config = opened(write_gguf(tmp_path / "m.gguf", "gemma3", metadata | extra, tensors))
        assert [i for i, window in enumerate(config.windows) if window == 0] == full


def written(tmp_path, family: str, changed: dict | None = None, tensors: dict | None = None, **settings):
    """A file of a family in CASES whose metadata (by what follows the architecture's name) and tensors are others than
    the converter's; None: without."""
    arch, own, _ = CASES[family]
    metadata, made = model_parts(hf_model(family, 2, **own | settings), arch)
    metadata |= {key if key.startswith("xielu") else f"{arch}.{key}": value for key, value in (changed or {}).items()}
    made |= tensors or {}
    metadata, made = ({k: v for k, v in found.items() if v is not None} for found in (metadata, made))
    return write_gguf(tmp_path / "m.gguf", arch, metadata, made)


@pytest.mark.parametrize(
    ("family", "changed", "full"),
    [
        ("cohere2", {}, [3]),
        ("cohere2", {"attention.sliding_window_pattern": 2}, [1, 3]),
        ("cohere2", {"attention.sliding_window_pattern": [True, False, True, True, False]}, [1, 4]),
        ("gpt-oss", {}, [1]),
        ("olmo3", {"attention.sliding_window_pattern": None}, []),
        ("olmo3", {"attention.sliding_window_pattern": 0}, []),
        ("olmo2", {}, [0, 1, 2]),
        ("smollm3", {}, [0, 1, 2, 3, 4]),
    ],
)
def test_which_layers_see_all_is_the_file_s_or_the_architecture_s(family, changed, full, tmp_path):
    _, config = opened(written(tmp_path, family, changed))
    assert [i for i, window in enumerate(config.windows) if window == 0] == full


def test_smollm3_rotates_nothing_in_every_fourth_layer(tmp_path):
    _, config = opened(written(tmp_path, "smollm3"))
    assert [config.ropes[rope].kind for rope in config.layer_rope] == [*["default"] * 3, "none", "default"]


def test_olmo3_stretches_layers_without_a_window_alone(tmp_path):
    _, config = opened(written(tmp_path, "olmo3", {"rope.freq_base_swa": 500.0}))
    assert [(rope.kind, rope.theta) for rope in config.ropes] == [("default", 500.0), ("yarn", 1000.0)]


@pytest.mark.parametrize("family", ["apertus", "gpt-oss"])
def test_a_family_that_is_stretched_by_default_is_plain_where_the_file_says_nothing(family, tmp_path):
    plain = dict.fromkeys(["rope.scaling.type", "rope.scaling.factor", "rope.scaling.original_context_length"])
    _, config = opened(written(tmp_path, family, plain, {"rope_freqs.weight": None}))
    assert [rope.kind for rope in config.ropes] == ["default"]


def test_granite_without_multipliers_scales_as_others_do(tmp_path):
    names = ("embedding_scale", "attention.scale", "residual_scale")
    _, config = opened(written(tmp_path, "granite", dict.fromkeys(names)))
    assert (config.embed_scale, config.residual_scale, config.logit_scale) == (1.0, 1.0, 0.25)
    assert config.attn_scale == pytest.approx(8**-0.5)


def test_longrope_takes_the_file_s_temperature(tmp_path):
    usual = opened(written(tmp_path, "phi3-partial"))[1].ropes[0].attention_factor
    assert usual == pytest.approx(np.sqrt(1 + np.log(4) / np.log(48)), abs=1e-15)
    _, config = opened(written(tmp_path, "phi3-partial", {"rope.scaling.attn_factor": 1.5}))
    assert config.ropes[0].attention_factor == 1.5
    _, config = opened(written(tmp_path, "phi3-partial", {"rope.scaling.type": "longrope"}))
    assert config.ropes[0].attention_factor == usual


def test_yarn_with_the_usual_temperature_written_out(tmp_path):
    plain = opened(written(tmp_path, "olmo3"))[1]
    for value in (1.0, 0.1 * np.log(4) + 1):
        assert opened(written(tmp_path, "olmo3", {"rope.scaling.yarn_attn_factor": float(value)}))[1] == plain


def test_bloom_without_a_context_has_the_one_that_all_were_trained_on(tmp_path):
    metadata, tensors = model_parts(hf_model("bloom", 4), "bloom")
    assert metadata["bloom.context_length"] == BASE["hidden_size"]  # what the converter falls back to
    assert opened(write_gguf(tmp_path / "m.gguf", "bloom", metadata, tensors))[1].max_length == 2048


def test_xielu_with_one_number_for_all_layers(tmp_path):
    checkpoint, _ = opened(written(tmp_path, "apertus", {"xielu.beta": 0.5}))
    assert [checkpoint.read(f"model.layers.{i}.mlp.act_fn.beta") for i in range(3)] == [0.5] * 3


def test_an_expert_in_each_tensor_is_all_in_one(tmp_path):
    """As files of Mixtral were until April 2024."""
    hf = hf_model("mixtral", 2)
    metadata, tensors = model_parts(hf, "llama")
    merged = {name: tensors.pop(name) for name in list(tensors) if "_exps" in name}
    apart = {n.replace("_exps", f".{i}"): expert for n, of in merged.items() for i, expert in enumerate(of)}
    checkpoint, config = opened(write_gguf(tmp_path / "m.gguf", "llama", metadata, tensors | apart))
    compare_logits(hf, assembled(config, checkpoint))
    del apart["blk.1.ffn_up.2.weight"]
    with pytest.raises(InputError, match=r"mlp.experts.up_proj.weight.* missing"):
        assembled(*opened(write_gguf(tmp_path / "m.gguf", "llama", metadata, tensors | apart))[::-1])
    twice = tensors | apart | {"blk.1.ffn_gate_exps.weight": merged["blk.1.ffn_gate_exps.weight"]}
    with pytest.raises(InputError, match="are both in the checkpoint; which one holds"):
        assembled(*opened(write_gguf(tmp_path / "m.gguf", "llama", metadata, twice))[::-1])


@pytest.mark.parametrize(
    ("family", "kind", "bits"), [("qwen3-moe", Kind.Q8_0, 8), ("granite", Kind.Q8_0, 8), ("gpt-oss", Kind.MXFP4, 4)]
)
def test_a_quantised_file_is_the_model_of_its_numbers(family, kind, bits, tmp_path):
    """All matrices, or those of the experts, quantised: as Hugging Face with the numbers that they stand for."""
    arch, settings, _ = CASES[family]
    hf = hf_model(family, 2, **settings | {"intermediate_size": 64, "moe_intermediate_size": 32})
    for name, parameter in hf.named_parameters():
        if parameter.ndim > 2 or (family == "granite" and parameter.ndim > 1):
            axis = 1 if family == "gpt-oss" else -1  # of what goes in
            rows = np.moveaxis(parameter.detach().numpy(), axis, -1)
            rows = gguf.quants.dequantize(gguf.quants.quantize(np.ascontiguousarray(rows), kind), kind)
            assert np.abs(rows - np.moveaxis(parameter.detach().numpy(), axis, -1)).max() > 1e-5, name
            parameter.data = torch.tensor(np.moveaxis(rows, -1, axis).copy())
    metadata, tensors = model_parts(hf, arch)
    matrices = [name for name, x in tensors.items() if x.ndim > 2 or (family == "granite" and x.ndim > 1)]
    path = write_gguf(tmp_path / "m.gguf", arch, metadata, tensors, dict.fromkeys(matrices, kind))
    checkpoint, config = opened(path)
    assert checkpoint.stored().startswith(f"{bits}-bit GGUF (")
    assert kind.name in checkpoint.stored()
    found = parameters(config, checkpoint)
    for name, parameter in parameters(config, TorchSource(hf)).items():
        np.testing.assert_allclose(found[name], parameter, rtol=0, atol=2e-7, err_msg=name)
    compare_logits(hf, assembled(config, checkpoint))


def test_mxfp4_in_a_file_is_mxfp4_in_a_checkpoint(tmp_path):
    """The same blocks: numbers 2j and 2j + 1 in the lower and the upper four bits of byte j there; j and j + 16 here,
    with the scale in front."""
    rng, rows = np.random.default_rng(0), 4
    blocks = rng.integers(0, 256, (2, rows, 3, 16), dtype=np.uint8)
    scales = rng.integers(100, 150, (2, rows, 3), dtype=np.uint8)
    packed = np.zeros((2, rows, 3, 17), np.uint8)
    for at in np.ndindex(2, rows, 3):
        numbers = [half for byte in blocks[at] for half in (byte & 15, byte >> 4)]
        packed[at] = [scales[at], *(numbers[j] | numbers[j + 16] << 4 for j in range(16))]
    metadata, tensors = model_parts(hf_model("llama", 2), "llama")
    packed = packed.reshape(2, rows, -1)
    path = write_gguf(tmp_path / "m.gguf", "llama", metadata, tensors | {"extra": packed}, {"extra": Kind.MXFP4})
    np.testing.assert_array_equal(GGUFCheckpoint(path).read("extra"), from_mxfp4(blocks, scales))


@pytest.mark.parametrize(
    ("family", "changed", "said"),
    [
        ("cohere", {"logit_scale": None}, "metadata 'command-r.logit_scale' is missing"),
        ("cohere", {"attention.layer_norm_epsilon": None}, "'command-r.attention.layer_norm_epsilon' is missing"),
        ("cohere2", {"attention.sliding_window": None}, "'cohere2.attention.sliding_window' is missing"),
        ("cohere2", {"attention.sliding_window_pattern": [True, False]}, "layer_types must name"),
        ("cohere2", {"attention.sliding_window_pattern": "LLLG"}, "sliding_window_pattern' is 'LLLG'"),
        ("olmo2", {"attention.clamp_kqv": 8.0}, "'olmo2.attention.clamp_kqv' = 8.0 is not understood"),
        ("olmo3", {"rope.scaling.yarn_attn_factor": 1.3}, "yarn_attn_factor' is 1.3; 1 or 1.13863 is needed"),
        ("phi3", {"attention.sliding_window": None}, "'phi3.attention.sliding_window' is missing"),
        ("phi3", {"rope.dimension_count": 3}, "rope.dimension_count' is 3; an even number up to 8 is needed"),
        ("phi3", {"rope.scaling.type": "longrope"}, "rope scaling 'longrope' without its factors is not supported"),
        ("phi3", {"rope.scaling.type": "yarn"}, "rope scaling 'yarn' is not supported for phi3"),
        ("phi3", {"rope.scaling.attn_factor": 1.2}, "attn_factor' is 1.2, without factors of longrope"),
        ("granite", {"logit_scale": None}, "'granite.logit_scale' is missing"),
        ("granite", {"rope.scaling.finetuned": False}, "'granite.rope.scaling.finetuned' = False is not understood"),
        ("granite", {"deepstack_mapping": [-1, 1, -1]}, "'granite.deepstack_mapping' = "),
        ("ministral3", {"rope.scaling.type": "none"}, "attention.temperature_scale' without rope scaling 'yarn'"),
        ("apertus", {"xielu.alpha_p": None}, "metadata 'xielu.alpha_p' is missing"),
        ("apertus", {"xielu.alpha_p": [0.5, 0.5]}, "'xielu.alpha_p' is "),
        ("apertus", {"xielu.eps": "small"}, "'xielu.eps' is 'small'; 3 numbers are needed"),
        ("bloom", {"feed_forward_length": 48}, "a feed-forward of 4 x 32"),
        ("bloom", {"attention.max_alibi_bias": 4.0}, "'bloom.attention.max_alibi_bias' = 4.0 is not understood"),
        ("gemma", {"attention.sliding_window": 4096}, "'gemma.attention.sliding_window' = 4096 is not understood"),
        ("mixtral", {"expert_gating_func": 2}, "'llama.expert_gating_func' = 2 is not understood"),
        ("mixtral", {"expert_used_count": 9}, "num_experts_per_tok is 9"),
        ("qwen3-moe", {"expert_weights_norm": False}, "'qwen3moe.expert_weights_norm' = False is not understood"),
        ("qwen3-moe", {"expert_feed_forward_length": None}, "'qwen3moe.expert_feed_forward_length' is missing"),
        ("gpt-oss", {"expert_count": None}, "'gpt-oss.expert_count' is missing"),
        ("gpt-oss", {"swiglu_clamp_exp": [7.0, 7.0, 7.0]}, "'gpt-oss.swiglu_clamp_exp' = "),
    ],
)
def test_metadata_of_a_family_that_cannot_be_used(family, changed, said, tmp_path):
    assert said in message_of(written(tmp_path, family, changed))


@pytest.mark.parametrize(
    ("family", "tensors", "said"),
    [
        ("phi3-partial", {"rope_factors_long.weight": None}, "rope_factors_long.weight is missing"),
        ("phi3-partial", {"rope_factors_short.weight": np.ones((2, 3), np.float32)}, "has shape (2, 3)"),
        ("phi3-partial", {"rope_factors_short.weight": np.ones(3, np.float32)}, "longrope has 3 numbers"),
        ("phi3", {"blk.0.attn_qkv.weight": np.zeros((5, 32), np.float32)}, "has shape (5, 32)"),
        ("phi3", {"blk.0.ffn_gate.weight": np.zeros((48, 32), np.float32)}, "are both in the checkpoint"),
        ("apertus", {"model.norm.weight": np.ones(32, np.float32)}, "are both model.norm.weight; which one holds?"),
        ("cohere2", {"rope_factors_long.weight": np.ones(4, np.float32)}, "rope_factors_long.weight"),
        ("bloom", {"blk.1.attn_qkv.weight": np.zeros((5, 32), np.float32)}, "5 rows, not a multiple of 3 x 4 heads"),
        ("bloom", {"token_embd_norm.bias": None}, "word_embeddings_layernorm.bias missing"),
        ("granite", {"blk.2.attn_k.weight": np.zeros((6, 32), np.float32)}, "6 rows, not a multiple of 2 x 2 heads"),
        ("gpt-oss", {"blk.0.attn_sinks.weight": None}, "model.layers.0.self_attn.sinks missing"),
        ("gpt-oss", {"blk.0.ffn_gate_exps.weight": np.zeros((4, 9, 32), np.float32)}, "has shape (4, 9, 32)"),
        ("qwen3-moe", {"blk.0.ffn_gate_inp.weight": None}, "model.layers.0.mlp.gate.weight missing"),
        ("olmo2", {"blk.0.ffn_norm.weight": np.ones(32, np.float32)}, "blk.0.ffn_norm.weight"),
    ],
)
def test_tensors_that_do_not_fit_are_named(family, tensors, said, tmp_path):
    path = written(tmp_path, family, tensors=tensors)
    with pytest.raises(InputError) as error:
        assembled(*opened(path)[::-1])
    assert said in str(error.value)
    assert str(path) in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("arch", [None, np.array([]), np.array([1, 2]), 7])
def test_an_architecture_that_is_no_name(arch):
    class File:
        where, metadata, tensors = "file", {"general.architecture": arch}, {}

    with pytest.raises(InputError, match=r"^file: architecture .* is not supported; supported: llama, "):
        gguf_form(File())


def test_every_family_has_forms_of_its_own():
    """One that is made from another must not read its files."""
    forms = [form for family in REGISTRY.values() for form in family.gguf]
    assert len({id(form) for form in forms}) == len(forms)
    assert all(bool(family.gguf) != ("GGUF" in family.limits) for family in REGISTRY.values())


@pytest.mark.parametrize(("arch", "layers"), [("gemma2", 46), ("gemma3", 62)])
def test_the_largest_gemmas_scale_scores_by_hidden_size(arch, layers, tmp_path):
    metadata, tensors = model_parts(hf_model(arch, 1), arch)
    _, config = opened(write_gguf(tmp_path / "m.gguf", arch, metadata | {f"{arch}.block_count": layers}, tensors))
    assert config.attn_scale == (BASE["hidden_size"] / BASE["num_attention_heads"]) ** -0.5


@pytest.mark.parametrize("kind", [Kind.BF16, Kind.F16, Kind.Q4_0, Kind.Q4_1, Kind.Q5_0, Kind.Q5_1, Kind.Q8_0])
def test_quantised_tensors(kind, llama, tmp_path):
    metadata, tensors = llama
    name = "blk.1.ffn_up.weight"
    checkpoint = GGUFCheckpoint(write_gguf(tmp_path / "m.gguf", "llama", metadata, tensors, {name: kind}))
    found = checkpoint.read("model.layers.1.mlp.up_proj.weight")
    packed = gguf.quants.quantize(tensors[name], kind)
    np.testing.assert_array_equal(found.astype(np.float32), gguf.quants.dequantize(packed, kind))
    assert found.dtype == {Kind.BF16: ml_dtypes.bfloat16, Kind.F16: np.float16}.get(kind, np.float32)
    assert np.abs(found.astype(np.float32) - tensors[name]).max() < 0.1 * np.abs(tensors[name]).max()


def test_it_says_how_it_holds_its_weights(llama, tmp_path):
    metadata, tensors = llama
    matrices = [name for name, x in tensors.items() if x.ndim > 1 and x.shape[-1] % 32 == 0]
    path = write_gguf(tmp_path / "m.gguf", "llama", metadata, tensors, dict.fromkeys(matrices, Kind.Q4_0))
    assert GGUFCheckpoint(path).stored() in ("4-bit GGUF (Q4_0, F32)", "4-bit GGUF (F32, Q4_0)")
    model = load_model(path, dtype="float32")
    assert model.info.precision.startswith("float32, dequantised from 4-bit GGUF (")
    assert "stored" not in model.key
    assert GGUFCheckpoint(write_gguf(tmp_path / "f.gguf", "llama", metadata, tensors)).stored() == "GGUF (F32)"


@pytest.mark.parametrize("kind", [Kind.Q2_K, Kind.Q3_K, Kind.Q4_K, Kind.Q5_K, Kind.Q6_K])
def test_k_quantised_tensors(kind, llama, tmp_path, monkeypatch):
    """No one can write these in numpy, but any bytes are valid ones. Expanded in blocks of a few rows and whole."""
    monkeypatch.setattr("mwork_jax.load.gguf_format._BLOCK_BYTES", 1000)
    metadata, tensors = llama
    packed = np.random.default_rng(0).integers(0, 60, (37, 2 * gguf.GGML_QUANT_SIZES[kind][1]), dtype=np.uint8)
    path = write_gguf(tmp_path / "m.gguf", "llama", metadata, tensors | {"extra": packed}, {"extra": kind})
    found = GGUFCheckpoint(path).read("extra")
    assert found.shape == (37, 512)
    np.testing.assert_array_equal(found, gguf.quants.dequantize(packed, kind))


def test_a_quantised_q_projection_is_put_in_order_too(llama, tmp_path):
    metadata, tensors = llama
    name = "blk.0.attn_q.weight"
    plain = GGUFCheckpoint(write_gguf(tmp_path / "a.gguf", "llama", metadata, tensors))
    packed = GGUFCheckpoint(write_gguf(tmp_path / "b.gguf", "llama", metadata, tensors, {name: Kind.Q8_0}))
    hf_name = "model.layers.0.self_attn.q_proj.weight"
    np.testing.assert_allclose(packed.read(hf_name), plain.read(hf_name), atol=0.01)


@pytest.mark.parametrize(
    ("theta", "size", "factor", "high", "length"),
    [(5e5, 128, 8.0, 4.0, 8192), (5e5, 64, 32.0, 4.0, 8192), (1e4, 64, 4.0, 3.0, 1000), (1e6, 128, 2.0, 8.0, 32768)],
)
def test_llama3_scaling_is_recognised(theta, size, factor, high, length):
    rope = {
        "rope_type": "llama3", "factor": factor, "low_freq_factor": 1.0, "high_freq_factor": high,
        "original_max_position_embeddings": length,
    }  # fmt: skip

    class Config:
        rope_parameters = rope | {"rope_theta": theta}
        hidden_size, num_attention_heads = size, 1

    assert llama3_scaling(llama3_factors(Config).astype(np.float64), size, theta, "file") == rope


def test_other_frequency_factors_are_refused():
    assert llama3_scaling(np.ones(32), 64, 1e4, "file") is None
    with pytest.raises(InputError, match="file is not the scaling of Llama 3"):
        llama3_scaling(np.linspace(1, 8, 32), 64, 1e4, "file")
    with pytest.raises(InputError, match="one factor for each of 32 pairs"):
        llama3_scaling(np.ones(31), 64, 1e4, "file")


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"", "not a GGUF file"),
        (b"PK\x03\x04 something else", "not a GGUF file"),
        (b"GGUF", "cut short"),
        (b"GGUF\x01\0\0\0" + bytes(16), "version 1 is not supported"),
        (b"GGUF\0\0\0\x03" + bytes(16), "big-endian"),
    ],
)
def test_other_files(content, said, tmp_path):
    path = tmp_path / "m.gguf"
    path.write_bytes(content)
    assert said in message_of(path)


def test_missing_file_and_folder(tmp_path):
    assert "no such file" in message_of(tmp_path / "none.gguf")
    assert "cannot be read" in message_of(tmp_path)


def test_truncation_is_noticed_before_anything_is_read(llama, tmp_path):
    path = write_gguf(tmp_path / "m.gguf", "llama", *llama)
    whole = path.read_bytes()
    for size in [*range(4, 3000, 131), len(whole) // 2, len(whole) - 40]:
        path.write_bytes(whole[:size])
        assert "cut short" in message_of(path), size
    assert f"should end at byte {len(whole):,}" in message_of(path)
    assert f"only {len(whole) - 40:,} bytes" in message_of(path)


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({"general.architecture": "mamba"}, "architecture 'mamba' is not supported; supported: llama, mistral3, qwen2"),
        ({"split.count": 2}, "one part of several"),
        ({"llama.expert_count": 8}, "'llama.expert_used_count' is missing"),
        ({"llama.expert_shared_count": 1}, "'llama.expert_shared_count' = 1 is not understood"),
        ({"llama.attention.causal": False}, "'llama.attention.causal' = False is not understood"),
        ({"llama.attention.head_count_kv": [2, 2, 1]}, "one number is needed"),
        ({"llama.rope.scaling.type": [1, 2]}, "rope.scaling.type' is array([1, 2]"),
        ({"llama.rope.scaling.type": "longrope"}, "rope scaling 'longrope' is not supported"),
        ({"llama.rope.dimension_count": 4}, "rope.dimension_count is 4, not the head size 8"),
        ({"llama.embedding_length": 64}, "token_embd.weight has shape (97, 32)"),
        ({"llama.block_count": None}, "'llama.block_count' is missing"),
        ({"llama.block_count": 0}, "positive whole number"),
        ({"llama.block_count": 2**32 - 1}, "'llama.block_count' is 4294967295; it is 10000 at most"),
        ({"tokenizer.ggml.eot_token_id": [2]}, "eot_token_id is array([2]"),
        ({"tokenizer.ggml.bos_token_id": "<s>"}, "bos_token_id is '<s>'; one whole number is needed"),
        ({"tokenizer.ggml.tokens": ["a", "b"], "tokenizer.ggml.model": "bert"}, "tokenizer 'bert' is not supported"),
    ],
)
def test_metadata_that_cannot_be_used(changed, said, llama, tmp_path):
    metadata, tensors = llama
    arch = changed.get("general.architecture", "llama")
    merged = {k: v for k, v in (metadata | changed).items() if v is not None and k != "general.architecture"}
    assert said in message_of(write_gguf(tmp_path / "m.gguf", arch, merged, tensors))


@pytest.mark.parametrize(
    ("before", "after", "said"),
    [
        (b"general.author_", b"general.version", "metadata 'general.version' is there twice"),
        (b"blk.1.attn_q.weight", b"blk.0.attn_q.weight", "tensor 'blk.0.attn_q.weight' is there twice"),
    ],
)
def test_what_is_there_twice_is_refused(before, after, said, llama, tmp_path):
    metadata, tensors = llama
    path = write_gguf(
        tmp_path / "m.gguf", "llama", metadata | {"general.author_": "a", "general.version": "b"}, tensors
    )
    path.write_bytes(path.read_bytes().replace(before, after))
    assert said in message_of(path)


def test_metadata_that_changes_nothing_is_accepted(llama, tmp_path):
    metadata, tensors = llama
    extra = {"llama.expert_count": 0, "llama.attention.causal": True, "llama.attention.head_count_kv": [2, 2, 2]}
    extra |= {"llama.mm.tokens_per_image": 256, "llama.vision.block_count": 27, "llama.vision.image_size": 896}
    plain = opened(write_gguf(tmp_path / "a.gguf", "llama", metadata, tensors))[1]
    checkpoint, config = opened(write_gguf(tmp_path / "b.gguf", "llama", metadata | extra, tensors))
    assert config == plain
    assert checkpoint.tokenizer() is None


def test_a_type_that_cannot_be_read_is_named(llama, tmp_path):
    metadata, tensors = llama
    packed = np.zeros((4, gguf.GGML_QUANT_SIZES[Kind.IQ4_NL][1]), np.uint8)
    path = write_gguf(tmp_path / "m.gguf", "llama", metadata, tensors | {"extra": packed}, {"extra": Kind.IQ4_NL})
    assert "tensor 'extra' has type IQ4_NL, which is not supported; supported: F32, F16" in message_of(path)


def test_damaged_headers_give_one_line_or_a_model(llama, tmp_path):
    """Any byte of the header may be wrong: never another exception, never a hang."""
    path = write_gguf(tmp_path / "m.gguf", "llama", *llama)
    whole, rng, refusals = path.read_bytes(), np.random.default_rng(0), []
    for _ in range(400):
        damaged = bytearray(whole)
        for at in rng.integers(4, 2600, rng.integers(1, 4)):
            damaged[at] = rng.choice(np.array([0, 1, 8, 255, rng.integers(256)]))
        path.write_bytes(damaged)
        try:
            opened(path)[0].tokenizer()
        except InputError as error:
            refusals.append(str(error))
    assert len(refusals) > 50
    assert all(len(refusal.splitlines()) == 1 for refusal in refusals)
