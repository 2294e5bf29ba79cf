"""A tuned model without tuning."""

import numpy as np

from mwork_jax.enhance import Tuned, TuningResult, TuningRun
from mwork_jax.enhance.neuron_params import gather, index_of, widths
from mwork_jax.enhance.tune import History
from mwork_jax.neurons import NeuronSet, group_widths
from support.tiny import pair, tokens


def tuned_model(family: str, kv_heads: int = 2, seed: int = 0) -> Tuned:
    """A model whose chosen neurons have been moved at random, as if they had been tuned."""
    model = pair(family, kv_heads).model
    rng = np.random.default_rng(seed)
    chosen = {g: rng.random((model.config.num_layers, w)) < 0.2 for g, w in group_widths(model.config).items()}
    neurons = NeuronSet(chosen, {"language": "de", "rule": "top_fraction:0.2"})
    index = index_of(neurons, widths([neurons]))
    moved = {n: v + 0.1 * rng.normal(size=v.shape).astype(np.float32) for n, v in gather(model.decoder, index).items()}
    history = History([4.0], [(0, 4.0), (1, 3.5)])
    return TuningResult(TuningRun(neurons, [tokens(1, 9)[0]]), index, moved, history).merged(model)
