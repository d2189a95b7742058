"""A folder takes the place of another; `kill_cases.py` kills that at every change of a file."""

import errno
import os
import re
import shutil
import threading
import time

import pytest

from alchemi_jax.io import replace
from alchemi_jax.io.lock import LockedError
from alchemi_jax.io.replace import repair, replace_folder, replacing


@pytest.fixture
def folder(tmp_path):
    """A folder with files of others whose names are near to ours."""
    folder = tmp_path / "x"
    folder.mkdir()
    for name in (".new-a", ".old-a", ".a.replace", "a.new", ".a.abcdefgh"):
        (folder / name).mkdir()
        (folder / name / "mine").touch()
    return folder


def fill(path, text):
    (path / "deep").mkdir(parents=True)
    for name in "xy":
        (path / "deep" / name).write_text(text)


def fill_twice(path):
    fill(path, "new")
    fill(path, "again")


def contents(folder):
    """The text of the folder `a`, which is whole; nothing else is there."""
    names = {p.name for p in folder.iterdir()} - {".new-a", ".old-a", ".a.replace", "a.new", ".a.abcdefgh"}
    assert sum(1 for p in folder.rglob("mine")) == 5
    if not names:
        return None
    assert names == {"a"}
    (text,) = {(folder / "a" / "deep" / name).read_text() for name in "xy"}
    return text


def test_a_block_that_raises_changes_nothing(folder):
    path = folder / "a"
    fill(path, "old")
    with pytest.raises(FileExistsError), replacing(path) as new:
        fill_twice(new)
    assert contents(folder) == "old"
    with pytest.raises(FileNotFoundError, match=r"was not written, so .* was not replaced"), replacing(path):
        pass
    assert contents(folder) == "old"
    fill(folder.parent / "b", "new")
    (folder.parent / "link").symlink_to(path)
    replace_folder(folder.parent / "b", folder.parent / "link")
    assert contents(folder) == "new"
    assert (folder.parent / "link").is_symlink()


def test_one_process_at_a_time_and_readers_wait(folder, monkeypatch):
    path = folder / "a"
    with replacing(path) as new:
        fill(new, "one")
        second = replacing(path)
        with pytest.raises(LockedError, match=r"being written by another .*, in this process"):
            second.__enter__()
    monkeypatch.setattr(replace, "_PATIENCE", 0.1)
    with replacing(path) as new:
        fill(new, "two")
        # What is there can be read; what a running process has begun is left alone.
        repair(path)
        assert (path / "deep" / "x").read_text() == "one"
        os.rename(path, folder.parent / "aside")
        with pytest.raises(LockedError):
            repair(path)
        monkeypatch.setattr(replace, "_PATIENCE", 10)
        timer = threading.Timer(0.1, lambda: os.rename(folder.parent / "aside", path))
        timer.start()
        repair(path)
        assert path.exists()
    assert contents(folder) == "two"


def test_what_is_wrong_is_named(folder, monkeypatch):
    path = folder / "a"
    fill(path, "old")

    def full(*args, **kwargs):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as patch:
        patch.setattr(replace.os, "replace", full)
        with (
            pytest.raises(OSError, match=rf"^{re.escape(str(path))} cannot be written: No space left"),
            replacing(path) as new,
        ):
            fill(new, "new")
    repair(path)
    assert contents(folder) == "old"
    with pytest.raises(OSError, match=r"b cannot be written: "), replacing(path / "deep/x/b"):
        pass
    # Somebody wrote the folder again after a process had been killed between the two renames.
    fill(folder / f".a{replace._NEW}", "new")
    fill(folder / f".a{replace._OLD}", "old")
    (folder / f".a{replace._JOURNAL}").write_text("{}")
    with pytest.raises(ValueError, match=r"a was written after a process had been killed .* keep one"):
        repair(path)
    shutil.rmtree(folder / f".a{replace._OLD}")
    repair(path)
    assert contents(folder) == "new"


@pytest.mark.parametrize("names", [("old", "new"), ("old",)])
def test_what_earlier_versions_left_is_repaired(folder, names):
    for name in names:
        fill(folder / ".a.a1b2c3d_" / name, name)
    repair(folder / "a")
    assert contents(folder) == names[-1]
    fill(folder / ".a.a1b2c3d_" / "old", "other")
    repair(folder / "a")
    assert contents(folder) == names[-1]
    started = time.monotonic()
    repair(folder / "none")
    assert time.monotonic() - started < 1
