"""Recipes: what each does to the neurons of two languages, by hand; the controls; what cannot be made."""

from dataclasses import replace

import numpy as np
import pytest

from mwork_jax.detect.activations import MEASURED_SITES
from mwork_jax.errors import InputError
from mwork_jax.intervene.recipes import RECIPES, Materials, intervention_of, recipe_named
from mwork_jax.neurons import NeuronSet, group_widths
from support.made_results import made_scores
from support.paths import ROOT
from support.slow_deactivation import random_neurons
from support.tiny import pair

LANGUAGES = ("en", "de", "th")


@pytest.fixture(scope="module")
def materials():
    config = pair("llama", 2).config
    rng, widths = np.random.default_rng(0), group_widths(config)
    sizes = [*(widths[g] for g in ("attn_q", "attn_k", "attn_v", "ffn_up", "ffn_up")), config.hidden_size]
    scores = {}
    for language, own in made_scores(LANGUAGES, layers=config.num_layers, widths=widths).items():
        means = {
            site: rng.normal(size=(config.num_layers, size)).astype(np.float32)
            for site, size in zip(MEASURED_SITES, sizes, strict=True)
        }
        largest = 5 * np.abs(means["neuron"])
        scores[language] = replace(own, means=means, largest=largest, routed=np.zeros((config.num_layers, 0)))
    neurons = {language: random_neurons(config, seed=n) for n, language in enumerate(LANGUAGES)}
    vectors = {
        method: {language: rng.normal(size=(config.num_layers, config.hidden_size)) for language in LANGUAGES}
        for method in ("diffmean", "probe", "pca")
    }
    shape = config.num_layers, config.ffn_width
    medians = {lang: rng.normal(size=shape).astype(np.float32) for lang in LANGUAGES}
    return Materials(config, neurons, scores, vectors, medians)


def products(neurons: NeuronSet):
    return neurons.groups["ffn_up"] | neurons.groups["ffn_down"]


def by_hand(materials, name, strength):
    """{site: (factors, offsets)} of German wanted from English prompts."""
    de, en = materials.neurons["de"], materials.neurons["en"]
    own, mean = products(de), {lang: materials.scores[lang].means for lang in LANGUAGES}
    if name == "deactivate":
        return {"neuron": (np.where(products(en), 1 - strength, 1), 0)}
    values = {
        "amplify-mean": mean["de"]["neuron"], "amplify-median": materials.medians["de"],
        "amplify-largest": materials.scores["de"].largest,
    }  # fmt: skip
    if name in values:
        return {"neuron": (~own, strength * values[name] * own)}
    if name == "patch":
        others = (mean["de"]["neuron"] + mean["th"]["neuron"]) / 2
        return {"neuron": (~products(en), strength * others * products(en))}
    gates = de.groups["ffn_up"]
    if name == "add-difference":
        return {"gate": (1, strength * (mean["de"]["gate"] - mean["en"]["gate"]) * gates)}
    off = np.where(products(en), 1 - strength, 1)
    return {"neuron": (off, 0), "gate": (~gates, strength * mean["de"]["gate"] * gates)}


@pytest.mark.parametrize("name", [name for name, recipe in RECIPES.items() if not recipe.vector])
def test_a_recipe_does_what_it_says(name, materials):
    for strength in RECIPES[name].strengths:
        edit = intervention_of(RECIPES[name], materials, "de", "en", strength)
        expected = by_hand(materials, name, strength)
        for site in edit.factors._fields:
            factors, offsets = expected.get(site, (1, 0))
            for array, value in ((getattr(edit.factors, site), factors), (getattr(edit.offsets, site), offsets)):
                np.testing.assert_allclose(array, np.broadcast_to(value, array.shape), atol=1e-6)
        assert not np.asarray(edit.steering).any()


@pytest.mark.parametrize("name", [name for name, recipe in RECIPES.items() if recipe.vector])
def test_a_vector_is_added_at_its_layer(name, materials):
    edit = intervention_of(RECIPES[name], materials, "th", "en", 1.5, layer=1)
    expected = np.zeros_like(edit.steering)
    expected[1] = 1.5 * materials.vectors[name]["th"][1]
    np.testing.assert_allclose(edit.steering, expected, rtol=1e-6)
    assert (np.asarray(edit.factors.neuron) == 1).all()


def test_controls_match_in_numbers_and_length(materials):
    control, again, other = (materials.random_like(seed) for seed in (0, 0, 1))
    for language in LANGUAGES:
        own, drawn = materials.neurons[language], control.neurons[language]
        assert {g: c.tolist() for g, c in drawn.counts().items()} == {g: c.tolist() for g, c in own.counts().items()}
        vectors, turned = materials.vectors["diffmean"][language], control.vectors["diffmean"][language]
        np.testing.assert_allclose(np.linalg.norm(turned, axis=-1), np.linalg.norm(vectors, axis=-1), rtol=1e-5)
        cosines = (turned * vectors).sum(-1) / (vectors**2).sum(-1)
        assert np.abs(cosines).max() < 0.7
        np.testing.assert_array_equal(turned, again.vectors["diffmean"][language])
        assert not np.array_equal(turned, other.vectors["diffmean"][language])


def test_every_recipe_names_its_source():
    for name, recipe in RECIPES.items():
        assert recipe.name == name
        assert recipe.source
        assert recipe.what
        assert bool(recipe.steps) != bool(recipe.vector)


def test_the_page_lists_every_recipe_as_it_is():
    page = (ROOT / "docs" / "steering.md").read_text()
    for recipe in RECIPES.values():
        strengths = ", ".join(f"{strength:g}" for strength in recipe.strengths)
        assert f"| `{recipe.name}` | {recipe.what} | {strengths} | {recipe.source} |" in page


def test_bad_input_is_one_line(materials):
    old = replace(materials, scores={lang: replace(own, means={}) for lang, own in materials.scores.items()})
    no_medians = replace(materials, medians={"de": materials.medians["de"]})
    for line, call in {
        "recipe 'magic' is not known": lambda: recipe_named("magic"),
        "no neuron set of 'fr'": lambda: intervention_of(RECIPES["amplify-mean"], materials, "fr", "en", 1.0),
        "have no means": lambda: intervention_of(RECIPES["amplify-mean"], old, "de", "en", 1.0),
        "no medians of 'th'": lambda: intervention_of(RECIPES["amplify-median"], no_medians, "th", "en", 1.0),
        "have no means; make": lambda: intervention_of(RECIPES["amplify-largest"], old, "de", "en", 1.0),
        "which one": lambda: intervention_of(RECIPES["diffmean"], materials, "de", "en", 1.0),
        "layer 3 is outside": lambda: intervention_of(RECIPES["diffmean"], materials, "de", "en", 1.0, 3),
        "no diffmean vector of 'fr'": lambda: intervention_of(RECIPES["diffmean"], materials, "fr", "en", 1.0, 1),
        "strength is nan": lambda: intervention_of(RECIPES["diffmean"], materials, "de", "en", float("nan"), 1),
    }.items():
        with pytest.raises(InputError, match=line):
            call()
