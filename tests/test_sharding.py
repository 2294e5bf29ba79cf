"""The table of axes, meshes, loading onto them, and every stage on 8 simulated devices."""

import json
import os
import subprocess
import sys
from contextlib import nullcontext
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mwork_jax.errors import InputError
from mwork_jax.families import config_from_hf
from mwork_jax.load import _open
from mwork_jax.load.hf_folder import SafetensorsFolder
from mwork_jax.model.parameters import parameter_specs
from mwork_jax.plan.models import NAMED
from mwork_jax.sharding import (
    TABLE,
    constrain,
    default_shape,
    make_mesh,
    mesh_axes,
    mesh_of,
    num_shards,
    parse_mesh,
    per_device,
    put,
    spec,
    vmap_axis,
)

HERE = Path(__file__).parent
SUPPORT = HERE / "support"
OTHER_MESHES = ("8x1", "1x8", "2x2x2", "experts:4", "experts:2x2")
STAGES = {"detect", "evaluate", "generate", "enhance", "look", "intervene"}
OF_DATA = {"detect", "evaluate"}  # on 8x1: devices that share documents alone are in the other meshes too


# Devices that wait for one another for 40 seconds, as on a busy machine, would end the process.
EIGHT = ("--xla_force_host_platform_device_count=8", "--xla_cpu_collective_call_terminate_timeout_seconds=900")
QUICKLY = "--xla_backend_optimization_level=0"


def environment(*flags):
    """Of a process with 8 simulated devices."""
    path = os.pathsep.join([str(HERE.parent), str(HERE), *filter(None, [os.environ.get("PYTHONPATH")])])
    every = " ".join([*EIGHT, *flags, os.environ.get("XLA_FLAGS", "")])
    # NPROC: XLA's threads. A device blocks one while it waits for the others: of two cores, soon all are blocked.
    return {**os.environ, "PYTHONPATH": path, "XLA_FLAGS": every, "JAX_PLATFORMS": "cpu", "NPROC": "64"}


@pytest.fixture(scope="module")
def eight_devices(tmp_path_factory):
    """A process with 8 devices; the function sends it a mesh and stages, and returns what it answers."""
    errors = tmp_path_factory.mktemp("eight") / "stderr"
    with errors.open("w") as stderr:
        process = subprocess.Popen(
            [sys.executable, SUPPORT / "on_eight_devices.py"],
            env=environment(QUICKLY), stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=stderr, text=True,
        )  # fmt: skip

    def on_mesh(mesh, stages):
        process.stdin.write(f"{mesh} {','.join(sorted(stages))}\n")
        process.stdin.flush()
        answer = process.stdout.readline()
        assert answer, errors.read_text()[-3000:]
        return json.loads(answer)

    yield on_mesh
    process.stdin.close()
    process.wait(timeout=300)


@pytest.mark.processes
@pytest.mark.parametrize("mesh", ["4x2", *(pytest.param(m, marks=pytest.mark.slow) for m in OTHER_MESHES)])
def test_every_stage_on_eight_devices_equals_one_device(mesh, eight_devices):
    asked = OF_DATA if mesh == "8x1" else STAGES
    differences = eight_devices(mesh, asked)
    assert set(differences) == asked
    for stage, difference in differences.items():
        assert difference < 1e-5, f"{stage} on {mesh}"


@pytest.mark.slow
@pytest.mark.processes
def test_eight_devices_compute_nothing_twice():
    command = [sys.executable, SUPPORT / "operations_on_eight_devices.py"]
    done = subprocess.run(command, env=environment(QUICKLY), capture_output=True, text=True, timeout=1800, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    for mesh, stages in json.loads(done.stdout.splitlines()[-1]).items():
        assert set(stages) == {"evaluate", "enhance"}
        for stage, ratio in stages.items():
            assert 0.99 < ratio < 1.05, f"{stage} on {mesh}"


@pytest.mark.slow
@pytest.mark.processes
def test_experts_wide_norms_and_alibi_on_eight_devices_equal_one_device():
    command = [sys.executable, SUPPORT / "families_on_eight_devices.py"]
    done = subprocess.run(command, env=environment(), capture_output=True, text=True, timeout=1800, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    differences = json.loads(done.stdout.splitlines()[-1])
    families = {"mixtral", "gpt-oss", "qwen3-moe", "olmo2", "bloom"}
    of_experts = {"gpt-oss data=2,expert=2,model=2", "mixtral data=2,expert=4"}
    assert set(differences) == {f"{family} data=2,model=4" for family in families} | of_experts
    # What is sent is of activations: the experts stay where they are. 5 experts on 4 devices are whole on each.
    sent = {family: each.pop("sent") for family, each in differences.items() if "sent" in each}
    assert {case.split()[0] for case in sent} == {"mixtral", "gpt-oss", "qwen3-moe"}
    assert max(bytes_ for case, bytes_ in sent.items() if "qwen3-moe" not in case) < 0.5
    for family, each in differences.items():
        assert max(each.values()) < 1e-5, family


class FakeMesh:
    def __init__(self, **shape):
        self.shape = {"data": 1, "model": 1, "mask": 1, "expert": 1, **shape}


def test_the_table_shares_out_what_splits_evenly():
    config = config_from_hf(NAMED["mistral-7b"])
    specs, mesh = parameter_specs(config), FakeMesh(data=2, model=16)
    assert tuple(spec(mesh, specs["layers.q"].axes, specs["layers.q"].shape)) == (None, "model", None, None)
    assert tuple(spec(mesh, specs["layers.k"].axes, specs["layers.k"].shape)) == (None, None, None, None)  # 8 heads
    assert tuple(spec(mesh, specs["layers.down"].axes, specs["layers.down"].shape)) == (None, None, "model")
    assert tuple(spec(mesh, ("batch", "time"), (3, 8))) == (None, None)
    assert tuple(spec(mesh, ("batch", "masks"), (4, 8))) == ("data", None)


def test_every_axis_of_the_table_is_one_of_the_mesh():
    mesh = make_mesh(devices=jax.devices()[:1])
    assert {axis for name in TABLE for axis in mesh_axes(name)} == set(mesh.axis_names)
    assert mesh_axes("slots") == ("mask", "data", "expert")
    assert tuple(spec(FakeMesh(data=2, mask=4), ("slots", "kv_heads"), (8, 4))) == (("mask", "data"), None)
    assert tuple(spec(FakeMesh(data=2, mask=4), ("slots", "batch"), (4, 4))) == (None, "data")


def test_a_vmap_takes_the_devices_of_its_axis():
    assert vmap_axis("masks", 4) is None  # without a mesh
    with jax.set_mesh(make_mesh(devices=jax.devices()[:1])):
        assert vmap_axis("masks", 4) is None
    with pytest.raises(ValueError, match="mask "):
        vmap_axis("mask ", 4)


@pytest.mark.parametrize("mesh", [None, {"data": 1}], ids=["without a mesh", "on a mesh"])
@pytest.mark.parametrize("name", ["heads ", "row", ""])
def test_a_name_that_is_not_in_the_table_is_an_error(mesh, name):
    """Taken for an axis that no device shares out, it would cost memory without a word."""
    mesh = None if mesh is None else make_mesh(mesh, jax.devices()[:1])
    x = jnp.zeros((4, 8))
    with nullcontext() if mesh is None else jax.set_mesh(mesh):
        for use in (
            lambda: constrain(x, "batch", name),
            lambda: put(np.zeros((4, 8)), mesh, "batch", name),
            lambda: num_shards(name, 8),
            lambda: per_device(lambda x: x, [x], [("batch", name)], [("batch", "width")], [x.shape]),
            lambda: spec(FakeMesh(), ("batch", name), (4, 8)),
        ):
            with pytest.raises(ValueError, match=f"no logical axis {name!r}; .* batch,"):
                use()
        assert num_shards("hidden", 8) == 1
        np.testing.assert_array_equal(jax.jit(lambda x: constrain(x, "batch", None))(x), x)


@pytest.mark.parametrize("text", ["data", "data=0", "rows=2", "data=2,data=4", "data=2;model=1", "data=-1"])
def test_a_mesh_that_cannot_be_read_is_named(text):
    with pytest.raises(InputError, match="--mesh"):
        parse_mesh(text)


def test_a_mesh_of_another_size_than_the_machine_is_named():
    assert parse_mesh("data=4, model=2") == {"data": 4, "model": 2}
    with pytest.raises(InputError, match="8 devices, there are 1"):
        make_mesh({"data": 8}, jax.devices()[:1])


class FakeDevice:
    platform = "tpu"

    def memory_stats(self):
        return {"bytes_limit": 16 << 30}


def test_the_model_is_shared_out_only_where_it_is_too_large():
    assert default_shape(FakeDevice(), 8, 1 << 30) == {"data": 8, "model": 1}
    assert default_shape(FakeDevice(), 8, 14 << 30) == {"data": 4, "model": 2}
    assert default_shape(FakeDevice(), 8, 140 << 30) == {"data": 1, "model": 8}
    assert default_shape(jax.devices()[0], 1, 1 << 40) == {"data": 1, "model": 1}


def test_a_model_on_a_mesh_is_the_same_model(tiny_folder):
    from mwork_jax.load import load_model

    mesh = make_mesh(devices=jax.devices()[:1])
    alone, sharded = load_model(tiny_folder, "float32"), load_model(tiny_folder, "float32", mesh)
    assert mesh_of(sharded.decoder) == mesh
    assert mesh_of(alone.decoder) is None
    jax.tree.map(np.testing.assert_array_equal, jax.tree.leaves(alone.decoder), jax.tree.leaves(sharded.decoder))
    assert alone.key == sharded.key


def test_a_process_reads_the_slices_of_its_devices_and_nothing_else(tiny_folder, monkeypatch):
    """The second of 2 devices that share the model: half of what has heads or feed-forward units, from its places."""
    assemble = sys.modules["mwork_jax.load.assemble"]
    checkpoint = _open(str(tiny_folder))
    source, config = checkpoint.weights, checkpoint.config
    reads = []
    part = SafetensorsFolder.part

    def watched(self, name, index):
        found = part(self, name, index)
        reads.append((name, found.size))
        return found

    monkeypatch.setattr(SafetensorsFolder, "part", watched)
    monkeypatch.setattr(SafetensorsFolder, "read", lambda *_: pytest.fail("a whole tensor was read"))

    def half(shape, axes):
        places = spec(FakeMesh(model=2), axes, shape)
        return tuple(slice(n // 2 if axis else 0, n) for n, axis in zip(shape, places, strict=True))

    taken = {}
    monkeypatch.setattr(assemble, "sharding", lambda mesh, axes, shape: half(shape, axes))
    monkeypatch.setattr(
        assemble.jax, "make_array_from_callback", lambda shape, index, read: taken.setdefault(len(taken), read(index))
    )
    monkeypatch.setattr(assemble, "Decoder", lambda config, arrays: arrays)
    arrays = assemble.assemble_on(config, source, np.float32, None)
    monkeypatch.undo()
    whole = assemble.assemble(config, source, np.float32, lambda name, array: array)
    from mwork_jax.enhance.neuron_params import parameter_arrays

    for name, array in parameter_arrays(whole).items():
        index = half(array.shape, parameter_specs(config)[name].axes)
        np.testing.assert_array_equal(arrays[name], np.asarray(array)[index], err_msg=name)
    assert sum(size for _, size in reads) == sum(array.size for array in arrays.values())
    assert arrays["layers.q"].size * 2 == np.asarray(whole.layers.q[...]).size


def test_a_mesh_has_known_axes():
    with pytest.raises(InputError, match="mesh axis 'dta' is not one of data, model, mask"):
        make_mesh({"dta": 1})
