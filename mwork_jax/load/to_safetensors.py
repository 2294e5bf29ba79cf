"""Converts a model folder's pickled PyTorch weights to safetensors, without running what else they may hold.

    python -m mwork_jax.load.to_safetensors FOLDER

Reads `pytorch_model*.bin` with torch's loader of weights alone, which refuses everything else, one file at a time, and
writes `model-*.safetensors` with their index beside them. Needs torch, which mwork itself does not.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from mwork_jax.errors import InputError
from mwork_jax.load.hf_folder import INDEX
from mwork_jax.runtime.files import write_json, write_tensors


def to_safetensors(folder: str | Path) -> list[Path]:
    """Writes the weights of a folder as safetensors; returns the files. Raises InputError where there is nothing to
    convert, where safetensors are there already, or where a file holds something else than tensors."""
    folder = Path(folder)
    sources = sorted(folder.glob("pytorch_model*.bin"))
    if not sources:
        raise InputError(f"{folder}: no pytorch_model*.bin; there is nothing to convert")
    if existing := sorted(folder.glob("model*.safetensors*")):
        raise InputError(f"{existing[0]}: is there already; remove it to convert again")
    try:
        import torch
    except ImportError:
        raise InputError("converting needs torch, which is not installed: pip install torch") from None
    table: dict[str, str] = {}
    names = [f"model-{number:05}-of-{len(sources):05}.safetensors" for number in range(1, len(sources) + 1)]
    try:
        for source, name in zip(sources, names, strict=True):
            tensors = _tensors(source, torch)
            if twice := sorted(table.keys() & tensors.keys()):
                raise InputError(f"{source}: {twice[0]} is in another file too; which one holds?")
            write_tensors(folder / name, tensors, {"format": "pt"})
            table |= dict.fromkeys(tensors, name)
        write_json(folder / INDEX, {"metadata": {}, "weight_map": table})
    except BaseException:  # an interruption too: a part of a model would only be in the way
        for name in names:
            (folder / name).unlink(missing_ok=True)
        raise
    return [folder / name for name in names]


def _tensors(path: Path, torch: Any) -> dict[str, Any]:
    import ml_dtypes

    try:
        loaded = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # what it refuses raises several kinds, with advice to trust the file
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise InputError(f"{path}: holds something else than weights, or is damaged ({reason[:120]})") from None
    if not isinstance(loaded, dict) or not all(isinstance(t, torch.Tensor) for t in loaded.values()):
        raise InputError(f"{path}: holds something else than tensors by name")

    def array(tensor: Any) -> Any:
        tensor = tensor.detach().contiguous()
        if tensor.dtype == torch.bfloat16:
            return tensor.view(torch.uint16).numpy().view(ml_dtypes.bfloat16)
        return tensor.numpy()

    return {name: array(tensor) for name, tensor in loaded.items()}


def main(arguments: Sequence[str]) -> int:
    if len(arguments) != 1:
        print("usage: python -m mwork_jax.load.to_safetensors FOLDER", file=sys.stderr)
        return 2
    try:
        for path in to_safetensors(arguments[0]):
            print(path)
    except (InputError, OSError) as error:
        print(f"mwork: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
