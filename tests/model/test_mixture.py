"""The sum of the experts' results, block by block, against all of them at once."""

from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mwork_jax.intervention import Intervention
from mwork_jax.model.mixture import Rows, every_expert, rows_of_a_block, sum_of_experts
from mwork_jax.neurons import NeuronMask
from support.tiny import pair

ROWS, EDITS = 384, 3


@pytest.fixture(scope="module", params=["mixtral", "gpt-oss"])
def layer(request):
    """A configuration whose every other expert is on another device, and the weights of those that are here."""
    decoder = pair(request.param, 2).decoder
    config = decoder.config
    names = ("gate", "up", "down", "gate_bias", "up_bias", "down_bias")
    held = {name: getattr(decoder.layers, name)[...][0] for name in names if hasattr(decoder.layers, name)}
    return replace(config, num_experts=2 * config.num_experts), held


def acting(edit, rng):
    """An intervention that adds too, on prompts, on what is generated, or on both."""
    offsets = edit.offsets._replace(gate=rng.normal(size=edit.offsets.gate.shape).astype(np.float32))
    on_prompt, on_generated = np.array([True, False, True]), np.array([True, True, False])
    changed = replace(edit, offsets=offsets, on_prompt=on_prompt, on_generated=on_generated)
    return jax.tree.map(jnp.asarray, changed)


def rows_of(config, held, seed=0, sent=None):
    """Rows with edits of three kinds. sent: the experts of all, or drawn."""
    rng = np.random.default_rng(seed)
    width = held * config.intermediate_size
    mask = NeuronMask(*(jnp.asarray(rng.random((EDITS, width)) < 0.7, jnp.float32) for _ in range(5)))
    edit = mask if config.family == "mixtral" else acting(Intervention.from_mask(mask), rng)
    experts = rng.permuted(np.tile(np.arange(2 * held), (ROWS, 1)), axis=1)[:, : config.experts_per_token]
    return Rows(
        x=jnp.asarray(rng.normal(size=(ROWS, config.hidden_size)), jnp.float32),
        experts=jnp.asarray(np.minimum(experts if sent is None else np.full_like(experts, sent), held), jnp.int32),
        shares=jnp.asarray(rng.random((ROWS, config.experts_per_token)), jnp.float32),
        generated=jnp.asarray(rng.random(ROWS) < 0.5),
        edit=edit,
        edit_of=jnp.asarray(rng.integers(0, EDITS, ROWS), jnp.int32),
    )


@pytest.mark.parametrize("sent", [None, 0, 10**6], ids=["to all", "to one", "to none here"])
def test_in_blocks_as_at_once(layer, sent):
    config, w = layer
    held = config.num_experts // 2
    rows = rows_of(config, held, sent=sent)
    assert rows_of_a_block(rows.experts.size, held, config.num_experts) < rows.experts.size / 2, "several blocks"
    found, expected = sum_of_experts(config, w, rows), every_expert(config, w, rows)[0]
    np.testing.assert_allclose(found, expected, atol=1e-5 * max(1.0, float(np.abs(expected).max())))
    assert bool(np.abs(expected).max() > 0.01) == (sent != 10**6)


def test_several_together_and_backwards(layer):
    config, w = layer
    held = config.num_experts // 2
    rows = rows_of(config, held)
    several = [rows_of(config, held, seed) for seed in (1, 2)]
    edits = jax.tree.map(lambda *leaves: jnp.stack(leaves), *(each.edit for each in several))
    inputs = jnp.stack([each.x for each in several])
    found = jax.vmap(lambda x, edit: sum_of_experts(config, w, rows._replace(x=x, edit=edit)))(inputs, edits)
    for each, of_each in zip(several, found, strict=True):
        expected = every_expert(config, w, rows._replace(x=each.x, edit=each.edit))[0]
        np.testing.assert_allclose(of_each, expected, atol=1e-5 * float(np.abs(expected).max()))
    of_edits = jax.vmap(lambda edit: sum_of_experts(config, w, rows._replace(edit=edit)))(edits)
    np.testing.assert_allclose(of_edits[1], sum_of_experts(config, w, rows._replace(edit=several[1].edit)), atol=1e-5)

    def squares(of, x, up):
        return jnp.square(of(config, {**w, "up": up}, rows._replace(x=x))).sum()

    gradients = jax.grad(lambda x, up: squares(sum_of_experts, x, up), (0, 1))(rows.x, w["up"])
    expected = jax.grad(lambda x, up: squares(lambda *a: every_expert(*a)[0], x, up), (0, 1))(rows.x, w["up"])
    for one, other in zip(gradients, expected, strict=True):
        np.testing.assert_allclose(one, other, atol=1e-4 * float(np.abs(other).max()))


def test_all_rows_are_one_block_where_all_experts_are_held():
    assert rows_of_a_block(10_000, 8, 8) == 10_000
    assert rows_of_a_block(10_000, 2, 8) == 640
    assert rows_of_a_block(100, 2, 8) == 100
