"""GGUF files, read as if they were Hugging Face checkpoints. What they say of each family is in `families`."""

from __future__ import annotations

import math
import re
from collections import Counter
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from mwork_jax.errors import InputError
from mwork_jax.families import gguf_form
from mwork_jax.families.gguf import Restore, gguf_attributes, refuse_unknown
from mwork_jax.load.gguf_format import GGUFFile
from mwork_jax.load.gguf_tokenizer import build_tokenizer
from mwork_jax.load.tokenizer import check_usable

_IN_LAYER = re.compile(r"blk\.(\d+)\.(\w+?)(?:\.(\d+))?\.(weight|bias)")  # the second number: of an expert
_BITS = re.compile(r"(?:Q|MXFP)(\d)")


class _Stored(NamedTuple):
    """A tensor of the file: its name there, and what makes a checkpoint's from it, where that differs."""

    name: str
    restore: Restore | None


class GGUFCheckpoint:
    """The weights, configuration and tokenizer of one GGUF file (a WeightSource)."""

    def __init__(self, path: str | Path):
        """Maps the file and reads its header; tensors are read later, one by one.

        Raises InputError for a file that is not GGUF, is cut short, is one part of several, or holds an architecture or
        a tensor type that is not supported.
        """
        self._file = GGUFFile(path)
        self.where = self._file.where
        if self._file.metadata.get("split.count", 1) not in (0, 1):
            raise InputError(f"{self.where}: one part of several; join them first with llama-gguf-split --merge")
        self._family, self._form, self._metadata = gguf_form(self._file)
        self._stored: dict[str, _Stored] = {}
        for name in (name for name in self._file.tensors if name not in self._form.read_tensors):
            hf_name, stored = self._hf_tensor(name)
            if (other := self._stored.setdefault(hf_name, stored)) != stored:
                raise InputError(f"{self.where}: {other.name} and {name} are both {hf_name}; which one holds?")
        self._made = self._from_metadata()

    def names(self) -> set[str]:
        """Tensor names as in a PyTorch checkpoint; a tensor without such a name keeps its GGUF name."""
        return self._stored.keys() | self._made.keys()

    def read(self, name: str, dtype: np.dtype | type = np.float32) -> np.ndarray:
        """One tensor, [out, in], as HF means it: of `dtype` where the file is quantised, else the file's own float
        type.

        Raises KeyError for a name that `names()` does not have.
        """
        if name in self._made:
            return self._made[name]
        stored = self._stored[name]
        array = self._file.array(stored.name, dtype)
        return array if stored.restore is None else stored.restore(array, self._metadata)

    def stored(self) -> str:
        """How the file holds its matrices, the type of most weights first, and the bits of the first that is quantised:
        "4-bit GGUF (Q4_0, Q6_K)"."""
        weights: Counter[str] = Counter()
        for tensor in self._file.tensors.values():
            if len(tensor.shape) > 1:
                weights[tensor.kind] += math.prod(tensor.shape)
        kinds = [kind for kind, _ in weights.most_common()]
        bits = next((match[1] for kind in kinds if (match := _BITS.match(kind))), None)
        return f"{f'{bits}-bit ' if bits else ''}GGUF ({', '.join(kinds)})"

    def tokenizer(self) -> Any | None:
        """The file's tokenizer as a transformers fast tokenizer, or None where the file has none.

        Raises InputError for a kind of tokenizer that is not supported.
        """
        tokenizer = build_tokenizer(self._file.metadata, self.where)
        if tokenizer is not None:
            check_usable(tokenizer, self.where)
        return tokenizer

    def hf_config(self) -> dict[str, object]:
        """The model as a Hugging Face `config.json` would describe it.

        Raises InputError for metadata that is missing, not understood, or beyond what this package computes.
        """
        refuse_unknown(self._form, self._metadata, self._file.metadata)
        bos, *ends = map(self._token_id, ("bos", "eos", "eot"))
        special = {"bos_token_id": bos, "eos_token_id": list(dict.fromkeys(end for end in ends if end is not None))}
        described = {"model_type": self._family.model_type, "vocab_size": self._vocab_size(), **special}
        return described | gguf_attributes(self._form, self._metadata)

    def _hf_tensor(self, name: str) -> tuple[str, _Stored]:
        """A tensor's name in a checkpoint, and where it is."""
        if match := _IN_LAYER.fullmatch(name):
            layer, part, expert, kind = match.groups()
            table, before = self._form.layer, f"{self._family.layers}{layer}."
            part += "" if expert is None else ".{}"
        else:
            (part, _, kind), table, before, expert = name.rpartition("."), self._form.whole, "", None
        if f"{part}.{kind}" in table:
            return before + table[f"{part}.{kind}"], _Stored(name, None)
        if part not in table or kind not in ("weight", "bias"):
            return name, _Stored(name, None)
        own = table[part]
        return f"{before}{own.format(expert)}.{kind}", _Stored(name, self._form.restored.get(own))

    def _from_metadata(self) -> dict[str, np.ndarray]:
        made = {}
        for name, (key, shape) in self._form.from_metadata.items():
            for layer, number in enumerate(self._metadata.per_layer(key)):
                made[f"{self._family.layers}{layer}.{name}"] = np.full(shape, number, np.float32)
        return made

    def _vocab_size(self) -> int:
        hidden, table = self._metadata.count("embedding_length"), self._file.tensors.get("token_embd.weight")
        if table is None or len(table.shape) != 2 or table.shape[1] != hidden:
            problem = "is missing" if table is None else f"has shape {table.shape}"
            raise InputError(f"{self.where}: token_embd.weight {problem}; [vocabulary, {hidden}] is needed")
        return table.shape[0]

    def _token_id(self, kind: str) -> int | None:
        key = f"tokenizer.ggml.{kind}_token_id"
        value = self._file.metadata.get(key)
        if value is not None and type(value) is not int:
            raise InputError(f"{self.where}: {key} is {value!r:.80}; one whole number is needed")
        return value
