"""The oldest and the newest dependencies that pyproject.toml allows, tried; and a list of what is installed.

python scripts/dependencies.py oldest tests/load tests/model     # pytest's arguments; in an environment of its own
python scripts/dependencies.py newest -m "not slow"
python scripts/dependencies.py sbom > sbom.json                  # CycloneDX, of this environment
python scripts/dependencies.py audit                             # needs pip-audit's service on the network
"""

from __future__ import annotations

import json
import re
import subprocess
import sys
import tempfile
import tomllib
import uuid
import venv
from collections.abc import Iterator
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parent.parent
_FLOOR = re.compile(r"([A-Za-z0-9_.-]+)(?:\[[^\]]*\])?>=([0-9.]+)")


def floors() -> dict[str, str]:
    """Package -> oldest version, of what is needed to run and to test."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    listed = [*project["dependencies"], *project["optional-dependencies"]["test"]]
    return {match[1]: match[2] for match in map(_FLOOR.fullmatch, listed) if match}


def tested(which: str, arguments: list[str]) -> int:
    """Runs pytest in a new environment with the oldest or the newest versions, and says which these are."""
    with tempfile.TemporaryDirectory(prefix=f"mwork-{which}-") as folder:
        venv.create(folder, with_pip=True)
        python = str(Path(folder) / "bin" / "python")
        constraints = Path(folder) / "constraints.txt"
        constraints.write_text("".join(f"{name}=={version}\n" for name, version in floors().items()))
        how = ["--constraint", str(constraints)] if which == "oldest" else ["--upgrade"]
        install = [python, "-m", "pip", "install", "--quiet", *how, "--editable", f"{ROOT}[test]"]
        if failed := subprocess.run(install).returncode:
            return failed
        subprocess.run([python, "-m", "pip", "freeze", "--exclude-editable"])
        return subprocess.run([python, "-m", "pytest", *arguments], cwd=ROOT).returncode


def components() -> Iterator[dict[str, Any]]:
    """What is installed here, as CycloneDX describes it."""
    for package in sorted(metadata.distributions(), key=lambda one: one.metadata["Name"].lower()):
        name, version = package.metadata["Name"], package.version
        described = package.metadata.json
        licence = str(described.get("license_expression") or described.get("license") or "")
        known = {"licenses": [{"license": {"name": licence.splitlines()[0][:100]}}]} if licence else {}
        purl = f"pkg:pypi/{re.sub('[-_.]+', '-', name).lower()}@{version}"
        yield {"type": "library", "name": name, "version": version, "purl": purl, "bom-ref": purl} | known


def sbom() -> dict[str, Any]:
    return {
        "bomFormat": "CycloneDX",
        "specVersion": "1.5",
        "serialNumber": f"urn:uuid:{uuid.uuid4()}",
        "version": 1,
        "metadata": {
            "timestamp": datetime.now(UTC).isoformat(timespec="seconds"),
            "component": {"type": "application", "name": "mwork-jax", "version": metadata.version("mwork-jax")},
        },
        "components": list(components()),
    }


def main() -> int:
    command, *arguments = sys.argv[1:] or ["help"]
    if command in ("oldest", "newest"):
        return tested(command, arguments)
    if command == "sbom":
        print(json.dumps(sbom(), indent=1))
        return 0
    if command == "audit":
        return subprocess.run([sys.executable, "-m", "pip_audit", *arguments]).returncode
    print(__doc__, file=sys.stderr)
    return 2


if __name__ == "__main__":
    sys.exit(main())
