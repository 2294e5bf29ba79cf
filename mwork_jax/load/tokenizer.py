"""Tokenizers: Hugging Face's own, loaded without torch and without remote code."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from mwork_jax.errors import InputError

_PROBE = "hello world 你好"
_MARK = b"\xef\xbb\xbf"
_FILES = ("tokenizer.json", "tokenizer.model", "tokenizer_config.json", "vocab.json")


def folder_tokenizer(folder: Path) -> Any | None:
    """The tokenizer of a checkpoint folder, or None where it has none. Raises InputError where it cannot be read or
    fails on a text."""
    if not any((folder / name).is_file() for name in _FILES):
        return None
    _refuse_marks(folder)
    from transformers import AutoTokenizer  # takes a second to import; models without text never pay for it

    try:
        tokenizer = AutoTokenizer.from_pretrained(str(folder), trust_remote_code=False, local_files_only=True)
    except (KeyboardInterrupt, SystemExit):
        raise
    except BaseException as error:  # transformers raises many kinds for damaged files, and panics are no Exception
        raise InputError(f"{folder}: the tokenizer cannot be read ({_line(error)})") from None
    check_usable(tokenizer, str(folder))
    _check_as_written(tokenizer, folder / "tokenizer.json")
    return tokenizer


def _refuse_marks(folder: Path) -> None:
    """Raises InputError for JSON that begins with the mark of UTF-8 files of Windows: transformers reads config.json
    too, and blames another file."""
    for path in sorted(folder.glob("*.json")):
        with path.open("rb") as file:
            if file.read(len(_MARK)) == _MARK:
                raise InputError(
                    f"{path}: begins with a byte order mark, which transformers does not read; save it as UTF-8 without"
                )


def check_usable(tokenizer: Any, where: str) -> None:
    """Raises InputError where a tokenizer that was read fails on a text: some faults of its files show only then."""
    length = tokenizer.model_max_length
    if not isinstance(length, int | float) or isinstance(length, bool) or not length > 0:
        raise InputError(f"{where}: the tokenizer's model_max_length is {length!r:.80}; a positive number is needed")
    # Documents are cut at the model's context, so nobody needs the library's warning about long ones.
    tokenizer.deprecation_warnings["sequence-length-is-longer-than-the-specified-maximum"] = True
    try:
        tokenizer.decode(tokenizer("a 1")["input_ids"])
    except (KeyboardInterrupt, SystemExit):
        raise
    except BaseException as error:  # the library's panics are no Exception
        raise InputError(f"{where}: the tokenizer fails on a text ({_line(error)})") from None


def _check_as_written(tokenizer: Any, path: Path) -> None:
    """Raises InputError where transformers has rebuilt a tokenizer in a way that loses text, other than its file says:
    5.3 does so with a byte-level one whose configuration calls it a Llama tokenizer."""
    ids = tokenizer(_PROBE, add_special_tokens=False)["input_ids"]
    text = tokenizer.decode(ids)
    if text.strip() == _PROBE or not path.is_file():
        return
    from tokenizers import Tokenizer

    as_written = Tokenizer.from_file(str(path))
    as_written.no_padding()  # transformers leaves both off, whatever the file says
    as_written.no_truncation()
    if as_written.encode(_PROBE, add_special_tokens=False).ids != ids:
        raise InputError(
            f"{path}: the installed transformers reads it otherwise than it is written ({_PROBE!r} comes back as "
            f"{text!r:.80}); another version of transformers is needed"
        )


def _line(error: BaseException) -> str:
    return " ".join(str(error).split())[:200] or type(error).__name__
