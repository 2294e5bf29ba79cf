"""Recipes of the field for making a model write another language, as data: what is changed, to which value, whose
neurons. What a recipe says for two languages and a strength is an `Intervention`."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Literal, TypeVar

import numpy as np

from mwork_jax.config import ModelConfig
from mwork_jax.detect.scores import NeuronScores
from mwork_jax.errors import InputError
from mwork_jax.intervention import Intervention
from mwork_jax.neurons import FFN_GROUPS, NeuronSet

T = TypeVar("T")
Whose = Literal["wanted", "prompt"]  # the language that is to come out, or that of the prompt


@dataclass(frozen=True)
class Step:
    """One change. whose: of which language's neurons. action: "scale" multiplies by 1 - strength, "replace" puts
    strength * value in their place, "add" adds it. value: "mean", "median" and "largest" of the language wanted,
    "difference" of its mean and the prompt language's, or "others", the mean of the means of all languages but the
    prompt's; None for "scale". at: as in `Intervention.replace`. A strength of 1 is what the paper does."""

    action: Literal["scale", "replace", "add"]
    whose: Whose
    value: Literal["mean", "median", "largest", "difference", "others"] | None = None
    at: Literal["neuron", "gate"] = "neuron"


@dataclass(frozen=True)
class Recipe:
    """A way to force a language. steps: on feed-forward neurons, one after the other; vector: instead of them, the
    method of `language_vectors` whose vector is added at one layer. strengths: worth trying. source: the paper."""

    name: str
    what: str
    source: str
    strengths: tuple[float, ...]
    steps: tuple[Step, ...] = ()
    vector: str | None = None

    @property
    def needs_medians(self) -> bool:
        return any(step.value == "median" for step in self.steps)


_NEURONS, _VECTORS = (0.5, 1.0, 1.5, 2.0), (0.5, 1.0, 1.5, 2.0)
RECIPES: Mapping[str, Recipe] = {
    recipe.name: recipe
    for recipe in (
        Recipe(
            "deactivate",
            "switches the neurons of the prompt's language off",
            "Zhao et al., NeurIPS 2024; Tang et al., ACL 2024",
            (0.5, 1.0),
            (Step("scale", "prompt"),),
        ),
        Recipe(
            "amplify-mean",
            "fixes the wanted language's neurons at their mean on its text",
            "after Kojima et al., NAACL 2024",
            _NEURONS,
            (Step("replace", "wanted", "mean"),),
        ),
        Recipe(
            "amplify-median",
            "fixes the wanted language's neurons at their median on its text",
            "Kojima et al., NAACL 2024",
            _NEURONS,
            (Step("replace", "wanted", "median"),),
        ),
        Recipe(
            "amplify-largest",
            "fixes the wanted language's neurons at their largest value on its text",
            "arXiv 2507.22581",
            (0.25, 0.5, 1.0),
            (Step("replace", "wanted", "largest"),),
        ),
        Recipe(
            "arithmetic",
            "puts the wanted language's mean gates in, and switches the prompt language's neurons off",
            "Gurgurov et al. 2025, language arithmetics",
            _NEURONS,
            (Step("scale", "prompt"), Step("replace", "wanted", "mean", "gate")),
        ),
        Recipe(
            "add-difference",
            "adds to the wanted language's gates their mean minus that on the prompt's language",
            "Gurgurov et al. 2025, language arithmetics",
            _NEURONS,
            (Step("add", "wanted", "difference", "gate"),),
        ),
        Recipe(
            "patch",
            "puts the mean over the other languages in place of the prompt language's neurons",
            "distribution-aware deactivation",
            (0.5, 1.0),
            (Step("replace", "prompt", "others"),),
        ),
        Recipe(
            "diffmean",
            "adds the difference of the means of the residual stream at one layer",
            "CLaS-Bench, arXiv 2601.08331",
            _VECTORS,
            vector="diffmean",
        ),
        Recipe("probe", "adds a linear probe's direction at one layer", "CLaS-Bench", _VECTORS, vector="probe"),
        Recipe("pca", "adds the first principal component at one layer", "CLaS-Bench", _VECTORS, vector="pca"),
    )
}


def recipe_named(name: str) -> Recipe:
    """The recipe of that name; InputError where there is none."""
    if name not in RECIPES:
        raise InputError(f"recipe {name!r:.40} is not known; choose from {', '.join(RECIPES)}")
    return RECIPES[name]


@dataclass(frozen=True, eq=False)
class Materials:
    """What recipes are made of: each language's neurons and scores, steering vectors, {method: {language: float32
    [layers, hidden]}}, and, where a recipe needs them, the medians of act(gate) * up, {language: float32 [layers,
    f]}."""

    config: ModelConfig
    neurons: Mapping[str, NeuronSet]
    scores: Mapping[str, NeuronScores]
    vectors: Mapping[str, Mapping[str, np.ndarray]]
    medians: Mapping[str, np.ndarray] = field(default_factory=dict)

    def random_like(self, seed: int) -> Materials:
        """The matched control: as many random neurons in each layer, and random vectors of the same length."""
        rng = np.random.default_rng(seed)

        def turned(vectors: np.ndarray) -> np.ndarray:
            drawn = rng.standard_normal(vectors.shape)
            lengths = np.linalg.norm(vectors, axis=-1, keepdims=True) / np.linalg.norm(drawn, axis=-1, keepdims=True)
            return (drawn * lengths).astype(np.float32)

        return replace(
            self,
            neurons={language: own.random_like(seed) for language, own in self.neurons.items()},
            vectors={m: {lang: turned(v) for lang, v in own.items()} for m, own in self.vectors.items()},
        )


def intervention_of(
    recipe: Recipe, materials: Materials, wanted: str, prompt: str, strength: float, layer: int | None = None
) -> Intervention:
    """What the recipe does to make a model that reads one language write another.

    layer: where a vector is added, for the recipes that have one. Raises InputError for a language without neurons,
    scores or vectors, for scores without the values that the recipe needs, and a layer outside the model.
    """
    edit = Intervention.none(materials.config)
    if recipe.vector is not None:
        if layer is None:
            raise InputError(f"recipe {recipe.name} adds a vector at a layer; which one?")
        vector = _of(materials.vectors.get(recipe.vector, {}), wanted, f"{recipe.vector} vector")
        if not 0 <= layer < len(vector):
            raise InputError(f"layer {layer} is outside the model, which has layers 0 to {len(vector) - 1}")
        return edit.steer(layer, vector[layer], strength)
    for step in recipe.steps:
        language = wanted if step.whose == "wanted" else prompt
        neurons = _of(materials.neurons, language, "neuron set").in_groups(*FFN_GROUPS)
        if step.action == "scale":
            edit = edit.scale(neurons, 1 - strength, at=step.at)
            continue
        values = _values(step, materials, wanted, prompt)
        put = edit.replace if step.action == "replace" else edit.add
        edit = put(neurons, dict.fromkeys(FFN_GROUPS, strength * values), at=step.at)
    return edit


def _values(step: Step, materials: Materials, wanted: str, prompt: str) -> np.ndarray:
    """The values of the feed-forward neurons that a step uses: float32 [layers, f]."""

    def mean(language: str) -> np.ndarray:
        scores = _of(materials.scores, language, "scores")
        if not scores.means:
            raise InputError(f"the scores of {language!r:.40} have no means; make them anew with `mwork detect`")
        return scores.means[step.at]

    if step.value == "mean":
        return mean(wanted)
    if step.value == "median":
        return np.nan_to_num(_of(materials.medians, wanted, "medians"))  # an expert's to which nothing went: 0
    if step.value == "difference":
        return mean(wanted) - mean(prompt)
    if step.value == "largest":
        mean(wanted)  # scores have both or neither
        largest = materials.scores[wanted].largest
        assert largest is not None
        return largest
    others = [mean(language) for language in materials.scores if language != prompt]
    if not others:
        raise InputError(f"the means of other languages than {prompt!r:.40} are needed; there are none")
    return np.mean(others, axis=0)


def _of(table: Mapping[str, T], language: str, what: str) -> T:
    if language not in table:
        raise InputError(f"no {what} of {language!r:.40}; there are those of {', '.join(table) or 'no language'}")
    return table[language]
