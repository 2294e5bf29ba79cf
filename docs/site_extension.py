"""What the site needs beyond Sphinx: pages that are files of the repository, reference pages made from the parsers and
the public names, docstrings in plain words, equations without a network, and `llms.txt`.

Links in the Markdown files are between files of the repository, so that they also work where the repository is browsed;
here they become links between pages. One to a file that is no page (a module, a test) becomes its text.
"""

from __future__ import annotations

import argparse
import posixpath
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from docutils import nodes
from docutils.utils.math import MathError
from docutils.utils.math.latex2mathml import tex2mathml
from sphinx import addnodes
from sphinx.application import Sphinx
from sphinx.util import logging

import mwork_jax
from mwork_jax.cli import _parser

ROOT = Path(__file__).resolve().parent.parent
DOCS = ROOT / "docs"
# Pages whose text is a file elsewhere in the repository; each has a page in docs/ that includes it.
OUTSIDE = {
    "README.md": "index.md",
    "CONTRIBUTING.md": "contributing.md",
    "CHANGELOG.md": "changelog.md",
    "SECURITY.md": "security.md",
    "mwork_jax/data/README.md": "data.md",
}
# The parts of the package in the order in which one meets them: the title of their public names.
PARTS = {
    "load": "Load a model",
    "model": "Run a model",
    "": "Run a model",
    "config": "Run a model",
    "corpus": "Documents",
    "detect": "Find neurons",
    "select": "Select neurons",
    "neurons": "Sets and masks",
    "intervention": "Interventions",
    "intervene": "Interventions",
    "evaluate": "Measure",
    "metrics": "Measure",
    "lens": "Look inside",
    "analysis": "Look inside",
    "enhance": "Tune",
    "pipeline": "Whole commands",
    "steering": "Whole commands",
    "settings": "Settings",
    "results": "Results and reports",
    "report": "Results and reports",
    "runtime": "Results and reports",
    "sharding": "Several devices",
    "errors": "Errors",
}
_INCLUDE = re.compile(r"^```\{include\} (\S+)\n```$", re.MULTILINE)
_LINK = re.compile(r"(!?)\[((?:[^\[\]]|\[[^\]]*\])*)\]\(([^)\s]+)\)")
_FENCED = re.compile(r"(^```.*?^```$)", re.MULTILINE | re.DOTALL)
_CODE = re.compile(r"(`[^`\n]+(?:\n[^`\n]+)?`)")
_PUBLIC = re.compile(r"(?:mw\.|mwork_jax\.)?([A-Za-z_]\w*(?:\.\w+)?)")

log = logging.getLogger(__name__)


def setup(app: Sphinx) -> dict[str, Any]:
    app.add_html_math_renderer("mathml", (_inline_math, None), (_block_math, None))
    app.connect("source-read", _read)
    app.connect("autodoc-process-docstring", _plain_docstring)
    app.connect("build-finished", _write_llms)
    return {"parallel_read_safe": True, "parallel_write_safe": True}


# Pages that are files of the repository, and pages made from the program


def _read(app: Sphinx, page: str, source: list[str]) -> None:
    """Puts in what a page includes or has made for it, and makes links between files links between pages."""
    here = Path(app.env.doc2path(page)).resolve().relative_to(ROOT).as_posix()

    def included(match: re.Match[str]) -> str:
        path = posixpath.normpath(posixpath.join(posixpath.dirname(here), match[1]))
        return linked((ROOT / path).read_text(encoding="utf-8"), path, here)

    text = linked(source[0], here, here)
    text = _INCLUDE.sub(included, text)
    text = text.replace("<!-- made: commands -->", commands_page())
    source[0] = text.replace("<!-- made: public names -->", names_page())
    if here.endswith(".md"):
        if not hasattr(app.env, "site_texts"):
            app.env.site_texts = {}  # pyright: ignore[reportAttributeAccessIssue]
        app.env.site_texts[page] = source[0]  # pyright: ignore[reportAttributeAccessIssue]


def linked(text: str, path: str, page: str) -> str:
    """The text of the file `path`, part of the page of the file `page` (both from the root of the repository), with
    every link to a file of the repository as one to its page."""

    def link(match: re.Match[str]) -> str:
        image, label, address = match.groups()
        if re.match(r"[a-z]+:|#", address):
            return match[0]
        target, _, anchor = address.partition("#")
        target = posixpath.normpath(posixpath.join(posixpath.dirname(path), target))
        if not (ROOT / target).exists():
            log.warning("%s: a link to %s, which is not there", path, target)
        target = f"docs/{OUTSIDE[target]}" if target in OUTSIDE else target
        if not target.startswith("docs/"):
            return label
        moved = posixpath.relpath(target, posixpath.dirname(page))
        return f"{image}[{label}]({moved}{'#' if anchor else ''}{anchor})"

    parts = _FENCED.split(text)
    return "".join(part if part.startswith("```") else _LINK.sub(link, part) for part in parts)


def commands_page() -> str:
    """Every command and its options, from the parsers that read them."""
    (commands,) = (a for a in _parser()._actions if isinstance(a, argparse._SubParsersAction))
    return "\n\n".join(_command(f"mwork {name}", parser) for name, parser in commands.choices.items())


def _command(name: str, parser: argparse.ArgumentParser) -> str:
    example = (parser.epilog or "").removeprefix("example:").strip()
    lines = [f"## `{name}`", f"{_escaped(_sentence(parser.description or ''))}"]
    if example:
        lines += ["```bash", *(line.strip() for line in example.splitlines()), "```"]
    lines += ["| option | what it says |", "|---|---|"]
    for action in parser._actions:
        if not isinstance(action, argparse._HelpAction):
            names = ", ".join(f"`{option}{_value(action)}`" for option in action.option_strings)
            what = (action.help or "") % {**vars(action), "prog": parser.prog}
            lines.append(f"| {names or f'`{action.dest.upper()}`'} | {_cell(what)}{_default(action)} |")
    return "\n".join(lines[:2]) + "\n\n" + "\n".join(lines[2:]).replace("```\n|", "```\n\n|")


def _value(action: argparse.Action) -> str:
    if action.nargs == 0:
        return ""
    if action.choices is not None:
        return " " + "\\|".join(map(str, action.choices))
    metavar = action.metavar if isinstance(action.metavar, str) else action.dest.upper()
    return f" {metavar} ..." if action.nargs in ("*", "+") else f" {metavar}"


def _default(action: argparse.Action) -> str:
    told = action.default in (None, argparse.SUPPRESS, False, [], ()) or "default" in (action.help or "")
    return "" if told else f" (default: `{action.default}`)"


def _escaped(text: str) -> str:
    return re.sub(r"([\\<>*_\[\]$])", r"\\\1", text)


def _cell(text: str) -> str:
    return _escaped(" ".join(text.split())).replace("|", "\\|")


def _sentence(text: str) -> str:
    return text[:1].upper() + text[1:] + ("" if text.endswith(".") else ".")


def names_page() -> str:
    """Every public name of `mwork_jax`, by the part of the package that it comes from."""
    by_title: dict[str, list[str]] = {title: [] for title in PARTS.values()}
    for name in mwork_jax.__all__:
        value = getattr(mwork_jax, name)
        part = [*str(getattr(value, "__module__", "mwork_jax")).split("."), ""][1]
        if not name.startswith("_") and callable(value):
            by_title.setdefault(PARTS.get(part, part), []).append(name)
    return "\n\n".join(f"## {title}\n\n{_directives(names)}" for title, names in by_title.items() if names)


def _directives(names: list[str]) -> str:
    lines = ["```{eval-rst}", ".. py:currentmodule:: mwork_jax", ""]
    for name in sorted(names, key=str.lower):
        if isinstance(getattr(mwork_jax, name), type):
            lines += [f".. autoclass:: {name}", "   :members:", "   :undoc-members:", ""]
        else:
            lines += [f".. autofunction:: {name}", ""]
    return "\n".join([*lines, "```"])


# Docstrings: plain words with `names` and indented programs, not reStructuredText


def _plain_docstring(app: Sphinx, what: str, name: str, value: Any, options: Any, lines: list[str]) -> None:
    """Escapes what reStructuredText would read as markup; `a name` becomes a link where it is public, else code."""
    plain: list[str] = []
    text = "\n".join(lines)
    for paragraph in re.split(r"\n\s*\n", text):
        if not paragraph.strip():
            continue
        if all(line.startswith("    ") for line in paragraph.splitlines()):
            plain += ["::", "", *paragraph.splitlines(), ""]
        else:
            plain += [*_paragraph(" ".join(line.strip() for line in paragraph.splitlines())), ""]
    lines[:] = plain


def _paragraph(text: str) -> Iterator[str]:
    yield "".join(_as_code(part) if part.startswith("`") else _literal(part) for part in _CODE.split(text))


def _as_code(part: str) -> str:
    inner = part.strip("`")
    found = _PUBLIC.fullmatch(inner)
    if found and found[1].split(".")[0] in mwork_jax.__all__ and hasattr(mwork_jax, found[1].split(".")[0]):
        return f"\\ :py:obj:`{inner} <mwork_jax.{found[1]}>`\\ "
    return f"\\ ``{inner}``\\ " if inner.strip() == inner else inner


def _literal(part: str) -> str:
    return re.sub(r"([\\*|_])", r"\\\1", part)


# Equations


def _inline_math(translator: Any, node: nodes.math) -> None:
    translator.body.append(_mathml(node, as_block=False))
    raise nodes.SkipNode


def _block_math(translator: Any, node: nodes.math_block) -> None:
    translator.body.append(f'<div class="math-block">{_mathml(node, as_block=True)}</div>')
    raise nodes.SkipNode


def _mathml(node: nodes.Node, as_block: bool) -> str:
    try:
        return tex2mathml(node.astext(), as_block=as_block)
    except MathError as error:
        log.warning("an equation cannot be shown: %s (%s)", error, node.astext(), location=node)
        return ""


# llms.txt


def _write_llms(app: Sphinx, error: Exception | None) -> None:
    """For programs that read text: each page as Markdown beside its HTML, and a list of all with what they say."""
    if error is not None or app.builder.format != "html":
        return
    texts: dict[str, str] = getattr(app.env, "site_texts", {})
    for page, text in texts.items():
        Path(app.outdir, f"{page}.md").write_text(text, encoding="utf-8")
    lines = [f"# {app.config.project}", "", f"> {str(mwork_jax.__doc__).splitlines()[0]}"]
    for caption, pages in contents(app):
        lines += ["", f"## {caption}", "", *(_llms_line(app, page, page in texts) for page in pages)]
    Path(app.outdir, "llms.txt").write_text("\n".join([*lines, ""]), encoding="utf-8")


def contents(app: Sphinx) -> Iterator[tuple[str, list[str]]]:
    """The parts of the site and their pages, in the order of the home page."""
    home = app.env.get_doctree(app.config.root_doc)
    for tree in home.findall(addnodes.toctree):
        yield tree["caption"], list(tree["includefiles"])


def _llms_line(app: Sphinx, page: str, as_markdown: bool) -> str:
    paragraphs = app.env.get_doctree(page).findall(nodes.paragraph)
    said = next((" ".join(p.astext().split()) for p in paragraphs), "")
    return f"- [{app.env.titles[page].astext()}]({page}{'.md' if as_markdown else '.html'}): {said[:200]}"
