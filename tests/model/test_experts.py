"""Products of each row with its experts' matrices, against one row at a time."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mwork_jax.model.experts import expert_products, sum_by_neuron

NUMBER = 5


def arguments(rows=37, each=2, inner=8, outer=6, seed=0):
    rng = np.random.default_rng(seed)
    x, matrix = rng.normal(size=(rows, inner)), rng.normal(size=(NUMBER, outer, inner))
    experts = rng.integers(0, NUMBER + 1, (rows, each)).astype(np.int32)  # NUMBER: of none
    experts[:, 0] = np.minimum(experts[:, 0], 2)  # some experts have many rows, some none
    return jnp.asarray(x, jnp.float32), jnp.asarray(experts), jnp.asarray(matrix, jnp.float32)


def one_by_one(x, experts, matrix):
    padded = jnp.concatenate([matrix, jnp.zeros_like(matrix[:1])])
    return jnp.einsum("nkca,na->nkc", padded[experts], x, precision="highest")


def ours(x, experts, matrix):
    return expert_products(x, experts, (matrix,))[0]


@pytest.mark.parametrize("rows", [1, 7, 64, 200])
def test_products_equal_one_row_at_a_time(rows):
    x, experts, matrix = arguments(rows)
    np.testing.assert_allclose(ours(x, experts, matrix), one_by_one(x, experts, matrix), atol=1e-5)
    back = expert_products(x, experts, (jnp.swapaxes(matrix, 1, 2),), transposed=True)[0]
    np.testing.assert_allclose(back, one_by_one(x, experts, matrix), atol=1e-5)


def test_several_matrices_share_one_order():
    x, experts, matrix = arguments()
    first, second = expert_products(x, experts, (matrix, 2 * matrix))
    np.testing.assert_allclose(second, 2 * first, rtol=1e-6)


def test_gradients_equal_one_row_at_a_time():
    x, experts, matrix = arguments()
    for argument in (0, 1):
        found, expected = (
            jax.grad(lambda x, m, f=f: (f(x, experts, m) ** 2).sum(), argument)(x, matrix) for f in (ours, one_by_one)
        )
        np.testing.assert_allclose(found, expected, atol=1e-4)


def test_rows_that_vmap_has_several_of_go_together():
    x, experts, matrix = arguments()
    many, others = jnp.stack([x, 2 * x, -x]), jnp.stack([experts, jnp.roll(experts, 1, 0), experts])
    expected = jnp.stack([one_by_one(a, b, matrix) for a, b in zip(many, others, strict=True)])
    np.testing.assert_allclose(jax.vmap(ours, (0, 0, None))(many, others, matrix), expected, atol=1e-5)
    of_x = jax.vmap(lambda x: ours(x, experts, matrix))(many)
    np.testing.assert_allclose(of_x[1], one_by_one(2 * x, experts, matrix), atol=1e-5)
    of_matrix = jax.vmap(lambda m: ours(x, experts, m))(jnp.stack([matrix, 3 * matrix]))
    np.testing.assert_allclose(of_matrix[1], one_by_one(x, experts, 3 * matrix), atol=1e-5)
    gradient = jax.vmap(jax.grad(lambda x: (ours(x, experts, matrix) ** 2).sum()))(many)
    alone = jax.grad(lambda x: (one_by_one(x, experts, matrix) ** 2).sum())(many[1])
    np.testing.assert_allclose(gradient[1], alone, atol=1e-4)


def test_sums_by_neuron():
    rng = np.random.default_rng(0)
    x, experts = rng.normal(size=(2, 9, 2, 3)).astype(np.float32), rng.integers(0, NUMBER, (2, 9, 2)).astype(np.int32)
    counted = (rng.random((2, 9)) < 0.7).astype(np.float32)
    expected = np.zeros((2, NUMBER, 3))
    for row in range(2):
        for time in range(9):
            for slot in range(2):
                expected[row, experts[row, time, slot]] += counted[row, time] * x[row, time, slot]
    found = sum_by_neuron(jnp.asarray(x), jnp.asarray(experts), jnp.asarray(counted), NUMBER)
    np.testing.assert_allclose(found, expected.reshape(2, -1), atol=1e-5)
    whole = sum_by_neuron(jnp.asarray(x > 0).astype(jnp.int32), jnp.asarray(experts), jnp.asarray(counted), NUMBER)
    assert whole.dtype == jnp.int32
