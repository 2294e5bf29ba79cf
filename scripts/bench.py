"""Paired benchmarks: both sides in one run, in turn, on the same weights and inputs.

    python scripts/bench.py forward --json

Every line gives seconds per call of each side (medians), and the median and range of the ratio pair by pair, so that a
machine whose speed drifts cannot tilt the comparison.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import time
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from mwork_jax.config import ModelConfig
from mwork_jax.load.assemble import checkpoint_names
from mwork_jax.model import Decoder, forward_decoder, parameter_specs
from mwork_jax.neurons import NeuronMask, NeuronSet, group_widths

# The shape of SmolLM2-135M. Speed does not depend on the values of the weights, so random ones do.
SMOLLM2 = {
    "model_type": "llama",
    "vocab_size": 49152,
    "hidden_size": 576,
    "intermediate_size": 1536,
    "num_hidden_layers": 30,
    "num_attention_heads": 9,
    "num_key_value_heads": 3,
    "rope_theta": 100000.0,
    "rms_norm_eps": 1e-5,
    "max_position_embeddings": 8192,
    "tie_word_embeddings": True,
}


def paired(ours: Callable[[], Any], theirs: Callable[[], Any], rounds: int) -> dict[str, float]:
    """Times both in turn, after a warm-up of each; the ratio is theirs / ours, so more than 1 means that this project
    is faster."""
    ours()
    theirs()
    times = [(_seconds(ours), _seconds(theirs)) for _ in range(rounds)]
    ratios = sorted(b / a for a, b in times)
    return {
        "ours_seconds": statistics.median(a for a, _ in times),
        "theirs_seconds": statistics.median(b for _, b in times),
        "ratio": statistics.median(ratios),
        "ratio_min": ratios[0],
        "ratio_max": ratios[-1],
    }


def _seconds(call: Callable[[], Any]) -> float:
    begin = time.perf_counter()
    call()
    return time.perf_counter() - begin


def bench_forward(rounds: int) -> list[dict[str, Any]]:
    """The masked forward pass against Hugging Face PyTorch without a mask, each side in the dtype that is faster for
    it."""
    config = ModelConfig.from_hf(SMOLLM2)
    decoders = {d: Decoder.random(config, jax.random.key(0), d) for d in ("float32", "bfloat16")}
    theirs = {d: _torch_model(config, decoders["float32"], d) for d in decoders}
    rng = np.random.default_rng(0)
    widths = group_widths(config).items()
    dropped = NeuronSet({g: rng.random((config.num_layers, w)) < 0.02 for g, w in widths})
    mask = NeuronMask.keep_all(config).drop(dropped)
    rows = []
    for batch, length in ((8, 256), (8, 512)):
        ids = rng.integers(0, config.vocab_size, (batch, length)).astype(np.int32)
        run_ours = {d: _ours(decoders[d], jnp.asarray(ids), mask) for d in decoders}
        run_theirs = {d: _theirs(theirs[d], ids) for d in theirs}
        best_ours, best_theirs = _fastest(run_ours), _fastest(run_theirs)
        row = {
            "benchmark": "forward",
            "model": "SmolLM2-135M",
            "batch": batch,
            "length": length,
            "ours_dtype": best_ours,
            "theirs": "Hugging Face PyTorch",
            "theirs_dtype": best_theirs,
        }
        row |= paired(run_ours[best_ours], run_theirs[best_theirs], rounds)
        row["ours_tokens_per_second"] = batch * length / row["ours_seconds"]
        row["theirs_tokens_per_second"] = batch * length / row["theirs_seconds"]
        rows.append(row)
    return rows


def _fastest(calls: dict[str, Callable[[], Any]]) -> str:
    for call in calls.values():
        call()
    return min(calls, key=lambda name: min(_seconds(calls[name]) for _ in range(3)))


def _ours(decoder: Decoder, ids: jax.Array, mask: NeuronMask) -> Callable[[], Any]:
    return lambda: forward_decoder(decoder, ids, mask).block_until_ready()


def _theirs(hf: Any, ids: np.ndarray) -> Callable[[], Any]:
    import torch

    tokens = torch.tensor(ids, dtype=torch.long)

    def call() -> Any:
        with torch.inference_mode():
            return hf(tokens, use_cache=False).logits

    return call


def _torch_model(config: ModelConfig, decoder: Decoder, dtype: str) -> Any:
    """The same weights in Hugging Face PyTorch."""
    import torch
    import transformers

    hf = transformers.LlamaForCausalLM(
        transformers.LlamaConfig(**{k: v for k, v in SMOLLM2.items() if k != "model_type"})
    )
    arrays = {"embed": decoder.embed, "final_norm": decoder.final_norm}
    for name in parameter_specs(config):
        if name.startswith("layers."):
            arrays[name] = getattr(decoder.layers, name.removeprefix("layers."))
    state = {}
    for name, array in arrays.items():
        names = checkpoint_names(config, name)
        host = np.asarray(array[...])
        for row, tensor in zip(host if len(names) > 1 else host[None], names, strict=True):
            like = hf.get_parameter(tensor)
            state[tensor] = torch.from_numpy(row.reshape(tuple(like.shape)).copy())
    hf.load_state_dict(state, strict=False)
    return hf.eval().to(getattr(torch, dtype))


BENCHMARKS = {"forward": bench_forward}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("benchmark", choices=BENCHMARKS)
    parser.add_argument("--rounds", type=int, default=7, help="pairs timed (default: 7)")
    parser.add_argument("--json", action="store_true", help="print one JSON object on stdout")
    chosen = parser.parse_args()
    rows = BENCHMARKS[chosen.benchmark](chosen.rounds)
    if chosen.json:
        print(json.dumps({"benchmark": chosen.benchmark, "rows": rows}))
        return
    for row in rows:
        print(_line(row))


def _line(row: dict[str, Any]) -> str:
    sides = f"ours {row['ours_seconds']:.3f} s ({row['ours_dtype']}), {row['theirs']} {row['theirs_seconds']:.3f} s"
    ratio = f"{row['ratio']:.2f} times as fast ({row['ratio_min']:.2f} to {row['ratio_max']:.2f})"
    return f"{row['model']} {row['batch']} x {row['length']}: {sides} ({row['theirs_dtype']}), {ratio}"


if __name__ == "__main__":
    sys.exit(main())
