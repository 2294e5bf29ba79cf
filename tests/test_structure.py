"""The house: imports go one way, kernels know nothing of models, functions stay short, and nothing unsafe is used."""

import ast
import re
from collections.abc import Iterator
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PACKAGE = ROOT / "mwork_jax"
# Each part may import from those on floors below its own, and from nothing on its own floor.
FLOORS = [
    ["errors", "version", "iso_639"],
    ["runtime"],
    ["config", "metrics", "sharding"],
    ["neurons"],
    ["intervention"],
    ["model", "families"],
    ["corpus"],
    ["load", "detect"],
    ["select", "intervene"],
    ["settings"],
    ["results", "samples"],
    ["evaluate"],
    ["analysis", "hypotheses", "lens", "pipeline", "steering"],
    ["enhance"],
    ["paper"],
    ["report"],
    ["plan"],
    ["cli"],
]
FLOOR_OF = {name: floor for floor, names in enumerate(FLOORS) for name in names}
SOURCES = sorted([*PACKAGE.rglob("*.py"), *(ROOT / "kernels").rglob("*.py"), *(ROOT / "scripts").rglob("*.py")])
MODULES = sorted(PACKAGE.rglob("*.py"))


def module_name(path: Path) -> str:
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


NAMES = {module_name(path): path for path in MODULES}


def imported_modules(path: Path, text: str | None = None) -> Iterator[str]:
    """The modules of this package that a file imports, however it spells the import and wherever it stands."""
    own = module_name(path).split(".")
    package = own if path.name == "__init__.py" else own[:-1]
    for node in ast.walk(ast.parse(path.read_text() if text is None else text)):
        if isinstance(node, ast.Import):
            for alias in node.names:
                if alias.name in NAMES:
                    yield alias.name
        elif isinstance(node, ast.ImportFrom):
            base = package[: len(package) - node.level + 1] if node.level else []
            source = ".".join([*base, *([node.module] if node.module else [])])
            if source in NAMES:
                inner = [f"{source}.{alias.name}" for alias in node.names]
                yield from (name if name in NAMES else source for name in inner)


def part(name: str) -> str:
    """`mwork_jax.evaluate.runner` -> `evaluate`; the package itself is ``."""
    return [*name.split("."), ""][1]


@pytest.mark.parametrize("path", MODULES, ids=lambda p: str(p.relative_to(PACKAGE)))
def test_imports_go_down(path):
    own = part(module_name(path))
    if own == "":
        return
    assert own in FLOOR_OF, f"{own} has no floor yet"
    for name in imported_modules(path):
        other = part(name)
        assert other != "", f"{path.name} imports the package itself, which imports everything"
        assert other == own or FLOOR_OF[other] < FLOOR_OF[own], f"{own} imports {other}"


@pytest.mark.parametrize("name", sorted(p.name for p in PACKAGE.iterdir() if (p / "__init__.py").exists()))
def test_imports_go_one_way_inside_a_package(name):
    inside = {n: p for n, p in NAMES.items() if part(n) == name}
    front = f"mwork_jax.{name}"
    graph = {n: {i for i in imported_modules(p) if i in inside and i != front} for n, p in inside.items()}
    try:
        list(TopologicalSorter(graph).static_order())
    except CycleError as error:
        pytest.fail(f"modules import each other: {' -> '.join(error.args[1])}")


@pytest.mark.parametrize(
    ("line", "imported"),
    [
        ("from mwork_jax import report", "mwork_jax.report"),
        ("import mwork_jax.report.page", "mwork_jax.report.page"),
        ("from ..report import page", "mwork_jax.report.page"),
        ("from . import table_files", "mwork_jax.evaluate.table_files"),
        ("def f():\n    from mwork_jax.cli.options import command", "mwork_jax.cli.options"),
    ],
)
def test_every_way_to_import_is_seen(line, imported):
    assert list(imported_modules(PACKAGE / "evaluate" / "runner.py", line)) == [imported]


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
