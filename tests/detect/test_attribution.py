"""The derivative of the loss by each neuron's scale, against finite differences of Hugging Face's model in float64."""

import copy

import numpy as np
import pytest

import mwork_jax as mw
from mwork_jax.corpus import Batching
from mwork_jax.detect.attribution import _of_batch
from mwork_jax.errors import InputError
from mwork_jax.neurons import GROUPS, NeuronMask, NeuronSet
from support.slow_deactivation import hf_places, layers_of
from support.tiny import pair, tokens, torch

# Norms and softmax of Hugging Face are float32 whatever the weights: shorter steps would measure their rounding, longer
# ones send tokens to other experts.
STEP, WITH_EXPERTS = 1e-2, 3e-3
NOISE = 1e-7  # nats, of that rounding
SAMPLE = 2  # neurons of a group
LAYER = 1


@pytest.fixture(autouse=True)
def _in_double():
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)


def documents():
    return [tokens(1, length, seed=length)[0] for length in (9, 14, 5)]


def loss(hf) -> float:
    """Nats per predicted token over all documents."""
    nats, predicted = 0.0, 0
    for ids in documents():
        with torch.no_grad():
            logits = hf(torch.tensor(ids, dtype=torch.long)[None], use_cache=False).logits[0, :-1].double()
        targets = torch.tensor(ids[1:], dtype=torch.long)
        nats += float(torch.nn.functional.cross_entropy(logits, targets, reduction="sum"))
        predicted += ids.size - 1
    return nats / predicted


def scale(hf, config, group, index, factor) -> None:
    """A neuron's output times `factor`: its row with its bias, or, of the product, its column."""
    layer = layers_of(hf)[LAYER]
    if group.startswith("ffn") and config.num_experts:
        expert, own = divmod(int(index), config.intermediate_size)
        column = layer.mlp.experts.down_proj.data[expert]
        (column.T if config.family != "gpt_oss" else column)[own] *= factor
        return
    for name, at in hf_places(config, "ffn_down" if group.startswith("ffn") else group, [index]):
        module = layer.get_submodule(name)
        if group.startswith("ffn"):
            module.weight.data[:, at] *= factor
            continue
        module.weight.data[at] *= factor
        if module.bias is not None:
            module.bias.data[at] *= factor


# Those that differ in what a gradient goes through.
FAMILIES = [
    "llama", "mistral", "gemma2", "gemma3", "cohere-norm", "olmo2", "phi3-partial", "ministral3", "apertus", "bloom",
    "mixtral", "gpt-oss",
]  # fmt: skip


@pytest.mark.parametrize("family", FAMILIES)
def test_derivatives_equal_finite_differences(family):
    both = pair(family, 2)
    gradients = mw.attribution(both.model, documents(), batching=Batching(tokens_per_batch=64))
    hf, rng = copy.deepcopy(both.hf).double(), np.random.default_rng(0)
    for group in GROUPS:
        assert gradients[group].shape == getattr(NeuronMask.keep_all(both.config), group).shape
        largest = np.abs(gradients[group][LAYER]).argmax()
        for index in (largest, *rng.choice(gradients[group].shape[1], SAMPLE - 1)):
            expected, step = finite_difference(hf, both.config, group, index)
            assert gradients[group][LAYER, index] == pytest.approx(expected, rel=1e-3, abs=NOISE / step)


def finite_difference(hf, config, group, index) -> tuple[float, float]:
    """Richardson's: without the error of the step's square; and the step. One that sends a token to other experts jumps
    over what has no derivative: then two steps disagree, and shorter ones are taken."""
    step = WITH_EXPERTS if config.num_experts else STEP
    while True:
        near, far = (central_difference(hf, config, group, index, size) for size in (step, 2 * step))
        if step < 3e-4 or abs(near - far) < 0.05 * abs(near) + NOISE / step:
            return (4 * near - far) / 3, step
        step /= 3


def central_difference(hf, config, group, index, step) -> float:
    losses = []
    for factor in (1 + step, 1 - step):
        changed = copy.deepcopy(hf)
        scale(changed, config, group, index, factor)
        losses.append(loss(changed))
    return (losses[0] - losses[1]) / (2 * step)


def test_it_tells_what_switching_off_does():
    """To first order: small sets of neurons, whose loss is measured."""
    model = pair("llama", 2).model
    gradients, keep = mw.attribution(model, documents()), NeuronMask.keep_all(model.config)
    before = mw.held_out_loss(model, documents(), keep).per_token
    told, measured = [], []
    for seed in range(12):
        groups = {g: np.zeros_like(values, bool) for g, values in gradients.items()}
        layer, index = np.random.default_rng(seed).integers([0, 0], groups["ffn_up"].shape)
        groups["ffn_up"][layer, index] = True
        told.append(-gradients["ffn_up"][layer, index])
        measured.append(mw.held_out_loss(model, documents(), keep.drop(NeuronSet(groups))).per_token - before)
    assert np.corrcoef(told, measured)[0, 1] > 0.7


def test_batches_change_nothing_and_compile_once_per_shape():
    model = pair("qwen3", 2).model
    _of_batch.clear_cache()
    one = mw.attribution(model, documents(), batching=Batching(tokens_per_batch=16))
    assert _of_batch._cache_size() == 1
    done = []
    together = mw.attribution(model, documents(), batching=Batching(tokens_per_batch=256), progress=done.append)
    assert done[-1] == 3
    for group in GROUPS:
        np.testing.assert_allclose(one[group], together[group], rtol=1e-3, atol=1e-6)
    np.testing.assert_array_equal(one["ffn_up"], one["ffn_down"])


def test_no_documents_are_refused():
    model = pair("llama", 2).model
    with pytest.raises(InputError, match="no documents"):
        mw.attribution(model, [])
    with pytest.raises(InputError, match="token"):
        mw.attribution(model, [np.asarray([1], np.int32)])
