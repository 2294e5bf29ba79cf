"""Families whose layers are laid out in a way of their own, on 8 simulated devices. Run by test_sharding.py in a
process of its own. Prints one JSON object: {family on mesh: {"logits", "importance", "masks", "changes", "detected",
"likelihoods": largest difference to one device, relative}}, and for those with experts "sent": bytes that the largest
collective of a forward pass sends, as a part of one expert's weights."""

import json
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np

from mwork_jax.detect.importance import importance_batch
from mwork_jax.enhance.neuron_params import parameter_arrays
from mwork_jax.model import mixture
from mwork_jax.model.decoder import Decoder, forward_decoder, hidden_states
from mwork_jax.model.neuron_change import NeuronChange
from mwork_jax.model.parameters import parameter_specs
from mwork_jax.neurons import NeuronMask, NeuronSet, group_widths
from mwork_jax.runtime.compiled import cost_of
from mwork_jax.sharding import make_mesh, on_mesh_of, parts_of, sharding, vmap_axis
from support.tiny import pair, tokens

FAMILIES = ("mixtral", "gpt-oss", "qwen3-moe", "olmo2", "bloom")  # 4 experts, 4 with biases, 5
MESH, WITH_EXPERTS = {"data": 2, "model": 4}, {"data": 2, "expert": 2, "model": 2}
CASES = [*((family, MESH) for family in FAMILIES), ("gpt-oss", WITH_EXPERTS), ("mixtral", {"data": 2, "expert": 4})]


def main():
    mixture._BLOCK = 8  # so that the few rows here go through in several blocks
    differences = {}
    for family, mesh in CASES:
        name = f"{family} {','.join(f'{axis}={size}' for axis, size in mesh.items())}"
        differences[name] = on_mesh(
            pair(family, 2), make_mesh(mesh), "moe" in family or family in ("mixtral", "gpt-oss")
        )
    print(json.dumps(differences))


def on_mesh(model, mesh, experts):
    alone, ids = model.decoder, jnp.asarray(tokens(max(4, parts_of(mesh, "batch")), 13))
    specs, keep = parameter_specs(alone.config), NeuronMask.keep_all(alone.config)
    laid_out = {
        name: jax.device_put(np.asarray(array), sharding(mesh, specs[name].axes, array.shape))
        for name, array in parameter_arrays(alone).items()
    }
    layouts = [str(array.sharding.spec) for array in laid_out.values()]
    assert any("model" in layout or "expert" in layout for layout in layouts)
    several, counted = Decoder(alone.config, laid_out), jnp.ones(ids.shape, jnp.float32)
    with on_mesh_of(several):
        logits, scores = forward_decoder(several, ids, keep), importance_batch(several, ids, counted)
    expected, expected_scores = forward_decoder(alone, ids, keep), importance_batch(alone, ids, counted)
    found = {
        "logits": relative(logits, expected),
        "importance": max(relative(scores[g], expected_scores[g]) for g in scores),
    }
    return found | (with_experts(alone, several, ids) if experts else {})


def with_experts(alone, several, ids):
    """What each device computes for the experts that it holds: under several masks, and its gradient."""
    rng, config = np.random.default_rng(0), alone.config
    widths = group_widths(config).items()
    dropped = [NeuronSet({g: rng.random((config.num_layers, w)) < 0.2 for g, w in widths}) for _ in range(2)]
    masks = NeuronMask.stack([NeuronMask.keep_all(config).drop(each) for each in dropped])

    @jax.jit
    def under_masks(decoder):
        one = partial(forward_decoder, decoder, ids)
        return jax.vmap(one, spmd_axis_name=vmap_axis("masks", 2))(masks)

    width, size = config.ffn_width, 6
    indices = {name: jnp.asarray(rng.choice(width, (config.num_layers, size))) for name in ("gate", "up", "down")}
    values = {
        n: jnp.asarray(rng.normal(size=(config.num_layers, size, config.hidden_size)), jnp.float32) for n in indices
    }

    @jax.jit
    def of_changes(decoder, values):
        def squares(values):
            changes = {name: NeuronChange(indices[name], values[name]) for name in values}
            return jnp.square(hidden_states(decoder, ids, NeuronMask.keep_all(config), changes=changes)[0]).mean()

        return jax.grad(squares)(values)

    expected_masked, expected = under_masks(alone), of_changes(alone, values)
    with on_mesh_of(several):
        masked, gradient = under_masks(several), of_changes(several, values)
        text = forward_decoder.lower(several, ids, NeuronMask.keep_all(config)).compile().as_text()
    largest = max(one.bytes for one in cost_of(text, lambda loop: 1).collectives)
    return {
        "masks": relative(masked, expected_masked),
        "changes": max(relative(gradient[name], expected[name]) for name in values),
        "sent": largest / (3 * 4 * config.intermediate_size * config.hidden_size),
    }


def relative(found, expected):
    found, expected = np.asarray(found), np.asarray(expected)
    return float(np.abs(found - expected).max() / np.abs(expected).max())


if __name__ == "__main__":
    main()
