"""Detection compiled for what is not here: what it needs and does on TPUs, and that it lowers for GPUs.

    python scripts/compiled.py step v5e v5p v6e      # memory, bytes and operations of the whole detection step
    python scripts/compiled.py kernel v5e v5p v6e    # the compiler's schedule of the query and key kernel
    python scripts/compiled.py cuda                  # the same step lowered for CUDA

Mistral-7B in bfloat16, 8 documents of 512 tokens (--batch, --time). A v5e chip has no room for it: there the program is
one of two chips' share, with half of the heads, feed-forward and vocabulary and without the exchange between them.

What XLA says of a program counts a loop over layers once: `step` compiles two layers beside all of them, checks that
both cost the same, and multiplies. (One layer alone costs less: nobody reads its output, and the last product goes.)
It does not look into a Pallas kernel: `kernel` reads the kernel's final schedule, which libtpu writes out, and counts
the bundles and vector operations of its innermost loops times the tiles that they visit.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import replace
from inspect import signature
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import export
from jax.sharding import AbstractDevice, AbstractMesh, Mesh

from mwork_jax.config import ModelConfig
from mwork_jax.detect.importance import importance_batch
from mwork_jax.model.decoder import Decoder
from mwork_jax.model.parameters import parameter_specs
from mwork_jax.plan.chips import Slice
from mwork_jax.plan.models import config_of
from mwork_jax.plan.topology import abstract, abstract_decoder, abstract_mesh
from mwork_kernels.qk_importance import qk_importance  # pyright: ignore[reportMissingImports]
from mwork_kernels.qk_importance.tpu import KEYS, QUERIES  # pyright: ignore[reportMissingImports]

MODEL = "mistral-7b"
TARGETS = {
    "v5e": ("v5e:1x1", 2),
    "v5p": ("v5p:1x1x1", 1),
    "v6e": ("v6e:1x1", 1),
}  # topology, chips that share the model
FORMS = {"near": ("near",), "far": ("top", "far")}  # passes of each form
_LOOPS = [name for form in FORMS.values() for name in form]  # the innermost loops, as they follow in the program
_REGISTER = 8 * 128  # elements that one vector operation works on
# From jax 0.11 on, the lowering asks which card it is for; before, a card did not say which platform it is of.
_H100: tuple[Any, ...] = ("NVIDIA H100 80GB HBM3", 132, "gpu")
_CARD = AbstractDevice(*_H100[: len(signature(AbstractDevice).parameters)])
_TRITON = "__gpu$xla.gpu.triton"


def _one_chip(topology: str) -> Mesh:
    return abstract_mesh(Slice.parse(topology), {})


def share(config: ModelConfig, count: int) -> ModelConfig:
    """What one of `count` chips holds: its heads, feed-forward units and vocabulary."""
    return replace(
        config,
        num_heads=config.num_heads // count,
        num_kv_heads=config.num_kv_heads // count,
        intermediate_size=config.intermediate_size // count,
        vocab_size=config.vocab_size // count,
    )


def elements(config: ModelConfig, time: int) -> int:
    """Changes of scores per document: layers, heads, query and key neurons, and the pairs that a query sees."""
    return config.num_layers * config.num_heads * 2 * config.head_dim * time * (time + 1) // 2


def least_bytes(config: ModelConfig, time: int) -> int:
    """What the kernel must read per document: queries, keys and RoPE's tables of every layer once, in float32."""
    heads = config.num_heads + config.num_kv_heads
    return config.num_layers * 4 * time * config.head_dim * (heads + 2)


def tiles(time: int) -> int:
    """Tiles that the kernel visits for one neuron of one document's head without a window."""
    return sum((first + QUERIES - 1) // KEYS + 1 for first in range(0, time, QUERIES))


def of_all_layers(few: dict[str, float], all_: dict[str, float], layers: int) -> dict[str, float]:
    """Costs of a program with so many layers from what the compiler says of it and of the same with few layers.

    Raises ValueError where they differ by more than 5 %: then the compiler counts loops itself and this is wrong.
    """
    for name, cost in few.items():
        if abs(all_[name] - cost) > 0.05 * cost:
            raise ValueError(f"{name}: {cost:.4g} for few layers, {all_[name]:.4g} for all: a loop is not counted once")
    return {name: layers * cost for name, cost in all_.items()}


def lowered_step(config: ModelConfig, mesh: Mesh, batch: int, time: int) -> Any:
    """`importance_batch` for documents of that many tokens."""
    shape = (batch, time)
    with jax.set_mesh(mesh):
        return importance_batch.lower(
            abstract_decoder(config, mesh), abstract(mesh, shape, jnp.int32), abstract(mesh, shape, jnp.float32)
        )


def step(target: str, batch: int, time: int) -> dict[str, Any]:
    """The whole detection step on one chip: GiB, and per document bytes and operations outside of the kernel."""
    topology, count = TARGETS[target]
    mesh, config = _one_chip(topology), share(config_of(MODEL), count)
    two_layers = replace(config, num_layers=2, windows=config.windows[:2], layer_rope=config.layer_rope[:2])
    compiled: list[Any] = [lowered_step(c, mesh, batch, time).compile() for c in (two_layers, config)]
    costs = [{name: c.cost_analysis()[name] for name in ("flops", "bytes accessed")} for c in compiled]
    memory, total = compiled[1].memory_analysis(), of_all_layers(costs[0], costs[1], config.num_layers)
    room = Slice.parse(topology).chip.hbm_gib
    gib = {"arguments_gib": memory.argument_size_in_bytes / 2**30, "temporaries_gib": memory.temp_size_in_bytes / 2**30}
    return {
        "target": target, "share": f"1/{count}", "batch": batch, "time": time, **gib,
        "chip_gib": room, "fits": sum(gib.values()) < room,
        "flops_per_document": total["flops"] / batch, "bytes_per_document": total["bytes accessed"] / batch,
        "product_flops_per_document": 2 * time * layer_weights(config) * config.num_layers,
    }  # fmt: skip


def layer_weights(config: ModelConfig) -> int:
    """Entries of one layer's matrices."""
    attention = 2 * (config.num_heads + config.num_kv_heads) * config.head_dim
    return config.hidden_size * (attention + (3 if config.gated else 2) * config.intermediate_size)


class Loop(NamedTuple):
    """One innermost loop of a schedule: bundles (one a cycle) and vector operations of one turn."""

    bundles: int
    operations: int


def innermost_loops(schedule: str, use: str) -> list[Loop]:
    """The innermost loops of a kernel, in order, from libtpu's text: the final bundles and the use of units by each."""
    lines = re.findall(r"^ *0x([0-9a-f]+) +(L[A-Z]|P[A-Z])? *: *(>*) *\{", schedule, re.MULTILINE)
    table = [line.split() for line in use.split("== UTILIZATION:")[1].splitlines() if line.strip()]
    vector = use.splitlines()[1].replace(",", " ").split().index("VALU")
    loops, begin, depth = [], None, max(len(line[2]) for line in lines)
    for at, label, nested in lines:
        if begin is not None and len(nested) < depth:
            end = int(at, 16)
            loops.append(Loop(end - begin, sum(int(table[i][vector]) for i in range(begin, end))))
            begin = None
        if label == "LB" and len(nested) == depth:
            begin = int(at, 16)
    return loops


def kernel(target: str, batch: int, time: int, folder: Path) -> dict[str, Any]:
    """The kernel on one chip, from its schedule in `folder`, where libtpu writes it."""
    topology, count = TARGETS[target]
    mesh, config = _one_chip(topology), share(config_of(MODEL), count)
    for old in folder.iterdir():
        old.unlink()
    size = config.head_dim
    shapes = [(batch, time, heads, size) for heads in (config.num_heads, config.num_kv_heads)]
    shapes += [(1, time, size)] * 2 + [(batch, time)]
    args = [abstract(mesh, shape, jnp.float32) for shape in shapes]
    alone = jax.jit(lambda *x: qk_importance(*x, scale=config.attn_scale, implementation="tpu"))
    compiled: Any = alone.lower(*args, abstract(mesh, (), jnp.int32)).compile()
    (schedule,) = (p for p in folder.glob("*-qk_importance*final_bundles.txt") if "schedule" not in p.name)
    (use,) = folder.glob("*-qk_importance*final_hlo-static-per-bundle-utilization.txt")
    loops = innermost_loops(schedule.read_text(), use.read_text())
    if len(loops) != 2 * len(_LOOPS):
        raise ValueError(f"{len(loops)} innermost loops in the schedule, not {2 * len(_LOOPS)}: the kernel has changed")
    neurons = config.num_layers * config.num_heads * size  # of each of the two kinds
    row: dict[str, Any] = {
        "target": target, "share": f"1/{count}", "elements": elements(config, time),
        "bytes_per_document": config.num_layers * compiled.cost_analysis()["bytes accessed"] / batch,
        "least_bytes_per_document": least_bytes(config, time),
        "temporaries_gib": compiled.memory_analysis().temp_size_in_bytes / 2**30,
    }  # fmt: skip
    for form, names in FORMS.items():
        of_form = [loops[_LOOPS.index(name) + kind * len(_LOOPS)] for kind in range(2) for name in names]
        turns = neurons * tiles(time)
        row[form] = {
            "cycles_per_document": turns * sum(loop.bundles for loop in of_form),
            "operations_per_document": turns * _REGISTER * sum(loop.operations for loop in of_form),
        }
    return row


def cuda(batch: int, time: int) -> dict[str, Any]:
    """The step lowered for CUDA: raises where it does not lower, or without the kernel."""
    config = config_of(MODEL)
    specs = parameter_specs(config).items()
    kinds = {name: jnp.float32 if spec.keep_float32 else jnp.bfloat16 for name, spec in specs}
    plain = Decoder(config, {name: jax.ShapeDtypeStruct(spec.shape, kinds[name]) for name, spec in specs})  # type: ignore[arg-type]
    arguments = [jax.ShapeDtypeStruct((batch, time), dtype) for dtype in (jnp.int32, jnp.float32)]
    checks = [export.DisabledSafetyCheck.custom_call(_TRITON)]
    with jax.sharding.use_abstract_mesh(AbstractMesh((1,), ("card",), abstract_device=_CARD)):
        lowered = export.export(importance_batch, platforms=["cuda"], disabled_checks=checks)(plain, *arguments)
    text = lowered.mlir_module()
    if _TRITON not in text:
        raise ValueError("the step lowers for CUDA without the kernel")
    return {"target": "cuda", "kernels": text.count(_TRITON), "batch": batch, "time": time}


def described(row: dict[str, Any]) -> Iterator[str]:
    """A result as lines of text."""
    if row["target"] == "cuda":
        yield f"cuda: lowers, with {row['kernels']} Triton kernel(s) in the program"
    elif "elements" in row:
        yield (
            f"{row['target']} (share {row['share']}): {row['elements'] / 1e9:.1f} G changes of scores per document, "
            f"{row['bytes_per_document'] / 1e9:.2f} GB (inputs once: {row['least_bytes_per_document'] / 1e9:.2f}), "
            f"{row['temporaries_gib']:.2f} GiB temporaries"
        )
        for form in FORMS:
            operations, cycles = row[form]["operations_per_document"], row[form]["cycles_per_document"]
            each = operations / row["elements"]
            yield (
                f"  {form}: {operations / 1e12:.2f} T vector operations per document, {each:.0f} per change "
                f"(at least 1, the exp), {cycles / 1e6:.0f} M cycles"
            )
    else:
        verdict = "fits" if row["fits"] else "does not fit"
        yield (
            f"{row['target']} (share {row['share']}): {row['arguments_gib']:.2f} GiB arguments, "
            f"{row['temporaries_gib']:.2f} temporaries of {row['chip_gib']}, {verdict}; per document outside of the "
            f"kernel {row['flops_per_document'] / 1e12:.2f} TFLOP (products with the weights: "
            f"{row['product_flops_per_document'] / 1e12:.2f}), {row['bytes_per_document'] / 1e9:.1f} GB"
        )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=["step", "kernel", "cuda"])
    parser.add_argument("target", nargs="*", help=f"{', '.join(TARGETS)} (default: all)")
    parser.add_argument("--batch", type=int, default=8, help="documents (default: 8)")
    parser.add_argument("--time", type=int, default=512, help="tokens of each (default: 512)")
    parser.add_argument("--json", action="store_true", help="print one JSON object a line on stdout")
    args = parser.parse_args()
    if unknown := set(args.target) - set(TARGETS):
        parser.error(f"no target {', '.join(sorted(unknown))}; there are {', '.join(TARGETS)}")
    with tempfile.TemporaryDirectory() as folder:
        if args.what == "kernel":  # read once, when libtpu starts
            os.environ["LIBTPU_INIT_ARGS"] = f"--xla_jf_dump_to={folder} --xla_jf_dump_llo_text=true"
        for target in ["cuda"] if args.what == "cuda" else args.target or TARGETS:
            if args.what == "cuda":
                row = cuda(args.batch, args.time)
            elif args.what == "step":
                row = step(target, args.batch, args.time)
            else:
                row = kernel(target, args.batch, args.time, Path(folder))
            print(json.dumps(row) if args.json else "\n".join(described(row)), flush=True)


if __name__ == "__main__":
    sys.exit(main())
