"""Kill a process at each of its changes of a file below a folder: a fault injector of the file layer.

Audit events of Python are counted (opening to write, rename, remove, mkdir, truncate), `pwrite`, and writes
of unbuffered files, which then end in the middle. `every_kill` forks a process for each kill; import no
backend of JAX before. `every_moment` runs once and keeps what is on the disk before each change, which is
what a kill there would leave: for work with so many changes that forking takes too long.
"""

import builtins
import contextlib
import os
import shutil
import signal
import sys
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import IO, Any


#: Audit events, and which of their arguments is the folder that the path is relative to, if any.
_CHANGES = {"os.rename": 2, "os.remove": 1, "os.rmdir": 1, "os.mkdir": 2, "os.truncate": None}


def _die() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


class Injector:
    """Calls a function at the n-th change below a folder, or at each.

    Args:
        folder: resolved. at: number of the change, from 1; None: each. call: the function.
    """

    def __init__(self, folder: Path, at: int | None, call: Callable[[], None]):
        self.root, self.at, self.call, self.count = f"{folder}/", at, call, 0

    def change(self, path: Any = None) -> None:
        """Called before each change."""
        self.count += 1
        if self.at in (None, self.count):
            self.call()

    def audit(self, event: str, args: tuple) -> None:
        if event == "open":
            if not (args[2] or 0) & (os.O_WRONLY | os.O_RDWR | os.O_CREAT):
                return
        elif event not in _CHANGES:
            return
        place = _CHANGES.get(event)
        if self.is_below(args[0], -1 if place is None else args[place]):
            self.change(args[0])

    def is_below(self, path: Any, place: int) -> bool:
        """Whether a path, relative to an open folder unless this is -1, is below the folder."""
        if isinstance(path, int):
            return os.path.realpath(f"/proc/self/fd/{path}").startswith(self.root)
        path = os.fsdecode(path)
        if place >= 0:
            path = os.path.join(os.path.realpath(f"/proc/self/fd/{place}"), path)
        return os.path.abspath(path).startswith(self.root)

    def write(self, file: IO[bytes], content: bytes) -> int:
        """A write in the middle of which a change is."""
        half = file.write(content[: len(content) // 2])
        self.change()
        return half + file.write(content[half:])


#: An audit hook cannot be removed, so there is one, and the last of these counts.
_hooks: list[Callable[[str, tuple], None]] = []
_active: list[Injector] = []
_real_open, _pwrite, _write_bytes = builtins.open, os.pwrite, Path.write_bytes


@contextlib.contextmanager
def injected(injector: Injector) -> Iterator[None]:
    """A context in which it counts."""

    def count_open(path: Any, mode: str = "r", buffering: int = -1, *args: Any, **kwargs: Any) -> Any:
        file = _real_open(path, mode, buffering, *args, **kwargs)
        return _Torn(file, injector) if buffering == 0 and mode not in ("rb", "r") else file

    def write_bytes(path: Path, content: bytes) -> int:
        with _real_open(path, "wb", buffering=0) as file:
            return injector.write(file, bytes(content))

    def count_pwrite(file: int, content: bytes, at: int) -> int:
        # Within a page, so all of it or nothing.
        if injector.is_below(file, -1):
            injector.change()
        return _pwrite(file, content, at)

    if not _hooks:
        _hooks.append(lambda event, args: _active[-1].audit(event, args) if _active else None)
        sys.addaudithook(_hooks[0])
    builtins.open, os.pwrite, Path.write_bytes = count_open, count_pwrite, write_bytes
    _active.append(injector)
    try:
        yield
    finally:
        _active.pop()
        builtins.open, os.pwrite, Path.write_bytes = _real_open, _pwrite, _write_bytes


class _Torn:
    """An unbuffered file whose writes are counted."""

    def __init__(self, file: IO[bytes], injector: Injector):
        self._file, self._injector = file, injector

    def write(self, content: Any) -> int:
        return self._injector.write(self._file, bytes(content))

    def __enter__(self) -> "_Torn":
        return self

    def __exit__(self, *exc: Any) -> None:
        self._file.close()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._file, name)


def run_killed(folder: Path, at: int, work: Callable[[], None]) -> bool:
    """Run in a forked process that dies at its n-th change; whether it came to its end before that."""
    pid = os.fork()
    if pid == 0:
        code = 1
        try:
            with injected(Injector(folder, at, _die)):
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


def on_disk(folder: Path) -> dict[str, bytes | None]:
    """Contents of all files below a folder, by path; None for a folder."""
    found: dict[str, bytes | None] = {}
    for place, folders, files in os.walk(folder):
        found |= dict.fromkeys((os.path.join(place, name) for name in folders), None)
        for name in files:
            path = os.path.join(place, name)
            with _real_open(path, "rb") as file:
                found[path] = file.read()
    return found


def put_on_disk(folder: Path, found: dict[str, bytes | None]) -> None:
    """The inverse of `on_disk`."""
    shutil.rmtree(folder)
    folder.mkdir()
    for path, content in found.items():
        if content is None:
            os.mkdir(path)
        else:
            with _real_open(path, "wb") as file:
                file.write(content)


def every_moment(folder: Path, work: Callable[[], None]) -> Iterator[int]:
    """Put the folder into each state that a kill of `work` may leave; equal ones in a row count as one."""
    moments: list[dict[str, bytes | None]] = []

    def look() -> None:
        _active.append(Injector(Path("/nowhere"), -1, _die))
        try:
            found = on_disk(folder)
        finally:
            _active.pop()
        if not moments or found != moments[-1]:
            moments.append(found)

    with injected(Injector(folder, None, look)):
        work()
    for number, moment in enumerate(moments):
        put_on_disk(folder, moment)
        yield number


def copy_of(folder: Path, name: str) -> Callable[[], None]:
    """A function that makes the folder what it is now."""
    kept = folder.with_name(f"{folder.name}-{name}")
    shutil.rmtree(kept, ignore_errors=True)
    shutil.copytree(folder, kept, symlinks=True)

    def back() -> None:
        shutil.rmtree(folder)
        shutil.copytree(kept, folder, symlinks=True)

    return back
