"""Tokenizers: Hugging Face's own, loaded without torch and without remote code."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from mwork_jax.errors import InputError

_FILES = ("tokenizer.json", "tokenizer.model", "tokenizer_config.json", "vocab.json")


def folder_tokenizer(folder: Path) -> Any | None:
    """The tokenizer of a checkpoint folder, or None where it has none. Raises InputError where it cannot be read."""
    if not any((folder / name).is_file() for name in _FILES):
        return None
    from transformers import AutoTokenizer  # takes a second to import; models without text never pay for it

    try:
        return AutoTokenizer.from_pretrained(str(folder), trust_remote_code=False, local_files_only=True)
    except Exception as error:  # transformers raises many kinds for damaged files
        raise InputError(f"{folder}: the tokenizer cannot be read ({str(error).splitlines()[0][:200]})") from None
