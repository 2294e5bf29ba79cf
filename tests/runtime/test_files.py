"""Files appear whole, with the user's permissions, and leftovers of killed processes go; JSON that cannot be right is
one line."""

import csv
import errno
import json
import os
import stat
import subprocess
import sys
import threading

import numpy as np
import pytest
from safetensors import safe_open

from mwork_jax.errors import InputError
from mwork_jax.runtime import files
from mwork_jax.runtime.files import (
    atomic_path,
    only_writer,
    read_json,
    read_jsonl,
    read_rows,
    read_text,
    remove_abandoned,
    temporary_folder,
    write_json,
    write_tensors,
    write_text,
)


@pytest.fixture
def umask():
    """Sets the umask for one test."""
    before = os.umask(0o022)
    yield os.umask
    os.umask(before)


@pytest.mark.parametrize("mask", [0o022, 0o027, 0o077, 0o002])
def test_files_have_the_mode_that_the_umask_gives(mask, umask, tmp_path):
    umask(mask)
    write_text(tmp_path / "a.txt", "a")
    write_tensors(tmp_path / "a.safetensors", {}, {})
    for name in ("a.txt", "a.safetensors"):
        assert stat.S_IMODE((tmp_path / name).stat().st_mode) == 0o666 & ~mask


def test_equal_tensors_have_equal_bytes(tmp_path):
    """The library writes metadata in the order of a hash table."""
    metadata = {f"name {i}": f'"{i}" \u0e07 \n' for i in range(9)}
    contents = set()
    for i in range(6):
        write_tensors(tmp_path / f"{i}.safetensors", {"b": np.zeros(2, np.float32), "a": np.ones(3)}, metadata)
        contents.add((tmp_path / f"{i}.safetensors").read_bytes())
    assert len(contents) == 1
    with safe_open(tmp_path / "0.safetensors", framework="numpy") as file:
        assert file.metadata() == metadata
        np.testing.assert_array_equal(file.get_tensor("a"), np.ones(3))


def test_the_umask_is_never_changed(tmp_path, monkeypatch):
    """It belongs to the whole process: another thread that saves meanwhile would make files that anyone can write."""
    monkeypatch.setattr(os, "umask", lambda mask: pytest.fail("the umask is set for all threads"))
    write_text(tmp_path / "a.txt", "a")


def test_threads_write_the_same_file_side_by_side(tmp_path):
    writers = [threading.Thread(target=write_json, args=(tmp_path / "a.json", [i] * 1000)) for i in range(20)]
    for writer in writers:
        writer.start()
    for writer in writers:
        writer.join()
    assert len(set(read_json(tmp_path / "a.json"))) == 1
    assert [p.name for p in tmp_path.iterdir()] == ["a.json"]


@pytest.fixture(scope="module")
def ended():
    """The id of a process that has ended."""
    process = subprocess.Popen([sys.executable, "-c", ""])
    process.wait()
    return process.pid


def part(folder, name, process, machine=None):
    """The temporary folder of a process that was killed."""
    path = folder / f".{name}.mwork-{machine or files._machine()}-{process}-{'ab' * 8}.part"
    path.mkdir()
    (path / name).write_text("half")
    return path


def age(path):
    for each in (*path.glob("*"), path):
        os.utime(each, (1, 1))


def test_what_ended_processes_left_is_removed_and_nothing_else(ended, tmp_path):
    gone = [part(tmp_path, "a.json", ended), part(tmp_path, "folder", ended)]
    old = part(tmp_path, "old.json", ended, machine="00000000")
    age(old)
    kept = [
        part(tmp_path, "b.json", os.getpid()),  # another thread may be writing it
        part(tmp_path, "c.json", os.getppid()),
        part(tmp_path, "d.json", ended, machine="00000000"),  # of another machine, which may be writing it
        part(tmp_path, "e", os.getpid()),
        *(
            tmp_path / name
            for name in (".video.mp4.part", ".a.json.x1b2c3d4.part", "a.part", ".b.json.mwork-1-2-3.part")
        ),
    ]
    os.utime(kept[3], (1, 1))  # the folder is old, what is in it is not
    for path in kept[4:]:
        path.write_text("of another program")
        os.utime(path, (1, 1))
    remove_abandoned(tmp_path)
    assert not any(path.exists() for path in (*gone, old))
    assert all(path.exists() for path in kept)
    remove_abandoned(tmp_path / "no such folder")


@pytest.mark.parametrize("name", ["results.json", "scores/de.safetensors", "neurons/de.json", "figures/f.svg"])
def test_every_folder_that_is_written_to_is_cleaned(name, ended, tmp_path):
    path = tmp_path / name
    path.parent.mkdir(exist_ok=True)
    left = part(path.parent, path.name, ended)
    write_text(path, "whole")
    assert not left.exists()
    left = part(path.parent, path.name, ended)
    files._remove_abandoned_once.cache_clear()  # as in a new process
    with temporary_folder(path.parent, "x") as folder:
        assert folder.is_dir()
    assert [p.name for p in path.parent.iterdir()] == [path.name]


def test_what_a_killed_process_leaves_the_next_one_removes(tmp_path):
    """A writer's own temporary files too: safetensors writes to a `.tmp...` beside the path that it is given."""
    script = (
        "import os, signal, sys, threading, numpy; from pathlib import Path\n"
        "from mwork_jax.runtime.files import write_tensors\n"
        "def kill():\n"
        "    while not list(Path(sys.argv[1]).rglob('.tmp*')): pass\n"
        "    os.kill(os.getpid(), signal.SIGKILL)\n"
        "threading.Thread(target=kill).start()\n"
        "while True: write_tensors(sys.argv[1] + '/a.safetensors', {'x': numpy.zeros(1 << 26, numpy.uint8)}, {})\n"
    )
    subprocess.run([sys.executable, "-c", script, str(tmp_path)])
    write_text(tmp_path / "b.txt", "whole")
    assert {p.name for p in tmp_path.iterdir()} <= {"a.safetensors", "b.txt"}


def test_a_long_name_has_room_for_its_part(tmp_path):
    name = "ä" * 120 + ".txt"
    with atomic_path(tmp_path / name) as path:
        path.write_text("whole")
    assert (tmp_path / name).read_text() == "whole"


WRONG = {
    "nan": ('{"loss": NaN}', "NaN is not a number that JSON has"),
    "infinity": ("[1, -Infinity]", "-Infinity is not a number that JSON has"),
    "large float": ('{"loss": 1e999}', "the number 1e999 is too large"),
    "large negative float": ('{"loss": -12345e99999}', "the number -12345e99999 is too large"),
    "large whole number": ("1" + "0" * 400, "its whole numbers have 308 digits at most"),
    "twice": ('{"a": {"b": 1, "c": 2, "b": 1}}', "'b' is twice in one object"),
    "half a pair": (r'{"text": "a \ud83d b"}', r"half a surrogate pair \(U\+D83D\)"),
    "the other half": (r'{"\udc00": 1}', r"half a surrogate pair \(U\+DC00\)"),
}


@pytest.mark.parametrize("case", WRONG)
def test_json_that_cannot_be_right_is_one_line(case, tmp_path):
    text, message = WRONG[case]
    (tmp_path / "x.json").write_text(text)
    with pytest.raises(InputError, match=message) as error:
        read_json(tmp_path / "x.json")
    assert str(error.value).startswith(f"{tmp_path / 'x.json'}: ")
    assert "\n" not in str(error.value)
    if text.startswith("{"):
        (tmp_path / "x.jsonl").write_text(f"{{}}\n{text}\n")
        with pytest.raises(InputError, match=message) as error:
            read_jsonl(tmp_path / "x.jsonl")
        assert str(error.value).startswith(f"{tmp_path / 'x.jsonl'}:2: ")


@pytest.mark.parametrize(
    "value",
    [
        1e308,
        -5e-324,
        0.1,
        10**307,
        -1,
        {"a": {"a": [{"a": 1}, {"a": 2}]}},
        {"text": "😀 \\ud83d U+D83D"},  # a whole pair; a backslash that is not an escape
        [None, True, ""],
        1000000000000000019884624838656,  # the longest text of a tokenizer that has no limit
    ],
)
def test_other_json_is_read_as_it_was_written(value, tmp_path):
    for escaped in (True, False):
        (tmp_path / "x.json").write_text(json.dumps(value, ensure_ascii=escaped))
        assert read_json(tmp_path / "x.json") == json.loads(json.dumps(value))


@pytest.mark.parametrize("name", ["scores", "neurons", "cache"])
def test_a_link_in_an_output_folder_is_refused(name, tmp_path):
    """What is written stays inside the folder, also where somebody else made it."""
    (tmp_path / "victim").mkdir()
    (tmp_path / "sent").mkdir()
    (tmp_path / "sent" / name).symlink_to(tmp_path / "victim")
    with pytest.raises(InputError, match=rf"{name}: a link, and what is written stays inside"):
        files.output_folder(tmp_path / "sent")
    (tmp_path / "sent" / name).unlink()
    (tmp_path / "sent" / "data of mine").symlink_to(tmp_path / "victim")
    assert files.output_folder(tmp_path / "sent") == tmp_path / "sent"


@pytest.mark.parametrize("encoding", ["utf-16-le", "utf-16-be", "utf-32-le", "utf-32-be"])
def test_text_of_another_encoding_is_named(encoding, tmp_path):
    """In ASCII's range, these encodings are valid UTF-8 that has NUL characters between the letters."""
    (tmp_path / "x.txt").write_bytes("a text".encode(encoding))
    with pytest.raises(InputError, match=r"x\.txt: holds NUL characters; is it UTF-16\? save it as UTF-8"):
        read_text(tmp_path / "x.txt")


@pytest.mark.parametrize(("name", "separator"), [("x.csv", ","), ("x.tsv", "\t")])
def test_cells_may_be_longer_than_the_csv_module_takes(name, separator, tmp_path):
    before, long = csv.field_size_limit(), "a" * 200_000
    (tmp_path / name).write_text(f"id{separator}text\n1{separator}{long}\n")
    assert [row["text"] for _, row in read_rows(tmp_path / name)] == [long]
    assert csv.field_size_limit() == before


def test_two_do_not_write_to_one_folder(tmp_path):
    folder = tmp_path / "new" / "folder"
    with only_writer(folder):
        with pytest.raises(InputError, match="folder: another process is writing there"), only_writer(folder):
            pass
        with only_writer(tmp_path / "other"):
            pass
    with only_writer(folder):
        pass


def test_a_disk_that_is_full_is_said_with_the_path(tmp_path):
    with pytest.raises(OSError, match="No space left on device") as error, atomic_path(tmp_path / "x.json"):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    assert error.value.filename == str(tmp_path / "x.json")
