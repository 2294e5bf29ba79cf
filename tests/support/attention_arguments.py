"""Random arguments for the query and key kernels, with and without what makes attention odd."""

import numpy as np


def arguments(time, heads=4, kv_heads=2, size=8, window=1000, softcap=None, gain=None, spread=1.0, sink=None):
    rng = np.random.default_rng(0)

    def normal(*shape):
        return rng.normal(size=shape).astype(np.float32)

    q, k = normal(2, time, heads, size) * spread, normal(2, time, kv_heads, size)
    if sink is not None:  # all queries agree with the first key
        q = np.abs(q)
        k[:, 0] = sink
    angles = np.arange(time)[:, None] * 50.0 ** -(np.arange(size // 2) / (size // 2))
    angles = np.concatenate([angles, angles], axis=1)[None].astype(np.float32)
    if sink is not None:
        angles = angles * 0  # so that the sink is not turned away from
    keywords = {"scale": size**-0.5, "softcap": softcap}
    if gain is not None:
        keywords |= {"q_gain": np.abs(normal(*q.shape)) * gain, "k_gain": np.abs(normal(*k.shape)) * gain}
    token_mask = (rng.random((2, time)) > 0.2).astype(np.float32)
    return (q, k, np.cos(angles), np.sin(angles), token_mask, np.int32(window)), keywords
