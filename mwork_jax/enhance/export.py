"""A tuned model for others to use: a folder in Hugging Face layout, and a small file of what was tuned.

The folder loads in `transformers` unchanged. The delta file holds indices and values of the tuned rows and columns and
applies to the base model that it names.
"""

from __future__ import annotations

import errno
import json
import shutil
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import ml_dtypes
import numpy as np
from safetensors import SafetensorError, safe_open

from mwork_jax.enhance import Tuned
from mwork_jax.enhance.neuron_params import PARAMETERS, parameter_arrays
from mwork_jax.errors import InputError
from mwork_jax.families import checkpoint_names, hf_config
from mwork_jax.model.decoder import Decoder
from mwork_jax.model.model import Model
from mwork_jax.runtime.distributed import is_first
from mwork_jax.runtime.files import write_json, write_tensors, write_text
from mwork_jax.sharding import fetch, fetch_each

_DTYPES = {"float32": np.dtype(np.float32), "bfloat16": np.dtype(ml_dtypes.bfloat16)}
_SHARD_BYTES = 4 << 30  # no file of weights is larger than about this
_INDEX = "model.safetensors.index.json"
_DELTA_FORMAT = "mwork-delta-1"


def save_folder(
    tuned: Tuned, folder: str | Path, *, dtype: str = "float32", notes: Mapping[str, Any] | None = None
) -> None:
    """Writes the tuned model as a folder in Hugging Face layout: safetensors, config, tokenizer, model card.

    dtype: of the weights. bfloat16 halves the files and rounds every weight, which loses small changes. notes: what the
    card says besides, by name. `config.json` is written last, so a folder that has one is whole. Raises InputError for
    another dtype, OSError where the folder cannot be written.
    """
    folder = Path(folder)
    if dtype not in _DTYPES:
        raise InputError(f"dtype {dtype!r} is not supported; use {' or '.join(_DTYPES)}")
    if is_first():
        folder.mkdir(parents=True, exist_ok=True)
        for stale in (folder / "config.json", *folder.glob("model*.safetensors"), folder / _INDEX):
            stale.unlink(missing_ok=True)  # of a model in other shards, which readers would take for this one's
    shards = list(_write_weights(tuned, folder, _DTYPES[dtype]))  # in every process: each has a part of the weights
    if not is_first():
        return
    if len(shards) == 1:
        (folder / shards[0][0]).replace(folder / "model.safetensors")
    else:
        table = {name: file for file, names in shards for name in names}
        write_json(folder / _INDEX, {"metadata": {}, "weight_map": table})
    if tuned.tokenizer is not None:
        _write_tokenizer(tuned.tokenizer, folder)
    write_text(folder / "README.md", _card(tuned, dtype, notes or {}))
    write_json(folder / "config.json", hf_config(tuned.config, dtype))


def _write_tokenizer(tokenizer: Any, folder: Path) -> None:
    """Beside the folder first, so that none of its files is ever half written."""
    with tempfile.TemporaryDirectory(prefix=".tokenizer.", dir=folder) as made:
        try:
            tokenizer.save_pretrained(made)
        except Exception as error:  # the Rust half says so of a full disk, with no kind of its own
            raise OSError(errno.EIO, str(error), str(folder)) from None
        for path in sorted(Path(made).iterdir()):
            if (folder / path.name).is_dir():  # further chat templates
                shutil.rmtree(folder / path.name)
            path.replace(folder / path.name)


def _write_weights(tuned: Tuned, folder: Path, dtype: np.dtype) -> Iterator[tuple[str, list[str]]]:
    """Writes shards, each as soon as it is full: (file, tensors in it)."""
    shard: dict[str, np.ndarray] = {}
    number = 0
    for name, tensor in _tensors(tuned, dtype):
        if shard and sum(t.nbytes for t in shard.values()) + tensor.nbytes > _SHARD_BYTES:
            number += 1
            yield _write_shard(folder, number, shard)
            shard = {}
        shard[name] = tensor
    yield _write_shard(folder, number + 1, shard)


def _write_shard(folder: Path, number: int, shard: dict[str, np.ndarray]) -> tuple[str, list[str]]:
    name = f"model-{number:05}.safetensors"
    write_tensors(folder / name, shard, {"format": "pt"})
    return name, list(shard)


def _tensors(tuned: Tuned, dtype: np.dtype) -> Iterator[tuple[str, np.ndarray]]:
    """The tuned weights under their names in a checkpoint, [out, in]. The tuned neurons come from their float32
    values, not from what is left of them in the model's dtype."""
    rows = tuned_rows(tuned)
    for name, array in parameter_arrays(tuned.base.decoder).items():
        short = name.removeprefix("layers.")
        each = (fetch(array),) if short == name else fetch_each(array)
        for layer, (tensor_name, one) in enumerate(zip(checkpoint_names(tuned.config, name), each, strict=True)):
            tensor = _merged_heads(short, one).astype(np.float32)
            if short in rows:
                index, values = rows[short]
                here = index[:, 0] == layer
                if PARAMETERS[short][1] == 1:
                    tensor[index[here, 1]] = values[here]
                else:
                    tensor[:, index[here, 1]] = values[here].T
            yield tensor_name, np.ascontiguousarray(tensor.astype(dtype))


def _merged_heads(name: str, tensor: np.ndarray) -> np.ndarray:
    """[h, k, m] as [h*k, m], [m, h, k] as [m, h*k], [h, k] as [h*k]: as checkpoints have them."""
    if tensor.ndim == 3:
        return tensor.reshape(tensor.shape[0], -1) if name == "o" else tensor.reshape(-1, tensor.shape[-1])
    return tensor.reshape(-1) if name.endswith("_bias") else tensor


def tuned_rows(tuned: Tuned) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """What was tuned, without padding: {parameter: (int32 [n, 2] layer and row or column, float32 [n, hidden])}."""
    rows = {}
    for name, (group, _) in PARAMETERS.items():
        members = tuned.neurons.groups[group]
        layers, places = np.nonzero(members)
        # Within a layer the compact form is in the order of the indices, and so is nonzero.
        rank = np.concatenate([np.arange(n) for n in members.sum(axis=1)]) if len(layers) else layers
        values = np.asarray(tuned.result.values[name])[layers, rank]
        rows[name] = np.stack([layers, places], axis=1).astype(np.int32), values
    return rows


def save_delta(tuned: Tuned, path: str | Path) -> None:
    """Writes the tuned rows and columns alone, with the base model's identity in the header: megabytes."""
    tensors = {}
    for name, (index, values) in tuned_rows(tuned).items():
        tensors[f"{name}.index"], tensors[f"{name}.values"] = index, np.ascontiguousarray(values)
    header = {
        "format": _DELTA_FORMAT,
        "base": json.dumps(tuned.base.identity),
        "neurons": json.dumps(dict(tuned.neurons.provenance)),
    }
    write_tensors(path, tensors, header)


def apply_delta(model: Model, path: str | Path) -> Model:
    """The model with the rows and columns of a delta file in their places.

    Raises InputError where the file is not a delta, is damaged, or is of another base model.
    """
    try:
        with safe_open(path, framework="numpy") as file:
            header, tensors = file.metadata() or {}, {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except (SafetensorError, OSError) as error:
        raise InputError(f"{path}: cannot be read as a delta file ({str(error).splitlines()[0][:160]})") from None
    if header.get("format") != _DELTA_FORMAT:
        raise InputError(f"{path}: not a delta file (its 'format' should be {_DELTA_FORMAT!r})")
    base = json.loads(header["base"])
    if not model.is_of(base):
        raise InputError(
            f"{path}: it belongs to {base['source']} ({base['dtype']}, weights {base['weights']}), the model given is "
            f"{model.source} ({model.key['dtype']}, weights {model.key['weights']}); load that one, with that dtype"
        )
    arrays = parameter_arrays(model.decoder)
    for name, (_, axis) in PARAMETERS.items():
        index, values = tensors[f"{name}.index"], jnp.asarray(tensors[f"{name}.values"])
        whole = arrays[f"layers.{name}"]
        matrix = whole.reshape(whole.shape[0], -1, whole.shape[-1])
        at = (index[:, 0], index[:, 1]) if axis == 1 else (index[:, 0], slice(None), index[:, 1])
        arrays[f"layers.{name}"] = matrix.at[at].set(values.astype(whole.dtype)).reshape(whole.shape)
    return Model(Decoder(model.config, arrays), model.tokenizer, f"{model.source} + {Path(path).name}")


def _card(tuned: Tuned, dtype: str, notes: Mapping[str, Any]) -> str:
    """The model card: where this model came from."""
    neurons, history = tuned.neurons, tuned.history
    settings = {"weights": dtype, "base model": tuned.base.source, "base weights": tuned.base.key["weights"]}
    parameters = sum(values.size for _, values in tuned_rows(tuned).values())
    facts = settings | {
        "neurons": f"{neurons.count():,} of {neurons.total():,} ({parameters:,} parameters)",
        "documents": f"{len(tuned.result.run.documents)}",
        "validation loss, nats per token": f"{history.validation[0][1]:.4f} before, {history.best[1]:.4f} after "
        f"{history.best[0]} steps",
        **{f"found by {k}": v for k, v in neurons.provenance.items() if isinstance(v, str | int)},
        **notes,
    }
    loaded = np.dtype(tuned.decoder.dtype)
    kept = "bit for bit" if loaded == np.float32 else f"as it was loaded in {loaded.name}"
    kept = "rounded to bfloat16" if _DTYPES[dtype].itemsize < loaded.itemsize else kept
    lines = "\n".join(f"| {name} | {value} |" for name, value in facts.items())
    return (
        f"---\nlibrary_name: transformers\ntags: [mwork-jax]\n---\n\n# {tuned.source}\n\n"
        "Tuned with mwork-jax: nothing but one language's neurons was trained, by causal language modelling; every "
        f"other weight is the base model's, {kept}, and its licence holds.\n\n"
        f"| | |\n|---|---|\n{lines}\n"
    )
