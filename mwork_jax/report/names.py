"""The one place where a name that stands in a file becomes the name of a file, an HTML id or a LaTeX label."""

from __future__ import annotations

import hashlib
import re

_PLAIN = re.compile(r"[a-z0-9]+(-[a-z0-9]+)*")
_LONGEST = 60


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
