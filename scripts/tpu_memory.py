"""Does tuning fit on a TPU? Compiles the training step of Mistral-7B for TPUs that are not here and says what it needs.

    python scripts/tpu_memory.py v6e:1x1 v5p:1x1x1 v5e:2x2

Needs `pip install libtpu`; no TPU. The numbers are the compiler's own, per chip: arguments (weights, state, batch),
which the results reuse, and the largest temporary memory.
"""

from __future__ import annotations

import argparse
import json
import sys
from functools import partial
from typing import Any

# Before jax: it says that there is no TPU to look for.
from elsewhere import CHIP_GIB, MISTRAL_7B, array, chips, decoder_on, kind_of

# isort: split
import jax
import jax.numpy as jnp
from jax.sharding import Mesh

from mwork_jax.config import ModelConfig
from mwork_jax.enhance.compact import PARAMETERS
from mwork_jax.enhance.optimizer import Rates, adamw
from mwork_jax.enhance.packing import Rows
from mwork_jax.enhance.train import Frozen, Program, State, train_step


def needed(
    config: ModelConfig, topology: str, *, rows: int = 4, time: int = 512, width: int = 128, runs: int = 1
) -> dict[str, Any]:
    """The training step's memory on one chip of a topology, GiB. width: neurons of each group in every layer."""
    mesh = chips(topology)
    frozen, state, batch = _abstract(config, mesh, rows, time, width, runs)
    memory = train_step.lower(Program(True, 3), frozen, state, batch).compile().memory_analysis()
    kind = kind_of(mesh)
    gib = {
        "arguments_gib": memory.argument_size_in_bytes / 2**30,
        "temporaries_gib": memory.temp_size_in_bytes / 2**30,
        "new_results_gib": (memory.output_size_in_bytes - memory.alias_size_in_bytes) / 2**30,
    }
    peak = sum(gib.values())
    return {
        "topology": topology, "chips": mesh.size, "chip": kind, "rows": rows, "time": time, "runs": runs,
        "neurons": 5 * width * config.num_layers, **gib, "peak_gib": peak, "chip_gib": CHIP_GIB.get(kind),
        "fits": peak < CHIP_GIB.get(kind, 0),
    }  # fmt: skip


def _abstract(
    config: ModelConfig, mesh: Mesh, rows: int, time: int, width: int, runs: int
) -> tuple[Frozen, State, Rows]:
    """The step's arguments as shapes with their places on the mesh."""

    place = partial(array, mesh)

    def whole(tree: Any) -> Any:
        return jax.tree.map(lambda x: place(x.shape, x.dtype), tree)

    values = {n: place((runs, config.num_layers, width, config.hidden_size), jnp.float32) for n in PARAMETERS}
    index = {g: place((runs, config.num_layers, width), jnp.int32) for g, _ in PARAMETERS.values()}
    rates = Rates(*(place((runs,), jnp.int32 if f == "steps" else jnp.float32) for f in Rates._fields))
    optimizer = whole(jax.eval_shape(jax.vmap(lambda r, v: adamw(r).init(v)), rates, values))
    number, count = place((runs,), jnp.float32), place((runs,), jnp.int32)
    state = State(values, optimizer, count, values, number, count, place((runs,), jnp.bool_))
    places = {"tokens": jnp.int32, "targets": jnp.int32, "counts": jnp.float32, "start": jnp.int32}
    batch = Rows(**{name: place((runs, 1, rows, time), dtype) for name, dtype in places.items()})
    return Frozen(decoder_on(config, mesh), index, values, rates), state, batch


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
