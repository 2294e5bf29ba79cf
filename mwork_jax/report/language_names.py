"""What languages are called, in English and in themselves."""

from __future__ import annotations

from mwork_jax.iso_639 import LANGUAGES
from mwork_jax.report.names import one_line

_LONGEST = 40  # characters of a name that nobody has checked
NAMES = {code: english for code, (english, _) in LANGUAGES.items()}


def name_of(language: str) -> str:
    """The English name; the code itself where none is known."""
    return _names_of(language)[0]


def direction_of(language: str) -> str:
    """How the language is written, as HTML says it: "rtl" or "ltr"."""
    return "rtl" if language.split("-")[0] in ("ar", "fa", "he", "ps", "sd", "ug", "ur", "yi") else "ltr"


def full_name(language: str) -> str:
    """Both names, as in `Thai · ไทย`; one where they are the same or unknown. The own name is isolated, so that one
    written from right to left leaves what stands around it in place."""
    english, own = _names_of(language)
    return english if english == own else f"{english} · \u2068{own}\u2069"


def shown_name(name: str) -> str:
    """A name from a file, of a task or a language, as it stands in a figure: one line, and not a long one."""
    name = one_line(name)
    return name if len(name) <= _LONGEST else f"{name[:_LONGEST]}…"


def _names_of(language: str) -> tuple[str, str]:
    code = shown_name(language)
    return LANGUAGES.get(language, (code, code))
