"""Products with experts: a router sends each token to a few of them, and nothing is dropped.

Rows are sorted by expert, so that each expert's weights are multiplied with its own rows in blocks of one shape: the
shapes are static, whatever the router does. Where the platform has a product of that kind (`jax.lax.ragged_dot`), it is
used.

Letters in shape comments: n rows, k experts of a token, e experts, a and c the sizes of a matrix [c, a], m hidden size,
f size of one expert.
"""

from __future__ import annotations

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp

from mwork_jax.config import ModelConfig
from mwork_jax.model.bfloat16_bits import rows_of
from mwork_jax.model.operations import product

_BLOCK = 128  # rows of one expert that are multiplied at a time, at most
_READ_AS_IT_LIES = 1 << 23  # bytes of one expert's matrix, at most


def route(config: ModelConfig, read: jax.Array, w: dict[str, jax.Array]) -> tuple[jax.Array, jax.Array]:
    """Which experts each token of read [b, t, m] goes to, int32 [b, t, k], the likeliest first, and the share of each
    in the result, float32 [b, t, k]."""
    logits = product("btm,em->bte", read, w["router"])
    if config.router_bias:
        logits = logits + w["router_bias"]
    share, experts = jax.lax.top_k(jax.nn.softmax(logits, axis=-1), config.experts_per_token)
    return experts, share / share.sum(axis=-1, keepdims=True) if config.shares_add_up else share


def expert_products(
    x: jax.Array, experts: jax.Array, matrices: tuple[jax.Array, ...], transposed: bool = False
) -> tuple[jax.Array, ...]:
    """Each row of x [n, a] times the matrices [e, c, a] ([e, a, c] where they are `transposed`) of its experts, int32
    [n, k]: float32 [n, k, c] of each. A row whose expert is none of them (>= e) gives 0."""
    return _products(transposed, x, experts, matrices)


@partial(jax.custom_vjp, nondiff_argnums=(0,))
def _products(
    transposed: bool, x: jax.Array, experts: jax.Array, matrices: tuple[jax.Array, ...]
) -> tuple[jax.Array, ...]:
    return _batched(transposed)(x, experts, matrices)


def _forward(transposed: bool, x: jax.Array, experts: jax.Array, matrices: tuple[jax.Array, ...]) -> tuple[Any, Any]:
    return _products(transposed, x, experts, matrices), (x, experts, matrices)


def _backward(transposed: bool, kept: Any, above: tuple[jax.Array, ...]) -> tuple[Any, ...]:
    x, experts, matrices = kept
    of_x = jnp.zeros_like(x)
    for matrix, gradient in zip(matrices, above, strict=True):
        rows = gradient.reshape(-1, gradient.shape[-1])
        (back,) = expert_products(rows, experts.reshape(-1, 1), (matrix,), not transposed)
        of_x = of_x + back.reshape(*experts.shape, -1).sum(axis=1).astype(x.dtype)
    return of_x, None, tuple(_of_matrix(transposed, x, experts, m, g) for m, g in zip(matrices, above, strict=True))


_products.defvjp(_forward, _backward)


def _of_matrix(transposed: bool, x: jax.Array, experts: jax.Array, matrix: jax.Array, above: jax.Array) -> jax.Array:
    """The gradient of the matrices, one expert after the other."""
    each = jnp.repeat(x[:, None], experts.shape[1], axis=1)
    letters = "nka,nkc->ac" if transposed else "nka,nkc->ca"

    def of_expert(expert: jax.Array) -> jax.Array:
        own = jnp.where((experts == expert)[..., None], above, 0.0)
        return jnp.einsum(letters, each, own, precision=jax.lax.Precision.HIGHEST).astype(matrix.dtype)

    return jax.lax.map(of_expert, jnp.arange(matrix.shape[0]))


def _batched(transposed: bool) -> Any:
    """The products of rows that a `vmap` has several of: all rows together, as the matrices are the same."""
    op = jax.custom_batching.custom_vmap(partial(_sorted_products, transposed))

    def rule(size: int, batched: Any, x: jax.Array, experts: jax.Array, matrices: Any) -> tuple[Any, Any]:
        of_x, of_experts, of_matrices = batched  # whether each has an axis of several
        if any(of_matrices):
            given = ((x, of_x), (experts, of_experts), *zip(matrices, of_matrices, strict=True))
            spread = [v if b else jnp.broadcast_to(v[None], (size, *v.shape)) for v, b in given]
            results = jax.lax.map(lambda args: op(args[0], args[1], tuple(args[2:])), tuple(spread))
            return results, tuple(True for _ in matrices)
        x = x if of_x else jnp.broadcast_to(x[None], (size, *x.shape))
        experts = experts if of_experts else jnp.broadcast_to(experts[None], (size, *experts.shape))
        flat = op(x.reshape(-1, x.shape[-1]), experts.reshape(-1, experts.shape[-1]), matrices)
        return tuple(y.reshape(size, -1, *y.shape[1:]) for y in flat), tuple(True for _ in matrices)

    op.def_vmap(rule)
    return op


def _sorted_products(
    transposed: bool, x: jax.Array, experts: jax.Array, matrices: tuple[jax.Array, ...]
) -> tuple[jax.Array, ...]:
    each, number = experts.shape[1], matrices[0].shape[0]
    flat = jnp.clip(experts.reshape(-1), 0, number).astype(jnp.int32)
    order = jnp.argsort(flat, stable=True)
    sizes = jnp.bincount(flat, length=number + 1)[:number].astype(jnp.int32)
    results = sorted_products(x[order // each], sizes, matrices, transposed)
    back = jnp.zeros_like(order).at[order].set(jnp.arange(order.size, dtype=order.dtype))
    there = (flat < number)[:, None]
    return tuple(jnp.where(there, y[back], 0.0).reshape(*experts.shape, -1) for y in results)


def sorted_products(
    x: jax.Array, sizes: jax.Array, matrices: tuple[jax.Array, ...], transposed: bool = False
) -> tuple[jax.Array, ...]:
    """Rows x [n, a], sorted by expert, int32 `sizes` [e] of them for each, times the matrices as `expert_products` has
    them: float32 [n, c] of each. Rows after the last expert's are undefined. Not differentiable."""
    return jax.lax.platform_dependent(
        *(x, sizes, matrices),
        tpu=partial(_by_ragged_dot, transposed),
        cuda=partial(_by_ragged_dot, transposed),
        default=partial(_by_blocks, transposed),
    )


def _by_ragged_dot(
    transposed: bool, x: jax.Array, sizes: jax.Array, matrices: tuple[jax.Array, ...]
) -> tuple[jax.Array, ...]:
    def one(matrix: jax.Array) -> jax.Array:
        precision = jax.lax.Precision.HIGHEST if matrix.dtype == jnp.float32 else jax.lax.Precision.DEFAULT
        axis = 1 if transposed else 2
        # As they lie, without a copy of all experts' matrices; libtpu refuses that for large ones on v5e, for want of
        # vector memory.
        if not transposed and matrix.size // matrix.shape[0] * matrix.dtype.itemsize > _READ_AS_IT_LIES:
            matrix, axis = jnp.swapaxes(matrix, 1, 2), 1
        axes = jax.lax.RaggedDotDimensionNumbers((((1,), (axis,)), ((), ())), [0], [0])
        return jax.lax.ragged_dot_general(
            x.astype(matrix.dtype), matrix, sizes, axes, precision=precision, preferred_element_type=jnp.float32
        )

    return tuple(one(matrix) for matrix in matrices)


def _by_blocks(
    transposed: bool, x: jax.Array, sizes: jax.Array, matrices: tuple[jax.Array, ...]
) -> tuple[jax.Array, ...]:
    """x [n, a], sorted by expert, `sizes` [e] of them for each. An expert's last block reaches into the next one's
    rows, which then writes its own results over."""
    # Twice what an expert has on average: rows that are not there cost less than reading a matrix once more.
    block = min(_BLOCK, -(-2 * x.shape[0] // (8 * sizes.shape[0])) * 8)
    x = jnp.pad(x, ((0, block), (0, 0)))
    starts = jnp.cumsum(sizes) - sizes
    letters = "na,ac->nc" if transposed else "na,ca->nc"
    widths = [m.shape[2] if transposed else m.shape[1] for m in matrices]

    def of_expert(expert: jax.Array, results: tuple[jax.Array, ...]) -> tuple[jax.Array, ...]:
        own = tuple(rows_of(matrix, expert) for matrix in matrices)

        def of_block(i: jax.Array, results: tuple[jax.Array, ...]) -> tuple[jax.Array, ...]:
            begin = starts[expert] + i * block
            rows = jax.lax.dynamic_slice_in_dim(x, begin, block)
            new = (product(letters, rows, matrix) for matrix in own)
            return tuple(jax.lax.dynamic_update_slice_in_dim(r, y, begin, 0) for r, y in zip(results, new, strict=True))

        return jax.lax.fori_loop(0, -(-sizes[expert] // block), of_block, results)

    def step(expert: jax.Array, results: tuple[jax.Array, ...]) -> tuple[jax.Array, ...]:
        return jax.lax.cond(sizes[expert] > 0, of_expert, lambda _, results: results, expert, results)

    empty = tuple(jnp.zeros((x.shape[0], width), jnp.float32) for width in widths)
    results = jax.lax.fori_loop(0, matrices[0].shape[0], step, empty)
    return tuple(y[: x.shape[0] - block] for y in results)


def sum_by_neuron(x: jax.Array, experts: jax.Array, token_mask: jax.Array, number: int) -> jax.Array:
    """Sums over the tokens that count of what has one value for each neuron of a token's experts: x [b, t, k, f],
    experts [b, t, k], token_mask [b, t] -> [b, number * f], expert after expert."""
    batch, width = x.shape[0], x.shape[-1]
    segments = experts + number * jnp.arange(batch, dtype=experts.dtype)[:, None, None]
    counted = x * token_mask[:, :, None, None].astype(x.dtype)
    sums = jax.ops.segment_sum(counted.reshape(-1, width), segments.reshape(-1), num_segments=batch * number)
    return sums.reshape(batch, number * width)
