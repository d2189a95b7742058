"""One writer per file: two sinks that append to the same file would overwrite one another's systems."""

import contextlib
import os
from collections.abc import Callable
from pathlib import Path


try:
    import fcntl
except ImportError:
    # Windows: there is no lock.
    fcntl = None


class WriteLock:
    """Held while a file or folder is written. The system gives it up when the process ends, however it ends.

    Args:
        path: of a file or folder that exists.

    Raises:
        ValueError: naming the path, if another object, here or in another process, holds it.
    """

    def __init__(self, path: Path):
        self._file: int | None = None
        if fcntl is None:
            return
        try:
            self._file = os.open(path, os.O_RDONLY)
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            self.release()
            raise ValueError(
                f"{path} is being written by another sink or log, here or in another process: give each of "
                "them a path of its own, or use one object for both."
            ) from None
        except OSError:
            # Some file systems have no locks. What else is wrong with the path is said when it is opened.
            self.release()

    def holds(self, path: Path) -> bool:
        """Whether this path is still the file that was locked, and not another that replaced it."""
        return self._file is None or os.path.samestat(os.fstat(self._file), os.stat(path))

    def release(self) -> None:
        """Give it up."""
        file, self._file = self._file, None
        if file is None or fcntl is None:
            return
        with contextlib.suppress(OSError):
            # Closing is not enough: a forked process may have the same file open.
            fcntl.flock(file, fcntl.LOCK_UN)
        with contextlib.suppress(OSError):
            os.close(file)

    def __del__(self) -> None:
        self.release()


def open_locked(path: Path, begin: Callable[[], None]) -> WriteLock:
    """Open a file for writing, locked before anything in it is touched. Returns the lock.

    Args:
        begin: opens the file, which it may make or replace.

    Raises:
        ValueError: naming the path, if another object writes it; and what `begin` raises.
    """
    lock = WriteLock(path) if path.is_file() else None
    try:
        begin()
        return lock if lock is not None and lock.holds(path) else WriteLock(path)
    except BaseException:
        if lock is not None:
            lock.release()
        raise


__all__ = ["WriteLock", "open_locked"]
