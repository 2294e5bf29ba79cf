"""Families whose layers are laid out in a way of their own, on 8 simulated devices. Run by test_sharding.py in a
process of its own. Prints one JSON object: {family: {"logits", "importance": largest difference to one device,
relative}}."""

import json
import os

os.environ["XLA_FLAGS"] = " ".join(["--xla_force_host_platform_device_count=8", os.environ.get("XLA_FLAGS", "")])
os.environ["JAX_PLATFORMS"] = "cpu"

import jax
import jax.numpy as jnp
import numpy as np

from mwork_jax.detect.importance import importance_batch
from mwork_jax.enhance.neuron_params import parameter_arrays
from mwork_jax.model.decoder import Decoder, forward_decoder, parameter_specs
from mwork_jax.neurons import NeuronMask
from mwork_jax.sharding import make_mesh, on_mesh_of, sharding
from support.tiny import pair, tokens

FAMILIES = ("mixtral", "olmo2", "bloom")


def main():
    mesh, differences = make_mesh({"data": 2, "model": 4}), {}
    for family in FAMILIES:
        alone, ids = pair(family, 2).decoder, jnp.asarray(tokens(4, 13))
        specs, keep = parameter_specs(alone.config), NeuronMask.keep_all(alone.config)
        laid_out = {
            name: jax.device_put(np.asarray(array), sharding(mesh, specs[name].axes, array.shape))
            for name, array in parameter_arrays(alone).items()
        }
        assert any("model" in str(array.sharding) for array in laid_out.values())
        several, counted = Decoder(alone.config, laid_out), jnp.ones(ids.shape, jnp.float32)
        with on_mesh_of(several):
            logits, scores = forward_decoder(several, ids, keep), importance_batch(several, ids, counted)
        expected, expected_scores = forward_decoder(alone, ids, keep), importance_batch(alone, ids, counted)
        differences[family] = {
            "logits": relative(logits, expected),
            "importance": max(relative(scores[g], expected_scores[g]) for g in scores),
        }
    print(json.dumps(differences))


def relative(found, expected):
    found, expected = np.asarray(found), np.asarray(expected)
    return float(np.abs(found - expected).max() / np.abs(expected).max())


if __name__ == "__main__":
    main()
