"""The programs and commands of the documentation: found in its Markdown, and checked."""

from __future__ import annotations

import argparse
import importlib.util
import re
import shlex
import tomllib
from collections.abc import Iterator
from typing import NamedTuple

from mwork_jax.cli import _parser
from mwork_jax.plan import Slice
from mwork_jax.select.modes import Mode
from mwork_jax.select.rules import Rule
from mwork_jax.sharding import parse_mesh
from support.paths import ROOT

PAGES = sorted(
    path.relative_to(ROOT).as_posix()
    for path in [*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md"), ROOT / "mwork_jax" / "data" / "README.md"]
    if "_build" not in path.parts
)
_FENCED = re.compile(r"^```(python|bash|toml)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
_ANY_FENCE = re.compile(r"^```.*?^```$", re.MULTILINE | re.DOTALL)
_INDENTED = re.compile(r"^ {4}((?:mwork|bash|python|pip) .*)$", re.MULTILINE)
_INLINE = re.compile(r"`((?:mwork|bash|python|pip) [^`]+)`")
_PLACEHOLDER = re.compile(r"^[A-Z|]{2,}$|^\.\.\.$|^…$")
# Programs of other projects that the pages call; nothing is known of their options here.
_FOREIGN = ("pip", "pre-commit", "sbatch", "source")
# Values that a command reads only after its options.
_PARSED_LATER = {"rule": Rule.parse, "mode": Mode.parse, "mesh": parse_mesh, "topology": Slice.parse}


class Command(NamedTuple):
    page: str
    text: str  # one command, without a comment
    whole: bool  # as somebody would type it; else named in a sentence, with what it needs left out


def blocks(page: str, language: str) -> list[str]:
    """The fenced blocks of a page in one language, in order."""
    text = (ROOT / page).read_text(encoding="utf-8")
    return [code for found, code in _FENCED.findall(text) if found == language]


def commands(page: str) -> Iterator[Command]:
    """Every command on a page, in its order within each form."""
    text = (ROOT / page).read_text(encoding="utf-8")
    for block in [*blocks(page, "bash"), *_INDENTED.findall(_ANY_FENCE.sub("", text))]:
        for line in block.replace("\\\n", " ").splitlines():
            for part in re.split(r"&&|;", " ".join(shlex.split(line, comments=True, posix=False))):
                if part.strip():
                    yield Command(page, part.strip(), True)
    for span in _INLINE.findall(_ANY_FENCE.sub("", text)):
        yield Command(page, " ".join(span.split()), False)


def check(command: Command) -> None:
    """Raises InputError, or AssertionError, for a command, an option or a file that does not exist."""
    program, *words = shlex.split(command.text)
    if program == "mwork":
        check_mwork(words, command.whole)
    elif program in ("python", "bash"):
        _check_script(words)
    else:
        assert program in _FOREIGN, f"{command.text}: what is {program}?"
        for extra in re.findall(r"(?:mwork-jax|\.)\[([\w,]+)\]", command.text):
            known = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
            assert set(extra.split(",")) <= set(known), f"{command.text}: no such extra"


def check_mwork(words: list[str], whole: bool) -> None:
    """A command that is whole goes through the real parser. Of one in a sentence the names have to exist."""
    if whole and not any(_PLACEHOLDER.match(word) for word in words):
        args = vars(_parser().parse_args(words))
        for name, parse in _PARSED_LATER.items():
            if args.get(name) is not None:
                parse(args[name])
        return
    (every,) = (a.choices for a in _parser()._actions if isinstance(a, argparse._SubParsersAction))
    if _PLACEHOLDER.match(words[0]):
        return
    assert words[0] in every, f"mwork {words[0]}: no such command"
    for word in words[1:]:
        option = word.partition("=")[0]
        known = every[words[0]]._option_string_actions
        assert not option.startswith("--") or option in known, f"mwork {words[0]} has no {option}"


def _check_script(words: list[str]) -> None:
    if words[0] == "-m":
        assert importlib.util.find_spec(words[1]), f"{words[1]}: no such module"
        return
    path = ROOT / words[0]
    assert path.is_file(), f"{words[0]}: no such file"
    source = path.read_text(encoding="utf-8")
    for word in words[1:]:
        if path.suffix == ".py" and word.startswith("--"):
            assert f'"{word}"' in source, f"{words[0]} has no {word}"
