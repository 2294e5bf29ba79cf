"""Prints every skipped test of a junit XML report with its reason; fails on a reason that is not allowed.

    python .ci/skips.py REPORT.xml ALLOWED.txt

ALLOWED has a regular expression on each line, which must match a whole reason; comments begin with #. Exit status: 0
where every skip is allowed, 1 where one is not, 2 where the report cannot be read or holds no test.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple
from xml.etree import ElementTree


class Skip(NamedTuple):
    """A test that did not run, or a file none of whose tests did."""

    test: str
    reason: str


def skips_in(report: Path) -> list[Skip]:
    """The skips of a junit XML report as pytest writes it; an expected failure is one too. Raises ValueError where the
    report holds no test at all."""
    cases = list(ElementTree.parse(report).iter("testcase"))
    if not cases:
        raise ValueError(f"{report}: no test ran")
    return [
        Skip(".".join(filter(None, (case.get("classname"), case.get("name")))), _reason(skipped))
        for case in cases
        for skipped in case.iter("skipped")
    ]


def _reason(skipped: ElementTree.Element) -> str:
    """What `pytest.skip` was given. Of a whole file, pytest writes it as ('path', line, 'Skipped: reason')."""
    message = skipped.get("message") or ""
    if message == "collection skipped":
        wrapped = re.search(r"""['"]Skipped: (.*)['"]\)\s*$""", skipped.text or "", re.DOTALL)
        message = wrapped[1] if wrapped else message
    return message.removeprefix("Skipped: ")


def allowed_reasons(path: Path) -> list[str]:
    lines = (line.strip() for line in path.read_text(encoding="utf-8").splitlines())
    return [line for line in lines if line and not line.startswith("#")]


def is_allowed(reason: str, patterns: Iterable[str]) -> bool:
    return any(re.fullmatch(pattern, reason) for pattern in patterns)


def main(arguments: list[str]) -> int:
    report, allowed = map(Path, arguments)
    try:
        skips, patterns = skips_in(report), allowed_reasons(allowed)
    except (OSError, ValueError, ElementTree.ParseError) as error:
        print(f"skips cannot be checked: {error}", file=sys.stderr)
        return 2
    refused = [skip for skip in skips if not is_allowed(skip.reason, patterns)]
    print(f"{len(skips)} skipped, {len(refused)} of them for a reason that is not in {allowed}")
    for skip in skips:
        print(f"  {'NOT ALLOWED' if skip in refused else 'allowed'}: {skip.test}: {skip.reason}")
    return 1 if refused else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
