"""The forward pass against HF PyTorch: every family, every way to share keys, every layer; masks against zeroed
weights."""

import copy

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import mwork_jax as mw
from mwork_jax.model.decoder import Decoder, embedded, forward_decoder, hidden_states, logits_of
from mwork_jax.neurons import GROUPS, NeuronMask
from support.slow_deactivation import hf_logits, random_neurons, zero_neurons
from support.tiny import DISTINCT, FAMILIES, KV_HEADS, hf_model, pair, tokens, torch

TOLERANCE = 1e-5


@pytest.mark.parametrize("kv_heads", KV_HEADS.values(), ids=KV_HEADS)
@pytest.mark.parametrize("family", FAMILIES)
def test_logits_and_every_layer_equal_hf(family, kv_heads):
    """In float64 theirs have no rounding to speak of: in float32 they are off by up to 9e-6 themselves."""
    both = pair(family, kv_heads)
    ids = tokens(2, 23)
    theirs = hf_logits(copy.deepcopy(both.hf).double(), ids, output_hidden_states=True)
    keep = NeuronMask.keep_all(both.config)
    ours = forward_decoder(both.decoder, ids, keep)
    _, layers = hidden_states(both.decoder, jnp.asarray(ids), keep, observe=lambda record: record.hidden)
    np.testing.assert_allclose(ours, theirs.logits, atol=TOLERANCE, rtol=0)
    for ours_after, theirs_after in zip(layers[:-1], theirs.hidden_states[1:-1], strict=True):
        np.testing.assert_allclose(ours_after, theirs_after, atol=TOLERANCE, rtol=0)


@pytest.mark.parametrize("family", ["llama", "mistral", "gemma3"])
def test_query_blocks_change_nothing(family, monkeypatch):
    both = pair(family, 2)
    ids, keep = jnp.asarray(tokens(2, 23)), NeuronMask.keep_all(both.config)
    whole, _ = hidden_states(both.decoder, ids, keep)
    monkeypatch.setattr("mwork_jax.model.attention._QUERY_BLOCK", 5)
    blocked, _ = hidden_states(both.decoder, ids, keep)
    np.testing.assert_allclose(blocked, whole, atol=TOLERANCE, rtol=0)


@pytest.mark.parametrize("family", ["llama", "mistral", "gemma3"])
def test_padding_on_either_side_changes_nothing(family):
    both = pair(family, 2)
    ids, keep = tokens(1, 11), NeuronMask.keep_all(both.config)
    alone = np.asarray(forward_decoder(both.decoder, ids, keep))
    right = np.concatenate([ids, np.full((1, 6), 5, np.int32)], axis=1)
    np.testing.assert_allclose(forward_decoder(both.decoder, right, keep)[:, :11], alone, atol=TOLERANCE, rtol=0)
    left = np.concatenate([np.full((1, 6), 5, np.int32), ids], axis=1)
    x, _ = hidden_states(both.decoder, jnp.asarray(left), keep, positions=jnp.maximum(jnp.arange(17) - 6, -1)[None])
    np.testing.assert_allclose(logits_of(both.decoder, x)[:, 6:], alone, atol=TOLERANCE, rtol=0)


@pytest.mark.parametrize("group", GROUPS)
@pytest.mark.parametrize("family", DISTINCT)
def test_mask_equals_hf_with_zeroed_weights(family, group):
    both = pair(family, 2)
    ids = tokens(2, 17)
    neurons = random_neurons(both.config, groups=(group,))
    assert neurons.count() > 0
    mask = NeuronMask.keep_all(both.config).drop(neurons)
    theirs = hf_logits(zero_neurons(both.hf, neurons, both.config), ids).logits
    np.testing.assert_allclose(forward_decoder(both.decoder, ids, mask), theirs, atol=TOLERANCE, rtol=0)
    whole = forward_decoder(both.decoder, ids, NeuronMask.keep_all(both.config))
    assert np.abs(np.asarray(whole) - theirs.numpy()).max() > 1e-3, (
        "the mask must matter for this test to mean anything"
    )


def test_hundred_masks_compile_once_and_leave_the_parameters_alone():
    both = pair("gemma3", 2)
    ids = tokens(1, 13)
    before = jax.tree.map(np.asarray, both.decoder)
    forward_decoder.clear_cache()
    for seed in range(100):
        mask = NeuronMask.keep_all(both.config).drop(random_neurons(both.config, seed=seed))
        forward_decoder(both.decoder, ids, mask).block_until_ready()
    assert forward_decoder._cache_size() == 1
    assert all(
        np.array_equal(a, b) for a, b in zip(jax.tree.leaves(before), jax.tree.leaves(both.decoder), strict=True)
    )


def test_vmap_over_masks_is_a_loop():
    both = pair("qwen3", 2)
    ids = jnp.asarray(tokens(2, 9))
    masks = [NeuronMask.keep_all(both.config).drop(random_neurons(both.config, seed=s)) for s in range(4)]
    together = jax.vmap(lambda mask: forward_decoder(both.decoder, ids, mask))(NeuronMask.stack(masks))
    for one, mask in zip(together, masks, strict=True):
        np.testing.assert_allclose(one, forward_decoder(both.decoder, ids, mask), atol=TOLERANCE, rtol=0)


def test_bfloat16_weights_give_float32_logits_near_the_float32_model():
    both = pair("llama", 2)
    small = Decoder.random(both.config, jax.random.key(0), jnp.bfloat16)
    large = Decoder.random(both.config, jax.random.key(0), jnp.float32)
    keep, ids = NeuronMask.keep_all(both.config), tokens(2, 9)
    rough, fine = forward_decoder(small, ids, keep), forward_decoder(large, ids, keep)
    assert rough.dtype == jnp.float32
    assert 0 < np.abs(np.asarray(rough - fine)).max() < 0.2


def test_parameters_of_another_shape_are_refused():
    both = pair("llama", 2)
    arrays = {"embed": jnp.zeros((1, 1))}
    with pytest.raises(ValueError, match="do not fit the configuration"):
        Decoder(both.config, arrays)


def test_seven_billion_parameters_trace_without_memory():
    from mwork_jax.families import config_from_hf
    from mwork_jax.model.parameters import parameter_specs

    config = config_from_hf(
        {
            "model_type": "mistral", "vocab_size": 32000, "hidden_size": 4096, "intermediate_size": 14336,
            "num_hidden_layers": 32, "num_attention_heads": 32, "num_key_value_heads": 8, "sliding_window": 4096,
        }
    )  # fmt: skip
    shapes = {n: jax.ShapeDtypeStruct(s.shape, jnp.bfloat16) for n, s in parameter_specs(config).items()}
    assert sum(int(np.prod(s.shape)) for s in shapes.values()) == 7_241_732_096
    mask = jax.eval_shape(lambda: NeuronMask.keep_all(config))
    out = jax.eval_shape(
        lambda arrays, ids, m: forward_decoder(Decoder(config, arrays), ids, m),
        shapes,
        jax.ShapeDtypeStruct((2, 128), jnp.int32),
        mask,
    )
    assert out.shape == (2, 128, 32000)
    assert out.dtype == jnp.float32


def test_tied_head_is_the_embedding():
    hf = hf_model("llama-tied", 2)
    assert hf.lm_head.weight is hf.model.embed_tokens.weight
    assert pair("llama-tied", 2).decoder.head is None


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16], ids=["float32", "bfloat16"])
def test_the_embedding_has_its_gradient(dtype):
    """In bfloat16 too, whose rows a CPU reads as bits, which have no derivative."""
    decoder = Decoder.random(pair("llama", 2).config, jax.random.key(0), dtype)
    ids = jnp.asarray(tokens(2, 9))
    gradient = jax.grad(lambda decoder: jnp.square(embedded(decoder, ids)).sum())(decoder).embed[...]
    times = np.bincount(np.asarray(ids).ravel(), minlength=decoder.config.vocab_size)
    expected = 2 * times[:, None] * np.asarray(decoder.embed[...], np.float32)
    np.testing.assert_allclose(np.asarray(gradient, np.float32), expected, rtol=1e-2, atol=0)


def kept(layer):
    """What a cache of activations keeps, in any pytree."""
    return {"hidden": layer.hidden, "parts": (layer.v, layer.product.max(axis=1))}


def test_hidden_states_give_each_layer_s_activations():
    """Against Hugging Face's hidden states, and each layer's values and products computed from those by hand."""
    both = pair("llama", 2)
    ids, keep = tokens(2, 11), NeuronMask.keep_all(both.config)
    last, cached = mw.hidden_states(both.model, ids, keep, observe=kept)
    with torch.no_grad():
        theirs = both.hf.model(torch.tensor(ids, dtype=torch.long), output_hidden_states=True).hidden_states
        layer, x = both.hf.model.layers[1], theirs[1]
        values = layer.self_attn.v_proj(layer.input_layernorm(x)).numpy()
        after = (
            x
            + layer.self_attn(
                layer.input_layernorm(x),
                position_embeddings=both.hf.model.rotary_emb(x, torch.arange(11)[None]),
                attention_mask=torch.full((11, 11), -torch.inf).triu(1)[None, None],
            )[0]
        )
        inner = layer.post_attention_layernorm(after)
        products = (torch.nn.functional.silu(layer.mlp.gate_proj(inner)) * layer.mlp.up_proj(inner)).numpy()
    layers = both.config.num_layers
    for n in range(layers - 1):  # theirs of the last layer is after the norm
        np.testing.assert_allclose(cached["hidden"][n], theirs[n + 1].numpy(), atol=1e-5)
    np.testing.assert_array_equal(cached["hidden"][-1], last)
    v, most = cached["parts"]
    np.testing.assert_allclose(v[1].reshape(2, 11, -1), values, atol=1e-5)
    np.testing.assert_allclose(most[1], products.max(axis=1), atol=1e-5)
    np.testing.assert_allclose(logits_of(both.decoder, last), mw.forward(both.model, ids, keep), atol=1e-5)
    assert mw.hidden_states(both.model, ids, keep)[1] is None


def test_hidden_states_compile_once_and_go_through_vmap_and_jit():
    both = pair("llama", 2)
    ids, keep = tokens(2, 11), NeuronMask.keep_all(both.config)
    masks = [keep, *(keep.drop(random_neurons(both.config, seed=s)) for s in range(2))]
    each = [mw.hidden_states(both.model, ids, mask, observe=kept) for mask in masks]
    compiled = mw._observed._cache_size()
    assert mw.hidden_states(both.model, ids, keep.drop(random_neurons(both.config, seed=9)), observe=kept)
    assert mw._observed._cache_size() == compiled
    together = jax.jit(jax.vmap(lambda mask: mw.hidden_states(both.model, ids, mask, observe=kept)))
    stacked = together(NeuronMask.stack(masks))
    for ours, alone in zip(jax.tree.leaves(stacked), zip(*map(jax.tree.leaves, each), strict=True), strict=True):
        np.testing.assert_allclose(ours, np.stack(alone), atol=1e-5)


def test_hidden_states_of_what_cannot_be_meant():
    model = pair("llama", 2).model
    keep = NeuronMask.keep_all(model.config)
    with pytest.raises(mw.InputError, match="observe is a list; a function of a LayerRecord is needed"):
        mw.hidden_states(model, tokens(1, 5), keep, observe=["v"])
    with pytest.raises(mw.InputError, match="observe: a LayerRecord has no qeuries; it has q_raw, k_raw, q, k, v, "):
        mw.hidden_states(model, tokens(1, 5), keep, observe=lambda record: record.qeuries)
    with pytest.raises(AttributeError, match=r"no attribute '?qeuries"):
        mw.hidden_states(model, tokens(1, 5), keep, observe=lambda record: record.q.qeuries)
    with pytest.raises(mw.InputError, match=r"tokens are int32 \[5\]; .* tokens\[None\] makes one row of them"):
        mw.hidden_states(model, tokens(1, 5)[0], keep)
    with pytest.raises(mw.InputError, match="mask is a NoneType"):
        mw.hidden_states(model, tokens(1, 5), None)
    with pytest.raises(mw.InputError, match="model is a Decoder; a Model is needed"):
        mw.hidden_states(model.decoder, tokens(1, 5), keep)
