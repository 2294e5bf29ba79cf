"""The slow, obvious deactivation that masks are compared with: the Hugging Face model with its weights zeroed."""

import copy
from dataclasses import asdict

import numpy as np

from mwork_jax.neurons import GROUPS, NeuronSet, group_widths
from support.tiny import torch

MODULES = {
    "attn_q": ("self_attn.q_proj",),
    "attn_k": ("self_attn.k_proj",),
    "attn_v": ("self_attn.v_proj",),
    "ffn_up": ("mlp.gate_proj", "mlp.up_proj"),
    "ffn_down": ("mlp.down_proj",),
}


def hf_logits(hf, ids, **kwargs):
    with torch.no_grad():
        return hf(torch.tensor(ids, dtype=torch.long), **kwargs)


def zero_neurons(hf, neurons: NeuronSet):
    """The slow, obvious deactivation: a copy of the model with the rows and columns literally zero."""
    hf = copy.deepcopy(hf)
    for group, names in MODULES.items():
        for layer, members in enumerate(neurons.groups[group]):
            for name in names:
                module = hf.model.layers[layer].get_submodule(name)
                if group == "ffn_down":
                    module.weight.data[:, members] = 0
                else:
                    module.weight.data[members] = 0
                    if module.bias is not None:
                        module.bias.data[members] = 0
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
