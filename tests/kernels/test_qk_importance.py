"""The kernel that runs here, in plain XLA, against its definition in float64; test_kernels_pallas.py has the others."""

import jax
import numpy as np
import pytest

import mwork_kernels  # pyright: ignore[reportMissingImports]
from mwork_kernels.qk_importance import qk_importance, tiles, xla  # pyright: ignore[reportMissingImports]
from mwork_kernels.qk_importance.reference import qk_importance_reference  # pyright: ignore[reportMissingImports]
from support.attention_arguments import arguments

CASES = {
    "one token": {"time": 1},
    "grouped": {"time": 17},
    "multi-query, window, norm": {"time": 40, "kv_heads": 1, "window": 7, "gain": 0.1},
    "window of one": {"time": 9, "window": 1},
    "soft cap": {"time": 33, "softcap": 3.0},
    "soft cap and norm, tiny": {"time": 33, "softcap": 3.0, "gain": 0.1, "spread": 1e-3},
    "several strips": {"time": 150, "kv_heads": 4},
    "tiny changes": {"time": 70, "spread": 1e-4},
    "large changes": {"time": 70, "spread": 10.0, "gain": 0.1},
    "overflowing changes": {"time": 70, "spread": 60.0},
    "attention sink": {"time": 70, "spread": 2.0, "sink": 40.0},
}


@pytest.mark.parametrize("case", CASES)
def test_importance_kernel_equals_the_definition(case):
    args, keywords = arguments(**CASES[case])
    expected = qk_importance_reference(*args, **keywords)
    found = jax.jit(lambda *a: qk_importance(*a, **keywords))(*args)
    for ours, exact in zip(found, expected, strict=True):
        np.testing.assert_allclose(ours, exact, rtol=2e-5, atol=1e-9)


def test_the_attention_sink_case_is_one():
    (q, k, *_), keywords = arguments(**CASES["attention sink"])
    scores = np.einsum("thk,shk->hts", q[0], np.repeat(k[0], 2, axis=1)) * keywords["scale"]
    assert np.median(scores[:, :, 0] - scores[:, :, 1:].max(axis=-1)) > 5


def test_an_unknown_implementation_never_falls_back():
    args, keywords = arguments(3)
    with pytest.raises(ValueError, match="no implementation 'cuda'"):
        qk_importance(*args, **keywords, implementation="cuda")


def swapped(name, *axes):
    def change(args):
        names = ("q", "k", "cos", "sin", "token_mask", "window")
        return [np.transpose(a, axes) if n == name else a for n, a in zip(names, args, strict=True)]

    return change


@pytest.mark.parametrize(
    "change",
    [
        swapped("q", 0, 2, 1, 3),
        swapped("k", 0, 2, 1, 3),
        swapped("q", 0, 1, 3, 2),
        swapped("token_mask", 1, 0),
        swapped("cos", 0, 2, 1),
        lambda args: [x[0] for x in args[:2]] + args[2:],
        lambda args: [args[1], args[0], *args[2:]],
        lambda args: [*args[:5], np.ones(3)],
    ],
)
def test_axes_in_another_order_are_one_line_with_the_shapes(change):
    args, keywords = arguments(9)
    with pytest.raises(ValueError, match=r"^qk_importance: the shapes do not fit together: q \[.*needed are q \[batch"):
        jax.eval_shape(lambda *a: mwork_kernels.qk_importance(*a, **keywords), *change(list(args)))
    with pytest.raises(ValueError, match=r"^qk_importance: window is None; an int32 scalar"):
        mwork_kernels.qk_importance(*args[:5], None, **keywords)


@pytest.mark.parametrize(
    ("coefficients", "reach", "exact", "error"),
    [
        (xla._RATIO, 0.5, lambda v: np.expm1(v * np.log(2)) / v, 1e-7),
        (tiles._RATIO, tiles._SMALL, lambda v: np.expm1(v) / v, 1e-7),
    ],
    ids=["xla", "pallas"],
)
def test_the_polynomials_are_as_right_as_they_say(coefficients, reach, exact, error):
    v = np.linspace(-reach, reach, 20_000)  # an even number, so that 0 is not among them
    np.testing.assert_allclose(np.polynomial.Polynomial(coefficients)(v), exact(v), rtol=error)


def test_a_power_of_two_less_one_keeps_its_digits_at_any_size():
    sizes = np.concatenate([np.linspace(1e-3, xla._LARGEST, 50_000), np.geomspace(1e-12, 1e-3, 1_000)])
    v = np.concatenate([sizes, -sizes]).astype(np.float32)
    np.testing.assert_allclose(xla._expm1(v), np.expm1(v.astype(np.float64) * np.log(2)), rtol=2e-7)


@pytest.mark.parametrize("doublings", [100, 127, 128, 129])
@pytest.mark.parametrize("time", [12, 16])
def test_what_all_keys_share_is_no_overflow(time, doublings):
    """A large bias of the keys falls out of the changes; of keys that only fill a step up, it must fall out too."""
    (q, k, cos, sin, token_mask, window), keywords = arguments(time, heads=1, kv_heads=1, spread=0.1)
    k[..., 0] = 100.0 + 0.01 * k[..., 0]
    q[..., 0] = doublings * np.log(2) / (100.0 * keywords["scale"])
    args = (q, k, np.ones_like(cos), np.zeros_like(sin), np.ones_like(token_mask), window)
    expected = qk_importance_reference(*args, **keywords)
    found = jax.jit(lambda *a: qk_importance(*a, **keywords))(*args)
    for ours, exact in zip(found, expected, strict=True):
        assert np.isfinite(ours).all()
        np.testing.assert_allclose(ours, exact, rtol=2e-3, atol=1e-6)
