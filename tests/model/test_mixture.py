"""The sum of the experts' results, block by block, against all of them at once."""

from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mwork_jax.intervention import Intervention
from mwork_jax.model.mixture import Rows, every_expert, rows_of_a_block, sum_of_experts, sum_of_held
from mwork_jax.neurons import NeuronMask
from support.tiny import pair

ROWS, EDITS = 384, 3


@pytest.fixture(scope="module", params=["mixtral", "gpt-oss"])
def layer(request):
    """A configuration and the weights of its experts in one layer."""
    decoder = pair(request.param, 2).decoder
    names = ("gate", "up", "down", "gate_bias", "up_bias", "down_bias")
    layers = decoder.layers
    return decoder.config, {name: getattr(layers, name)[...][0] for name in names if hasattr(layers, name)}


def acting(edit, rng):
    """An intervention that adds too, on prompts, on what is generated, or on both."""
    offsets = edit.offsets._replace(gate=rng.normal(size=edit.offsets.gate.shape).astype(np.float32))
    on_prompt, on_generated = np.array([True, False, True]), np.array([True, True, False])
    changed = replace(edit, offsets=offsets, on_prompt=on_prompt, on_generated=on_generated)
    return jax.tree.map(jnp.asarray, changed)


def rows_of(config, held, sent, seed=0):
    """Rows with edits of three kinds. sent: the experts that a row may go to, at random."""
    rng = np.random.default_rng(seed)
    width = held * config.intermediate_size
    mask = NeuronMask(*(jnp.asarray(rng.random((EDITS, width)) < 0.7, jnp.float32) for _ in range(5)))
    return Rows(
        x=jnp.asarray(rng.normal(size=(ROWS, config.hidden_size)), jnp.float32),
        experts=jnp.asarray([rng.choice(sent, config.experts_per_token, False) for _ in range(ROWS)], jnp.int32),
        shares=jnp.asarray(rng.random((ROWS, config.experts_per_token)), jnp.float32),
        generated=jnp.asarray(rng.random(ROWS) < 0.5),
        edit=mask if config.family == "mixtral" else acting(Intervention.from_mask(mask), rng),
        edit_of=jnp.asarray(rng.integers(0, EDITS, ROWS), jnp.int32),
        added={},
    )


def close(found, expected):
    np.testing.assert_allclose(found, expected, atol=1e-5 * max(1.0, float(np.abs(expected).max())))


@pytest.mark.parametrize("first", [0, 4])
@pytest.mark.parametrize("to", ["all", "those held", "one and one elsewhere", "none held"])
def test_in_blocks_as_at_once(layer, first, to):
    """Four experts of eight are held."""
    config, w = layer
    config, held = replace(config, num_experts=8), 4
    here, elsewhere = range(first, first + held), range(4 - first, 8 - first)
    sent = {
        "all": range(8),
        "those held": here,
        "none held": elsewhere,
        "one and one elsewhere": (here[2], elsewhere[0]),
    }
    rows = rows_of(config, held, list(sent[to]))
    assert rows_of_a_block(rows.experts.size, held, 8) < rows.experts.size / 2, "several blocks"
    (found,), (expected, *_) = (of(config, w, rows, jnp.int32(first)) for of in (sum_of_held, every_expert))
    close(found, expected)
    assert (np.abs(expected).max() > 0.01) == (to != "none held")


def test_a_row_is_the_same_to_the_bit_in_any_company(layer):
    config, w = layer
    rows = rows_of(config, config.num_experts, range(config.num_experts))
    other = rows_of(config, config.num_experts, range(2), seed=1)
    mixed = jax.tree.map(lambda a, b: jnp.concatenate([a[:7], b[7:]]) if a.shape[0] == ROWS else a, rows, other)
    assert (sum_of_experts(config, w, rows)[:7] == sum_of_experts(config, w, mixed)[:7]).all()


def test_several_together_and_backwards(layer):
    config, w = layer
    held = config.num_experts
    rows, *several = (rows_of(config, held, range(held), seed) for seed in (0, 1, 2))
    edits = jax.tree.map(lambda *leaves: jnp.stack(leaves), *(each.edit for each in several))
    inputs = jnp.stack([each.x for each in several])
    found = jax.vmap(lambda x, edit: sum_of_experts(config, w, rows._replace(x=x, edit=edit)))(inputs, edits)
    for each, of_each in zip(several, found, strict=True):
        close(of_each, every_expert(config, w, rows._replace(x=each.x, edit=each.edit), None)[0])
    of_edits = jax.vmap(lambda edit: sum_of_experts(config, w, rows._replace(edit=edit)))(edits)
    close(of_edits[1], every_expert(config, w, rows._replace(edit=several[1].edit), None)[0])

    def squares(of, x, up):
        return jnp.square(of(config, {**w, "up": up}, rows._replace(x=x))).sum()

    gradients = jax.grad(lambda x, up: squares(sum_of_experts, x, up), (0, 1))(rows.x, w["up"])
    expected = jax.grad(lambda x, up: squares(lambda *a: every_expert(*a, None)[0], x, up), (0, 1))(rows.x, w["up"])
    for one, other in zip(gradients, expected, strict=True):
        close(one / np.abs(other).max(), other / np.abs(other).max())


def test_all_rows_are_one_block_where_all_experts_are_held():
    assert rows_of_a_block(10_000, 8, 8) == 10_000
    assert rows_of_a_block(10_000, 2, 8) == 768
    assert rows_of_a_block(100, 2, 8) == 100
