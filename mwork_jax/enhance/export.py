"""A model for others to use, tuned or masked: a folder in Hugging Face layout, and a small file of what was tuned.

The folder loads in `transformers` unchanged. The delta file holds indices and values of the tuned rows and columns and
applies to the base model that it names.
"""

from __future__ import annotations

import contextlib
import errno
import html
import json
import os
import re
import warnings
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import ml_dtypes
import numpy as np
from safetensors import SafetensorError, safe_open

from mwork_jax.config import ModelConfig
from mwork_jax.enhance import Tuned
from mwork_jax.enhance.folding import Factors, described, scaled, weight_factors
from mwork_jax.enhance.neuron_params import parameter_arrays, parameters_of, with_neurons
from mwork_jax.errors import InputError, InputWarning
from mwork_jax.families import checkpoint_names, fused_tensors, hf_config
from mwork_jax.intervention import Edit
from mwork_jax.model.checks import check_model
from mwork_jax.model.decoder import Decoder
from mwork_jax.model.identity import model_of
from mwork_jax.model.model import Model
from mwork_jax.neurons import group_widths
from mwork_jax.runtime.distributed import is_first
from mwork_jax.runtime.files import (
    checksum_of,
    parse_json,
    read_json,
    temporary_folder,
    write_json,
    write_tensors,
    write_text,
)
from mwork_jax.sharding import fetch, fetch_each

_DTYPES = {"float32": np.dtype(np.float32), "bfloat16": np.dtype(ml_dtypes.bfloat16)}
_SHARD_BYTES = 4 << 30  # no file of weights is larger than about this
_INDEX = "model.safetensors.index.json"
_CONFIG = "config.json"
_SAVED = "mwork.json"  # the list of the files that `save_folder` wrote: it replaces no others
_SAVED_FORMAT, _WRITER = "mwork-model-1", "mwork"
_LONGEST_NAME = 255  # bytes, on the usual file systems
# Weights that readers of a folder may take for the model's.
_WEIGHTS = ("*.safetensors", "*.safetensors.index.json", "pytorch_model*", "flax_model*", "tf_model*", "*.gguf")
_DELTA_FORMAT = "mwork-delta-2"
_DELTA_WITHOUT_CHECKSUM = "mwork-delta-1"  # of version 0.1


def save_folder(
    model: Model,
    folder: str | Path,
    mask: Edit | None = None,
    *,
    dtype: str = "float32",
    notes: Mapping[str, object] | None = None,
) -> None:
    """Writes a model, tuned or not, as a folder in Hugging Face layout: safetensors, config, tokenizer, model card.

    mask: a NeuronMask, or an Intervention that scales neurons, is multiplied into the weights, so that whoever loads
    the folder has the model under this mask, without this package. dtype: of the weights. bfloat16 halves the files and
    rounds every weight, which loses small changes. notes: what the card says besides, by name. Raises InputError for
    what is no model, a mask that weights cannot express (one that adds, replaces or steers, or acts on a part of a
    text), another dtype and as `check_folder` does, OSError where the folder cannot be written.

    Everything is written beside what the folder holds, then put in its place. An error or a full disk leaves the model
    of an earlier call whole. A kill does too or, within the moment in which the files change places, leaves a folder
    without `config.json`, which no reader takes for a model.
    """
    folder = Path(folder)
    check_model(model)
    factors = {} if mask is None else weight_factors(model.config, mask)
    if dtype not in _DTYPES:
        raise InputError(f"dtype {dtype!r} is not supported; use {' or '.join(_DTYPES)}")
    check_folder(folder)
    with temporary_folder(folder, "model") if is_first() else contextlib.nullcontext(folder) as new:
        # In every process: each has a part of the weights.
        shards = list(_write_weights(model, new, _DTYPES[dtype], factors))
        if not is_first():
            return
        if len(shards) == 1:
            (new / shards[0][0]).replace(new / "model.safetensors")
        else:
            table = {name: file for file, names in shards for name in names}
            write_json(new / _INDEX, {"metadata": {_WRITER: _SAVED_FORMAT}, "weight_map": table})
        if model.tokenizer is not None:
            _write_tokenizer(model.tokenizer, new)
        write_text(new / "README.md", _card(model, dtype, notes or {}, factors))
        write_json(new / _CONFIG, hf_config(model.config, dtype))
        check_folder(folder, new)
        _put_in_place(new, folder)


def check_folder(folder: str | Path, new: Path | None = None) -> None:
    """Raises InputError where `save_folder` would replace files that it did not write: a model of others, or one of its
    own that was trained on or changed since. new: the folder with the files to put there, where they are known."""
    folder = Path(folder)
    if not folder.exists():
        return
    if not folder.is_dir():
        raise InputError(f"{folder}: not a folder; choose another for the model")
    own = set(_saved_files(folder))
    weights = [path for pattern in _WEIGHTS for path in folder.glob(pattern)]
    replaced = [folder / name for name in (_files_in(new) if new else (_CONFIG, "README.md"))]
    for path in sorted({*weights, *replaced}):
        if path.exists() and (path.relative_to(folder).as_posix() not in own or not _has_our_weights(path)):
            raise InputError(
                f"{folder}: holds {path.relative_to(folder)}, which mwork did not write; choose another folder for the "
                "model, or remove the file"
            )


def _has_our_weights(path: Path) -> bool:
    """Whether weights are those that `save_folder` wrote: who trains the model on and saves it replaces them. True for
    files of other kinds."""
    if path.name == _INDEX:
        try:
            return read_json(path)["metadata"].get(_WRITER) == _SAVED_FORMAT
        except (InputError, KeyError, TypeError, AttributeError):
            return False
    if path.suffix != ".safetensors":
        return True
    try:
        with safe_open(path, framework="numpy") as file:
            return (file.metadata() or {}).get(_WRITER) == _SAVED_FORMAT
    except (SafetensorError, OSError):
        return False


def _saved_files(folder: Path) -> list[str]:
    """The files that `save_folder` wrote here, as it wrote them down; none where it did not. A list that has been
    changed to name files outside the folder names none."""
    try:
        saved = read_json(folder / _SAVED)
        names = saved["files"] if saved["format"] == _SAVED_FORMAT else []
        inside = folder.resolve()
        whole = all(isinstance(n, str) and (folder / n).parent.resolve().is_relative_to(inside) for n in names)
        short = whole and all(len(os.fsencode(part)) <= _LONGEST_NAME for n in names for part in Path(n).parts)
        return list(names) if short else []
    except (InputError, KeyError, TypeError, ValueError):
        return []


def _files_in(folder: Path) -> list[str]:
    return sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())


def _put_in_place(new: Path, folder: Path) -> None:
    """Replaces the files of an earlier `save_folder` by new ones. From the first step to the last the folder has no
    `config.json`, and the list names all that may be there."""
    before, names = _saved_files(folder), _files_in(new)
    _write_list(folder, sorted({*before, *names}))
    (folder / _CONFIG).unlink(missing_ok=True)
    for name in before:
        if name not in names:  # of a model in other shards, which readers would take for this one's
            (folder / name).unlink(missing_ok=True)
    for name in (*(name for name in names if name != _CONFIG), _CONFIG):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (new / name).replace(folder / name)
    _write_list(folder, names)


def _write_list(folder: Path, names: Sequence[str]) -> None:
    write_json(folder / _SAVED, {"format": _SAVED_FORMAT, "files": list(names)})


def _write_tokenizer(tokenizer: Any, folder: Path) -> None:
    try:
        tokenizer.save_pretrained(folder)
    except Exception as error:  # the Rust half says so of a full disk, with no kind of its own
        raise OSError(errno.EIO, str(error), str(folder)) from None


def _write_weights(model: Model, folder: Path, dtype: np.dtype, factors: Factors) -> Iterator[tuple[str, list[str]]]:
    """Writes shards, each as soon as it is full: (file, tensors in it)."""
    shard: dict[str, np.ndarray] = {}
    number = 0
    for name, tensor in _tensors(model, dtype, factors):
        if shard and sum(t.nbytes for t in shard.values()) + tensor.nbytes > _SHARD_BYTES:
            number += 1
            yield _write_shard(folder, number, shard)
            shard = {}
        shard[name] = tensor
    yield _write_shard(folder, number + 1, shard)


def _write_shard(folder: Path, number: int, shard: dict[str, np.ndarray]) -> tuple[str, list[str]]:
    name = f"model-{number:05}.safetensors"
    write_tensors(folder / name, shard, {"format": "pt", _WRITER: _SAVED_FORMAT})
    return name, list(shard)


def _tensors(model: Model, dtype: np.dtype, factors: Factors) -> Iterator[tuple[str, np.ndarray]]:
    """The weights under their names in a checkpoint, [out, in], times `factors`. Tuned neurons come from their float32
    values, not from what is left of them in the model's dtype."""
    config = model.config
    rows = tuned_rows(model) if isinstance(model, Tuned) else {}
    arrays = parameter_arrays((model.base if isinstance(model, Tuned) else model).decoder)
    for name, array in arrays.items():
        if not name.startswith("layers."):
            yield from zip(checkpoint_names(config, name), (fetch(array).astype(dtype),), strict=True)
    # Layer by layer, as a checkpoint may keep several parameters of a layer in one tensor.
    stacked = {name.removeprefix("layers."): array for name, array in arrays.items() if name.startswith("layers.")}
    names = {short: checkpoint_names(config, f"layers.{short}") for short in stacked}
    for layer, parts in enumerate(zip(*(fetch_each(array) for array in stacked.values()), strict=True)):
        tensors = {}
        for short, part in zip(stacked, parts, strict=True):
            tensor = _with_tuned(short, _merged_heads(config, short, part).astype(np.float32), rows.get(short), layer)
            tensors[names[short][layer]] = np.asarray(scaled(short, tensor, factors, layer), dtype, order="C")
        yield from fused_tensors(config, layer, tensors).items()


def _with_tuned(name: str, tensor: np.ndarray, rows: tuple[np.ndarray, np.ndarray] | None, layer: int) -> np.ndarray:
    """One layer's tensor with the tuned rows or columns in their places."""
    if rows is None:
        return tensor
    index, values = rows
    here = index[:, 0] == layer
    if name == "down" and tensor.ndim == 3:  # of experts, [e, out, in]
        tensor[index[here, 1] // tensor.shape[2], :, index[here, 1] % tensor.shape[2]] = values[here]
    elif tensor.ndim == 3:
        tensor.reshape(-1, tensor.shape[-1])[index[here, 1]] = values[here]
    elif name == "down":
        tensor[:, index[here, 1]] = values[here].T
    else:
        tensor[index[here, 1]] = values[here]
    return tensor


def _merged_heads(config: ModelConfig, name: str, tensor: np.ndarray) -> np.ndarray:
    """[h, k, m] as [h*k, m], [m, h, k] as [m, h*k], [h, k] as [h*k] but for a norm of each head: as checkpoints have
    them."""
    if tensor.ndim == 3 and name in ("q", "k", "v", "o"):
        return tensor.reshape(tensor.shape[0], -1) if name == "o" else tensor.reshape(-1, tensor.shape[-1])
    merged = name in ("q_bias", "k_bias", "v_bias") or (name in ("q_norm", "k_norm") and config.qk_norm == "width")
    return tensor.reshape(-1) if merged else tensor


def tuned_rows(tuned: Tuned) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """What was tuned, without padding: {parameter: (int32 [n, 2] layer and row or column, float32 [n, hidden])}."""
    rows = {}
    for name, (group, _) in parameters_of(tuned.config).items():
        members = tuned.neurons.groups[group]
        layers, places = np.nonzero(members)
        # Within a layer the compact form is in the order of the indices, and so is nonzero.
        rank = np.concatenate([np.arange(n) for n in members.sum(axis=1)]) if len(layers) else layers
        values = np.asarray(tuned.result.values[name])[layers, rank]
        rows[name] = np.stack([layers, places], axis=1).astype(np.int32), values
    return rows


def _check_tuned(tuned: Any) -> None:
    if not isinstance(tuned, Tuned):
        raise InputError(
            f"a {type(tuned).__name__} has no delta to save; what `fine_tune` returns, a tuned model, has one "
            "(`save_folder` writes any model)"
        )


def save_delta(tuned: Tuned, path: str | Path) -> None:
    """Writes the tuned rows and columns alone, with the base model's identity and a checksum in the header:
    megabytes."""
    _check_tuned(tuned)
    tensors = {}
    for name, (index, values) in tuned_rows(tuned).items():
        tensors[f"{name}.index"], tensors[f"{name}.values"] = index, np.ascontiguousarray(values)
    header = {
        "format": _DELTA_FORMAT,
        "base": json.dumps(asdict(tuned.base.info)),
        "neurons": json.dumps(dict(tuned.neurons.provenance)),
    }
    write_tensors(path, tensors, header | {"sha256": checksum_of(header, tensors)})


def apply_delta(model: Model, path: str | Path) -> Model:
    """The model with the rows and columns of a delta file in their places.

    Raises InputError where the file is not a delta, is damaged, or is of another base model. Files of version 0.1 have
    no checksum: all else is checked, and a warning tells that their values are not verified.
    """
    rows = _read_delta(model, path)
    arrays = parameter_arrays(model.decoder)
    for name, (index, values) in rows.items():
        layers, neurons = jnp.asarray(index[:, 0]), jnp.asarray(index[:, 1])
        axis, whole = parameters_of(model.config)[name][1], arrays[f"layers.{name}"]
        arrays[f"layers.{name}"] = with_neurons(whole, layers, neurons, jnp.asarray(values), axis)
    return Model(Decoder(model.config, arrays), model.tokenizer, f"{model.source} + {Path(path).name}")


def _read_delta(model: Model, path: str | Path) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """What a delta file puts into the model, as `tuned_rows` has it. Raises InputError as `apply_delta` does."""
    try:
        with safe_open(path, framework="numpy") as file:
            header = file.metadata() or {}
            if header.get("format") not in (_DELTA_FORMAT, _DELTA_WITHOUT_CHECKSUM):
                raise InputError(f"{path}: not a delta file (its 'format' should be {_DELTA_FORMAT!r})")
            _check_base(model, header, path)
            slices = {name: file.get_slice(name) for name in file.keys()}  # noqa: SIM118
            stored = {name: (s.get_dtype(), tuple(s.get_shape())) for name, s in slices.items()}
            _check_layout(model.config, stored, path)  # before anything is allocated
            tensors = {name: file.get_tensor(name) for name in slices}
    except (SafetensorError, OSError) as error:
        raise InputError(f"{path}: cannot be read as a delta file ({str(error).splitlines()[0][:160]})") from None
    if header["format"] == _DELTA_WITHOUT_CHECKSUM:
        line = f"{path}: of version 0.1, without a checksum; its values are not verified"
        warnings.warn(line, InputWarning, stacklevel=3)
    elif header.get("sha256") != checksum_of({k: v for k, v in header.items() if k != "sha256"}, tensors):
        raise _damaged(path, "its checksum is another")
    rows = {name: (tensors[f"{name}.index"], tensors[f"{name}.values"]) for name in parameters_of(model.config)}
    _check_values(model.config, rows, path)
    return rows


def _damaged(path: str | Path, reason: str) -> InputError:
    return InputError(f"{path}: damaged ({reason}); copy the file again, or write it anew with `mwork enhance`")


def _check_base(model: Model, header: Mapping[str, str], path: str | Path) -> None:
    """Raises InputError where the header's base model is another or cannot be read."""
    base = model_of({"model": parse_json(header.get("base", "null"), f"{path}: base")}, str(path))
    if base is None:
        raise _damaged(path, "its header does not name the base model")
    if base.key != model.key:
        theirs, own = (f"{m.source} ({m.dtype}, weights {m.weights})" for m in (base, model.info))
        raise InputError(f"{path}: it belongs to {theirs}, the model given is {own}; load that one, with that dtype")


def _check_layout(config: ModelConfig, stored: Mapping[str, tuple[str, tuple[int, ...]]], path: str | Path) -> None:
    """Raises InputError where tensors are missing or too many, or have another dtype or shape than the model needs."""
    expected = {f"{name}.{part}" for name in parameters_of(config) for part in ("index", "values")}
    if different := sorted(expected ^ stored.keys()):
        problem = "is missing" if different[0] in expected else "is not part of a delta"
        raise _damaged(path, f"{different[0]:.60} {problem}")
    for name, (group, _) in parameters_of(config).items():
        most = config.num_layers * group_widths(config)[group]
        (index_dtype, index_shape), (dtype, shape) = stored[f"{name}.index"], stored[f"{name}.values"]
        if (index_dtype, dtype) != ("I32", "F32"):
            raise _damaged(path, f"{name} has dtypes {index_dtype} and {dtype}; I32 and F32 are needed")
        if len(index_shape) != 2 or index_shape[1] != 2 or shape != (index_shape[0], config.hidden_size):
            needed = f"[n, 2] and [n, {config.hidden_size}]"
            raise _damaged(path, f"{name} has shapes {list(index_shape)} and {list(shape)}; {needed} are needed")
        if index_shape[0] > most:
            raise _damaged(path, f"{name} has {index_shape[0]} rows; the model has {most} neurons in {group}")


def _check_values(config: ModelConfig, rows: Mapping[str, tuple[np.ndarray, np.ndarray]], path: str | Path) -> None:
    """Raises InputError for places that the model does not have or that are there twice, for values that are not finite
    and for parameters of one group with other neurons."""
    first: dict[str, np.ndarray] = {}
    for name, (group, _) in parameters_of(config).items():
        index, values = rows[name]
        sizes = config.num_layers, group_widths(config)[group]
        outside = ((index < 0) | (index >= np.asarray(sizes))).any(axis=1)
        if outside.any():
            layer, place = index[outside][0].tolist()
            needed = f"the model has {sizes[0]} layers x {sizes[1]}"
            raise _damaged(path, f"{name}: there is no layer {layer}, neuron {place}; {needed}")
        if len(np.unique(index, axis=0)) < len(index):
            raise _damaged(path, f"{name}: a neuron is there twice")
        if not np.isfinite(values).all():
            raise _damaged(path, f"{name}: a value is not finite")
        if not np.array_equal(first.setdefault(group, index), index):
            raise _damaged(path, f"{name}: its neurons are not those of the other parameters of {group}")


def _as_cell(value: object) -> str:
    """Text in a cell of a Markdown table, whatever names others have given: one line, no markup."""
    return re.sub(r"([\\|`*_\[\]])", r"\\\1", html.escape(" ".join(str(value).split()), quote=False))


def _card(model: Model, dtype: str, notes: Mapping[str, object], factors: Factors) -> str:
    """The model card: where this model came from."""
    tuned = model if isinstance(model, Tuned) else None
    base = tuned.base if tuned else model
    facts = {"weights": dtype, "base model": base.source, "base weights": base.key["weights"]}
    facts |= _facts_of_tuning(tuned) if tuned else {}
    facts |= {"neurons under the mask": described(factors)} if factors else {}
    loaded = np.dtype(base.decoder.dtype)
    kept = "bit for bit" if loaded == np.float32 else f"as it was loaded in {loaded.name}"
    kept = "rounded to bfloat16" if _DTYPES[dtype].itemsize < loaded.itemsize else kept
    done = []
    if tuned:
        done.append(
            "Tuned with mwork-jax: nothing but one language's neurons was trained, by causal language modelling."
        )
    if factors:
        done.append("Masked with mwork-jax: what switches neurons off or scales them is multiplied into the weights.")
    others = "Every other weight" if done else "Every weight"
    lines = "\n".join(f"| {_as_cell(name)} | {_as_cell(value)} |" for name, value in (facts | dict(notes)).items())
    return (
        f"---\nlibrary_name: transformers\ntags: [mwork-jax]\n---\n\n# {_as_cell(model.source)}\n\n"
        f"{' '.join((*done, others))} is the base model's, {kept}, and its licence holds.\n\n"
        f"| | |\n|---|---|\n{lines}\n"
    )


def _facts_of_tuning(tuned: Tuned) -> dict[str, object]:
    neurons, history = tuned.neurons, tuned.history
    parameters = sum(values.size for _, values in tuned_rows(tuned).values())
    return {
        "neurons": f"{neurons.count():,} of {neurons.total():,} ({parameters:,} parameters)",
        "documents": f"{len(tuned.result.run.documents)}",
        "validation loss, nats per token": f"{history.validation[0][1]:.4f} before, {history.best[1]:.4f} after "
        f"{history.best[0]} steps",
        **{f"found by {k}": v for k, v in neurons.provenance.items() if isinstance(v, str | int)},
    }
