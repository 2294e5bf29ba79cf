"""`mwork plan --check`: a step that runs on the devices at hand, beside what was predicted; the devices are CPUs."""

import jax
import pytest

from mwork_jax.families import config_from_hf
from mwork_jax.plan import Plan, Size, Slice, check_report, measure
from mwork_jax.plan.compiled import Case, Memory
from mwork_jax.plan.stages import programs
from mwork_jax.runtime.compiled import Cost
from mwork_jax.sharding import make_mesh

CONFIG = config_from_hf({
    "model_type": "llama", "vocab_size": 128, "hidden_size": 32, "intermediate_size": 32, "num_hidden_layers": 2,
    "num_attention_heads": 2, "num_key_value_heads": 2, "head_dim": 16, "max_position_embeddings": 64,
})  # fmt: skip
ONE = {"data": 1, "model": 1, "mask": 1}


@pytest.mark.parametrize("stage", ["generate", "enhance"])
def test_a_step_is_run_on_the_devices_that_are_here(stage):
    size = Size(batch=1, length=16, masks=2, new=4, tuned=8)
    own = programs(stage, CONFIG, make_mesh(devices=jax.devices()[:1]), size)
    measured = measure(stage, CONFIG, jax.devices()[:1], ONE, size)
    assert [one.program for one in measured] == [program.name for program in own]
    assert all(one.seconds > 0 for one in measured)
    cost = Cost(passes=measured[0].seconds * 989.4e12 / 2)
    case = Case(True, Memory(2.0**30, 0, 0), 2.0**36, cost, {own[0].name: cost}, 0.0)
    lines = check_report(Plan(stage, CONFIG, Slice.parse("h100:1"), ONE, size, case), measured).splitlines()
    assert lines[1].split()[-1] == "50%"  # of the bound
    assert own[0].name in lines[1]
    assert "1.00 GiB predicted, not measured" in lines[-1]  # a CPU does not say what it holds
