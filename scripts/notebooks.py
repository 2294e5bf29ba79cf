"""Runs the notebooks of docs/tutorials from top to bottom and keeps in them what they print.

    python scripts/notebooks.py                                       # on the model that each names, and writes them
    python scripts/notebooks.py --check --set model_name=path/to/tiny # the same cells on another model; writes nothing

`--set NAME=VALUE` gives a variable of the first cell of code another value; those that a notebook does not have are
left out. A cell that raises ends the script with exit status 1. Needs `pip install 'mwork-jax[docs]'`.
"""

from __future__ import annotations

import argparse
import ast
import os
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

FOLDER = Path(__file__).resolve().parent.parent / "docs" / "tutorials"


def with_values(code: str, values: Mapping[str, str]) -> str:
    """The first cell of a notebook with other values of the variables that it sets, as literals: a number, a tuple, or
    else a text."""
    lines = code.splitlines()
    for node in ast.parse(code).body:
        if isinstance(node, ast.Assign) and isinstance(name := node.targets[0], ast.Name) and name.id in values:
            lines[node.lineno - 1] = f"{name.id} = {_literal(values[name.id])!r}"
            lines[node.lineno : node.end_lineno] = [""] * ((node.end_lineno or node.lineno) - node.lineno)
    return "\n".join(lines)


def _literal(text: str) -> object:
    try:
        return ast.literal_eval(text)
    except (ValueError, SyntaxError):
        return text


def run(path: Path, values: Mapping[str, str]) -> Any:
    """The notebook with what its cells print. Raises nbclient's CellExecutionError where one fails."""
    import nbformat
    from nbclient import NotebookClient

    notebook = nbformat.read(path, as_version=4)
    first = next(cell for cell in notebook.cells if cell.cell_type == "code")
    as_written, first.source = first.source, with_values(first.source, values)
    client = NotebookClient(notebook, timeout=900, resources={"metadata": {"path": str(path.parent)}})
    with client.setup_kernel():
        for index, cell in enumerate(notebook.cells):
            if cell.cell_type == "code":
                client.execute_cell(cell, index)
    first.source = as_written
    for cell in notebook.cells:
        cell.metadata.pop("execution", None)  # times of day, which would change the file each time
        if cell.cell_type == "code":
            cell.outputs = kept(cell.outputs)
    return notebook


def kept(outputs: Sequence[Any]) -> list[Any]:
    """What a cell printed, in one piece; not what libraries warned of, which names folders of this machine."""
    pieces: list[Any] = []
    for output in outputs:
        if output.get("name") == "stderr":
            continue
        if pieces and output.get("name") == "stdout" == pieces[-1].get("name"):
            pieces[-1].text += output.text
        else:
            pieces.append(output)
    return pieces


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("notebooks", nargs="*", type=Path, help="files (default: all of docs/tutorials)")
    parser.add_argument("--set", action="append", default=[], metavar="NAME=VALUE", help="another value of a variable")
    parser.add_argument("--check", action="store_true", help="write nothing")
    args = parser.parse_args(arguments)
    values = dict(each.split("=", 1) for each in args.set)
    # What a notebook asks a shell for is of this Python, and this checkout.
    os.environ["PATH"] = os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", "")])
    os.environ["PYDEVD_DISABLE_FILE_VALIDATION"] = "1"
    import nbformat
    from nbclient.exceptions import CellExecutionError

    for path in args.notebooks or sorted(FOLDER.glob("*.ipynb")):
        try:
            notebook = run(path, values)
        except CellExecutionError as error:
            print(f"{path}: a cell failed\n{error}", file=sys.stderr)
            return 1
        if not args.check:
            nbformat.write(notebook, path)
        print(f"{path.name}: ran", flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
