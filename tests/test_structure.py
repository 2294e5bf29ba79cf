"""The house: imports go one way, kernels know nothing of models, functions stay short, and nothing unsafe is used."""

import ast
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PACKAGE = ROOT / "mwork_jax"
# Each module may import from those on floors below its own, and from nothing on its own floor.
FLOORS = [
    ["errors"],
    ["processes"],
    ["config", "files", "metrics", "sharding"],
    ["neurons", "ledger", "progress", "labels"],
    ["model"],
    ["load"],
    ["corpus"],
    ["prefill"],
    ["detect", "evaluate", "generate", "tasks"],
    ["select", "deactivate", "exams", "lens"],
    ["tables", "cells", "atlas"],
    ["run", "sweep", "report"],
    ["enhance"],
    ["export", "plan"],
    ["cli"],
]
FLOOR_OF = {name: floor for floor, names in enumerate(FLOORS) for name in names}
SOURCES = sorted([*PACKAGE.rglob("*.py"), *(ROOT / "kernels").rglob("*.py"), *(ROOT / "scripts").rglob("*.py")])


def room(path: Path) -> str:
    return path.relative_to(PACKAGE).parts[0].removesuffix(".py")


def imported(path: Path) -> set[str]:
    """Rooms of this package that a file imports."""
    rooms = set()
    for node in ast.walk(ast.parse(path.read_text())):
        names = [node.module or ""] if isinstance(node, ast.ImportFrom) else []
        names += [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
        rooms |= {name.split(".")[1] for name in names if name.startswith("mwork_jax.")}
    return rooms


@pytest.mark.parametrize("path", sorted(PACKAGE.rglob("*.py")), ids=lambda p: str(p.relative_to(PACKAGE)))
def test_imports_go_down(path):
    if path.name == "__init__.py" and path.parent == PACKAGE:
        return
    own = room(path)
    assert own in FLOOR_OF, f"{own} has no floor yet"
    for other in imported(path) - {own}:
        assert FLOOR_OF[other] < FLOOR_OF[own], f"{own} imports {other}"


def test_kernels_know_nothing_of_the_rest():
    for path in (ROOT / "kernels").rglob("*.py"):
        assert "mwork_jax" not in path.read_text()


@pytest.mark.parametrize("path", SOURCES, ids=lambda p: str(p.relative_to(ROOT)))
def test_functions_are_short_and_nothing_is_unsafe(path):
    text = path.read_text()
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.FunctionDef):
            assert node.end_lineno - node.lineno < 60, f"{node.name} is long"
    assert not re.search(r"\bpickle\b|\bdill\b|(?<![\w.])eval\(|(?<![\w.])exec\(|trust_remote_code\s*=\s*True", text)
