"""Attention over long texts: parts of a block give what the whole gives, and memory does not grow with the square."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mwork_jax.families import config_from_hf
from mwork_jax.model import attention
from support.tiny import BASE

CONFIG = config_from_hf({**BASE, "model_type": "llama", "num_key_value_heads": 2})


def arguments(time):
    rng = np.random.default_rng(0)
    heads = (CONFIG.num_heads, CONFIG.num_kv_heads, CONFIG.num_kv_heads)
    q, k, v = (jnp.asarray(rng.normal(size=(2, n, time, CONFIG.head_dim)), jnp.float32) for n in heads)
    return attention.heads_first(q), k, v


@pytest.mark.parametrize("several", [False, True], ids=["one document", "several"])
@pytest.mark.parametrize("window", [7, 10**6])
def test_parts_give_what_the_whole_gives(window, several, monkeypatch):
    """Blocks of 64 queries in parts of 16; the last block, of 44, has a part of 12. Gradients too."""
    time = 300
    q, k, v = arguments(time)
    at = jnp.arange(time)[None]
    documents = jnp.asarray(np.arange(time) // 90 * np.ones((2, 1)), jnp.int32) if several else None

    def of(q, k, v):
        return attention.attend(CONFIG, q, k, v, jnp.int32(window), at, at, jnp.float32, documents=documents)

    weights = jnp.asarray(np.random.default_rng(1).normal(size=q.shape), jnp.float32)

    def both():
        """As one program: op by op, each shape of each part would be compiled on its own."""

        def run(q, k, v):
            out, pull = jax.vjp(of, q, k, v)
            return out, pull(weights)

        return jax.jit(run)(q, k, v)

    whole = both()
    monkeypatch.setattr(attention, "_LONGEST_BLOCK", 16)
    for x, y in zip(jax.tree.leaves(both()), jax.tree.leaves(whole), strict=True):
        np.testing.assert_allclose(x, y, rtol=1e-5, atol=1e-5)


def test_memory_of_a_long_text_is_that_of_few_queries():
    """Compiled, not run: what attention of 32,768 tokens takes beside its arguments and its result."""
    time = 32_768
    shapes = [jax.ShapeDtypeStruct(x.shape, x.dtype) for x in jax.eval_shape(partial(arguments, time))]
    at = jnp.arange(time)[None]
    run = jax.jit(lambda q, k, v: attention.attend(CONFIG, q, k, v, jnp.int32(time), at, at, jnp.float32))
    memory = run.lower(*shapes).compile().memory_analysis()
    scores = 2 * CONFIG.num_heads * attention._LONGEST_BLOCK * time * 4
    assert memory.temp_size_in_bytes < 4 * scores
