"""The arithmetic of scripts/compiled.py, and that it still finds its way in the kernel's schedule."""

import json
import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import pytest

import compiled
from mwork_jax.plan.models import config_of

CONFIG = config_of(compiled.MODEL)
SCHEDULE = """
LH: loop header
   0x0   :  { %1 = nothing }
   0x1 LB: > { %2 = outer }
   0x2 LB: >> { %3 = inner }
   0x3   : >> { %4 = inner }
   0x4 PF: > { %5 = outer }
   0x5 LB: >> { %6 = inner }
   0x6   : > { %7 = outer }
"""
USE = "== CAPACITY:\nXLU, VALU, EUP\n 3 4 1\n== UTILIZATION:\n" + "\n".join(f"9 {i} 9" for i in range(7)) + "\n"


def test_a_loop_over_layers_is_counted_once_and_corrected():
    def layer(x, w):
        return x @ w, None

    def flops(function, layers):
        shapes = jax.ShapeDtypeStruct((8, 16), jnp.float32), jax.ShapeDtypeStruct((layers, 16, 16), jnp.float32)
        return {"flops": jax.jit(function).lower(*shapes).compile().cost_analysis()["flops"]}

    def scanned(x, ws):
        return jax.lax.scan(layer, x, ws)[0]

    def written_out(x, ws):
        for w in ws:
            x = x @ w
        return x

    found = compiled.of_all_layers(flops(scanned, 2), flops(scanned, 5), 5)
    assert found["flops"] == pytest.approx(flops(written_out, 5)["flops"], rel=0.05)
    with pytest.raises(ValueError, match="a loop is not counted once"):
        compiled.of_all_layers(flops(written_out, 2), flops(written_out, 5), 5)


def test_lower_bounds():
    assert compiled.elements(CONFIG, 3) == 32 * 32 * 2 * 128 * (1 + 2 + 3)
    assert compiled.least_bytes(CONFIG, 3) == 32 * 4 * 3 * (32 * 128 + 8 * 128 + 2 * 128)
    assert compiled.tiles(1) == 1
    assert compiled.tiles(256) * compiled.QUERIES * compiled.KEYS >= 256 * 257 // 2
    half = compiled.share(CONFIG, 2)
    assert (half.num_heads, half.num_kv_heads, half.head_dim, half.hidden_size) == (16, 4, 128, 4096)
    assert compiled.layer_weights(CONFIG) == 4096 * (6144 + 4096 + 3 * 14336)


def test_innermost_loops_of_a_schedule():
    assert compiled.innermost_loops(SCHEDULE, USE) == [compiled.Loop(2, 2 + 3), compiled.Loop(1, 5)]


@pytest.mark.processes
def test_the_schedule_of_the_kernel_is_understood():
    pytest.importorskip("libtpu", reason="compiling for TPUs needs libtpu")
    script = Path(compiled.__file__)
    command = [sys.executable, str(script), "kernel", "v6e", "--batch", "1", "--time", "128", "--json"]
    row = json.loads(subprocess.run(command, check=True, capture_output=True, text=True, timeout=900).stdout)
    assert row["near"]["cycles_per_document"] < row["far"]["cycles_per_document"]
    assert row["elements"] < row["near"]["operations_per_document"] < 100 * row["elements"]
