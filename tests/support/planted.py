"""A small model whose language neurons are known by construction.

The first dimensions of the residual stream say which language a token is of, the rest is content. No weight reads or
writes the language dimensions but those of the planted neurons: each reads the dimension of its language alone, so it
acts on that language's documents and is silent on all others. Shared neurons read a dimension that is on for every
token; they act on every language and must not be found.
"""

from __future__ import annotations

import jax.numpy as jnp
import numpy as np

from mwork_jax.families import config_from_hf
from mwork_jax.model.decoder import Decoder
from mwork_jax.model.model import Model
from mwork_jax.model.parameters import parameter_specs
from mwork_jax.neurons import GROUPS, NeuronSet, group_widths

LANGUAGES = ("en", "de", "th")
TOKENS = 40  # per language
# Neurons per language (and as many shared ones) in each layer. Queries and keys are planted in whole RoPE pairs, at
# the same places of a key head and of every query head that uses it: a query neuron acts through the keys it meets, so
# a lone planted one would make others language-specific too.
PLANTED = {"attn_q": 4, "attn_k": 2, "attn_v": 2, "ffn_up": 4, "ffn_down": 4}
EXACT_FRACTION = 1 / 16  # of each layer and group: as many as the neurons of one language and the shared ones
_STRENGTH = {"qk": 4.0, "v": 4.0, "ffn": 4.0}

CONFIG = config_from_hf(
    {
        "model_type": "llama",
        "vocab_size": 1 + TOKENS * len(LANGUAGES),
        "hidden_size": 64,
        "intermediate_size": 128,
        "num_hidden_layers": 3,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": 32,
        "bos_token_id": 0,
        "rope_theta": 4.0,  # every pair turns fast: a key neuron that is the same everywhere still matters
    }
)


def planted_model(seed: int = 0) -> tuple[Model, dict[str, NeuronSet]]:
    """The model, and the neurons that were planted for each language."""
    rng = np.random.default_rng(seed)
    arrays = {
        n: rng.normal(size=s.shape).astype(np.float32) * s.shape[-1] ** -0.5 for n, s in parameter_specs(CONFIG).items()
    }
    for name in arrays:
        if name.endswith("norm"):
            arrays[name][...] = 1.0
    own = len(LANGUAGES) + 1  # the dimensions of the languages, and the one that is always on
    arrays["embed"] = rng.normal(size=arrays["embed"].shape).astype(np.float32) * 0.5
    arrays["embed"][:, :own] = 0
    arrays["embed"][:, own - 1] = 2.0
    for i in range(len(LANGUAGES)):
        arrays["embed"][1 + i * TOKENS : 1 + (i + 1) * TOKENS, i] = 2.0
    for name in ("q", "k", "v", "gate", "up"):
        arrays[f"layers.{name}"][..., :own] = 0
    arrays["layers.o"][:, :own] = 0
    arrays["layers.down"][:, :own] = 0
    for name in ("o", "down"):
        arrays[f"layers.{name}"] *= 0.05  # the language dimensions stay readable in the last layer
    planted = {
        lang: {g: np.zeros((CONFIG.num_layers, w), bool) for g, w in group_widths(CONFIG).items()} for lang in LANGUAGES
    }
    for layer in range(CONFIG.num_layers):
        weights = {n.removeprefix("layers."): a[layer] for n, a in arrays.items() if n.startswith("layers.")}
        for dimension, places in enumerate(_places(rng, own)):
            _plant(weights, places, dimension)
            if dimension < len(LANGUAGES):
                for group, members in places.items():
                    planted[LANGUAGES[dimension]][group][layer, members] = True
    decoder = Decoder(CONFIG, {n: jnp.asarray(a) for n, a in arrays.items()})
    return Model(decoder, None, "planted"), {lang: NeuronSet(groups) for lang, groups in planted.items()}


def _places(rng: np.random.Generator, kinds: int) -> list[dict[str, np.ndarray]]:
    """Disjoint places in one layer for each kind of planted neuron: {group: indices}."""
    size, shared = CONFIG.head_dim, CONFIG.queries_per_group
    pairs = rng.permutation(CONFIG.num_kv_heads * size // 2)[:kinds]
    values = rng.permutation(CONFIG.num_kv_heads * size)[: kinds * PLANTED["attn_v"]].reshape(kinds, -1)
    products = rng.permutation(CONFIG.intermediate_size)[: kinds * PLANTED["ffn_up"]].reshape(kinds, -1)
    places = []
    for kind in range(kinds):
        head, first = divmod(int(pairs[kind]), size // 2)
        both = np.asarray([first, first + size // 2])
        queries = np.concatenate([(head * shared + r) * size + both for r in range(shared)])
        ffn = products[kind]
        places.append(
            {"attn_q": queries, "attn_k": head * size + both, "attn_v": values[kind], "ffn_up": ffn, "ffn_down": ffn}
        )
    return places


def _plant(weights: dict[str, np.ndarray], places: dict[str, np.ndarray], dimension: int) -> None:
    """Makes the neurons at these places of a layer read one dimension of the residual stream and nothing else."""
    for name, group, strength in (
        ("q", "attn_q", "qk"),
        ("k", "attn_k", "qk"),
        ("v", "attn_v", "v"),
        ("gate", "ffn_up", "ffn"),
        ("up", "ffn_up", "ffn"),
    ):
        rows = weights[name].reshape(-1, CONFIG.hidden_size)
        rows[places[group]] = 0
        rows[places[group], dimension] = _STRENGTH[strength]


def documents(language: str, count: int = 24, length: int = 40, seed: int = 0) -> list[np.ndarray]:
    """Random documents of one language, BOS first."""
    rng = np.random.default_rng([seed, LANGUAGES.index(language)])
    first = 1 + LANGUAGES.index(language) * TOKENS
    return [np.concatenate([[0], rng.integers(first, first + TOKENS, length)]).astype(np.int32) for _ in range(count)]


def recall_and_precision(found: NeuronSet, truth: NeuronSet) -> dict[str, tuple[float, float]]:
    """Per group: the share of the planted neurons found, and the share of those found that were planted."""
    rates = {}
    for group in GROUPS:
        hits = (found.groups[group] & truth.groups[group]).sum()
        rates[group] = (hits / truth.groups[group].sum(), hits / max(1, found.groups[group].sum()))
    return rates
