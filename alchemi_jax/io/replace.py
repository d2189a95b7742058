"""A folder takes the place of another one, so that whenever the process is killed one of them is found.

A directory cannot be replaced by one rename. Beside it a small file says what is to be done:

- it is empty: the new folder is being written, and is removed if the process is killed;
- it has a text: the new folder is complete. The old one is renamed, the new one takes its name, the old one
  is removed, then this file. Whoever finds it goes on from any point, with `repair`.

The names of all these end in `.alchemi_jax-...`, and nothing else is ever removed. The process that is at it
has the file locked.
"""

import contextlib
import json
import os
import re
import shutil
import time
from collections.abc import Iterator
from pathlib import Path

from alchemi_jax.io.lock import LockedError, WriteLock


_JOURNAL, _PART = ".alchemi_jax-replace", ".alchemi_jax-replace.part"
_NEW, _OLD = ".alchemi_jax-new", ".alchemi_jax-old"
_COMPLETE = {"do": "put the new folder in the place of the old one"}
#: Seconds that a reader waits for a process that is between the two renames.
_PATIENCE = 10.0


@contextlib.contextmanager
def replacing(path: str | os.PathLike) -> Iterator[Path]:
    """A context that gives a path beside `path`, for a folder that takes its place at the end of the block.

    If the block raises, or the process is killed in it, what was at `path` is there still. What killed
    processes left of earlier replacements is repaired first.

    Raises:
        LockedError: a ValueError with the path and the process, if another one is replacing this folder.
        OSError: naming the path, if nothing can be written there.
    """
    path = _real(path)
    with _named(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        locks = [_lock_journal(path)]
    try:
        journal, new, part = (_beside(path, end) for end in (_JOURNAL, _NEW, _PART))
        with _named(path):
            _go_on(path)
            os.truncate(journal, 0)
        try:
            yield new
            if not os.path.lexists(new):
                raise FileNotFoundError(f"{new} was not written, so {path} was not replaced.")
            with _named(path):
                part.write_text(json.dumps(_COMPLETE))
        except BaseException:
            with contextlib.suppress(OSError):
                _clear(path)
                journal.unlink()
            raise
        with _named(path):
            # Locked before it gets its name, so that nobody takes this process for one that was killed.
            locks.append(WriteLock(part))
            os.replace(part, journal)
            _go_on(path)
            journal.unlink()
    finally:
        for lock in locks:
            lock.release()


def replace_folder(new: str | os.PathLike, path: str | os.PathLike) -> None:
    """Put the folder `new`, which is complete and on the same file system, in the place of `path`.

    Whenever the process is killed, `repair(path)` finds the old folder or the new one there.

    Raises:
        LockedError, OSError: see `replacing`.
    """
    with replacing(path) as place:
        os.rename(new, place)


def repair(path: str | os.PathLike) -> None:
    """Finish or undo what a killed process left of `replacing(path)`, or of a folder directly in `path`.

    Call it before `path` is read or written. It may be killed, too, and be called again.

    Raises:
        LockedError: if another process is replacing the folder and does not end.
        OSError: naming the path, if nothing can be written there.
        ValueError: naming the path, if somebody else has put a folder there meanwhile.
    """
    path = _real(path)
    inner = []
    if path.is_dir():
        inner = [path / p.name[1 : -len(_JOURNAL)] for p in path.glob(f".*{_JOURNAL}")]
    for target in (path, *inner):
        _repair_one(target)


def _repair_one(path: Path) -> None:
    until = time.monotonic() + _PATIENCE
    while True:
        try:
            with _named(path):
                lock = _lock_journal(path) if _beside(path, _JOURNAL).exists() else None
            break
        except LockedError:
            # Somebody is at it. Between two renames there is no folder.
            if path.exists():
                return
            if time.monotonic() > until:
                raise
            time.sleep(0.02)
    try:
        with _named(path):
            if lock is not None:
                _go_on(path)
                _beside(path, _JOURNAL).unlink()
            _repair_version_1(path)
    finally:
        if lock is not None:
            lock.release()


def _lock_journal(path: Path) -> WriteLock:
    """The journal, locked; an empty one if there was none."""
    journal = _beside(path, _JOURNAL)
    while True:
        journal.touch()
        lock = WriteLock(journal)
        with contextlib.suppress(FileNotFoundError):
            if lock.holds(journal):
                return lock
        # Another process has ended meanwhile, and removed it.
        lock.release()


def _go_on(path: Path) -> None:
    """Do what the journal says, from any point. Afterwards there is nothing but the folder and the journal.

    Raises:
        ValueError: if somebody else has put a folder there.
    """
    journal, new, old = (_beside(path, end) for end in (_JOURNAL, _NEW, _OLD))
    if journal.read_bytes():
        if os.path.lexists(new):
            if os.path.lexists(path):
                if os.path.lexists(old):
                    raise ValueError(
                        f"{path} was written after a process had been killed that was replacing it: keep "
                        f"one of {path}, {new} and {old}, under the first name, and remove the others."
                    )
                os.rename(path, old)
            os.rename(new, path)
        elif os.path.lexists(old) and not os.path.lexists(path):
            os.rename(old, path)
    _clear(path)


def _clear(path: Path) -> None:
    """Remove the old folder, and what was begun of a new one."""
    _remove(_beside(path, _OLD))
    # Libraries write under names of their own that begin so.
    for left in path.parent.glob(f"{_glob(_beside(path, _NEW).name)}*"):
        _remove(left)
    _remove(_beside(path, _PART))


def _repair_version_1(path: Path) -> None:
    """What `checkpoint.save` of the versions before this module left in `.NAME.XXXXXXXX`."""
    pattern = re.compile(rf"\.{re.escape(path.name)}\.[a-z0-9_]{{8}}")
    for left in path.parent.glob(f".{_glob(path.name)}.*"):
        if not pattern.fullmatch(left.name) or left.is_symlink() or not left.is_dir():
            continue
        names = {p.name.partition(".")[0] for p in left.iterdir()}
        if not names <= {"new", "old"} or not names:
            continue
        if not path.exists():
            # The old one was put there when the new one was complete.
            found = next((left / n for n in ("new", "old") if "old" in names and (left / n).is_dir()), None)
            if found is None:
                continue
            os.rename(found, path)
        _remove(left)


def _beside(path: Path, end: str) -> Path:
    return path.with_name(f".{path.name}{end}")


def _glob(name: str) -> str:
    """A pattern for the name itself."""
    return re.sub(r"([\[?*])", r"[\1]", name)


def _real(path: str | os.PathLike) -> Path:
    """Where a link leads to, so that the folder there is replaced and not the link."""
    return Path(os.path.realpath(path))


def _remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    elif os.path.lexists(path):
        path.unlink()


@contextlib.contextmanager
def _named(path: Path) -> Iterator[None]:
    try:
        yield
    except OSError as e:
        raise type(e)(f"{path} cannot be written: {e.strerror or e}.") from e


__all__ = ["repair", "replace_folder", "replacing"]
