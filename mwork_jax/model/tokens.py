"""Documents as tokens: text through a model's tokenizer, token arrays as they are."""

from __future__ import annotations

import re
from datetime import UTC, datetime
from typing import Any, NamedTuple

import numpy as np

from mwork_jax.errors import InputError
from mwork_jax.runtime.time_limit import memory_limit, time_limit

CHAT_DATE = datetime(2024, 7, 26)  # the day that chat templates are told, the one that Llama 3's own falls back to
_DATE_CALL = re.compile(r"""(?<![\w.])strftime_now\s*\(\s*(?:format\s*=\s*)?(["'])((?:(?!\1)[^\\])*)\1\s*\)""")
_DATE_CODES = "aAbBcCdDeFgGhHIjmMpRsSTuUVwWxXyYzZ"
_DRAWS = 20
_TEMPLATE_SECONDS, _TEMPLATE_BYTES = 10, 1 << 28
_ADDED_CHARACTERS = 1 << 20  # by a template, at most: the longest of real models' add thousands
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
    without a chat template, and for a template that fails, takes long, leaves the text out or draws by chance."""
    if tokenizer is None or not getattr(tokenizer, "chat_template", None):
        raise InputError("the model has no chat template (models tuned to follow instructions have one); leave it off")
    too_long = f"the model's chat template takes over {_TEMPLATE_SECONDS} s; leave it off"
    with time_limit(_TEMPLATE_SECONDS, too_long), memory_limit(_TEMPLATE_BYTES + 100 * len(text)):
        rendered = _rendered_with_text(tokenizer, text)
    # `encode` adds the tokens that a text begins with; the template's own would be there twice.
    for token in tokenizer.convert_ids_to_tokens(added_tokens(tokenizer).before):
        rendered = rendered.removeprefix(token)
    return rendered


def _rendered_with_text(tokenizer: Any, text: str) -> str:
    """The prompt for a message that is a text or, where the template fails on it or leaves it out, a list of parts."""
    parts = [{"type": "text", "text": text}]
    reasons = []
    for content in (text, parts):
        try:
            rendered = _rendered(tokenizer, content)
        except InputError:  # the time is over, or the prompt is another one each time
            raise
        except Exception as error:  # a template is a program: it can fail in any way
            reasons.append(f"fails ({' '.join(str(error).split())[:160] or type(error).__name__})")
            continue
        if len(rendered) > len(text) + _ADDED_CHARACTERS:
            reasons.append(f"adds {len(rendered) - len(text)} characters to the prompt")
            continue
        if text.strip() in rendered and str(parts) not in rendered:  # not the list itself, printed as Python has it
            return rendered
        reasons.append("leaves the prompt out, or changes it")
    raise InputError(f"the model's chat template {reasons[0]}; leave it off")


def _rendered(tokenizer: Any, content: str | list[dict[str, str]]) -> str:
    """Raises InputError where the prompt depends on chance, and whatever the template raises."""
    template = tokenizer.get_chat_template().removeprefix("\ufeff")  # what some editors put in front of a file
    if _computes_powers(template):  # one step that no limit on time ends: 9 ** 9 ** 9 takes minutes
        raise InputError("the model's chat template computes powers (**), which no prompt needs; leave it off")
    # A template for thinking models must begin the answer at once; one that names today's date would make another
    # prompt every day. Other templates ignore these options.
    options = {"enable_thinking": False, "date_string": f"{CHAT_DATE:%d %b %Y}"}
    # What Jinja draws by chance. One of two values is the same for so many times in a row once in a million.
    times = _DRAWS if re.search(r"\b(random|lipsum)\b", template) else 1
    rendered = {
        tokenizer.apply_chat_template(
            [{"role": "user", "content": content}],
            chat_template=_on_chat_date(template),
            tokenize=False,
            add_generation_prompt=True,
            **options,
        )
        for _ in range(times)
    }
    if len(rendered) > 1:
        raise InputError("the model's chat template makes another prompt each time, by chance; leave it off")
    return rendered.pop()


def _computes_powers(template: str) -> bool:
    import jinja2  # models without a chat template never pay for it

    before = ""
    for _, kind, part in jinja2.Environment().lex(template):
        if (kind, part) == ("operator", "**") and before not in ("(", ","):  # as in f(**options)
            return True
        before = before if kind == "whitespace" else part
    return False


def _on_chat_date(template: str) -> str:
    """The template, on CHAT_DATE: transformers gives it today's `strftime_now`, and takes no function in its place.

    A call with a format that stands there becomes the date's text. For a format that is computed, a macro knows the
    codes that every system has, and fails at any other.
    """
    if "strftime_now" not in template:
        return template
    template = _DATE_CALL.sub(lambda call: call[1] + _chat_date(call[2]) + call[1], template)
    filled = "".join(f".replace('%{code}', '{_chat_date('%' + code)}')" for code in _DATE_CODES)
    return (
        f"{{%- macro strftime_now(format) -%}}{{%- set filled = format{filled} -%}}"
        "{%- if '%' in filled -%}{{ raise_exception('a date in the format ' ~ format) }}{%- endif -%}"
        f"{{{{ filled }}}}{{%- endmacro -%}}{template}"
    )


def _chat_date(format: str) -> str:
    """CHAT_DATE in a format; its seconds since 1970 are UTC's, the same on every machine."""
    seconds = str(int(CHAT_DATE.replace(tzinfo=UTC).timestamp()))
    return CHAT_DATE.strftime(re.sub("%%|%s", lambda code: seconds if code[0] == "%s" else code[0], format))


def _check_unicode(text: str, where: str) -> None:
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise InputError(
            f"{where}: character {error.start + 1} is half a surrogate pair (U+{ord(text[error.start]):04X}); "
            "text must be valid Unicode"
        ) from None


def vocabulary_texts(tokenizer: Any, size: int) -> list[str]:
    """The text of each entry; "" for control tokens and for entries that the tokenizer does not have."""
    known = min(size, len(tokenizer))
    backend = getattr(tokenizer, "backend_tokenizer", None)
    alone = [[i] for i in range(known)]
    texts = backend.decode_batch(alone, skip_special_tokens=True) if backend else [tokenizer.decode(i) for i in alone]
    for i in tokenizer.all_special_ids:
        if 0 <= i < known:
            texts[i] = ""
    return [*texts, *[""] * (size - known)]


def shared_prefix_length(a: np.ndarray, b: np.ndarray) -> int:
    """How many tokens two one-dimensional arrays have in common at their beginning."""
    shorter = min(a.size, b.size)
    differing = np.flatnonzero(a[:shorter] != b[:shorter])
    return int(differing[0]) if differing.size else shorter
