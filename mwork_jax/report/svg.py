"""Figures as SVG: text stays text, every figure has a title and a description, colours follow the page's theme."""

from __future__ import annotations

import io
import os
import re
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any
from xml.etree import ElementTree as ET

from mwork_jax.errors import InputError
from mwork_jax.report.figures import (
    ENGLISH_COLOUR,
    GRID,
    INK,
    LINES,
    MUTED,
    OTHERS,
    OWN,
    PAPER,
    RANDOM,
    REST_COLOUR,
    STYLE,
)
from mwork_jax.report.names import one_line

_SVG, _LINK = "http://www.w3.org/2000/svg", "http://www.w3.org/1999/xlink"
_FONTS = "system-ui, -apple-system, 'Segoe UI', Roboto, 'Noto Sans', Arial, sans-serif"
_READABLE = 0.66  # of a figure's own size: its numbers are then 7 pixels high
_PHONE = 300  # pixels that every screen has for a figure; one that needs more scrolls in its box
THEME = {
    INK: "ink", MUTED: "muted", GRID: "grid", PAPER: "paper", OWN: "own", ENGLISH_COLOUR: "english", OTHERS: "others",
    REST_COLOUR: "rest", RANDOM: "random",
} | {colour: f"line-{i}" for i, colour in enumerate(LINES) if i > 2}  # fmt: skip


@dataclass(frozen=True)
class Drawing:
    """One figure. label: what stands over it. alt: what it shows, for those who do not see it. plain: an SVG file for
    papers; inline: the same for the page, in the page's colours."""

    name: str
    label: str
    alt: str
    plain: str
    inline: str

    @property
    def is_wide(self) -> bool:
        """Whether a phone has no room for it."""
        return "; min-width: " in self.inline

    def _repr_html_(self) -> str:
        return self.inline


def draw(name: str, label: str, alt: str, size: tuple[float, float], *plots: Callable[[Any], None]) -> Drawing:
    """Each plot on an axis of `size` inches, one below the other."""
    matplotlib = _matplotlib()
    from matplotlib.figure import Figure

    out = io.StringIO()
    style: Any = {**STYLE, "svg.hashsalt": name}  # matplotlib's type lists every name there is
    with warnings.catch_warnings(), matplotlib.rc_context():
        matplotlib.rcdefaults()  # a matplotlibrc of the user's would make other figures of the same files
        matplotlib.rcParams.update(style)
        warnings.filterwarnings("ignore", "Glyph .* missing")  # the reader's fonts draw the text, not matplotlib's
        width, height = size
        figure = Figure(figsize=(width, height * len(plots)), layout="constrained")
        for plot, ax in zip(plots, figure.subplots(len(plots), squeeze=False).flat, strict=True):
            plot(ax)
        figure.savefig(out, format="svg", metadata={"Date": None, "Creator": None, "Format": None, "Type": None})
    label, alt = one_line(label), one_line(alt)
    lines = map(one_line, out.getvalue().split("\n"))
    root = _accessible(ET.fromstring("\n".join(lines)), f"fig-{name}", label, alt)
    ET.register_namespace("", _SVG)
    ET.register_namespace("xlink", _LINK)
    linked = ET.tostring(root, encoding="unicode")
    inline = re.sub(r"#[0-9a-f]{6}\b", lambda m: _themed(m[0]), linked)
    return Drawing(name, label, alt, re.sub(r"</?a\b[^>]*>", "", linked), inline)  # a paper's figure leads nowhere


def _matplotlib() -> Any:
    try:
        import matplotlib
    except ValueError:  # it looks at the variable when it is imported
        backend = os.environ.get("MPLBACKEND", "")
        raise InputError(f"MPLBACKEND={backend}: no such backend of matplotlib; unset it") from None
    return matplotlib


def _themed(colour: str) -> str:
    return f"var(--{THEME[colour]}, {colour})" if colour in THEME else colour


def _accessible(root: ET.Element, name: str, label: str, alt: str) -> ET.Element:
    """With title and description, ids that are unique on a page, and fonts that every reader has."""
    for parent in root.iter():
        for child in list(parent):
            if child.tag in (f"{{{_SVG}}}metadata", f"{{{_SVG}}}style"):
                parent.remove(child)
    for element in root.iter():
        for key, value in list(element.attrib.items()):
            if key == "id":
                element.set(key, f"{name}-{value}")
            elif value.startswith("#") and key.endswith("href"):
                element.set(key, f"#{name}-{value[1:]}")
            else:
                value = re.sub(r"url\(#", f"url(#{name}-", value)
                element.set(key, re.sub(r"font-family: [^;]*", f"font-family: {_FONTS}", value))
    for i, (tag, text) in enumerate((("title", label), ("desc", alt))):
        child = ET.Element(f"{{{_SVG}}}{tag}", {"id": f"{name}-{tag}"})
        child.text = text
        root.insert(i, child)
    for link in root.iter(f"{{{_SVG}}}a"):  # for a mouse; the page has links for all who do not see the figure
        link.set("tabindex", "-1")
    width = float(root.get("width", "0").removesuffix("pt")) / 72 * 96
    least = f"; min-width: {_READABLE * width:.0f}px" if _READABLE * width > _PHONE else ""
    root.set("style", f"max-width: {1.15 * width:.0f}px{least}")
    root.set("role", "img")
    root.set("aria-labelledby", f"{name}-title {name}-desc")
    root.set("stroke-linejoin", "round")
    return root
