"""`mwork models`: which models are supported."""

from __future__ import annotations

import argparse
from typing import Any

from mwork_jax.cli.options import command, print_result
from mwork_jax.families import FAMILIES
from mwork_jax.families.wrappers import WRAPPERS


def add(commands: Any) -> None:
    what = "list the families of models that are supported, and what is missing in each"
    parser = command(commands, "models", _models, what, "mwork models")
    parser.add_argument("--markdown", action="store_true", help="as a table in Markdown")


def _models(args: argparse.Namespace) -> None:
    families = [
        {
            "model_type": family.model_type,
            "about": family.about,
            "checkpoints": list(family.checkpoints),
            "missing": family.limits,
            "inside": _inside(family.model_type),
        }
        for family in FAMILIES.values()
    ]
    print_result(args, families, models_table() if args.markdown else supported_models())


def models_table() -> str:
    """The supported families as a table in Markdown, as docs/models.md has it."""
    lines = ["| model_type | models | published, whose config.json is tested | missing |", "|---|---|---|---|"]
    for family in FAMILIES.values():
        names = [f"`{family.model_type}`", *(f"`{name}`" for name in _inside(family.model_type))]
        published = ", ".join(f"`{name}`" for name in family.checkpoints) or "-"
        lines.append(f"| {', inside '.join(names)} | {family.about} | {published} | {family.limits or '-'} |")
    return "\n".join(lines)


def _inside(model_type: str) -> list[str]:
    """The models of several parts that a text model can be in."""
    return [wrapper.model_type for wrapper in WRAPPERS.values() if model_type in wrapper.texts]


def supported_models() -> str:
    """The supported families as text, one after the other."""
    blocks = []
    for family in FAMILIES.values():
        inside = _inside(family.model_type)
        lines = [
            family.model_type + (f" (also inside {', '.join(inside)})" if inside else ""),
            f"  {family.about}",
            *([f"  published: {', '.join(family.checkpoints)}"] if family.checkpoints else []),
            *([f"  missing: {family.limits}"] if family.limits else []),
        ]
        blocks.append("\n".join(lines))
    note = "By config.json's model_type. Each is tested against Hugging Face PyTorch; docs/models.md says how."
    return "\n".join([*blocks, "", note])
