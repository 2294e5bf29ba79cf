"""Interventions against Hugging Face's model with hooks: every site and family, the prompt and what is generated."""

from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import mwork_jax as mw
from mwork_jax.errors import InputError
from mwork_jax.evaluate.likelihood import log_likelihoods
from mwork_jax.intervention import PARTS, Intervention
from mwork_jax.model.decoder import forward_decoder
from mwork_jax.model.generate import generations
from mwork_jax.model.slots import advance_blocks
from mwork_jax.neurons import GROUPS, NeuronMask, NeuronSet, group_widths
from support.slow_deactivation import hf_logits, random_neurons
from support.slow_interventions import hooked_logits, hooked_tokens
from support.tiny import DISTINCT, pair, tokens

TOLERANCE = 1e-5


def values(config, seed=0, spread=0.5):
    rng = np.random.default_rng(seed)
    drawn = {
        g: rng.normal(0, spread, (config.num_layers, w)).astype(np.float32) for g, w in group_widths(config).items()
    }
    return drawn | {"ffn_down": drawn["ffn_up"]}


def vector(config, seed=0):
    return np.random.default_rng(seed).normal(0, 0.3, config.hidden_size).astype(np.float32)


def of_each_kind(config) -> dict[str, Intervention]:
    """One intervention for every site and kind of change."""
    none, drawn = Intervention.none(config), values(config)
    sets = {group: random_neurons(config, groups=(group,)) for group in GROUPS}
    edits = {f"{group} scaled": none.scale(sets[group], -1.5) for group in GROUPS}
    edits |= {f"{group} replaced": none.replace(sets[group], drawn) for group in GROUPS}
    edits |= {f"{group} added": none.add(sets[group], drawn) for group in ("attn_q", "attn_k", "attn_v", "ffn_down")}
    edits["gate scaled"] = none.scale(sets["ffn_up"], 2.0, at="gate")
    edits["gate replaced"] = none.replace(sets["ffn_up"], -2.5, at="gate")
    edits["gate added"] = none.add(sets["ffn_up"], drawn, at="gate")
    edits["steered"] = none.steer(1, vector(config), 1.5).steer(2, vector(config, 1), -0.7)
    return edits


def everything(config, seed=0) -> Intervention:
    """All of that at once."""
    edit = Intervention.none(config).scale(random_neurons(config, seed=seed), 0.3)
    edit = edit.add(random_neurons(config, seed=seed + 1), values(config, seed))
    edit = edit.replace(random_neurons(config, share=0.1, seed=seed + 2), values(config, seed + 1), at="gate")
    return edit.steer(seed % config.num_layers, vector(config, seed), 0.8)


@pytest.mark.parametrize("family", DISTINCT)
def test_every_site_equals_hf_with_hooks(family):
    both = pair(family, 2)
    ids = tokens(2, 12)
    original = hf_logits(both.hf, ids).logits.numpy()
    edits = of_each_kind(both.config)
    together = jax.vmap(lambda edit: forward_decoder(both.decoder, ids, edit))(Intervention.stack(list(edits.values())))
    for (name, edit), ours in zip(edits.items(), together, strict=True):
        theirs = hooked_logits(both.hf, both.config, edit, ids).numpy()
        np.testing.assert_allclose(ours, theirs, atol=TOLERANCE, rtol=1e-5, err_msg=name)
        if both.config.alibi and name == "attn_k added":
            continue  # without RoPE, the same addition to every key cancels in softmax
        assert np.abs(theirs - original).max() > 1e-4, f"{name} must matter for this to mean anything"


@pytest.mark.parametrize("family", DISTINCT)
def test_likelihoods_equal_hf_where_a_part_is_changed(family):
    """Contexts that share their beginnings, so that levels of a tree are prompt and the continuation is not."""
    both = pair(family, 2)
    edits = [everything(both.config).on(part) for part in PARTS]
    begin = tokens(1, 34, seed=3)[0]
    contexts = [np.concatenate([begin, tokens(1, 3, seed, first=None)[0]]) for seed in range(2)]
    ends = [tokens(1, 4 + seed, 10 + seed, first=None)[0] for seed in range(2)]
    ours = log_likelihoods(both.model, contexts, ends, edits)
    for edit, found in zip(edits, ours, strict=True):
        for context, end, nats in zip(contexts, ends, found.nats, strict=True):
            ids = np.concatenate([context, end])[None]
            is_generated = np.arange(ids.shape[1])[None] >= context.size
            logits = hooked_logits(both.hf, both.config, edit, ids, is_generated)[0].double().log_softmax(-1).numpy()
            expected = logits[np.arange(context.size - 1, ids.size - 1), end].sum()
            np.testing.assert_allclose(nats, expected, atol=1e-5 * end.size, rtol=0)
    assert len({round(float(found.nats.sum()), 3) for found in ours}) == len(PARTS), "the parts must matter"


@pytest.mark.parametrize("family", ["llama", "gemma3", "qwen3", "bloom", "mixtral"])
def test_generation_equals_hf_where_a_part_is_changed(family):
    both = pair(family, 2)
    prompts = [tokens(1, length, seed=length)[0] for length in (6, 9)]
    edits = [everything(both.config).on(part) for part in PARTS]
    model = replace(both.model, decoder=_without_end(both.decoder))
    ours = generations(model, prompts, edits, max_new_tokens=8)
    for edit, rows in zip(edits, ours, strict=True):
        for prompt, row in zip(prompts, rows, strict=True):
            np.testing.assert_array_equal(row, hooked_tokens(both.hf, both.config, edit, prompt, 8))
    different = {tuple(np.concatenate(rows)) for rows in ours}
    assert len(different) == 3, "the parts must matter for this to mean anything"


def _without_end(decoder):
    """The same decoder, of which no token ends a text."""
    from flax import nnx

    graph, state = nnx.split(decoder)
    copied = nnx.merge(graph, state)
    copied.config = replace(decoder.config, eos_ids=())
    return copied


@pytest.mark.parametrize("family", DISTINCT)
def test_a_mask_as_an_intervention_is_the_mask_to_the_bit(family):
    both = pair(family, 2)
    ids, neurons = tokens(2, 12), random_neurons(both.config)
    mask = NeuronMask.keep_all(both.config).drop(neurons)
    expected = mw.forward(both.model, ids, mask)
    np.testing.assert_array_equal(mw.forward(both.model, ids, Intervention.from_mask(mask)), expected)
    scaled = Intervention.none(both.config).scale(neurons, 0.0)
    np.testing.assert_allclose(mw.forward(both.model, ids, scaled), expected, atol=5e-6, rtol=0)


def test_a_hundred_interventions_compile_once():
    both = pair("gemma3", 2)
    ids, edits = tokens(1, 13), list(of_each_kind(both.config).values())
    forward_decoder.clear_cache()
    for number in range(100):
        edit = edits[number % len(edits)].on(("all", "prompt")[number % 2])
        mw.forward(both.model, ids, edit).block_until_ready()
    assert forward_decoder._cache_size() == 1


def test_masks_and_interventions_share_a_sweep():
    both = pair("llama", 2)
    mask = NeuronMask.keep_all(both.config).drop(random_neurons(both.config))
    edits = [mask, everything(both.config), Intervention.from_mask(mask), Intervention.none(both.config)]
    documents = [tokens(1, 12, seed)[0] for seed in range(3)]
    losses = mw.evaluate.likelihood.held_out_losses(both.model, documents, edits)
    np.testing.assert_array_equal(losses[0].nats, losses[2].nats)
    alone = mw.held_out_loss(both.model, documents, edits[1])
    np.testing.assert_allclose(losses[1].nats, alone.nats, rtol=1e-5)
    original = mw.held_out_loss(both.model, documents, NeuronMask.keep_all(both.config))
    np.testing.assert_allclose(losses[3].nats, original.nats, rtol=1e-5)


def test_what_acts_on_generated_tokens_alone_costs_no_layer_of_the_prompt(monkeypatch):
    both = pair("llama", 2)
    spans = []
    monkeypatch.setattr(
        "mwork_jax.model.slot_runner.advance_blocks",
        lambda *args: (spans.append((int(args[5].first), int(args[5].last))), advance_blocks(*args))[1],
    )
    edits = [everything(both.config, seed).on("generated") for seed in range(3)]
    generations(both.model, [tokens(1, 6)[0]], edits, max_new_tokens=2)
    assert spans == [(0, both.config.num_layers)], "the original reads the prompt once for all of them"


def test_a_strength_is_traced_and_differentiable():
    both = pair("llama", 2)
    ids, direction = tokens(1, 9), vector(both.config)

    def total(strength):
        edit = Intervention.none(both.config).steer(1, direction, strength)
        return jax.nn.logsumexp(mw.forward(both.model, ids, edit), axis=-1).mean()

    slope = float(jax.grad(total)(0.5))
    assert slope == pytest.approx(float(total(0.6) - total(0.4)) / 0.2, rel=2e-2)
    many = jax.vmap(total)(jnp.linspace(0, 1, 3))
    np.testing.assert_allclose(many, [total(s) for s in (0.0, 0.5, 1.0)], rtol=1e-5)


def test_changes_follow_each_other():
    config = pair("llama", 2).config
    one = NeuronSet({g: np.arange(m.size).reshape(m.shape) == 5 for g, m in NeuronSet.empty(config).groups.items()})
    edit = Intervention.none(config).add(one, 2.0).scale(one, 3.0).add(one, 1.0)
    assert float(edit.factors.neuron[0, 5]) == 3.0
    assert float(edit.offsets.neuron[0, 5]) == 7.0
    replaced = edit.replace(one, -4.0)
    assert float(replaced.factors.attn_q[0, 5]) == 0.0
    assert float(replaced.offsets.attn_q[0, 5]) == -4.0
    assert float(edit.factors.neuron[0, 6]) == 1.0
    assert float(edit.factors.gate[0, 5]) == 1.0
    assert edit.fingerprint == Intervention.none(config).add(one, 2.0).scale(one, 3.0).add(one, 1.0).fingerprint
    assert edit.fingerprint != replaced.fingerprint != replaced.on("prompt").fingerprint


def test_bad_input_is_one_line():
    both = pair("llama", 2)
    config, none = both.config, Intervention.none(both.config)
    neurons, other = random_neurons(config), random_neurons(pair("phi3-partial", 2).config)
    drawn = values(config)
    holed = {g: np.where(neurons.groups[g], np.nan, v) for g, v in drawn.items()}
    for line, call in {
        "layer 3 is outside": lambda: none.steer(3, vector(config)),
        "the vector is [31]": lambda: none.steer(0, np.zeros(31)),
        "the vector is [32, 1]": lambda: none.steer(0, np.zeros((32, 1))),
        "strength is nan": lambda: none.steer(0, vector(config), float("nan")),
        "the vector holds NaN": lambda: none.steer(0, vector(config) * np.inf),
        "factor is 'x'": lambda: none.scale(neurons, "x"),
        "the set is of another model": lambda: none.scale(other, 2.0),
        "no NeuronMask": lambda: Intervention.from_mask(none),
        "a NeuronMask cannot be changed": lambda: none.scale(NeuronMask.keep_all(config), 2.0),
        "at: 'up' is not": lambda: none.replace(neurons, 1.0, at="up"),
        "on: 'answer' is not": lambda: none.on("answer"),
        "holds NaN or infinity at a neuron": lambda: none.add(neurons, holed),
        "there are none for neuron": lambda: none.add(neurons, {g: drawn[g] for g in GROUPS[:3]}),
        "'gate' is not a neuron group": lambda: none.add(neurons, drawn | {"gate": drawn["ffn_up"]}),
        "two ends of one product": lambda: none.add(neurons, drawn | {"ffn_down": -drawn["ffn_up"]}),
        "values: ffn_up is [3, 47]": lambda: none.add(neurons, drawn | {"ffn_up": drawn["ffn_up"][:, 1:]}),
        "it is a stack": lambda: mw.forward(both.model, tokens(1, 4), Intervention.stack([none])),
        "the model needs [3, 48]": lambda: mw.forward(
            both.model, tokens(1, 4), replace(none, offsets=none.offsets._replace(neuron=jnp.zeros((3, 40))))
        ),
        "there are no interventions": lambda: Intervention.stack([]),
    }.items():
        with pytest.raises(InputError) as error:
            call()
        assert line in str(error.value)
        assert "\n" not in str(error.value)
