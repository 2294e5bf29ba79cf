"""Importance against brute force: zero the row in HF PyTorch, run the block again, take the norm of the change."""

from contextlib import contextmanager

import jax.numpy as jnp
import numpy as np
import pytest

import mwork_jax.detect.importance as detect
from mwork_jax.corpus import measured_token_mask
from mwork_jax.neurons import GROUPS, group_widths
from support.slow_deactivation import attention_of, layers_of, zero_in_layer
from support.tiny import DISTINCT, FAMILIES, KV_HEADS, pair, tokens, torch

RELATIVE = 1e-4
SAMPLE = 6  # neurons per group and layer


def block_inputs(hf, ids):
    """What attention and feed-forward of every layer were called with: [(args, kwargs) of attention, of the
    feed-forward]."""
    calls = []
    handles = []
    for layer in layers_of(hf):
        seen = {}
        calls.append(seen)
        for name, block in (("attention", attention_of(layer)), ("mlp", layer.mlp)):

            def keep(module, args, kwargs, seen=seen, name=name):
                seen[name] = (args, kwargs)

            handles.append(block.register_forward_pre_hook(keep, with_kwargs=True))
    with torch.no_grad():
        hf(torch.tensor(ids, dtype=torch.long), use_cache=False)
    for handle in handles:
        handle.remove()
    return calls


def run(module, call):
    with torch.no_grad():
        return module(*call[0], **call[1])


@contextmanager
def zeroed(layer, config, group, index):
    """One neuron's rows or column zero within the block, restored after it."""
    before = {k: v.clone() for k, v in layer.state_dict().items()}
    zero_in_layer(layer, config, group, [index])
    yield
    layer.load_state_dict(before)


def brute_force(layer, calls, config, group, index, rows) -> float:
    """Imp of one neuron on one document; rows: bool [time], which positions count."""
    name, block = ("mlp", layer.mlp) if group.startswith("ffn") else ("attention", attention_of(layer))
    output = 1 if group in ("attn_q", "attn_k") else 0  # the attention weights [1, heads, t, s], or the block's output

    def outcome():
        values = run(block, calls[name])
        return (values if torch.is_tensor(values) else values[output])[0].double()

    before = outcome()
    with zeroed(layer, config, group, index):
        change = outcome() - before
    return float(change[:, rows].norm() if output else change[rows].norm())


@pytest.fixture(autouse=True)
def _in_double():
    """The oracle runs in float64, so that small differences keep their digits."""
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)


def in_double(hf):
    import copy

    return copy.deepcopy(hf).double()


# Sharing keys acts alike in every family: of those whose keys are normed alike, one has all three ways.
EVERY_WAY = ["llama", "gemma3", "cohere-norm", "olmo2"]


@pytest.mark.parametrize(
    ("family", "kv_heads"),
    [*((f, kv) for f in EVERY_WAY for kv in KV_HEADS.values()), *((f, 2) for f in DISTINCT if f not in EVERY_WAY)],
)
def test_importance_equals_brute_force(family, kv_heads):
    both = pair(family, kv_heads)
    hf = in_double(both.hf)
    ids = tokens(1, 16)
    found = detect.importance(both.model, ids[0])
    rows = np.arange(16) > 0  # BOS does not count
    calls = block_inputs(hf, ids)
    rng = np.random.default_rng(0)
    for group, width in group_widths(both.config).items():
        assert found[group].shape == (both.config.num_layers, width)
        for layer in range(both.config.num_layers):
            for index in rng.choice(width, SAMPLE, replace=False):
                expected = brute_force(layers_of(hf)[layer], calls[layer], both.config, group, index, rows)
                assert found[group][layer, index] == pytest.approx(expected, rel=RELATIVE), (group, layer, index)


@pytest.mark.parametrize("family", DISTINCT)
def test_a_padded_batch_scores_like_each_document_alone(family):
    both = pair(family, 2)
    ids = tokens(3, 16)
    lengths = np.asarray([16, 9, 5], np.int32)
    token_mask = measured_token_mask(both.model, ids, lengths, include_bos=False)
    together = detect.importance_batch(both.decoder, jnp.asarray(ids), token_mask)
    for row, length in enumerate(lengths[:2]):  # 16 tokens share the program of the brute force
        alone = detect.importance(both.model, ids[row, :length])
        for group in GROUPS:
            np.testing.assert_allclose(together[group][row], alone[group], rtol=RELATIVE, atol=1e-7)


def test_bos_counts_only_when_asked():
    both = pair("llama", 2)
    ids = tokens(1, 9)[0]
    without, with_bos = detect.importance(both.model, ids), detect.importance(both.model, ids, include_bos=True)
    assert (with_bos["ffn_up"] > without["ffn_up"]).all()
    np.testing.assert_array_equal(
        with_bos["attn_q"], without["attn_q"]
    )  # BOS sees only itself: its weights never change
    no_bos = tokens(1, 9, first=None)[0]
    for group in GROUPS:
        np.testing.assert_array_equal(
            detect.importance(both.model, no_bos)[group], detect.importance(both.model, no_bos, include_bos=True)[group]
        )


def test_every_family_is_covered():
    assert set(DISTINCT) <= set(FAMILIES)
