"""Planning for GPUs: their descriptions, the counting of what XLA writes for them, and the command."""

import importlib
import importlib.util
import json
from dataclasses import replace
from math import prod

import jax
import jax.numpy as jnp
import pytest

from mwork_jax.cli import main
from mwork_jax.errors import InputError
from mwork_jax.families import config_from_hf
from mwork_jax.plan import (
    CHIPS,
    Plan,
    Size,
    Slice,
    most_masks,
    price_of,
    slice_here,
    sweep_report,
)
from mwork_jax.plan import gpus as gpus_module
from mwork_jax.plan.compiled import Case, Memory, compile_case
from mwork_jax.plan.gpus import COMPILER_OPTIONS, GPUS, check_installed, description, gpu_called
from mwork_jax.plan.stages import programs
from mwork_jax.plan.topology import abstract, abstract_mesh
from mwork_jax.runtime.compiled import Cost, Target, _groups, cost_of
from mwork_jax.sharding import make_mesh

planning = importlib.import_module("mwork_jax.plan.plan")  # the package exports a function of this name


def compiler_is_missing():
    try:
        check_installed()
    except InputError as error:
        return str(error)
    return None


MISSING = compiler_is_missing()
needs_compiler = pytest.mark.skipif(MISSING is not None, reason=f"compiles through XLA for GPUs: {MISSING}")
SMALL = {
    "model_type": "llama", "vocab_size": 512, "hidden_size": 256, "intermediate_size": 512, "num_hidden_layers": 6,
    "num_attention_heads": 4, "num_key_value_heads": 4, "head_dim": 64, "max_position_embeddings": 256,
}  # fmt: skip
ONE = {"data": 1, "model": 1, "mask": 1}


def small(**other):
    return config_from_hf({**SMALL, **other})


def planned(name="h100:1", masks=1, total=1.0, flops=None, stage="evaluate"):
    slice_, size = Slice.parse(name), Size(1, masks=masks)
    cost = None if flops is None else Cost(flops=flops, passes=flops)
    parts = {} if cost is None else {"losses": cost}
    return Plan(stage, small(), slice_, ONE | {"data": slice_.count}, size,
                Case(cost is not None, Memory(total, 0, 0), 100e9, cost, parts, 0.0))  # fmt: skip


def test_machines_are_read_and_named():
    assert Slice.parse("h100:8").count == 8
    assert Slice.parse("2xh100:8").name == "2xh100:8"
    assert (Slice.parse("2xh100:8").count, Slice.parse("2xh100:8").in_node) == (16, 8)
    assert Slice.parse("h100:8").in_node is None
    assert Slice.parse("1xa6000:2").name == "a6000:2"
    assert [one.name for one in Slice.parse("a100:1").siblings()][:6] == [
        "a100:1", "a100:2", "a100:4", "a100:8", "2xa100:8", "4xa100:8",
    ]  # fmt: skip


@pytest.mark.parametrize("gpu", GPUS.values(), ids=list(GPUS))
def test_a_description_agrees_with_the_data_sheet(gpu):
    """Peak float32 is two operations a lane and cycle: the data sheets' own TFLOPS."""
    sheets = {"h100": 67, "h200": 67, "b200": 75, "a100": 19.5, "l40s": 91.6, "rtx4090": 82.6, "a6000": 38.7}
    assert 2 * gpu.vector / 1e12 == pytest.approx(sheets[gpu.name], rel=0.01)
    text = description(gpu)
    assert f"core_count: {gpu.processors}" in text
    assert f"device_memory_size: {gpu.memory_mib * 2**20}" in text
    assert text.count("{") == text.count("}")
    assert gpu_called(f"NVIDIA {gpu.kind} 80GB") == gpu


def test_devices_are_known_by_the_name_that_their_driver_gives():
    names = {"NVIDIA H100 80GB HBM3": "h100", "NVIDIA A100-SXM4-80GB": "a100", "NVIDIA GeForce RTX 4090": "rtx4090",
             "NVIDIA RTX A6000": "a6000", "NVIDIA L40S": "l40s"}  # fmt: skip
    assert {name: gpu_called(name).name for name in names} == names
    assert gpu_called("NVIDIA L4") is None
    with pytest.raises(InputError, match=r"GPUs of the kinds h100.* here is cpu"):
        slice_here(jax.devices())


@pytest.mark.parametrize(
    ("text", "groups"),
    [
        ("replica_groups=[4,2]<=[8]", [[0, 1], [2, 3], [4, 5], [6, 7]]),
        ("replica_groups=[4,2]<=[2,4]T(1,0)", [[0, 4], [1, 5], [2, 6], [3, 7]]),
        ("replica_groups=mesh['a'=2,'b'=4] {'b'}", [[0, 1, 2, 3], [4, 5, 6, 7]]),
        ("replica_groups=mesh['a'=2,'b'=4] {'a'}", [[0, 4], [1, 5], [2, 6], [3, 7]]),
        ("replica_groups=mesh['a'=2,'b'=4] {'b':(2)2}", [[0, 1], [2, 3], [4, 5], [6, 7]]),
        ("replica_groups=mesh['a'=2,'b'=4] {'b':(1)2}", [[0, 2], [1, 3], [4, 6], [5, 7]]),
        ("replica_groups={{0,1},{2,3}}, dimensions={0}", [[0, 1], [2, 3]]),
        ("source_target_pairs={{0,1},{1,2}}", [[0, 1], [1, 2]]),
    ],
)
def test_the_devices_of_a_group_are_read(text, groups):
    assert _groups(text) == groups


GPU_TEXT = """HloModule m, entry_computation_layout={()->f32[]}

ENTRY %main (x: bf16[256,1024], w: bf16[1024,256], y: f32[256,256]) -> f32[256,256] {
  %x = bf16[256,1024]{0,1} parameter(0)
  %w = bf16[1024,256]{1,0} parameter(1)
  %y = f32[256,256]{0,1} parameter(2)
  %c = (f32[256,256]{0,1}, s8[33554432]{0}) custom-call(%x, %w, %y), custom_call_target="__cublas$lt$matmul", CONFIG
  %g = f32[256,256]{0,1} get-tuple-element(%c), index=0
  ROOT %r = f32[256,256]{0,1} all-reduce(%g), replica_groups=GROUPS, to_apply=%add
}
""".replace(
    "CONFIG",
    'backend_config={"gemm_backend_config":{"dot_dimension_numbers":{"lhs_contracting_dimensions":["1"],'
    '"rhs_contracting_dimensions":["0"]},"precision_config":{"operand_precision":["PRECISION","PRECISION"]}}}',
)


def gpu_text(groups="[2,8]<=[16]", precision="DEFAULT"):
    return GPU_TEXT.replace("GROUPS", groups).replace("PRECISION", precision)


def test_products_of_the_library_are_counted_from_their_shapes():
    cost, size = cost_of(gpu_text()), 256 * 256 * 4
    assert cost.flops == cost.passes == 2 * 256 * 256 * 1024
    operands = 2 * 256 * 1024 * 2 + size
    assert cost.bytes == operands + size + 2 * size  # what the library works in is neither read nor written by a model


SCATTER = """HloModule puts, is_scheduled=true

%put (a: f32[], b: f32[]) -> f32[] {
  %a = f32[] parameter(0)
  ROOT %b = f32[] parameter(1)
}

%fused_scatter (p0: f32[4096,256], p1: s32[8,1], p2: f32[8,256]) -> f32[4096,256] {
  %p0 = f32[4096,256]{1,0} parameter(0)
  %p1 = s32[8,1]{1,0} parameter(1)
  %p2 = f32[8,256]{1,0} parameter(2)
  ROOT %scatter = f32[4096,256]{1,0} scatter(%p0, %p1, %p2), update_window_dims={1}, to_apply=%put
}

ENTRY %main (cache: f32[4096,256], at: s32[8,1], new: f32[8,256]) -> f32[4096,256] {
  %cache = f32[4096,256]{1,0} parameter(0)
  %at = s32[8,1]{1,0} parameter(1)
  %new = f32[8,256]{1,0} parameter(2)
  ROOT %fusion = f32[4096,256]{1,0} fusion(%cache, %at, %new), kind=kInput, calls=%fused_scatter
}
"""


def test_a_scatter_into_a_cache_counts_what_is_new():
    """GPUs put rows where they lie; the rest of the cache is neither read nor written."""
    assert cost_of(SCATTER).bytes == 8 * 4 + 2 * 8 * 256 * 4


def test_float32_products_take_as_long_as_their_precision_says():
    target = Target(exact=16.0, float32=2.0)
    exact, usual = gpu_text(precision="HIGHEST"), gpu_text()
    of_floats = [text.replace("bf16", "f32") for text in (exact, usual)]
    assert [cost_of(t, target=target).passes / cost_of(t).flops for t in (*of_floats, exact)] == [16.0, 2.0, 1.0]


@pytest.mark.parametrize(
    ("groups", "in_node", "part"),
    [
        ("[2,8]<=[16]", 8, 0.0),  # each group in a node of its own
        ("[1,16]<=[16]", 8, 1 / 8),  # one ring over both: an eighth of what a GPU sends leaves the node
        ("[8,2]<=[2,8]T(1,0)", 8, 1.0),  # pairs of GPUs of two nodes
        ("[1,16]<=[16]", None, 0.0),
    ],
)
def test_bytes_between_nodes_are_the_part_of_the_ring_that_leaves_them(groups, in_node, part):
    cost = cost_of(gpu_text(groups), target=Target(in_node=in_node))
    assert cost.between_bytes == pytest.approx(part * cost.collective_bytes)
    assert cost.collective_bytes > 0


def test_the_network_between_nodes_is_a_limit_of_its_own():
    one = planned("2xh100:8", flops=1.0)
    collective = cost_of(gpu_text("[1,16]<=[16]"), target=Target(in_node=8))
    slow = replace(one, slice=one.slice.with_bandwidth(between=1e3), case=replace(one.case, cost=collective))
    assert slow.limits["between nodes"] == pytest.approx(collective.between_bytes / 1e3)
    assert slow.limits["NVLink"] == pytest.approx(7 / 8 * collective.collective_bytes / 450e9)
    assert "between nodes" not in planned("h100:8", flops=1.0).limits


def test_the_most_masks_are_found_with_few_programs(monkeypatch):
    compiled = []

    def compile_a_line(stage, config, slice_, shape, size):
        compiled.append(size.masks)
        total = 10e9 + 0.9e9 * size.masks
        return Case(total <= 100e9, Memory(total, 0, 0), 100e9, Cost(flops=1.0), {}, 0.0)

    monkeypatch.setattr(planning, "compile_case", compile_a_line)
    known = planned(masks=8, total=17.2e9, flops=1.0)
    assert most_masks(known).size.masks == 100
    assert len(compiled) <= 4


def test_a_sweep_says_what_is_cheapest():
    plans = [planned("h100:1", flops=4e12), planned("v5e:1x1", flops=1e12), planned("a100:8", total=200e9)]
    text = sweep_report(plans, "a model", {"h100": 2.0, "v5e": 10.0})
    by_hours = min(plans[:2], key=lambda one: one.chip_hours)
    assert f"fewest chip-hours: {by_hours.slice.name}" in text
    assert "cheapest of those with a price: h100:1" in text
    assert price_of(plans[0], {"h100": 2.0}) == pytest.approx(2.0 * plans[0].chip_hours)
    assert price_of(plans[2], {"a100": 2.0}) is None
    assert "price" not in sweep_report(plans, "a model")


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["--topology", "h300:8"], "'h300' is not one of"),
        (["--topology", "h100:2x4"], "h100:GPUS or NODESxh100:GPUS"),
        (["--topology", "0xh100:8"], "h100:GPUS or NODESxh100:GPUS"),
        (["--topology", "h100"], "h100:GPUS or NODESxh100:GPUS"),
        (["--topology", "2xv5e:2x2"], "2 sizes are needed"),
        (["--topology", "h100:8", "--mesh", "data=3"], "data=3: that is 3 devices, h100:8 has 8"),
        (["--topology", "h100:8", "--between-nodes", "0"], "more than 0 GB/s"),
        (["--topology", "v5e:2x2", "--link", "5"], "it is for GPUs"),
        (["--stage", "detect", "--most-masks"], "--most-masks: detection has none"),
        (["--price", "h100=2"], "it is for --sweep-topologies"),
        (["--sweep-topologies", "--price", "h100=much"], "'h100=much' is not CHIP=PRICE"),
        (["--sweep-topologies", "h100,nothing:2"], "'nothing' is not one of"),
        (["--sweep-topologies", "--check"], "--check: it is of one slice"),
        (["--check"], "--check runs on GPUs of the kinds"),
    ],
)
def test_bad_input_is_one_line(arguments, says, capsys):
    assert main(["plan", *arguments]) == 2
    error = capsys.readouterr().err
    assert says in error
    assert error.count("\n") == 1


@pytest.mark.parametrize(
    ("lacks", "versions", "says"),
    [
        ("jax_cuda12_plugin", {}, "jax-cuda12-plugin, which is not installed"),
        ("jax_plugins.xla_cuda12", {}, "jax-cuda12-pjrt, which is not installed"),
        (None, {"jax-cuda12-plugin": "0.0.1"}, "jax-cuda12-plugin is 0.0.1 and jax is "),
    ],
)
def test_a_compiler_that_is_missing_or_of_another_version_is_named(lacks, versions, says, monkeypatch, capsys):
    present = {"jax_cuda12_plugin", "jax_plugins", "jax_plugins.xla_cuda12"} - {lacks}
    monkeypatch.setattr(gpus_module, "find_spec", lambda name: name if name in present else None)
    monkeypatch.setattr(gpus_module, "_version", lambda package: versions.get(package, jax.__version__))
    assert main(["plan", "--topology", "h100:1"]) == 2
    error = capsys.readouterr().err
    assert says in error
    assert error.endswith("pip install 'mwork-jax[plan-gpu]'\n")


def layers_by_hand(weights, x, unroll):
    def layer(x, w):
        return x + jnp.tanh(x @ w[0]) @ w[1], None

    return jax.lax.scan(layer, x, weights, unroll=unroll)[0]


@needs_compiler
def test_loops_on_a_gpu_count_as_often_as_they_run():
    mesh = abstract_mesh(Slice.parse("h100:1"), ONE)
    shapes = abstract(mesh, (12, 2, 64, 64), jnp.bfloat16), abstract(mesh, (32, 64), jnp.bfloat16)
    costs = [
        cost_of(
            jax.jit(lambda w, x, unroll=unroll: layers_by_hand(w, x, unroll))
            .lower(*shapes)
            .compile(compiler_options=dict(COMPILER_OPTIONS))
            .as_text()
        )
        for unroll in (1, 12)
    ]
    assert [cost.flops for cost in costs] == [12 * 2 * 2 * 32 * 64 * 64] * 2


@needs_compiler
def test_a_gpu_counts_what_the_cpu_counts():
    config, size = small(), Size(batch=2, length=64, masks=2)
    case = compile_case("evaluate", config, Slice.parse("h100:1"), ONE, size)
    mesh = make_mesh(devices=jax.devices()[:1])
    with jax.set_mesh(mesh):
        here = sum(
            (cost_of(p.function.lower(*p.arguments).compile().as_text(), p.trips)
             for p in programs("evaluate", config, mesh, size)), Cost())  # fmt: skip
    assert case.cost.flops == pytest.approx(here.flops, rel=0.01)
    assert case.fits


@needs_compiler
def test_a_small_model_is_planned_for_one_and_for_eight_gpus(tmp_path, capsys):
    folder = tmp_path / "config.json"
    folder.write_text(json.dumps(SMALL))
    command = ["plan", "--model", str(folder), "--stage", "evaluate", "--json", "--length", "64", "--no-smallest"]
    found = {}
    for name, mesh in (("h100:1", "data=1"), ("2xh100:4", "data=2,model=4")):
        assert main([*command, "--topology", name, "--mesh", mesh]) == 0
        found[name] = json.loads(capsys.readouterr().out)
    one, eight = (found[name]["compiled"] for name in found)
    assert all(record["fits"] for record in found.values())
    assert eight["operations_per_token"] == pytest.approx(one["operations_per_token"], rel=0.05)
    assert one["collectives_per_step"] == 0
    assert eight["collective_bytes_per_chip_and_step"] > 0
    assert eight["of_them_between_nodes"] < 0.01 * eight["collective_bytes_per_chip_and_step"]
    assert prod(found["2xh100:4"]["mesh"].values()) == 8
    assert found["h100:1"]["memory_gib"]["chip"] == CHIPS["h100"].hbm_gib


@needs_compiler
@pytest.mark.slow
def test_the_query_and_key_kernel_is_compiled_for_a_gpu():
    """XLA makes the weights that the kernel reads: four products of queries' or keys' size with the square of scores
    for each layer, which a TPU's kernel makes inside."""
    config, size = small(num_hidden_layers=2), Size(batch=1, length=128)
    case = compile_case("detect", config, Slice.parse("a100:1"), ONE, size)
    assert case.cost.custom_calls == 2
    assert case.cost.transcendental > 2 * 2 * 4 * 64 * 128 * 129 / 2
