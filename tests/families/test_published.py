"""The config.json of published checkpoints, as other projects quote them (tests/data/configs/SOURCES.md), read as
transformers reads them."""

import json
from pathlib import Path

import pytest
import transformers
from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

from mwork_jax.config import FULL_ATTENTION
from mwork_jax.families import FAMILIES, config_from_hf, hf_config
from mwork_jax.families.base import one_window

CONFIGS = Path(__file__).parents[1] / "data" / "configs"
PUBLISHED = {path.stem.replace("--", "/"): json.loads(path.read_text()) for path in sorted(CONFIGS.glob("*.json"))}


def read(name):
    """The published dictionary and what it describes."""
    return PUBLISHED[name], config_from_hf(PUBLISHED[name], where=name)


def text_config(hf):
    """transformers' own configuration of the text model."""
    hf = {attribute: value for attribute, value in hf.items() if attribute != "quantization_config"}
    return transformers.CONFIG_MAPPING[hf["model_type"]](**hf).get_text_config()


def by_layer_type(parameters):
    """{(the type of layer or "", attribute): value} of `rope_parameters`: one table, or one for each type of layer."""
    tables = parameters if isinstance(next(iter(parameters.values())), dict) else {"": parameters}
    return {(kind, attribute): value for kind, table in tables.items() for attribute, value in table.items()}


@pytest.mark.parametrize("name", PUBLISHED)
def test_a_published_config_has_the_numbers_of_hf(name):
    hf, config = read(name)
    theirs = text_config(hf)
    kv_heads = getattr(theirs, "num_key_value_heads", None) or theirs.num_attention_heads
    head_dim = getattr(theirs, "head_dim", None) or theirs.hidden_size // theirs.num_attention_heads
    assert config.family == theirs.model_type
    assert (config.num_layers, config.hidden_size) == (theirs.num_hidden_layers, theirs.hidden_size)
    assert (config.num_heads, config.num_kv_heads) == (theirs.num_attention_heads, kv_heads)
    assert (config.head_dim, config.vocab_size) == (head_dim, theirs.vocab_size)
    inner = getattr(theirs, "moe_intermediate_size", None) or getattr(theirs, "intermediate_size", None)
    assert config.intermediate_size == (inner or 4 * theirs.hidden_size)  # BLOOM has no attribute for it
    experts = getattr(theirs, "num_local_experts", 0), getattr(theirs, "num_experts_per_tok", 0)
    assert (config.num_experts, config.experts_per_token) == experts
    norm_eps = [getattr(theirs, name, None) for name in ("rms_norm_eps", "layer_norm_eps", "layer_norm_epsilon")]
    assert config.norm_eps in norm_eps
    assert config.tie_embeddings == theirs.tie_word_embeddings
    # `generate` of transformers goes by the whole model's tokens where that has some
    eos = hf.get("eos_token_id", theirs.eos_token_id)
    assert config.bos_id == theirs.bos_token_id
    assert config.eos_ids == (() if eos is None else tuple(eos) if isinstance(eos, list) else (eos,))


@pytest.mark.parametrize("name", PUBLISHED)
def test_a_published_config_has_the_windows_of_hf(name):
    hf, config = read(name)
    theirs = text_config(hf)
    one_for_all = "sliding_attention" if FAMILIES[config.family].windows is one_window else "full_attention"
    kinds = getattr(theirs, "layer_types", None) or [one_for_all] * config.num_layers
    window = getattr(theirs, "sliding_window", None) or FULL_ATTENTION
    assert config.windows == tuple(window if kind == "sliding_attention" else FULL_ATTENTION for kind in kinds)


@pytest.mark.parametrize("name", [name for name in PUBLISHED if PUBLISHED[name]["model_type"] != "bloom"])
def test_a_published_config_has_the_rotary_embeddings_of_hf(name):
    hf, config = read(name)
    theirs = text_config(hf)
    described, expected = by_layer_type(hf_config(config)["rope_parameters"]), by_layer_type(theirs.rope_parameters)
    shared = described.keys() & expected.keys()
    assert {at: described[at] for at in shared} == {at: expected[at] for at in shared}
    # yarn's temperature follows from mscale and mscale_all_dim; it is compared below
    assert {attribute for _, attribute in expected.keys() - shared} <= {"type", "mscale", "mscale_all_dim"}
    kind = expected.get(("", "rope_type"))
    if kind in ROPE_INIT_FUNCTIONS:
        _, temperature = ROPE_INIT_FUNCTIONS[kind](theirs, "cpu")
        assert config.ropes[0].attention_factor == temperature
    stretched = kind == "longrope"  # its factors change at the end of the original context, where ours ends
    length = theirs.original_max_position_embeddings if stretched else theirs.max_position_embeddings
    assert config.max_length == length


@pytest.mark.parametrize("name", PUBLISHED)
def test_a_published_config_is_read_back_as_written(name):
    _, config = read(name)
    assert config_from_hf(hf_config(config)) == config


def test_the_checkpoints_that_a_family_names_are_those_whose_config_is_here():
    named = {name: family.model_type for family in FAMILIES.values() for name in family.checkpoints}
    assert named == {name: read(name)[1].family for name in PUBLISHED}
    assert sum(len(family.checkpoints) for family in FAMILIES.values()) == len(named)


def test_each_file_says_where_its_text_was_quoted():
    sources = (CONFIGS / "SOURCES.md").read_text()
    assert [name for name in PUBLISHED if f"| {name} |" not in sources] == []
