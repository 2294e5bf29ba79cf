"""The one place where a name that stands in a file becomes the name of a file, an HTML id or a LaTeX label, and where a
text from a file is made fit to be shown."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable

from mwork_jax.errors import InputError

_PLAIN = re.compile(r"[a-z0-9]+(-[a-z0-9]+)*")
_LONGEST = 60
# Control characters, line and paragraph separators, and what is no character: XML cannot hold them, a terminal obeys
# them, and a line of a table ends at them.
_NOT_SHOWN = re.compile("[\x00-\x1f\x7f-\x9f\u2028\u2029\ud800-\udfff\ufffe\uffff]")


def slug(text: str) -> str:
    """Lower-case letters and digits of ASCII with hyphens between, and nothing else, whatever the text is: it can be a
    file's name, an id, a label. Two different texts hardly ever share one: what had to be changed ends in a short hash,
    except that spaces and underscores of an otherwise plain name become hyphens.
    """
    plain = re.sub(r"[ _]", "-", text.lower()) if text.isascii() else ""
    if _PLAIN.fullmatch(plain) and len(plain) <= _LONGEST:
        return plain
    kept = re.sub(r"[^a-z0-9]+", "-", text.lower()).strip("-")[:_LONGEST].strip("-")
    digest = hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()[:8]
    return f"{kept}-{digest}" if kept else digest


def one_line(text: str) -> str:
    """The text with a sign for each character that ends a line or is none to be shown."""
    return _NOT_SHOWN.sub("\ufffd", text)


def check_distinct(names: Iterable[str], where: str) -> None:
    """Raises InputError where two names would give files or ids of one name."""
    first: dict[str, str] = {}
    for name in dict.fromkeys(names):
        other = first.setdefault(slug(name), name)
        if other != name:
            raise InputError(
                f"{where}: {other!r:.40} and {name!r:.40} would have figures of one name; rename one of them"
            )
