"""Does tuning fit on a TPU? Compiles the training step of Mistral-7B for TPUs that are not here and says what it needs.

    python scripts/tpu_memory.py v6e:1x1 v5p:1x1x1 v5e:2x2

Needs `pip install libtpu`; no TPU. The numbers are the compiler's own, per chip: arguments (weights, state, batch),
which the results reuse, and the largest temporary memory.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from math import prod
from typing import Any

os.environ.setdefault("TPU_SKIP_MDS_QUERY", "1")
os.environ.setdefault("JAX_PLATFORMS", "cpu")

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import topologies
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from mwork_jax.config import ModelConfig
from mwork_jax.enhance.compact import PARAMETERS
from mwork_jax.enhance.optimizer import Rates, adamw
from mwork_jax.enhance.packing import Rows
from mwork_jax.enhance.train import Frozen, Program, State, train_step
from mwork_jax.model import Decoder, parameter_specs

MISTRAL_7B = {
    "model_type": "mistral", "vocab_size": 32000, "hidden_size": 4096, "intermediate_size": 14336,
    "num_hidden_layers": 32, "num_attention_heads": 32, "num_key_value_heads": 8, "rms_norm_eps": 1e-5,
    "max_position_embeddings": 32768, "sliding_window": 4096, "rope_theta": 10000.0, "tie_word_embeddings": False,
}  # fmt: skip
CHIP_GIB = {"TPU v5 lite": 16, "TPU v5": 95, "TPU v6 lite": 32}
_SHARDED = ("heads", "kv_heads", "ffn", "vocab")  # logical axes that several chips share


def needed(
    config: ModelConfig, topology: str, *, rows: int = 4, time: int = 512, width: int = 128, runs: int = 1
) -> dict[str, Any]:
    """The training step's memory on one chip of a topology, GiB. width: neurons of each group in every layer."""
    shape = [int(n) for n in topology.partition(":")[2].split("x")]
    single = {"chips_per_host_bounds": [1, 1, 1]} if prod(shape) == 1 else {}
    found = topologies.get_topology_desc(platform="tpu", topology_name=topology, **single)
    mesh = Mesh(np.asarray(found.devices), ("model",), axis_types=(AxisType.Auto,))
    frozen, state, batch = _abstract(config, mesh, rows, time, width, runs)
    memory = train_step.lower(Program(True, 3), frozen, state, batch).compile().memory_analysis()
    kind = found.devices[0].device_kind
    gib = {
        "arguments_gib": memory.argument_size_in_bytes / 2**30,
        "temporaries_gib": memory.temp_size_in_bytes / 2**30,
        "new_results_gib": (memory.output_size_in_bytes - memory.alias_size_in_bytes) / 2**30,
    }
    peak = sum(gib.values())
    return {
        "topology": topology, "chips": len(found.devices), "chip": kind, "rows": rows, "time": time, "runs": runs,
        "neurons": 5 * width * config.num_layers, **gib, "peak_gib": peak, "chip_gib": CHIP_GIB.get(kind),
        "fits": peak < CHIP_GIB.get(kind, 0),
    }  # fmt: skip


def _abstract(
    config: ModelConfig, mesh: Mesh, rows: int, time: int, width: int, runs: int
) -> tuple[Frozen, State, Rows]:
    """The step's arguments as shapes with their places on the mesh."""

    def array(shape: tuple[int, ...], dtype: Any, axes: tuple[Any, ...] = ()) -> jax.ShapeDtypeStruct:
        return jax.ShapeDtypeStruct(shape, dtype, sharding=NamedSharding(mesh, PartitionSpec(*axes)))

    def whole(tree: Any) -> Any:
        return jax.tree.map(lambda x: array(x.shape, x.dtype), tree)

    arrays = {}
    for name, spec in parameter_specs(config).items():
        axes = tuple("model" if axis in _SHARDED else None for axis in spec.axes)
        arrays[name] = array(spec.shape, jnp.float32 if spec.keep_float32 else jnp.bfloat16, axes)
    decoder = Decoder(config, arrays)  # type: ignore[arg-type]
    values = {n: array((runs, config.num_layers, width, config.hidden_size), jnp.float32) for n in PARAMETERS}
    index = {g: array((runs, config.num_layers, width), jnp.int32) for g, _ in PARAMETERS.values()}
    rates = Rates(*(array((runs,), jnp.int32 if f == "steps" else jnp.float32) for f in Rates._fields))
    optimizer = whole(jax.eval_shape(jax.vmap(lambda r, v: adamw(r).init(v)), rates, values))
    number, count = array((runs,), jnp.float32), array((runs,), jnp.int32)
    state = State(values, optimizer, count, values, number, count, array((runs,), jnp.bool_))
    places = {"tokens": jnp.int32, "targets": jnp.int32, "counts": jnp.float32, "start": jnp.int32}
    batch = Rows(**{name: array((runs, 1, rows, time), dtype) for name, dtype in places.items()})
    return Frozen(decoder, index, values, rates), state, batch


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("topology", nargs="+", help="v6e:1x1, v5p:1x1x1, v5e:2x2 ...")
    parser.add_argument("--rows", type=int, default=4, help="packed rows of 512 tokens per step (default: 4)")
    parser.add_argument("--runs", type=int, default=1, help="runs in one program (default: 1)")
    parser.add_argument("--json", action="store_true", help="print one JSON object on stdout")
    chosen = parser.parse_args()
    config = ModelConfig.from_hf(MISTRAL_7B)
    found = [needed(config, topology, rows=chosen.rows, runs=chosen.runs) for topology in chosen.topology]
    if chosen.json:
        print(json.dumps(found))
        return
    for row in found:
        size = f"{row['runs']} x {row['rows']} rows of {row['time']} tokens, {row['neurons']:,} neurons"
        parts = f"{row['arguments_gib']:.2f} arguments, {row['temporaries_gib']:.2f} temporaries"
        verdict = "fits" if row["fits"] else "does not fit"
        chips = f"{row['topology']}: {row['chips']} x {row['chip']} ({row['chip_gib']} GiB)"
        print(f"{chips}: {row['peak_gib']:.2f} GiB per chip ({parts}) with {size}: {verdict}")


if __name__ == "__main__":
    sys.exit(main())
