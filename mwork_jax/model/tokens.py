"""Documents as tokens: text through a model's tokenizer, token arrays as they are."""

from __future__ import annotations

from datetime import datetime
from typing import Any, NamedTuple

import numpy as np

from mwork_jax.errors import InputError
from mwork_jax.runtime.time_limit import time_limit

CHAT_DATE = datetime(2024, 7, 26)  # the day that chat templates are told, the one that Llama 3's own falls back to
_TEMPLATE_SECONDS = 10
_UNDECODED = "\ufffd"
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


class AddedTokens(NamedTuple):
    """The ids that a tokenizer puts in front of a text and behind it."""

    before: tuple[int, ...]
    behind: tuple[int, ...]


def added_tokens(tokenizer: Any | None) -> AddedTokens:
    """What the tokenizer really adds to a text, whatever its configuration says; nothing without one."""
    if tokenizer is None:
        return AddedTokens((), ())
    whole, alone = (list(tokenizer("a", add_special_tokens=added)["input_ids"]) for added in (True, False))
    begins = [i for i in range(len(whole) - len(alone) + 1) if whole[i : i + len(alone)] == alone]
    if not begins or not alone:
        return AddedTokens((), ())
    return AddedTokens(tuple(whole[: begins[0]]), tuple(whole[begins[0] + len(alone) :]))


def byte_count(tokenizer: Any, tokens: np.ndarray, *, special: bool) -> int:
    """UTF-8 bytes that the tokens, int [time], stand for. special: whether special ones count. A token that ends within
    a character counts with the bytes that it has: decoded by itself it is U+FFFD, which has three."""
    text = tokenizer.decode(tokens, skip_special_tokens=not special)
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if _UNDECODED not in text or backend is None:
        return len(text.encode())
    if backend.decoder is None or b'"ByteLevel"' not in backend.decoder.__getstate__():
        return len(text.replace(_UNDECODED, "?").encode())  # byte fallback: each byte is a token, and one U+FFFD
    pieces = tokenizer.convert_ids_to_tokens(tokens.tolist(), skip_special_tokens=not special)
    added = tokenizer.get_added_vocab()
    return sum(len(piece.encode()) if piece in added else len(piece) for piece in pieces)


def chat_prompt(tokenizer: Any | None, text: str) -> str:
    """The text as a user's message, up to where the answer begins, for `encode`. Raises InputError for a tokenizer
    without a chat template, and for a template that fails, takes long or leaves the text out."""
    if tokenizer is None or not getattr(tokenizer, "chat_template", None):
        raise InputError("the model has no chat template (models tuned to follow instructions have one); leave it off")
    rendered = _rendered(tokenizer, text)
    if text.strip() not in rendered:  # some templates read a message as a list of parts
        rendered = _rendered(tokenizer, [{"type": "text", "text": text}])
    if text.strip() not in rendered:
        raise InputError("the model's chat template leaves the prompt out, or changes it; leave the template off")
    bos: str | None = tokenizer.bos_token
    # `encode` adds the tokens that a text begins with; the template's own BOS would be a second one.
    if bos is not None and added_tokens(tokenizer).before[:1] == (tokenizer.bos_token_id,):
        return rendered.removeprefix(bos)
    return rendered


def _rendered(tokenizer: Any, content: str | list[dict[str, str]]) -> str:
    # A template for thinking models must begin the answer at once; one that names today's date would make another
    # prompt every day. Other templates ignore these options.
    options = {"enable_thinking": False, "date_string": f"{CHAT_DATE:%d %b %Y}"}
    slow = f"the model's chat template takes over {_TEMPLATE_SECONDS} s; leave it off"
    try:
        with time_limit(_TEMPLATE_SECONDS, slow):
            return tokenizer.apply_chat_template(
                [{"role": "user", "content": content}],
                chat_template=_on_chat_date(tokenizer.get_chat_template()),
                tokenize=False,
                add_generation_prompt=True,
                **options,
            )
    except InputError:
        raise
    except Exception as error:  # a template is a program: it can fail in any way
        reason = " ".join(str(error).split())[:160]
        raise InputError(f"the model's chat template fails ({reason}); leave it off") from None


def _on_chat_date(template: str) -> str:
    """The template, on CHAT_DATE: transformers gives it today's `strftime_now`, and takes no function in its place."""
    if "strftime_now" not in template:
        return template
    filled = "".join(f".replace('%{code}', '{CHAT_DATE.strftime('%' + code)}')" for code in "YymdeBbAajHIMSpFT")
    return f"{{%- macro strftime_now(format) -%}}{{{{ format{filled} }}}}{{%- endmacro -%}}{template}"


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
