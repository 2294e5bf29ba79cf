"""The slow, obvious deactivation that masks are compared with: the Hugging Face model with its weights zeroed."""

import copy
from dataclasses import asdict

import numpy as np

from mwork_jax.neurons import GROUPS, NeuronSet, group_widths
from support.tiny import torch


def layers_of(hf):
    """The decoder layers of a Hugging Face model."""
    return hf.transformer.h if hasattr(hf, "transformer") else hf.model.layers


def attention_of(layer):
    return layer.self_attention if hasattr(layer, "self_attention") else layer.self_attn


def hf_places(config, group, neurons) -> list[tuple[str, np.ndarray]]:
    """Where neurons (their indices), not of experts, are in a Hugging Face layer: (module, rows of its weight) each,
    columns for `ffn_down`."""
    at = np.asarray(neurons)
    queries, keys = config.num_heads * config.head_dim, config.num_kv_heads * config.head_dim
    if config.family == "bloom":
        part, size = "qkv".find(group[-1]), config.head_dim
        fused = "self_attention.query_key_value", at // size * 3 * size + part * size + at % size
        return [{"ffn_up": ("mlp.dense_h_to_4h", at), "ffn_down": ("mlp.dense_4h_to_h", at)}.get(group, fused)]
    if config.family == "phi3" and group != "ffn_down":
        if group == "ffn_up":
            return [("mlp.gate_up_proj", at), ("mlp.gate_up_proj", config.intermediate_size + at)]
        return [("self_attn.qkv_proj", at + {"q": 0, "k": queries, "v": queries + keys}[group[-1]])]
    if group.startswith("attn"):
        return [(f"self_attn.{group[-1]}_proj", at)]
    inner = ["mlp.gate_proj", "mlp.up_proj"] if config.gated else ["mlp.up_proj"]
    return [(name, at) for name in (inner if group == "ffn_up" else ["mlp.down_proj"])]


def zero_in_layer(layer, config, group, neurons) -> None:
    """Neurons of a layer literally zero: their rows with biases, or their columns."""
    at = np.asarray(neurons)
    if not config.num_experts or group.startswith("attn"):
        return zero_places(layer, hf_places(config, group, neurons), columns=group == "ffn_down")
    expert, own, experts = at // config.intermediate_size, at % config.intermediate_size, layer.mlp.experts
    if config.family == "gpt_oss":  # [expert, in, out], gate and up by turns
        if group == "ffn_down":
            experts.down_proj.data[expert, own] = 0
            return None
        for row in (2 * own, 2 * own + 1):
            experts.gate_up_proj.data[expert, :, row] = 0
            experts.gate_up_proj_bias.data[expert, row] = 0
    elif group == "ffn_down":
        experts.down_proj.data[expert, :, own] = 0
    else:
        for row in (own, config.intermediate_size + own):
            experts.gate_up_proj.data[expert, row] = 0
    return None


def zero_places(layer, places, columns) -> None:
    """Rows with their bias, or columns, of a layer's modules literally zero."""
    for name, at in places:
        module = layer.get_submodule(name)
        if columns:
            module.weight.data[:, at] = 0
            continue
        module.weight.data[at] = 0
        if module.bias is not None:
            module.bias.data[at] = 0


def hf_logits(hf, ids, **kwargs):
    with torch.no_grad():
        return hf(torch.tensor(ids, dtype=torch.long), **kwargs)


def zero_neurons(hf, neurons: NeuronSet, config):
    """The slow, obvious deactivation: a copy of the model with the rows and columns literally zero."""
    hf = copy.deepcopy(hf)
    for group, members in neurons.groups.items():
        for layer, row in zip(layers_of(hf), members, strict=True):
            zero_in_layer(layer, config, group, np.flatnonzero(row))
    return hf


def save_neurons(folder, model, languages, rule="top_fraction:0.3"):
    """A random set of each language in `folder`, as a run leaves them; for where it does not matter which they are."""
    for seed, language in enumerate(languages):
        groups = random_neurons(model.config, seed=seed).groups
        provenance = {"language": language, "model": asdict(model.info), "rule": rule}
        NeuronSet(groups, provenance).save(folder / "neurons" / f"{language}.json")


def random_neurons(config, share=0.3, groups=GROUPS, seed=0) -> NeuronSet:
    rng = np.random.default_rng(seed)
    widths = group_widths(config).items()
    return NeuronSet({g: (rng.random((config.num_layers, w)) < share) & (g in groups) for g, w in widths})
