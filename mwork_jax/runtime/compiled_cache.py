"""Compiled programs are kept between runs of the command, in the user's cache folder, so that they compile once."""

from __future__ import annotations

import hashlib
import os
import platform
import sys
from pathlib import Path

import jax

_FOLDER, _ENABLED = "jax_compilation_cache_dir", "jax_enable_compilation_cache"
_LEAST_SECONDS = 0.0  # small programs too, so that a second run compiles nothing
_MOST_BYTES = 4 << 30  # in the folder; what was not used for longest is removed first


def keep_compiled_programs() -> Path | None:
    """Has JAX keep compiled programs, where nobody has said where (`JAX_COMPILATION_CACHE_DIR`): the folder, or None
    where there is none that is this user's alone. Who can write to it decides what code runs."""
    if getattr(jax.config, _FOLDER) or not getattr(jax.config, _ENABLED):
        return None
    folder = _cache_folder()
    if folder is None:
        return None
    jax.config.update(_FOLDER, str(folder))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", _LEAST_SECONDS)
    jax.config.update("jax_compilation_cache_max_size", _MOST_BYTES)
    return folder


def _cache_folder() -> Path | None:
    """mwork-jax/programs/KIND in the user's cache folder, made if it is not there. KIND is of the processor: a home may
    be shared by machines of several, and one's programs can have instructions that another does not know."""
    folder = _user_caches() / "mwork-jax" / "programs" / _kind_of_processor()
    try:
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        state = folder.stat()
    except OSError:
        return None
    if hasattr(os, "getuid") and (state.st_uid != os.getuid() or state.st_mode & 0o022):
        return None
    return folder if os.access(folder, os.W_OK) else None


def _kind_of_processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        lines = [platform.processor()]
    features = next((line for line in lines if line.startswith(("flags", "Features"))), "".join(lines[:1]))
    return f"{platform.machine()}-{hashlib.sha256(features.encode()).hexdigest()[:12]}"


def _user_caches() -> Path:
    if sys.platform == "win32":
        return Path(os.environ.get("LOCALAPPDATA") or Path.home() / "AppData" / "Local")
    if sys.platform == "darwin":
        return Path.home() / "Library" / "Caches"
    own = Path(os.environ.get("XDG_CACHE_HOME") or "")
    return own if own.is_absolute() else Path.home() / ".cache"
