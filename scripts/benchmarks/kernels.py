"""The query and key kernel of the accelerator at hand, against the same scores in XLA and against its own ceilings.

Ceilings are measured on the device in the same run: exponentials and multiply-adds in registers, matrix products, and
bytes moved. The kernel has two forms (tiles.py), chosen by how much a neuron could change the scores; queries of a
usual and of a large size make it take each.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable, Iterator
from functools import cache, partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks.pairing import seconds
from mwork_jax.config import ModelConfig
from mwork_jax.detect.importance import importance_batch
from mwork_jax.model.decoder import Decoder, forward_decoder
from mwork_jax.neurons import NeuronMask
from mwork_jax.plan.models import config_of
from mwork_kernels.qk_importance import qk_importance  # pyright: ignore[reportMissingImports]

TOKENS = 4096  # of all documents together
LENGTHS = (256, 512, 2048)
STEP = "mistral-7b"
SPREADS = {"near": 1.0, "far": 40.0}  # sizes of the queries, which make the kernel take each form
_CHAIN = 256  # operations per element of a ceiling's loop
_ELEMENTS = 1 << 24
_AGREES = 1e-4


class Heads(NamedTuple):
    """A model's attention."""

    model: str
    heads: int
    groups: int
    size: int


MODELS = (Heads("Mistral-7B", 32, 8, 128), Heads("SmolLM2-135M", 9, 3, 64), Heads("Gemma 3 270M", 4, 1, 256))


def rows(rounds: int) -> Iterator[dict[str, Any]]:
    """The device's ceilings, then every model, length and form. Ends the script where there is no accelerator."""
    if jax.default_backend() == "cpu":
        raise SystemExit("no accelerator is here; the kernels are for TPUs and NVIDIA's GPUs")
    limits = ceilings(rounds)
    yield {"benchmark": "kernels", "device": jax.devices()[0].device_kind, **limits}
    for model in MODELS:
        for length in LENGTHS:
            for form in SPREADS if length == LENGTHS[0] else ("near",):
                yield _row(model, length, form, rounds) | {"exps_per_second": limits["exps_per_second"]}
    for length in LENGTHS:
        yield _step(length, rounds)


def line(row: dict[str, Any]) -> str:
    if "matmul_flops" in row:
        return (
            f"{row['device']}, per second: {row['exps_per_second'] / 1e12:.2f} T exponentials, "
            f"{row['fmas_per_second'] / 1e12:.2f} T multiply-adds, {row['matmul_flops'] / 1e12:.0f} TFLOP bfloat16 and "
            f"{row['matmul_float32_flops'] / 1e12:.0f} float32, {row['bytes_per_second'] / 1e12:.2f} TB"
        )
    if "step_seconds" in row:
        return (
            f"{row['model']} {row['batch']} x {row['length']}: all five groups {row['step_seconds']:.3f} s, the "
            f"forward pass {row['forward_seconds']:.3f} s: {row['step_seconds'] / row['forward_seconds']:.2f} times"
        )
    share = row["changes_per_second"] / row["exps_per_second"]
    xla = ""
    if "xla_seconds" in row:
        times = row["xla_seconds"] / row["kernel_seconds"]
        xla = f", in XLA {times:.1f} times as long (largest difference {row['difference']:.0e})"
    return (
        f"{row['model']} {row['batch']} x {row['length']}, {row['form']}: {row['kernel_seconds'] * 1e3:.2f} ms a "
        f"layer, {row['changes_per_second'] / 1e12:.2f} T changes/s ({share:.0%} of the exponentials'){xla}"
    )


def ceilings(rounds: int) -> dict[str, float]:
    """What the device does per second: exponentials, multiply-adds, floating-point operations of products in bfloat16
    and float32, bytes read and written."""
    x = jnp.linspace(0.1, 0.9, _ELEMENTS, dtype=jnp.float32)
    size = 8192
    a, b = (jax.random.normal(key, (size, size), jnp.bfloat16) for key in jax.random.split(jax.random.key(0)))

    def chained(step: Callable[[jax.Array], jax.Array]) -> Callable[[jax.Array], jax.Array]:
        def call(x: jax.Array) -> jax.Array:
            for _ in range(_CHAIN):
                x = step(x)
            return x

        return jax.jit(call)

    exps = _typical(partial(chained(lambda x: jnp.exp(-x)), x), rounds)
    fmas = _typical(partial(chained(lambda x: x * 0.999 + 0.001), x), rounds)
    product = jax.jit(partial(jnp.matmul, preferred_element_type=jnp.float32))
    exact = jax.jit(partial(jnp.matmul, precision=jax.lax.Precision.HIGHEST))
    wide = a.astype(jnp.float32), b.astype(jnp.float32)
    copied = jnp.zeros(1 << 29, jnp.float32) + 1.0
    moved = _typical(partial(jax.jit(lambda x: x + 1.0), copied), rounds)
    return {
        "exps_per_second": _ELEMENTS * _CHAIN / exps,
        "fmas_per_second": _ELEMENTS * _CHAIN / fmas,
        "matmul_flops": 2 * size**3 / _typical(partial(product, a, b), rounds),
        "matmul_float32_flops": 2 * size**3 / _typical(partial(exact, *wide), rounds),
        "bytes_per_second": 2 * copied.nbytes / moved,
    }


def arguments(model: Heads, batch: int, length: int, spread: float) -> tuple[jax.Array, ...]:
    """Random queries and keys, RoPE's tables, all tokens counted, no window."""
    keys = jax.random.split(jax.random.key(0))
    q = spread * jax.random.normal(keys[0], (batch, length, model.heads, model.size), jnp.float32)
    k = jax.random.normal(keys[1], (batch, length, model.groups, model.size), jnp.float32)
    angles = np.arange(length)[:, None] * 1e4 ** -(np.arange(model.size // 2) / (model.size // 2))
    angles = jnp.asarray(np.concatenate([angles, angles], axis=1)[None], jnp.float32)
    return q, k, jnp.cos(angles), jnp.sin(angles), jnp.ones((batch, length)), jnp.int32(length)


def _row(model: Heads, length: int, form: str, rounds: int) -> dict[str, Any]:
    batch = TOKENS // length
    args = arguments(model, batch, length, SPREADS[form])
    calls = {"kernel": jax.jit(partial(qk_importance, scale=model.size**-0.5))}
    if length == LENGTHS[0]:  # made for CPUs: slow on others
        calls["xla"] = jax.jit(partial(qk_importance, scale=model.size**-0.5, implementation="xla"))
    results, row = {}, {"benchmark": "kernels", **model._asdict(), "batch": batch, "length": length, "form": form}
    for name, call in calls.items():
        results[name] = call(*args)
        row[f"{name}_seconds"] = _typical(partial(call, *args), rounds)
    changes = 2 * batch * model.heads * model.size * length * (length + 1) // 2
    row["changes_per_second"] = changes / row["kernel_seconds"]
    if "xla" in results:
        of_both = zip(results["kernel"], results["xla"], strict=True)
        row["difference"] = max(float(jnp.max(jnp.abs(a - b) / b)) for a, b in of_both)
        if not row["difference"] < _AGREES:
            raise ValueError(f"{row}: the kernel and XLA differ by more than {_AGREES}")
    return row


def _step(length: int, rounds: int) -> dict[str, Any]:
    """All five groups of Mistral-7B, with random weights in bfloat16, against its forward pass."""
    config = config_of(STEP)
    decoder = _decoder(config)
    ids = np.random.default_rng(0).integers(0, config.vocab_size, (TOKENS // length, length)).astype(np.int32)
    mask, counted = NeuronMask.keep_all(config), np.ones(ids.shape, np.float32)
    detect = _typical(lambda: importance_batch(decoder, ids, counted), rounds)
    forward = _typical(lambda: forward_decoder(decoder, ids, mask), rounds)
    row = {"benchmark": "kernels", "model": STEP, "batch": len(ids), "length": length}
    return row | {"step_seconds": detect, "forward_seconds": forward}


@cache
def _decoder(config: ModelConfig) -> Decoder:
    return Decoder.random(config, jax.random.key(0), jnp.bfloat16)


def _typical(call: Callable[[], Any], rounds: int) -> float:
    """The median of some calls' seconds, after one that compiles; several calls in a row count as one where they are
    short, so that starting them does not show."""
    jax.block_until_ready(call())
    once = seconds(lambda: jax.block_until_ready(call()))
    repeats = max(1, min(20, int(0.02 / once)))

    def several() -> None:
        jax.block_until_ready([call() for _ in range(repeats)][-1])

    return statistics.median(seconds(several) / repeats for _ in range(rounds))
