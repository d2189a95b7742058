"""Kill a process at each of its changes of a file below a folder: a fault injector of the file layer.

Audit events of Python are counted (opening to write, rename, remove, mkdir, truncate, ...), and writes of
whole contents, which then end in the middle. Each trial is a forked process; import no backend of JAX before.
"""

import os
import shutil
import signal
import sys
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path


#: Audit events, and which of their arguments is the folder that the path is relative to, if any.
_CHANGES = {"os.rename": 2, "os.remove": 1, "os.rmdir": 1, "os.mkdir": 2, "os.truncate": None}


def _die() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


class _Counter:
    """Dies at the n-th change below a folder."""

    def __init__(self, folder: Path, at: int):
        self.root, self.at, self.count = os.path.realpath(folder) + "/", at, 0

    def audit(self, event: str, args: tuple) -> None:
        if event == "open":
            if not (args[2] or 0) & (os.O_WRONLY | os.O_RDWR | os.O_CREAT):
                return
        elif event not in _CHANGES:
            return
        path, place = args[0], _CHANGES.get(event)
        if isinstance(path, int):
            path = os.path.realpath(f"/proc/self/fd/{path}")
        elif place is not None and args[place] >= 0:
            path = f"/proc/self/fd/{args[place]}/{os.fsdecode(path)}"
        folder, name = os.path.split(os.path.abspath(os.fsdecode(path)))
        path = os.path.join(os.path.realpath(folder), name)
        if path.startswith(self.root):
            self.count += 1
            if self.count == self.at:
                _die()

    def write_bytes(self, path: Path, content: bytes) -> int:
        """A write that ends in the middle if it is the n-th change after that of opening."""
        with open(path, "wb", buffering=0) as file:
            self.count += 1
            if self.count == self.at:
                file.write(content[: len(content) // 2])
                _die()
            return file.write(content)


def run_killed(folder: Path, at: int, work: Callable[[], None]) -> bool:
    """Run in a forked process that dies at its n-th change; whether it came to its end before that."""
    pid = os.fork()
    if pid == 0:
        code = 1
        try:
            counter = _Counter(folder, at)
            sys.addaudithook(counter.audit)
            Path.write_bytes = lambda path, content: counter.write_bytes(path, bytes(content))
            work()
            code = 0
        except BaseException:
            traceback.print_exc()
        finally:
            sys.stderr.flush()
            os._exit(code)
    status = os.waitpid(pid, 0)[1]
    if os.WIFSIGNALED(status):
        assert os.WTERMSIG(status) == signal.SIGKILL, status
        return False
    assert os.WEXITSTATUS(status) == 0, f"the process that was to be killed at change {at} failed before"
    return True


def every_kill(
    folder: Path, work: Callable[[], None], prepare: Callable[[], None] = lambda: None, step: int = 1
) -> Iterator[int]:
    """Kill `work` at each of its changes, from the first on; after each the caller looks at the folder."""
    at = 1
    while True:
        prepare()
        if run_killed(folder, at, work):
            return
        yield at
        at += step


def copy_of(folder: Path, name: str) -> Callable[[], None]:
    """A function that makes the folder what it is now."""
    kept = folder.with_name(f"{folder.name}-{name}")
    shutil.rmtree(kept, ignore_errors=True)
    shutil.copytree(folder, kept, symlinks=True)

    def back() -> None:
        shutil.rmtree(folder)
        shutil.copytree(kept, folder, symlinks=True)

    return back
