"""One writer per file: two sinks that append to the same file would overwrite one another's systems.

Who has a lock is an extended attribute of the locked file, so that other nodes can read it and no further
file lies beside the results. Where there are none, Linux knows the process.
"""

import contextlib
import datetime
import errno
import json
import os
import shlex
import socket
import sys
import warnings
from collections.abc import Callable
from pathlib import Path


try:
    import fcntl
except ImportError:
    # Windows: there is no lock.
    fcntl = None

_ATTRIBUTE, _BESIDE = "user.alchemi_jax.lock", ".alchemi_jax-lock"
#: What `flock` says where the file system has no locks.
_NO_LOCKS = (errno.ENOLCK, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOSYS, errno.EINVAL, errno.EBADF)
#: Devices of the file systems without locks that were warned about.
_WARNED: set[int] = set()


class LockedError(ValueError):
    """Another object, here or in another process, writes the file or folder.

    Attributes:
        who: which one: "process 812 on node7 since 2026-11-27 03:12, alchemi-jax md in.extxyz"; empty if it
            is not known.
    """

    def __init__(self, path: Path, who: str):
        self.who = who
        super().__init__(
            f"{path} is being written by another sink or log, {who or 'here or in another process'}: give "
            "each of them a path of its own, or use one object for both."
        )


class WriteLock:
    """Held while a file or folder is written. The system gives it up when the process ends, however it ends.

    Where the file system has no locks, a RuntimeWarning says so, once, and nothing is held.

    Args:
        path: of a file or folder that exists.

    Raises:
        LockedError: a ValueError with the path and who holds it, if another object, here or in another
            process, does.
    """

    def __init__(self, path: Path):
        self._file: int | None = None
        self._process = os.getpid()
        #: A file that is locked in place of a folder that cannot be.
        self._beside: Path | None = None
        if fcntl is None:
            return
        try:
            self._lock(path)
        except LockedError:
            raise
        except OSError as e:
            self._warn(path, e)
        if self._file is not None:
            _note_holder(self._file)

    def _lock(self, path: Path) -> None:
        """Raises OSError if the file system has no locks, or the path cannot be opened."""
        try:
            self._try(path, path, os.O_RDONLY)
        except OSError as e:
            if e.errno != errno.EBADF:
                raise
            # NFS locks only files that are open to write. A folder cannot be, so a file beside it is locked.
            if not path.is_dir():
                self._try(path, path, os.O_RDWR)
                return
            self._beside = path.with_name(f".{path.name}{_BESIDE}")
            while self._file is None:
                self._try(self._beside, path, os.O_RDWR | os.O_CREAT)
                if not _is_at(self._file, self._beside):
                    # Whoever had it has removed it meanwhile.
                    self._close()

    def _try(self, file: Path, path: Path, flags: int) -> None:
        assert fcntl is not None
        opened = os.open(file, flags, 0o666)
        try:
            fcntl.flock(opened, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            who = _holder(opened)
            os.close(opened)
            raise LockedError(path, who) from None
        except OSError:
            os.close(opened)
            raise
        self._file = opened

    def _warn(self, path: Path, error: OSError) -> None:
        """If the file system has no locks. What else is wrong with the path is said when it is opened."""
        try:
            device = os.stat(path).st_dev
        except OSError:
            return
        if error.errno in _NO_LOCKS and device not in _WARNED:
            _WARNED.add(device)
            warnings.warn(
                f"{path}: this file system has no locks ({error.strerror}), so nothing keeps two runs from "
                "writing the same files: start one at a time.",
                RuntimeWarning,
                stacklevel=4,
            )

    def holds(self, path: Path) -> bool:
        """Whether this path is still the file that was locked, and not another that replaced it."""
        return self._file is None or self._beside is not None or _is_at(self._file, path)

    def release(self) -> None:
        """Give it up."""
        if self._file is None or fcntl is None:
            return
        # A forked process has the same lock, which is not its own.
        if os.getpid() == self._process:
            with contextlib.suppress(OSError, AttributeError):
                os.removexattr(self._file, _ATTRIBUTE)
            if self._beside is not None:
                with contextlib.suppress(OSError):
                    self._beside.unlink()
            with contextlib.suppress(OSError):
                # Closing is not enough: a forked process may have the same file open.
                fcntl.flock(self._file, fcntl.LOCK_UN)
        self._close()

    def _close(self) -> None:
        file, self._file = self._file, None
        if file is not None:
            with contextlib.suppress(OSError):
                os.close(file)

    def __del__(self) -> None:
        self.release()


def _is_at(file: int | None, path: Path) -> bool:
    """Whether an open file is the one at a path; false if there is none."""
    try:
        return file is not None and os.path.samestat(os.fstat(file), os.stat(path))
    except FileNotFoundError:
        return False


def _note_holder(file: int) -> None:
    """Write down who has the lock."""
    holder = {
        "process": os.getpid(),
        "host": socket.gethostname(),
        "since": datetime.datetime.now().isoformat(" ", "minutes"),
        "command": _command(sys.argv),
    }
    # Linux has them, and most of its file systems.
    with contextlib.suppress(OSError, AttributeError):
        os.setxattr(file, _ATTRIBUTE, json.dumps(holder).encode())


def _holder(file: int) -> str:
    """Who has the lock; empty if it is not known."""
    with contextlib.suppress(OSError, AttributeError, ValueError, KeyError, TypeError):
        found = json.loads(os.getxattr(file, _ATTRIBUTE))
        since = f"since {found['since']}, {found['command']}"
        if (found["process"], found["host"]) == (os.getpid(), socket.gethostname()):
            return f"in this process, {since}"
        return f"process {found['process']} on {found['host']} {since}"
    with contextlib.suppress(OSError, ValueError, IndexError):
        status = os.fstat(file)
        place = f"{os.major(status.st_dev):02x}:{os.minor(status.st_dev):02x}:{status.st_ino}"
        for line in Path("/proc/locks").read_text().splitlines():
            words = line.split()
            if words[1:2] == ["FLOCK"] and words[5] == place:
                if int(words[4]) == os.getpid():
                    return "in this process"
                command = Path(f"/proc/{words[4]}/cmdline").read_text().split("\0")[:-1]
                return f"process {words[4]} on this host, {_command(command)}"
    return ""


def _command(words: list[str]) -> str:
    text = shlex.join([os.path.basename(words[0]), *words[1:]]) if words else ""
    return text if len(text) <= 120 else text[:117] + "..."


def open_locked(path: Path, begin: Callable[[], None]) -> WriteLock:
    """Open a file for writing, locked before anything in it is touched. Returns the lock.

    Args:
        begin: opens the file, which it may make or replace.

    Raises:
        LockedError: if another object writes it; and what `begin` raises.
    """
    lock = WriteLock(path) if path.is_file() else None
    try:
        begin()
        return lock if lock is not None and lock.holds(path) else WriteLock(path)
    except BaseException:
        if lock is not None:
            lock.release()
        raise


__all__ = ["LockedError", "WriteLock", "open_locked"]
