"""`mwork models`: which models are supported."""

from __future__ import annotations

import argparse
from typing import Any

from mwork_jax.cli.options import command, print_result
from mwork_jax.families import FAMILIES
from mwork_jax.families.wrappers import WRAPPERS


def add(commands: Any) -> None:
    what = "list the families of models that are supported, and what is missing in each"
    command(commands, "models", _models, what, "mwork models")


def _models(args: argparse.Namespace) -> None:
    families = [
        {
            "model_type": family.model_type,
            "about": family.about,
            "checkpoints": list(family.checkpoints),
            "missing": family.limits,
            "inside": [wrapper.model_type for wrapper in WRAPPERS.values() if family.model_type in wrapper.texts],
        }
        for family in FAMILIES.values()
    ]
    print_result(args, families, supported_models())


def supported_models() -> str:
    """The supported families as text, one after the other."""
    blocks = []
    for family in FAMILIES.values():
        inside = [wrapper.model_type for wrapper in WRAPPERS.values() if family.model_type in wrapper.texts]
        lines = [
            family.model_type + (f" (also inside {', '.join(inside)})" if inside else ""),
            f"  {family.about}",
            *([f"  published: {', '.join(family.checkpoints)}"] if family.checkpoints else []),
            *([f"  missing: {family.limits}"] if family.limits else []),
        ]
        blocks.append("\n".join(lines))
    note = "By config.json's model_type. Each is tested against Hugging Face PyTorch; docs/models.md says how."
    return "\n".join([*blocks, "", note])
