"""Compiled programs are kept in a folder that is the user's alone, and read by the next process."""

import os
import subprocess
import sys

import jax
import pytest

from mwork_jax.runtime import compiled_cache

PROGRAM = """
import jax, jax.numpy as jnp
from mwork_jax.runtime import compiled_cache
from mwork_jax.runtime.progress import compilations
print(compiled_cache.keep_compiled_programs())
x = jnp.ones((8, 8))
with compilations() as compiled:
    jax.jit(lambda x: jnp.tanh(x @ x) + 1)(x).block_until_ready()
print(compiled.count, compiled.read, compiled)
"""


@pytest.fixture
def no_folder(tmp_path, monkeypatch):
    """Nobody has said where compiled programs go; what is set meanwhile is undone."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    names = ("dir", "max_size")
    before = {name: getattr(jax.config, f"jax_compilation_cache_{name}") for name in names}
    least = jax.config.jax_persistent_cache_min_compile_time_secs
    jax.config.update("jax_compilation_cache_dir", None)
    yield tmp_path
    for name, value in before.items():
        jax.config.update(f"jax_compilation_cache_{name}", value)
    jax.config.update("jax_persistent_cache_min_compile_time_secs", least)


def test_the_folder_is_the_users_alone(no_folder):
    folder = compiled_cache.keep_compiled_programs()
    assert folder is not None
    assert folder.parent == no_folder / "mwork-jax" / "programs"
    assert folder.stat().st_mode & 0o077 == 0
    assert jax.config.jax_compilation_cache_dir == str(folder)


def test_a_folder_that_others_can_write_to_is_not_used(no_folder):
    folder = no_folder / "mwork-jax" / "programs" / compiled_cache._kind_of_processor()
    folder.mkdir(parents=True)
    folder.chmod(0o777)
    assert compiled_cache.keep_compiled_programs() is None
    assert jax.config.jax_compilation_cache_dir is None


def test_where_no_folder_can_be_made_nothing_is_kept(no_folder):
    (no_folder / "mwork-jax").write_text("a file")
    assert compiled_cache.keep_compiled_programs() is None


def test_what_the_user_has_set_stands(tmp_path, monkeypatch, no_folder):
    jax.config.update("jax_compilation_cache_dir", str(tmp_path / "own"))
    assert compiled_cache.keep_compiled_programs() is None
    assert jax.config.jax_compilation_cache_dir == str(tmp_path / "own")


def test_the_next_process_compiles_nothing(tmp_path):
    env = {name: value for name, value in os.environ.items() if not name.startswith("JAX_")}
    env |= {"XDG_CACHE_HOME": str(tmp_path), "JAX_PLATFORMS": "cpu"}
    first, second = (
        subprocess.run([sys.executable, "-c", PROGRAM], env=env, capture_output=True, text=True, check=True).stdout
        for _ in range(2)
    )
    assert str(tmp_path) in first
    assert first.splitlines()[1].startswith("1 0 1 programs compiled")
    assert second.splitlines()[1].startswith("0 1 0 programs compiled, 1 more were kept from before")
