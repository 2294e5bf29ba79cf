"""Loading a model: a folder in Hugging Face layout, a Hub id, a GGUF file, or a packaged model by name."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property
from math import prod
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from mwork_jax.config import ModelConfig, ending_too
from mwork_jax.errors import InputError
from mwork_jax.load.assemble import assemble, assemble_on
from mwork_jax.load.bucket import BucketFolder, is_bucket
from mwork_jax.load.flax_checkpoint import FlaxCheckpoint
from mwork_jax.load.gguf_file import GGUFCheckpoint
from mwork_jax.load.hf_folder import SafetensorsFolder
from mwork_jax.load.packaged import PACKAGED, packaged_gguf
from mwork_jax.load.source import WeightSource
from mwork_jax.load.tokenizer import chat_prompt, encode, folder_tokenizer
from mwork_jax.model.decoder import Decoder, parameter_specs
from mwork_jax.runtime.files import read_json
from mwork_jax.sharding import fetch, fetch_each

_DTYPES = {"float32": jnp.float32, "bfloat16": jnp.bfloat16}
_GENERATION = "generation_config.json"
_HUB_FILES = ["*.json", "model*.safetensors", "flax_model*.msgpack", "tokenizer*", "*.model", "*.jinja"]


@dataclass(frozen=True)
class Model:
    """A loaded model: `decoder` (parameters, a pytree), its `config`, its `tokenizer` (or None), and where it came
    from.

    A pytree whose leaves are the parameters, so it can be an argument of jit, and grad with respect to it is a Model.
    """

    decoder: Decoder
    tokenizer: Any | None
    source: str

    @property
    def config(self) -> ModelConfig:
        return self.decoder.config

    def encode(self, document: str | np.ndarray, *, where: str = "document") -> np.ndarray:
        """A document as int32 [time]. Raises InputError for tokens outside the vocabulary."""
        tokens = encode(self.tokenizer, document, where=where)
        if tokens.size and not (tokens.min() >= 0 and tokens.max() < self.config.vocab_size):
            raise InputError(f"{where}: token {tokens.max()} is outside the vocabulary of {self.config.vocab_size}")
        return tokens

    def chat_prompt(self, text: str) -> str:
        """The text as a user's message in the model's chat template. Raises InputError where it has none."""
        return chat_prompt(self.tokenizer, text)

    @cached_property
    def identity(self) -> dict[str, Any]:
        """What results say about the model: where it came from, and its `key`."""
        return {"source": self.source, **self.key}

    @cached_property
    def key(self) -> dict[str, Any]:
        """What tells two models apart, however their paths are spelled: shape, dtype, and fingerprints of the weights
        with the configuration and of the tokenizer (None without one). The first use reads every weight."""
        return {
            "family": self.config.family,
            "layers": self.config.num_layers,
            "hidden_size": self.config.hidden_size,
            "dtype": jnp.dtype(self.decoder.dtype).name,
            "weights": _fingerprint(self.decoder),
            "tokenizer": _tokenizer_fingerprint(self.tokenizer),
        }

    def is_of(self, identity: Mapping[str, Any]) -> bool:
        """Whether an identity that results hold is this model's, wherever it came from."""
        return {name: value for name, value in identity.items() if name != "source"} == self.key


class _Static:
    """What a Model has besides its parameters, as jit compares it: tokenizers by identity, as they have no equality."""

    def __init__(self, tokenizer: Any | None, source: str):
        self.tokenizer, self.source = tokenizer, source

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _Static) and self.tokenizer is other.tokenizer and self.source == other.source

    def __hash__(self) -> int:
        return hash((id(self.tokenizer), self.source))


jax.tree_util.register_pytree_with_keys(
    Model,
    lambda model: (((jax.tree_util.GetAttrKey("decoder"), model.decoder),), _Static(model.tokenizer, model.source)),
    lambda static, children: Model(children[0], static.tokenizer, static.source),
)


def load_model(source: str | os.PathLike[str], dtype: str | None = None, mesh: Mesh | None = None) -> Model:
    """Loads a model for `mw.forward` and everything else.

    source: a folder in Hugging Face layout (safetensors, or an older Flax checkpoint), the address of one in a bucket
    (`gs://…`, `s3://…`), a `.gguf` file, the name of a packaged model ("gemma3-270m"), or a Hub id. dtype: "float32" or
    "bfloat16", of the weights and of matrix products' operands (results, norms and scores are float32 always); None
    picks what is fast on this machine. mesh: one of `mw.make_mesh`, to share out the weights and the work over its
    devices. Raises InputError with one line that says
    what is wrong, where, and what would be right.
    """
    if dtype is not None and dtype not in _DTYPES:
        raise InputError(f"dtype {dtype!r} is not supported; use {' or '.join(_DTYPES)}")
    compute = _DTYPES[dtype or default_dtype()]
    weights, config, read_tokenizer = _open(str(source))
    if mesh is None:
        decoder = assemble(config, weights, compute, lambda name, array: jnp.asarray(array))
    else:
        decoder = assemble_on(config, weights, compute, mesh)
    return Model(decoder, read_tokenizer(), str(source))


def weight_bytes(source: str, dtype: str | None = None) -> int:
    """How many bytes the weights of a model take once they are loaded in `dtype`, however they are stored."""
    _, config, _ = _open(source)
    size = np.dtype(_DTYPES[dtype or default_dtype()]).itemsize
    return sum(prod(spec.shape) * (4 if spec.keep_float32 else size) for spec in parameter_specs(config).values())


def default_dtype() -> str:
    """bfloat16 on accelerators and on CPUs with bfloat16 instructions, else float32."""
    if jax.default_backend() != "cpu":
        return "bfloat16"
    try:
        flags = Path("/proc/cpuinfo").read_text()
    except OSError:
        return "float32"
    return "bfloat16" if "amx_bf16" in flags or "avx512_bf16" in flags else "float32"


def _open(source: str) -> tuple[WeightSource, ModelConfig, Callable[[], Any | None]]:
    """The weights, the configuration, and a function that reads the tokenizer."""
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
    path = Path(source).expanduser()
    if path.exists():
        return path
    if path.suffix.lower() == ".gguf" or source.count("/") != 1 or source.startswith((".", "/", "~")):
        raise InputError(
            f"{source}: no such model; give a folder, a .gguf file, a Hub id (owner/name) or {' or '.join(PACKAGED)}"
        )
    return _download(source)


def _open_gguf(path: Path) -> tuple[WeightSource, ModelConfig, Callable[[], Any | None]]:
    checkpoint = GGUFCheckpoint(path)
    return checkpoint, ModelConfig.from_hf(checkpoint.hf_config(), where=str(path)), checkpoint.tokenizer


def _open_bucket(url: str) -> tuple[WeightSource, ModelConfig, Callable[[], Any | None]]:
    bucket = BucketFolder(url)
    config = _config_of(bucket.json("config.json"), f"{bucket.where}/config.json")
    if bucket.holds(_GENERATION):
        config = ending_too(config, bucket.json(_GENERATION), f"{bucket.where}/{_GENERATION}")

    def tokenizer() -> Any | None:
        with bucket.without_weights() as folder:
            return folder_tokenizer(folder)

    return bucket, config, tokenizer


def _config_of(hf: Any, where: str) -> ModelConfig:
    if not isinstance(hf, dict):
        raise InputError(f"{where}: a JSON object is needed")
    return ModelConfig.from_hf(hf, where=where)


def _open_folder(folder: Path) -> tuple[WeightSource, ModelConfig, Callable[[], Any | None]]:
    if not (folder / "config.json").is_file():
        raise InputError(f"{folder}: no config.json; a model folder in Hugging Face layout has one")
    config = _config_of(read_json(folder / "config.json"), str(folder / "config.json"))
    if (folder / _GENERATION).is_file():
        config = ending_too(config, read_json(folder / _GENERATION), str(folder / _GENERATION))
    if SafetensorsFolder.holds(folder):
        weights: WeightSource = SafetensorsFolder(folder)
    elif FlaxCheckpoint.holds(folder):
        weights = FlaxCheckpoint(folder)
    else:
        raise InputError(
            f"{folder}: no weights; model.safetensors (whole or in shards) or flax_model.msgpack is needed"
        )
    return weights, config, lambda: folder_tokenizer(folder)


def _download(repository: str) -> Path:
    """A Hub repository's files in the local cache."""
    from huggingface_hub import snapshot_download

    try:
        return Path(snapshot_download(repository, allow_patterns=_HUB_FILES))
    except Exception as error:  # offline, unknown, gated: many kinds, one line for all
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise InputError(f"{repository}: no such folder here, and the Hub could not give it ({reason[:160]})") from None


def _fingerprint(decoder: Decoder) -> str:
    """A short hash over the configuration and every byte of every parameter with its name, shape and dtype."""
    digest = hashlib.sha256(repr(decoder.config).encode())
    for path, leaf in jax.tree_util.tree_leaves_with_path(decoder):
        digest.update(f"{jax.tree_util.keystr(path)} {leaf.shape} {leaf.dtype.name}\n".encode())
        for part in fetch_each(leaf) if "layers" in jax.tree_util.keystr(path) else (fetch(leaf),):
            digest.update(np.ascontiguousarray(part).reshape(-1).view(np.uint8).data)
    return digest.hexdigest()[:16]


def _tokenizer_fingerprint(tokenizer: Any | None) -> str | None:
    """A short hash over what decides which tokens a text becomes: vocabulary, merges, special tokens, what goes around
    a text."""
    if tokenizer is None:
        return None
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is not None:
        text = backend.to_str()
        # Truncation and padding stand before the added tokens, and every call of the tokenizer sets them anew.
        described = text[max(0, text.find('"added_tokens"')) :]
    else:
        vocabulary = tokenizer.get_vocab() if hasattr(tokenizer, "get_vocab") else {}
        around = [int(token) for token in tokenizer("a")["input_ids"]]
        described = json.dumps([type(tokenizer).__qualname__, sorted(vocabulary.items()), around])
    special = sorted((name, str(token)) for name, token in getattr(tokenizer, "special_tokens_map", {}).items())
    return hashlib.sha256(f"{described}\n{special}".encode("utf-8", "surrogatepass")).hexdigest()[:16]
