"""The kernels for accelerators against the definition in float64: interpreted on a CPU, and as they are on a GPU
(JAX_PLATFORMS=cuda)."""

from functools import partial
from inspect import signature
from typing import Any

import jax
import numpy as np
import pytest
from jax import export
from jax.sharding import AbstractDevice, AbstractMesh

from mwork_kernels.qk_importance import qk_importance  # pyright: ignore[reportMissingImports]
from mwork_kernels.qk_importance.gpu import qk_importance_gpu  # pyright: ignore[reportMissingImports]
from mwork_kernels.qk_importance.reference import qk_importance_reference  # pyright: ignore[reportMissingImports]
from mwork_kernels.qk_importance.tpu import qk_importance_tpu  # pyright: ignore[reportMissingImports]
from support.attention_arguments import arguments

KERNELS = {
    "tpu": partial(qk_importance_tpu, interpret=True),
    "gpu": partial(qk_importance_gpu, interpret=jax.default_backend() != "gpu"),
}
MANY = {"time": 70, "kv_heads": 2}
ODD = {
    "one token": {"time": 1, "heads": 8, "kv_heads": 1},
    "grouped 1:8, not a multiple of a block": {"time": 67, "heads": 8, "kv_heads": 1, "size": 64},
    "multi-query, a window shorter than a block, norm": {"time": 40, "kv_heads": 1, "window": 7, "gain": 0.1},
    "a window that leaves blocks out": {"time": 300, "heads": 1, "kv_heads": 1, "window": 130},
    "tiny changes": {**MANY, "spread": 1e-4},
    "changes of all sizes": {**MANY, "spread": 3.0},
    "overflowing changes": {**MANY, "spread": 60.0},
    "attention sink": {**MANY, "spread": 2.0, "sink": 40.0},
    "a sink of middling weight": {**MANY, "spread": 3.0, "sink": 5.0},
    "heads of 128, soft cap": {"time": 33, "heads": 2, "kv_heads": 2, "size": 128, "softcap": 5.0, "spread": 3.0},
    "heads of 256, norm, soft cap, tiny": {
        "time": 20, "heads": 2, "kv_heads": 1, "size": 256, "gain": 0.1, "softcap": 3.0, "spread": 1e-3
    },
    "three heads of 80 to a group": {"time": 9, "heads": 6, "kv_heads": 2, "size": 80},
}  # fmt: skip


@partial(jax.jit, static_argnames=("kernel", "scale", "softcap"))  # cases of one shape share a program
def run(kernel, args, gains, scale, softcap):
    return KERNELS[kernel](*args, **gains, scale=scale, softcap=softcap)


def found(kernel, args, keywords):
    gains = {name: keywords.get(name) for name in ("q_gain", "k_gain")}
    return run(kernel, args, gains, keywords["scale"], keywords["softcap"])


@pytest.mark.parametrize("kernel", KERNELS)
@pytest.mark.parametrize("case", ODD)
def test_pallas_kernel_equals_the_definition(case, kernel):
    args, keywords = arguments(**ODD[case])
    expected = qk_importance_reference(*args, **keywords)
    for ours, exact in zip(found(kernel, args, keywords), expected, strict=True):
        np.testing.assert_allclose(ours, exact, rtol=2e-5, atol=1e-9)


@pytest.mark.parametrize("kernel", KERNELS)
def test_documents_and_blocks_that_do_not_count_are_exactly_zero(kernel):
    (q, k, cos, sin, token_mask, window), keywords = arguments(70, spread=30.0)
    token_mask[0], token_mask[1, 3:] = 0.0, 0.0
    q[0] = 1e30  # what stands where nothing counts must not matter
    of_q, of_k = found(kernel, (q, k, cos, sin, token_mask, window), keywords)
    assert not np.any(of_q[0])
    assert not np.any(of_k[0])
    q[0] = 0.0
    expected = qk_importance_reference(q, k, cos, sin, token_mask, window, **keywords)
    np.testing.assert_allclose(of_q[1], expected[0][1], rtol=2e-5, atol=1e-9)
    np.testing.assert_allclose(of_k[1], expected[1][1], rtol=2e-5, atol=1e-9)


@pytest.mark.parametrize("kernel", KERNELS)
def test_tables_of_each_document_are_its_own(kernel):
    (q, k, cos, sin, token_mask, window), keywords = arguments(20)
    own = np.concatenate([cos, cos[:, ::-1]]), np.concatenate([sin, sin[:, ::-1]])
    expected = qk_importance_reference(q, k, *own, token_mask, window, **keywords)
    for ours, exact in zip(found(kernel, (q, k, *own, token_mask, window), keywords), expected, strict=True):
        np.testing.assert_allclose(ours, exact, rtol=2e-5, atol=1e-9)


@pytest.mark.parametrize("kernel", KERNELS)
def test_a_named_kernel_fails_where_it_cannot_run(kernel):
    if jax.default_backend() == kernel:
        pytest.skip("it can run here")
    args, keywords = arguments(3)
    with pytest.raises(ValueError, match="interpret mode"):
        qk_importance(*args, **keywords, implementation=kernel)


def test_the_tpu_kernel_compiles_for_a_chip_that_is_not_here():
    pytest.importorskip("libtpu", reason="compiling for TPUs needs libtpu")
    from mwork_jax.plan.chips import Slice
    from mwork_jax.plan.topology import abstract, abstract_mesh

    args, keywords = arguments(200, heads=8, kv_heads=1, size=64)
    mesh = abstract_mesh(Slice.parse("v5e:1x1"), {})
    shapes = [abstract(mesh, x.shape, x.dtype) for x in args]
    compiled = jax.jit(lambda *a: qk_importance(*a, **keywords)).lower(*shapes).compile()
    assert "tpu_custom_call" in (compiled.as_text() or "")  # picked by platform, without being named


def test_the_gpu_kernel_lowers_for_a_card_that_is_not_here():
    args, keywords = arguments(200, heads=8, kv_heads=1, size=64)
    shapes = [jax.ShapeDtypeStruct(x.shape, x.dtype) for x in args]
    picked = jax.jit(lambda *a: qk_importance(*a, **keywords))
    triton = "__gpu$xla.gpu.triton"
    checks = [export.DisabledSafetyCheck.custom_call(triton)]
    described: tuple[Any, ...] = ("NVIDIA H100 80GB HBM3", 132, "gpu")
    asked = len(signature(AbstractDevice).parameters)  # of jax's version
    card = AbstractMesh((1,), ("card",), abstract_device=AbstractDevice(*described[:asked]))
    with jax.sharding.use_abstract_mesh(card):  # from jax 0.11 on, the lowering asks which card it is for
        assert triton in export.export(picked, platforms=["cuda"], disabled_checks=checks)(*shapes).mlir_module()
    assert triton not in export.export(picked, platforms=["cpu"])(*shapes).mlir_module()
