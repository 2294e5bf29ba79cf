"""The models that benchmarks run, here and in Hugging Face PyTorch with the same weights."""

from __future__ import annotations

from typing import Any

import numpy as np

from mwork_jax.config import ModelConfig
from mwork_jax.load.assemble import checkpoint_names
from mwork_jax.model import Decoder, parameter_specs

# The shape of SmolLM2-135M. Speed does not depend on the values of the weights, so random ones do.
SMOLLM2 = {
    "model_type": "llama",
    "vocab_size": 49152,
    "hidden_size": 576,
    "intermediate_size": 1536,
    "num_hidden_layers": 30,
    "num_attention_heads": 9,
    "num_key_value_heads": 3,
    "rope_theta": 100000.0,
    "rms_norm_eps": 1e-5,
    "max_position_embeddings": 8192,
    "tie_word_embeddings": True,
}


def torch_model(config: ModelConfig, decoder: Decoder, dtype: str) -> Any:
    """The same weights in Hugging Face PyTorch."""
    import torch
    import transformers

    hf = transformers.LlamaForCausalLM(
        transformers.LlamaConfig(**{k: v for k, v in SMOLLM2.items() if k != "model_type"})
    )
    arrays = {"embed": decoder.embed, "final_norm": decoder.final_norm}
    for name in parameter_specs(config):
        if name.startswith("layers."):
            arrays[name] = getattr(decoder.layers, name.removeprefix("layers."))
    state = {}
    for name, array in arrays.items():
        names = checkpoint_names(config, name)
        host = np.asarray(array[...])
        for row, tensor in zip(host if len(names) > 1 else host[None], names, strict=True):
            like = hf.get_parameter(tensor)
            state[tensor] = torch.from_numpy(row.reshape(tuple(like.shape)).copy())
    hf.load_state_dict(state, strict=False)
    return hf.eval().to(getattr(torch, dtype))
