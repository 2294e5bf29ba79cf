"""Imports JAX before anything else does: it reads its flags from the environment then, and fails at a wrong one."""

from __future__ import annotations

import os
import re
import sys
from pathlib import Path

from mwork_jax.errors import InputError


def _is_command() -> bool:
    """Whether this process runs the command, not a program that imports the package. While `python -m` imports the
    packages of its module, and only then, its first argument is -m."""
    return sys.argv[:1] == ["-m"] or Path(sys.argv[0] if sys.argv else "").stem == "mwork"


def _refused_flag(error: ValueError) -> InputError:
    """What to say of JAX's error: which variable of the environment it is about."""
    named = {name.upper() for name in re.findall(r"jax_\w+", str(error), re.IGNORECASE)}
    flags = sorted(f"{name}={value}" for name, value in os.environ.items() if name in named)
    what = " and ".join(flags) or "a variable of the environment"
    return InputError(f"{what}: JAX does not take this ({' '.join(str(error).split())}); correct or unset it")


try:
    import jax as jax
except ValueError as error:
    refused = _refused_flag(error)
    if not _is_command():
        raise refused from None
    print(f"mwork: {refused}", file=sys.stderr)
    sys.exit(2)
