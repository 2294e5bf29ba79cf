"""Loading a model: a folder in Hugging Face layout, a Hub id, a GGUF file, or a packaged model by name."""

from __future__ import annotations

import os
import re
import warnings
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import Mesh

from mwork_jax.config import ModelConfig
from mwork_jax.errors import InputError, InputWarning, whole_number
from mwork_jax.families import config_from_hf, ignored_in_answers, with_generation_config
from mwork_jax.load.assemble import assemble, assemble_on
from mwork_jax.load.bucket import BucketFolder, is_bucket
from mwork_jax.load.flax_checkpoint import FlaxCheckpoint
from mwork_jax.load.float8 import with_float8
from mwork_jax.load.gguf_file import GGUFCheckpoint
from mwork_jax.load.hf_folder import INDEX, SafetensorsFolder
from mwork_jax.load.packaged import PACKAGED, packaged_gguf
from mwork_jax.load.source import TypedSource, WeightSource
from mwork_jax.load.tokenizer import folder_tokenizer
from mwork_jax.model.model import Model
from mwork_jax.model.parameters import weight_bytes
from mwork_jax.model.tokens import added_tokens
from mwork_jax.runtime.files import read_json

_DTYPES = {"float32": jnp.float32, "bfloat16": jnp.bfloat16}
_GENERATION = "generation_config.json"
_CONVERT = "; pytorch_model.bin can hold code and is not read: `python -m mwork_jax.load.to_safetensors {}` converts it"
_HUB_FILES = ["*.json", "merges.txt", "model*.safetensors", "flax_model*.msgpack", "tokenizer*", "*.model", "*.jinja"]


def load_model(
    source: str | os.PathLike[str],
    dtype: str | None = None,
    mesh: Mesh | None = None,
    weights: str | None = None,
    memory: int | None = None,
) -> Model:
    """Loads a model for `mw.forward` and everything else.

    source: a folder in Hugging Face layout (safetensors, or an older Flax checkpoint), the address of one in a bucket
    (`gs://…`, `s3://…`), a `.gguf` file, the name of a packaged model ("gemma3-270m"), or a Hub id, `owner/name` or
    `owner/name@revision` (a branch, a tag, a commit or `refs/pr/N`). dtype: "float32" or
    "bfloat16", of the weights and of matrix products' operands (results, norms and scores are float32 always); None
    picks what is fast on this machine. mesh: one of `mw.make_mesh`, to share out the weights and the work over its
    devices. weights: "int8" keeps the layers' matrices as 8-bit whole numbers with a factor for each output channel,
    multiplied out to `dtype` layer by layer; None as they are. memory: bytes of a device that weights and rows may
    take, where it should not be what is there. Raises InputError, one line with what is wrong, where,
    and what would be right.
    """
    if dtype is not None and dtype not in _DTYPES:
        raise InputError(f"dtype {dtype!r} is not supported; use {' or '.join(_DTYPES)}")
    if weights not in (None, "int8"):
        raise InputError(f"weights {weights!r:.40} are not supported; use int8, or none for weights as they are")
    if memory is not None:
        whole_number("memory", memory, 1)
    compute = _DTYPES[dtype or default_dtype()]
    checkpoint = _open(str(source))
    tokenizer = checkpoint.read_tokenizer()
    config = _with_bos_of(tokenizer, checkpoint.config)
    if never := [token for token in config.eos_ids if token >= config.vocab_size]:
        line = f"{source}: the end token {never[0]} is not in the vocabulary of {config.vocab_size}, so it never comes"
        warnings.warn(line, InputWarning, stacklevel=2)
    if memory is not None and memory <= (taken := weight_bytes(config, compute, mesh, weights == "int8")):
        given, least = (f"{size / (1 << 20):,.1f} MB" for size in (memory, taken))
        raise InputError(f"memory: {given} of a device, of which the weights alone take {least}; more is needed")
    if mesh is None:
        decoder = assemble(
            config, checkpoint.weights, compute, lambda name, array: jnp.asarray(array), weights == "int8"
        )
    else:
        decoder = assemble_on(config, checkpoint.weights, compute, mesh, weights == "int8")
    stored = checkpoint.weights.stored() if isinstance(checkpoint.weights, TypedSource) else None
    return Model(decoder, tokenizer, str(source), checkpoint.revision, checkpoint.ignored_in_answers, stored, memory)


def _with_bos_of(tokenizer: Any | None, config: ModelConfig) -> ModelConfig:
    """The configuration with the BOS that the tokenizer really puts in front of a text, which a config.json may name
    otherwise: that token must not count in the norms."""
    before = added_tokens(tokenizer).before
    return replace(config, bos_id=before[0]) if len(before) == 1 else config


def read_config(source: str | os.PathLike[str]) -> ModelConfig:
    """The configuration of a model that `load_model` would load; no weight is read. Raises InputError as it does."""
    return _open(str(source)).config


def default_dtype() -> str:
    """bfloat16 on accelerators and on CPUs with bfloat16 instructions, else float32."""
    if jax.default_backend() != "cpu":
        return "bfloat16"
    try:
        flags = Path("/proc/cpuinfo").read_text()
    except OSError:
        return "float32"
    return "bfloat16" if "amx_bf16" in flags or "avx512_bf16" in flags else "float32"


@dataclass(frozen=True)
class _Checkpoint:
    """An opened model of which no weight has been read: where its weights are, its configuration, a function that reads
    its tokenizer, the commit, where it is from the Hub, and what its generation_config.json asks for in vain."""

    weights: WeightSource
    config: ModelConfig
    read_tokenizer: Callable[[], Any | None]
    revision: str | None = None
    ignored_in_answers: tuple[str, ...] = ()


def _open(source: str) -> _Checkpoint:
    if on_hub := re.match(r"https?://(?:huggingface\.co|hf\.co)/([^/\s]+/[^/?#\s]+)", source):
        raise InputError(f"{source}: the address of a page; the model's Hub id is {on_hub[1]}")
    if is_bucket(source):
        return _open_bucket(source)
    path = _located(source)
    if path.is_dir():
        return _open_folder(path)
    if path.suffix.lower() != ".gguf":
        raise InputError(f"{path}: not a model; give a folder in Hugging Face layout or a .gguf file")
    return _open_gguf(path)


def _located(source: str) -> Path:
    """The folder or file on this machine, of a packaged model or from the Hub too. Raises InputError for neither."""
    if source in PACKAGED:
        return packaged_gguf(source)
    if not source.strip():
        raise InputError("the model has no name; is a variable of the shell not set? give a folder, a file or a Hub id")
    try:
        path = Path(source).expanduser()
        if path.exists():
            return path
    except (OSError, RuntimeError) as error:  # a name that is too long, the home of a user that is not known
        raise InputError(f"{source}: no such model ({getattr(error, 'strerror', None) or error})") from None
    repository, at, revision = source.partition("@")
    if path.suffix.lower() == ".gguf" or repository.count("/") != 1 or source.startswith((".", "/", "~")):
        raise InputError(
            f"{source}: no such model; give a folder, a .gguf file, a Hub id (owner/name) or {' or '.join(PACKAGED)}"
        )
    if at and not revision:
        raise InputError(f"{source}: a revision follows the @, as in {repository}@main")
    return _download(repository, revision or None)


def _open_gguf(path: Path) -> _Checkpoint:
    checkpoint = GGUFCheckpoint(path)
    return _Checkpoint(checkpoint, config_from_hf(checkpoint.hf_config(), where=str(path)), checkpoint.tokenizer)


def _open_bucket(url: str) -> _Checkpoint:
    bucket = BucketFolder(url)
    config = _config_of(bucket.json("config.json"), f"{bucket.where}/config.json")
    ignored: tuple[str, ...] = ()
    if bucket.holds(_GENERATION):
        generation = bucket.json(_GENERATION)
        config = with_generation_config(config, generation, f"{bucket.where}/{_GENERATION}")
        ignored = ignored_in_answers(generation)

    def tokenizer() -> Any | None:
        with bucket.without_weights() as folder:
            return folder_tokenizer(folder)

    return _Checkpoint(bucket, config, tokenizer, ignored_in_answers=ignored)


def _config_of(hf: Any, where: str) -> ModelConfig:
    if not isinstance(hf, dict):
        raise InputError(f"{where}: a JSON object is needed")
    return config_from_hf(hf, where=where)


def _open_folder(folder: Path) -> _Checkpoint:
    if (folder / "adapter_config.json").is_file():
        raise InputError(f"{folder}: a LoRA adapter, not a model; merge it into its base model and save that")
    if not (folder / "config.json").is_file():
        inner = sorted(path.parent for name in ("*", "snapshots/*") for path in folder.glob(f"{name}/config.json"))
        where = f": {inner[0]}, for example" if inner else ""
        raise InputError(f"{folder}: no config.json; a model folder in Hugging Face layout has one{where}")
    hf = read_json(folder / "config.json")
    config = _config_of(hf, str(folder / "config.json"))
    ignored: tuple[str, ...] = ()
    if (folder / _GENERATION).is_file():
        generation = read_json(folder / _GENERATION)
        config = with_generation_config(config, generation, str(folder / _GENERATION))
        ignored = ignored_in_answers(generation)
    if SafetensorsFolder.holds(folder):
        weights: WeightSource = with_float8(SafetensorsFolder(folder), hf)
    elif FlaxCheckpoint.holds(folder):
        weights = FlaxCheckpoint(folder)
    else:
        raise InputError(
            f"{folder}: no weights; model.safetensors (whole or in shards) or flax_model.msgpack is needed"
            + _what_is_there_instead(folder)
        )
    return _Checkpoint(weights, config, lambda: folder_tokenizer(folder), _commit(folder), ignored)


def _what_is_there_instead(folder: Path) -> str:
    """What a folder without weights that are read has of others, and what to do; "" where it has none."""
    if shards := sorted(folder.glob("model-*-of-*.safetensors")):
        return f"; there is {shards[0].name}, but not {INDEX}, which names all shards: copy it too"
    if list(folder.glob("pytorch_model*.bin")):
        return _CONVERT.format(folder)
    others = sorted(folder.glob("*.safetensors"))
    return f"; {others[0].name} is not in Hugging Face's layout" if others else ""


def _commit(folder: Path) -> str | None:
    """The commit of a folder in the Hub's cache, which is named after it; None for another folder."""
    in_cache = folder.parent.name == "snapshots" and re.fullmatch("[0-9a-f]{40}", folder.name)
    return folder.name if in_cache else None


def _download(repository: str, revision: str | None) -> Path:
    """A Hub repository's files in the local cache, of its main branch where there is no revision."""
    from huggingface_hub import snapshot_download

    try:
        return Path(snapshot_download(repository, revision=revision, allow_patterns=_HUB_FILES))
    except Exception as error:  # offline, unknown, gated: many kinds, one line for all
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        name = repository if revision is None else f"{repository}@{revision}"
        raise InputError(f"{name}: no such folder here, and the Hub could not give it ({reason[:160]})") from None
