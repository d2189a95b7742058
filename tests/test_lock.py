"""WriteLock: who has it is said, a forked process does not give it up, and no locks are a warning."""

import errno
import os
import re
import subprocess
import sys
import warnings
from pathlib import Path

import pytest

from alchemi_jax.io import lock
from alchemi_jax.io.lock import LockedError, WriteLock


pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="Windows has no flock")

HOLD = """
import sys
from pathlib import Path
from alchemi_jax.io.lock import WriteLock
held = WriteLock(Path(sys.argv[1]))
print("held", flush=True)
sys.stdin.readline()
"""


@pytest.mark.parametrize("attributes", [True, False])
@pytest.mark.parametrize("folder", [True, False])
def test_the_holder_is_named(tmp_path, monkeypatch, attributes, folder):
    path = tmp_path / "x"
    path.mkdir() if folder else path.touch()
    if not attributes:
        if not Path("/proc/locks").exists():
            pytest.skip("nothing else knows the holder")
        monkeypatch.delattr(os, "getxattr")
    (tmp_path / "hold.py").write_text(HOLD)
    with subprocess.Popen(
        [sys.executable, "hold.py", "x", "two words"],
        cwd=tmp_path,
        env=os.environ | {"PYTHONPATH": str(Path(lock.__file__).parents[2])},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as other:
        assert other.stdout.readline() == "held\n"
        with pytest.raises(LockedError) as caught:
            WriteLock(path)
        assert str(caught.value).startswith(f"{path} is being written by another sink or log, process ")
        assert caught.value.who in str(caught.value)
        for known in (f"process {other.pid} on ", "hold.py x 'two words'"):
            assert known in caught.value.who
        if attributes:
            assert re.search(r" since \d{4}-\d\d-\d\d \d\d:\d\d, ", caught.value.who)
        other.kill()
    # What it left is not taken for a holder.
    held = WriteLock(path)
    with pytest.raises(LockedError, match="in this process"):
        WriteLock(path)
    held.release()
    WriteLock(path).release()
    assert sorted(p.name for p in tmp_path.iterdir()) == ["hold.py", "x"]


def test_a_forked_process_does_not_give_it_up(tmp_path):
    held = WriteLock(tmp_path)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        pid = os.fork()
    if pid == 0:
        held.release()
        os._exit(0)
    os.waitpid(pid, 0)
    with pytest.raises(LockedError):
        WriteLock(tmp_path)
    held.release()
    WriteLock(tmp_path).release()


def test_a_file_system_without_locks_is_said_once(tmp_path, monkeypatch):
    def flock(file, what):
        raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

    monkeypatch.setattr(lock.fcntl, "flock", flock)
    monkeypatch.setattr(lock, "_WARNED", set())
    with pytest.warns(RuntimeWarning, match=rf"^{re.escape(str(tmp_path))}: this file system has no locks"):
        held = WriteLock(tmp_path)
    assert held.holds(tmp_path)
    WriteLock(tmp_path).release()
    held.release()
    # A path that does not exist is the business of whoever opens it.
    WriteLock(tmp_path / "none").release()


@pytest.mark.parametrize("folder", [True, False])
def test_a_file_system_that_locks_only_what_is_open_to_write(tmp_path, monkeypatch, folder):
    """As NFS does: a folder has a file beside it that is locked, and goes with the lock."""
    path = tmp_path / "x"
    path.mkdir() if folder else path.touch()
    flock = lock.fcntl.flock

    def strict(file, what):
        if what != lock.fcntl.LOCK_UN and not lock.fcntl.fcntl(file, lock.fcntl.F_GETFL) & os.O_RDWR:
            raise OSError(errno.EBADF, os.strerror(errno.EBADF))
        flock(file, what)

    monkeypatch.setattr(lock.fcntl, "flock", strict)
    held = WriteLock(path)
    assert held.holds(path)
    with pytest.raises(LockedError, match=rf"^{re.escape(str(path))} is being written .* in this process"):
        WriteLock(path)
    assert [p.name for p in tmp_path.iterdir() if p != path] == [".x.alchemi_jax-lock"] * folder
    held.release()
    assert [p.name for p in tmp_path.iterdir()] == ["x"]
    WriteLock(path).release()
