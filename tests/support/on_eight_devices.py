"""Every stage on meshes of 8 simulated devices against one device. Run by test_sharding.py in a process of its own, as
the number of devices is fixed when JAX starts. Reads lines of a mesh and stages, and answers each with one of JSON:
{stage: largest relative difference}."""

import json
import sys
from functools import cache

import jax
import numpy as np

from mwork_jax.corpus import Batching
from mwork_jax.detect.attribution import attribution
from mwork_jax.detect.contexts import strongest_tokens
from mwork_jax.detect.importance import importance
from mwork_jax.detect.language_vectors import language_vectors
from mwork_jax.detect.scores import score_neurons
from mwork_jax.enhance import TuneSettings, TuningRun, fine_tune_many
from mwork_jax.enhance.neuron_params import parameter_arrays
from mwork_jax.evaluate.likelihood import held_out_losses
from mwork_jax.families import config_from_hf
from mwork_jax.intervention import Intervention
from mwork_jax.lens.logit_lens import language_shares, top_tokens
from mwork_jax.lens.vocabulary import VocabularyLabels
from mwork_jax.model.decoder import Decoder
from mwork_jax.model.generate import generations
from mwork_jax.model.model import Model
from mwork_jax.model.parameters import parameter_specs
from mwork_jax.neurons import GROUPS, NeuronMask, NeuronSet, group_widths
from mwork_jax.select.modes import select_neurons
from mwork_jax.sharding import make_mesh, put

_SIZES = {
    "vocab_size": 96, "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 8,
    "num_key_value_heads": 4, "head_dim": 8, "max_position_embeddings": 64, "bos_token_id": 1,
    "eos_token_id": list(range(2, 96, 6)),
}  # fmt: skip
_EXPERTS = {"model_type": "mixtral", "intermediate_size": 16, "num_local_experts": 4, "num_experts_per_tok": 2}
DENSE, MIXTURE = config_from_hf({"model_type": "llama", **_SIZES}), config_from_hf({**_SIZES, **_EXPERTS})
MESHES = {
    "8x1": {"data": 8}, "4x2": {"data": 4, "model": 2}, "1x8": {"model": 8},
    "2x2x2": {"data": 2, "model": 2, "mask": 2},
}  # fmt: skip
OF_EXPERTS = {"experts:4": {"data": 2, "expert": 4}, "experts:2x2": {"expert": 2, "mask": 2, "model": 2}}


def documents(count, seed, least=12, most=17):
    rng = np.random.default_rng(seed)
    return [rng.integers(3, 96, rng.integers(least, most)).astype(np.int32) for _ in range(count)]


def drawn(config, seed, layers=(0, 2)):
    rng = np.random.default_rng(seed)
    groups = {g: rng.random((config.num_layers, w)) < 0.2 for g, w in group_widths(config).items()}
    return NeuronSet(groups).in_layers(*layers)


def detect(model):
    batching = Batching(max_tokens=16, tokens_per_batch=32)
    scores = {
        lang: score_neurons(model, documents(11, seed), batching=batching) for seed, lang in enumerate(("en", "de"))
    }
    selected = select_neurons(scores, "top_fraction:0.3", "minus_english")["de"]
    de = scores["de"]
    tables = [t[g] for t in (de.lowest, de.mean, de.worst_rank) for g in GROUPS]
    return [*tables, de.active, de.activation], [selected.groups[g] for g in GROUPS]


def masks(config):
    keep = NeuronMask.keep_all(config)
    return [keep, *(keep.drop(drawn(config, *of)) for of in ((1,), (2,), (3, (1, 2))))]


def evaluate(model):
    found = held_out_losses(model, documents(5, 7), masks(model.config), batching=Batching(16, 64))
    return [loss.nats for loss in found], []


def generate(model):
    """Answers of many lengths, many more than slots: groups of devices run out of rows at different times."""
    prompts = [np.concatenate([np.arange(40, 44, dtype=np.int32), d[:8]]) for d in documents(64, 8)]
    found = generations(model, prompts, masks(model.config)[:3], max_new_tokens=16, tokens_per_batch=128)
    return [], [tokens for texts in found for tokens in texts]


def enhance(model):
    settings = TuneSettings(epochs=1, steps=2, batch=8, max_tokens=16, learning_rate=1e-3, validation=0.1)
    runs = [
        TuningRun(drawn(model.config, 4), documents(20, 5), "a"),
        TuningRun(drawn(model.config, 5), documents(20, 6), "b", seed=1),
    ]
    tunings = fine_tune_many(model, runs, settings)
    values = [np.asarray(v) for o in tunings for v in o.values.values()]
    return [*values, *(np.asarray(o.history.train) for o in tunings)], []


def look(model):
    labels = VocabularyLabels(("en", "de"), np.arange(96) % 5)
    shares = language_shares(model, documents(11, 9), masks(model.config)[1], labels, k=5, batching=Batching(16, 32))
    _, probabilities = top_tokens(model, documents(1, 9)[0], masks(model.config)[1], k=5)
    raw = importance(model, documents(1, 10)[0])
    most = strongest_tokens(model, documents(11, 9), drawn(model.config, 1), 3, batching=Batching(16, 32))
    found = [shares.top_k, shares.top_1, probabilities, *raw.values(), most.values]
    return found, [most.documents, most.positions, most.active[~np.isnan(most.active)]]


def intervene(model):
    none = Intervention.none(model.config)
    vector = np.random.default_rng(0).normal(0, 1, model.config.hidden_size)
    edits = [
        none.add(drawn(model.config, 1), 0.5).replace(drawn(model.config, 2), -1.0, at="gate"),
        none.steer(1, vector),
        masks(model.config)[1],
    ]
    losses = held_out_losses(model, documents(5, 7), edits, batching=Batching(16, 64))
    languages = {"en": documents(4, 11), "de": documents(4, 12)}
    vectors = language_vectors(model, languages, "probe", batching=Batching(16, 64))
    gradients = attribution(model, documents(5, 7), batching=Batching(16, 64))
    return [*(loss.nats for loss in losses), *vectors.values(), *gradients.values()], []


STAGES = {stage.__name__: stage for stage in (detect, evaluate, generate, enhance, look, intervene)}


def difference(found, expected):
    """The largest difference of any array, relative to that array's largest entry; infinite where exact ones differ."""
    (close, exact), (close_to, exactly) = found, expected
    if not all(np.array_equal(a, b) for a, b in zip(exact, exactly, strict=True)):
        return float("inf")
    pairs = zip(close, close_to, strict=True)
    finite = [(np.where(np.isfinite(a), a, 0.0), np.where(np.isfinite(b), b, 0.0)) for a, b in pairs]
    return max((float(np.abs(a - b).max() / max(np.abs(b).max(), 1e-9)) for a, b in finite), default=0.0)


def on(mesh, decoder):
    specs = parameter_specs(decoder.config)
    arrays = {name: put(array, mesh, *specs[name].axes) for name, array in parameter_arrays(decoder).items()}
    return Model(Decoder(decoder.config, arrays), None, "tiny")


def alone(config):
    model = Model(Decoder.random(config, jax.random.key(0)), None, "tiny")
    return model.decoder, cache(lambda stage: STAGES[stage](model))


def main():
    dense, mixture = alone(DENSE), alone(MIXTURE)
    for line in sys.stdin:
        mesh, stages = line.split()
        decoder, expected = mixture if mesh in OF_EXPERTS else dense
        model = on(make_mesh((MESHES | OF_EXPERTS)[mesh]), decoder)
        differences = {name: difference(STAGES[name](model), expected(name)) for name in stages.split(",")}
        print(json.dumps(differences), flush=True)


if __name__ == "__main__":
    main()
