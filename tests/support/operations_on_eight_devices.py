"""What 8 simulated devices compute together for what one computes. Run by test_sharding.py in a process of its own.
Prints one JSON object: {mesh: {stage: operations of all devices / operations of one device}}."""

import json

import jax

from mwork_jax.families import config_from_hf
from mwork_jax.plan.stages import Size, programs
from mwork_jax.runtime.compiled import Cost, cost_of
from mwork_jax.sharding import make_mesh

# Fewer key/value heads than devices, and so many tuned neurons that it shows where each device does all of them.
CONFIG = config_from_hf({
    "model_type": "llama", "vocab_size": 128, "hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 3,
    "num_attention_heads": 8, "num_key_value_heads": 4, "head_dim": 8, "max_position_embeddings": 64,
})  # fmt: skip
SIZES = {"evaluate": Size(batch=8, length=32, masks=2), "enhance": Size(batch=8, length=32, tuned=32)}
MESHES = {"1x8": {"model": 8}, "4x2": {"data": 4, "model": 2}}


def operations(stage, mesh, size):
    with jax.set_mesh(mesh):
        compiled = [(p.function.lower(*p.arguments).compile(), p.trips) for p in programs(stage, CONFIG, mesh, size)]
    return sum((cost_of(program.as_text(), trips) for program, trips in compiled), Cost()).flops


def main():
    found = {}
    for name, shape in MESHES.items():
        mesh, alone = make_mesh(shape), make_mesh({}, jax.devices()[:1])
        replicas = shape.get("data", 1)
        found[name] = {
            stage: 8 * operations(stage, mesh, size) / (replicas * operations(stage, alone, size))
            for stage, size in SIZES.items()
        }
    print(json.dumps(found))


if __name__ == "__main__":
    main()
