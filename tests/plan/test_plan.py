"""Planning: the counts of a compiled program, proved on programs that are small enough to unroll, and the command."""

import importlib
import importlib.util
import json
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import pytest

from mwork_jax.cli import main
from mwork_jax.errors import InputError
from mwork_jax.families import config_from_hf
from mwork_jax.model.decoder import Decoder
from mwork_jax.model.parameters import weight_bytes
from mwork_jax.neurons import NeuronMask
from mwork_jax.plan import NAMED, Plan, Slice, config_of, plan_report
from mwork_jax.plan.compiled import Case, Memory, _needed
from mwork_jax.plan.stages import Size, _blocks_of_experts, own_operations, programs
from mwork_jax.plan.work import full_tables
from mwork_jax.runtime.compiled import Cost, cost_of
from mwork_jax.sharding import make_mesh
from support.paths import ROOT

planning = importlib.import_module("mwork_jax.plan.plan")  # the package exports a function of this name
needs_libtpu = pytest.mark.skipif(importlib.util.find_spec("libtpu") is None, reason="compiles through libtpu")
SMALL = {
    "model_type": "llama", "vocab_size": 512, "hidden_size": 256, "intermediate_size": 512, "num_hidden_layers": 6,
    "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 64, "max_position_embeddings": 256,
}  # fmt: skip


def small(**other):
    return config_from_hf({**SMALL, **other})


def layers_by_hand(weights, x, unroll):
    def layer(x, w):
        return x + jnp.tanh(x @ w[0]) @ w[1], None

    return jax.lax.scan(layer, x, weights, unroll=unroll)[0]


def compiled_layers(layers, unroll):
    shapes = jax.ShapeDtypeStruct((layers, 2, 64, 64), jnp.float32), jax.ShapeDtypeStruct((32, 64), jnp.float32)
    return jax.jit(lambda w, x: layers_by_hand(w, x, unroll)).lower(*shapes).compile()


def test_a_scanned_layer_is_counted_as_often_as_it_runs():
    """XLA's own analysis of the unrolled program is the oracle; of the scanned one it sees a single layer."""
    scanned, unrolled = compiled_layers(12, 1), compiled_layers(12, 12)
    products = 12 * 2 * 2 * 32 * 64 * 64
    assert cost_of(scanned.as_text()).flops == products
    assert cost_of(unrolled.as_text()).flops == products
    assert products <= unrolled.cost_analysis()["flops"] < 1.05 * products  # theirs counts the additions too
    assert scanned.cost_analysis()["flops"] < 0.2 * products


def test_a_whole_scanned_model_costs_what_its_unrolled_layers_cost():
    """The difference of two depths is that of whole layers, whether they are scanned or XLA counts them unrolled."""

    def lowered(layers):
        config = small(num_hidden_layers=layers)
        decoder = jax.eval_shape(lambda: Decoder.random(config, jax.random.key(0)))
        mask = jax.eval_shape(lambda: NeuronMask.keep_all(config))
        from mwork_jax.model.decoder import forward_decoder

        return forward_decoder.lower(decoder, jax.ShapeDtypeStruct((2, 64), jnp.int32), mask).compile()

    six, one = cost_of(lowered(6).as_text()).flops, cost_of(lowered(1).as_text()).flops
    layer = 2 * 64 * 2 * (2 * 256 * 256 + 2 * 256 * 128 + 3 * 256 * 512) + 2 * 4 * 64 * 64 * 256
    assert six - one == pytest.approx(5 * layer, rel=1e-6)
    assert one - layer == pytest.approx(2 * 2 * 64 * 512 * 256, rel=1e-6)  # the head


def test_a_loop_whose_bound_is_an_argument_is_asked_for():
    @jax.jit
    def repeated(x, times):
        return jax.lax.fori_loop(0, times, lambda _, x: jnp.tanh(x @ x), x)

    text = repeated.lower(jnp.zeros((32, 32)), 3).compile().as_text()
    assert cost_of(text, lambda loop: 7).flops == 7 * 2 * 32**3
    with pytest.raises(ValueError, match="how often"):
        cost_of(text)


TPU_TEXT = """HloModule m, entry_computation_layout={()->f32[]}

%body (p: (s32[], f32[4,64], bf16[8,64,64])) -> (s32[], f32[4,64], bf16[8,64,64]) {
  %p = (s32[]{:T(128)}, f32[4,64]{1,0:T(4,128)S(1)}, bf16[8,64,64]{2,1,0:T(8,128)}) parameter(0)
  %i = s32[]{:T(128)} get-tuple-element(%p), index=0
  %x = f32[4,64]{1,0:T(4,128)S(1)} get-tuple-element(%p), index=1
  %w = bf16[8,64,64]{2,1,0:T(8,128)} get-tuple-element(%p), index=2
  %s = f32[4,64]{1,0:T(4,128)S(1)} fusion(%x, %w, %i), kind=kOutput, calls=%fused
  %r = f32[4,64]{1,0:T(4,128)S(1)} all-reduce(%s), replica_groups=[8,2]<=[16], to_apply=%add
  ROOT %t = (s32[]{:T(128)}, f32[4,64]{1,0}, bf16[8,64,64]{2,1,0}) tuple(%i, %r, %w)
}

%fused (a: f32[4,64], b: bf16[8,64,64], c: s32[]) -> f32[4,64] {
  %a = f32[4,64]{1,0:T(4,128)S(1)} parameter(0)
  %b = bf16[8,64,64]{2,1,0:T(8,128)} parameter(1)
  %c = s32[]{:T(128)} parameter(2)
  %d = bf16[1,64,64]{2,1,0:T(8,128)} dynamic-slice(%b, %c), dynamic_slice_sizes={1,64,64}
  %e = bf16[64,64]{1,0:T(8,128)} bitcast(%d)
  ROOT %f = f32[4,64]{1,0:T(4,128)S(1)} convolution(%a, %e), dim_labels=bf_io->bf
}

%condition (p: (s32[], f32[4,64], bf16[8,64,64])) -> pred[] {
  %n = s32[]{:T(128)} constant(8)
  %p = (s32[]{:T(128)}, f32[4,64]{1,0:T(4,128)S(1)}, bf16[8,64,64]{2,1,0:T(8,128)}) parameter(0)
  %i = s32[]{:T(128)} get-tuple-element(%p), index=0
  ROOT %lt = pred[]{:T(512)} compare(%i, %n), direction=LT
}

ENTRY %main (x: (s32[], f32[4,64], bf16[8,64,64])) -> f32[] {
  %x = (s32[]{:T(128)}, f32[4,64]{1,0:T(4,128)S(1)}, bf16[8,64,64]{2,1,0:T(8,128)}) parameter(0)
  ROOT %loop = (s32[], f32[4,64], bf16[8,64,64]) while(%x), condition=%condition, body=%body
}
"""


def test_bytes_are_of_the_slices_in_hbm_and_collectives_of_their_ring():
    cost = cost_of(TPU_TEXT)
    assert cost.flops == 8 * 2 * 4 * 64 * 64
    assert cost.bytes == 8 * 64 * 64 * 2  # each layer's weights once; what lies in the vector memory is not moved
    assert (cost.collective_count, cost.collective_bytes) == (8, 8 * 2 * 0.5 * 4 * 64 * 4)


KERNEL_TEXT = """HloModule m, entry_computation_layout={()->f32[]}

ENTRY %main (x: bf16[512,32], w: bf16[4,16,32], n: s32[4]) -> f32[512,16] {
  %x = bf16[512,32]{1,0} parameter(0)
  %w = bf16[4,16,32]{2,1,0} parameter(1)
  %n = s32[4]{0} parameter(2)
  %m = s32[5]{0} custom-call(%n), custom_call_target="tpu_custom_call", metadata={op_name="ragged-dot-metadata"}
  ROOT %y = f32[512,16]{1,0} custom-call(%m, %x, %w), custom_call_target="tpu_custom_call", TILING
}
""".replace("TILING", 'frontend_attributes={ragged_dot_tiling="64,32,16"}')
FUSED_TEXT = """HloModule m, entry_computation_layout={()->f32[]}

%inner (w: bf16[4,16,32], x: bf16[512,32]) -> f32[512,16] {
  %w = bf16[4,16,32]{2,1,0} parameter(0)
  %x = bf16[512,32]{1,0} parameter(1)
  %b = bf16[4,512,32]{2,1,0} broadcast(%x), dimensions={1,2}
  %d = f32[4,512,16]{2,1,0} dot(%b, %w), lhs_batch_dims={0}, lhs_contracting_dims={2}, rhs_contracting_dims={2}
  ROOT %r = f32[512,16]{1,0} reduce(%d, %d), dimensions={0}
}

%outer (w: bf16[4,16,32], x: bf16[512,32]) -> f32[512,16] {
  %w = bf16[4,16,32]{2,1,0} parameter(0)
  %x = bf16[512,32]{1,0} parameter(1)
  ROOT %f = f32[512,16]{1,0} fusion(%w, %x), kind=kOutput, calls=%inner, backend_config={"is_ragged_dot":true}
}

ENTRY %main (x: bf16[512,32], w: bf16[4,16,32]) -> f32[512,16] {
  %x = bf16[512,32]{1,0} parameter(0)
  %w = bf16[4,16,32]{2,1,0} parameter(1)
  ROOT %y = f32[512,16]{1,0} fusion(%w, %x), kind=kCustom, calls=%outer, CONFIG
}
""".replace(
    "CONFIG",
    'backend_config={"iteration_bounds":["6","4","8","1"],"is_ragged_dot":true,'
    '"mask_dim_to_iteration_index":["1","2"]}',
)


def test_a_slice_that_is_read_in_another_order_is_a_slice():
    """Matrices of int8 lie in larger tiles than products read; a copy within a fusion copies only what is taken."""
    copying = """
%copied (w: bf16[8,64,64]) -> bf16[8,64,64] {
  %w = bf16[8,64,64]{2,1,0:T(8,128)} parameter(0)
  ROOT %o = bf16[8,64,64]{2,1,0:T(4,128)} copy(%w)
}

%fused ("""
    nested = TPU_TEXT.replace("\n%fused (", copying, 1)
    given = "%g = bf16[8,64,64]{2,1,0:T(4,128)} fusion(%b), kind=kLoop, calls=%copied\n  %d = "
    nested = nested.replace("%d = ", given, 1).replace("dynamic-slice(%b, %c)", "dynamic-slice(%g, %c)")
    assert cost_of(nested).bytes == cost_of(TPU_TEXT).bytes
    root = "ROOT %f = f32[4,64]{1,0:T(4,128)S(1)} convolution(%a, %e), dim_labels=bf_io->bf"
    copy = "ROOT %f = bf16[8,64,64]{2,1,0:T(4,128)} fusion(%b), kind=kLoop, calls=%copied"
    assert cost_of(nested.replace(root, copy)).bytes == 8 * 8 * 64 * 64 * 2, "a fusion that copies all reads all"


@pytest.mark.parametrize("text", [KERNEL_TEXT, FUSED_TEXT], ids=["a kernel", "a fusion"])
def test_products_with_experts_count_the_rows_that_go_to_them(text):
    """4 of 8 experts are here, so half of 512 rows; a tile of 64 rows is computed for each expert that begins in it."""
    each = 2 * 32 * 16
    cost = cost_of(text, experts=8)
    assert (cost.flops, cost.custom_calls) == (256 * each, 0)
    assert cost.passes == (256 + 3 * 64) * each
    assert cost_of(text).flops == 512 * each


def test_rows_chosen_for_a_chips_experts_are_theirs_but_for_what_fills_the_last_block():
    line = 'metadata={op_name="jit(f)/expert_blocks/while/body/ragged_dot"}'
    text = KERNEL_TEXT.replace("frontend_attributes=", f"{line}, frontend_attributes=")
    assert text != KERNEL_TEXT
    assert cost_of(text, experts=8, chosen=("expert_blocks", 0.75)).flops == 0.75 * 512 * 2 * 32 * 16
    assert cost_of(text, experts=8, chosen=("other", 0.75)).flops == 256 * 2 * 32 * 16


@pytest.mark.parametrize(("tokens", "blocks", "chosen"), [(8, 1, 0.5), (64, 2, 1.0), (4096, 4, 8 / 9)])
def test_blocks_of_experts_are_whole(tokens, blocks, chosen):
    """Of 128 experts with 8 for each token, a device on `expert` = 16 holds 8: a block has 128 rows at least."""
    config = config_from_hf(json.loads((ROOT / "tests/data/configs/Qwen--Qwen3-30B-A3B.json").read_text()))
    mesh = make_mesh({"expert": 1}, jax.devices()[:1])
    found, part = _blocks_of_experts(config, SimpleNamespace(shape={**mesh.shape, "expert": 16}), tokens)
    assert found == blocks
    assert part == pytest.approx(chosen, abs=0.001)


def test_costs_add_up():
    assert (Cost(flops=1.0) + Cost(flops=2.0, bytes=3.0)).times(2) == Cost(flops=6.0, bytes=6.0)


def test_detection_counts_what_its_kernel_does_inside():
    """36 operations for every layer's average change of a score, counted pair by pair."""
    config, size = small(model_type="mistral", sliding_window=20), Size(batch=3, length=50)
    pairs = sum(t - s < 20 for t in range(50) for s in range(t + 1))
    mesh = make_mesh(devices=jax.devices()[:1])
    (program,) = programs("detect", config, mesh, size)
    assert program.inside == Cost(vector=pytest.approx(36 * 2 * 3 * 4 * 64 * pairs))


def test_no_smallest_claims_nothing_about_other_slices():
    case = Case(False, Memory(1, 0, 2), 1.0, None, {}, 0.0)
    one = Plan("enhance", small(), Slice.parse("v5e:1x1"), {"data": 1, "model": 1, "mask": 1}, Size(1), case)
    assert "no slice" in plan_report(one, "a model")
    assert "no slice" not in plan_report(one, "a model", searched=False)


def test_the_mesh_is_the_smallest_that_fits_and_computes_little_twice(monkeypatch):
    config, slice_, size = small(), Slice.parse("v5e:2x2"), Size(1)

    def chosen(**model_to_ratio):
        def compiled(stage, config, slice_, shape, size):
            ratio = model_to_ratio.get(f"model_{shape['model']}")
            flops = (ratio or 0) * own_operations(stage, config, size) * size.length / shape["model"]
            return Case(ratio is not None, Memory(1, 0, 0), 1.0, ratio and Cost(flops=flops), {}, 0.0)

        monkeypatch.setattr(planning, "compile_case", compiled)
        return planning.plan("evaluate", config, slice_, size).mesh["model"]

    assert chosen(model_1=1.0, model_2=1.0) == 1
    assert chosen(model_1=1.08, model_2=1.001, model_4=1.0) == 2
    assert chosen(model_2=1.2, model_4=1.2) == 2  # none is better
    assert chosen() == 4  # none fits: the last is reported


def test_the_papers_models_have_their_sizes():
    sizes = {"mistral-7b": 7.24e9, "llama-2-7b": 6.74e9, "llama-2-70b": 68.98e9}
    mesh = make_mesh(devices=jax.devices()[:1])
    for name in NAMED:
        assert weight_bytes(config_of(name), mesh=mesh) / 2 == pytest.approx(sizes[name], rel=2e-3)


def test_own_operations_are_two_for_every_weight_and_a_little_attention():
    config = config_of("mistral-7b")
    weights = 7.11e9  # without the embedding, which is looked up
    assert own_operations("evaluate", config, Size(1)) == pytest.approx(2 * weights, rel=0.02)
    assert own_operations("detect", config, Size(1)) < own_operations("evaluate", config, Size(1))


@pytest.mark.parametrize("stage", ["detect", "evaluate", "generate", "enhance"])
def test_the_full_tables_are_some_work(stage):
    work = full_tables(stage)
    assert work.tokens > 1e6
    assert work.assumed


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["--topology", "v9z:2x2"], "v5e, v5p, v6e"),
        (["--topology", "v5e:2x2x2"], "2 sizes are needed"),
        (["--stage", "detect", "--masks", "8"], "--masks: detection has none"),
        (["--stage", "evaluate", "--new", "8"], "--new: only the stage generate"),
        (["--sweep-topologies", "--mesh", "data=16"], "--mesh: one mesh does not fit every slice"),
        (["--stage", "nothing"], "detect, evaluate, generate, enhance"),
        (["--model", "no-such"], "mistral-7b"),
        (["--batch", "0"], "at least 1"),
        (["--mesh", "data=x"], "data=N"),
        (["--length", "100000000"], "context"),
    ],
)
def test_bad_input_is_one_line(arguments, says, capsys):
    assert main(["plan", *arguments]) == 2
    error = capsys.readouterr().err
    assert says in error
    assert error.count("\n") == 1


def test_libtpu_that_is_missing_is_named(monkeypatch, capsys):
    monkeypatch.setitem(__import__("sys").modules, "libtpu", None)
    assert main(["plan"]) == 2
    assert "pip install libtpu" in capsys.readouterr().err


def test_the_compilers_refusal_is_read():
    used = "RESOURCE_EXHAUSTED: Ran out of memory in memory space hbm. Used 27.50G of 15.75G hbm. Exceeded by 11.75G."
    assert _needed(used) == (27.5 * 2**30, True)
    other = "the total memory required for HLO temporaries (17.86G) exceeds available HBM (15.75G). HLO module: m."
    assert _needed(other) == (17.86 * 2**30, False)
    assert _needed("another error") is None


def test_slices_are_read_and_checked():
    assert Slice.parse("v5p:2x2x4").count == 16
    assert Slice.parse("v5e:4x4").name == "v5e:4x4"
    with pytest.raises(InputError):
        Slice.parse("v5e")


@needs_libtpu
def test_a_small_model_is_planned_through_the_compiler(tmp_path, capsys):
    folder = tmp_path / "config.json"
    folder.write_text(json.dumps(SMALL))
    command = ["plan", "--model", str(folder), "--topology", "v5e:1x1", "--stage", "evaluate", "--json"]
    assert main([*command, "--length", "128", "--batch", "8"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["fits"]
    assert found["mesh"] == {"data": 1, "model": 1, "mask": 1, "expert": 1}
    assert found["smallest_that_fits"]["topology"] == "v5e:1x1"
    assert 0.99 < found["computed"]["operations_ratio"] < 1.2  # attention's blocks weigh more in so small a model
    assert found["compiled"]["collective_bytes_per_chip_and_step"] == 0


@needs_libtpu
@pytest.mark.slow
@pytest.mark.parametrize("shape", [{"data": 2, "model": 2}, {"expert": 4}], ids=["model", "expert"])
def test_devices_compute_the_experts_that_they_hold_and_nothing_twice(shape):
    config = small(model_type="mixtral", num_local_experts=8, num_experts_per_tok=2, hidden_size=512)
    slice_ = Slice.parse("v5e:2x2")
    planned = planning.plan("evaluate", config, slice_, Size(batch=4, length=128, masks=2), shape)
    assert 0.99 < planned.operations_ratio < 1.1  # attention's blocks weigh more in so small a model
    kinds = {one.kind for one in planned.case.cost.collectives if one.bytes * one.times > 1e6}
    assert kinds == {"all-reduce"} if "model" in shape else {"all-reduce", "all-gather"}
