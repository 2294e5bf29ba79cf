"""Documents as tokens: text through a model's tokenizer, token arrays as they are."""

from __future__ import annotations

from typing import Any

import numpy as np

from mwork_jax.errors import InputError

Document = str | np.ndarray  # text, or int32 [time]
_LAST = int(np.iinfo(np.int32).max)


def encode(tokenizer: Any | None, document: str | np.ndarray, *, where: str = "document") -> np.ndarray:
    """A document as int32 [time]: text through the tokenizer (with the special tokens the model expects), arrays as
    they are. Raises InputError for text that is not Unicode, and for what no vocabulary holds."""
    if isinstance(document, str):
        if tokenizer is None:
            raise InputError(f"{where}: the model has no tokenizer; give int32 token arrays instead of text")
        _check_unicode(document, where)
        return np.asarray(tokenizer(document)["input_ids"], np.int32)
    tokens = np.asarray(document)
    if tokens.ndim != 1 or not np.issubdtype(tokens.dtype, np.integer):
        raise InputError(
            f"{where}: tokens must be a one-dimensional integer array, not {tokens.dtype} of shape {tokens.shape}"
        )
    if tokens.size:
        low, high = int(tokens.min()), int(tokens.max())
        if low < 0 or high > _LAST:
            wrong = low if low < 0 else high
            raise InputError(f"{where}: token {wrong} is outside the vocabulary; ids go from 0 to {_LAST} at most")
    return tokens.astype(np.int32)


def chat_prompt(tokenizer: Any | None, text: str) -> str:
    """The text as a user's message, up to where the answer begins, for `encode`. Raises InputError for a tokenizer
    without a chat template."""
    if tokenizer is None or not getattr(tokenizer, "chat_template", None):
        raise InputError("the model has no chat template (models tuned to follow instructions have one); leave it off")
    message = [{"role": "user", "content": text}]
    # A template for thinking models must begin the answer at once; other templates ignore this option.
    options = {"tokenize": False, "add_generation_prompt": True, "enable_thinking": False}
    rendered = tokenizer.apply_chat_template(message, **options)
    bos = tokenizer.bos_token
    # `encode` adds the tokens that a text begins with; the template's own BOS would be a second one.
    adds_bos = bos is not None and tokenizer("a")["input_ids"][:1] == [tokenizer.bos_token_id]
    return rendered.removeprefix(bos) if adds_bos else rendered


def _check_unicode(text: str, where: str) -> None:
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise InputError(
            f"{where}: character {error.start + 1} is half a surrogate pair (U+{ord(text[error.start]):04X}); "
            "text must be valid Unicode"
        ) from None


def shared_prefix_length(a: np.ndarray, b: np.ndarray) -> int:
    """How many tokens two one-dimensional arrays have in common at their beginning."""
    shorter = min(a.size, b.size)
    differing = np.flatnonzero(a[:shorter] != b[:shorter])
    return int(differing[0]) if differing.size else shorter
