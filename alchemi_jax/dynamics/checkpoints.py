"""A folder of checkpoints, written by orbax in the background, and the newest good one in it.

Each checkpoint is a folder with a number, which orbax writes under another name and then renames; of several
processes each writes its own (`checkpoint_files`). What it holds has checksums, so that a damaged one is not
mistaken for a good one. `begin.json` says what hooks and sinks had when the run began, for a run that ends
before its first checkpoint.
"""

import contextlib
import json
import os
import shutil
import sys
import time
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import google_crc32c
import jax
import numpy as np

from alchemi_jax.dynamics.checkpoint_files import CheckpointFiles, as_text, from_text, read_file
from alchemi_jax.dynamics.saved import FORMAT, AnotherRun, Arrays, join_tree, split_tree
from alchemi_jax.io.lock import LockedError, WriteLock


_BEGIN = "begin.json"
_STATE, _ABOUT = "state", "about"
#: The file of a checkpoint of one of several processes.
_FILE = f"{_ABOUT}/metadata"
#: In the name of a folder that orbax has not finished.
_UNFINISHED = ".orbax-checkpoint-tmp"


class Checkpoint(NamedTuple):
    """What was read: its folder, the arrays by name, and the description."""

    path: Path
    arrays: Arrays
    about: dict[str, Any]


class Checkpoints:
    """The checkpoints of a run.

    Args:
        folder: made when the first is written. keep: number of checkpoints that are kept, the newest ones.
    """

    def __init__(self, folder: str | os.PathLike, keep: int = 3):
        self.folder, self.keep = Path(folder).absolute(), keep
        self._manager: Any = None
        self._lock: WriteLock | None = None
        self._next = 0
        #: Whether a checkpoint was written by this object, and whether that is written down.
        self._written = self._noted = False

    # -- opening ---------------------------------------------------------------------------------

    def open(self) -> None:
        """Make the folder, and keep other runs out of it.

        Raises:
            OSError, ValueError: naming the folder, if nothing can be written there, or if another run does.
        """
        if self._lock is not None:
            return
        try:
            # Before orbax starts: where it cannot write, its threads never end.
            self.folder.mkdir(parents=True, exist_ok=True)
            self._lock = WriteLock(self.folder)
            probe = self.folder / f".probe-{os.getpid()}"
            probe.touch()
            probe.unlink()
        except LockedError as e:
            who = f": {e.who}" if e.who else ", here or in another process"
            raise ValueError(
                f"{self.folder} is in use by another run{who}; wait for its end, or give another folder."
            ) from None
        except OSError as e:
            self._release()
            raise not_written(e, self.folder) from e
        for entry in self.folder.iterdir():
            # Nobody else writes here: what is unfinished was left by a process that was killed.
            if entry.name.startswith(".probe-"):
                entry.unlink(missing_ok=True)
            elif _UNFINISHED in entry.name:
                shutil.rmtree(entry, ignore_errors=True)
        self._next = max(self.numbers(), default=-1) + 1

    def close(self) -> None:
        """Wait until the last checkpoint is written.

        Raises:
            OSError: naming the folder, if it could not be written.
        """
        try:
            self.wait()
        finally:
            manager, self._manager = self._manager, None
            if manager is not None:
                with contextlib.suppress(Exception):
                    manager.close()
            self._release()

    def _release(self) -> None:
        lock, self._lock = self._lock, None
        if lock is not None:
            lock.release()

    # -- reading ---------------------------------------------------------------------------------

    def numbers(self) -> list[int]:
        """Numbers of the checkpoints, the oldest first."""
        if not self.folder.is_dir():
            return []
        return sorted(int(p.name) for p in self.folder.iterdir() if p.name.isdecimal() and p.is_dir())

    def newest(self) -> Checkpoint | None:
        """The newest checkpoint that is whole; None if there is none. Damaged ones are warned about.

        Raises:
            ValueError: if there are checkpoints, but none is whole.
            AnotherRun: if it was written by another version of alchemi_jax.
        """
        numbers, damaged = self.numbers(), []
        for number in reversed(numbers):
            path = self.folder / str(number)
            try:
                found = read(path)
            except AnotherRun:
                raise
            except Exception as e:
                # The libraries below raise errors of all types.
                reason = str(e).strip().split("\n")[0][:160] or type(e).__name__
                damaged.append(f"{path} is damaged: {reason.rstrip('.')}")
                continue
            for text in damaged:
                warnings.warn(
                    f"{text}. The run goes on from the checkpoint before it.", RuntimeWarning, stacklevel=2
                )
            return found
        if damaged:
            raise ValueError(
                f"none of the {len(damaged)} checkpoints in {self.folder} can be read; {damaged[0]}. "
                "Give another folder to begin again."
            )
        return None

    def begin(self) -> Any:
        """What was there when the run began: a tree as from `state()`; None if no run has begun.

        Raises:
            ValueError: if it is damaged, or if there were checkpoints, which are gone.
            AnotherRun: if it was written by another version of alchemi_jax.
        """
        path = self.folder / _BEGIN
        try:
            content = json.loads(path.read_bytes())
            if content["format"] != FORMAT:
                raise AnotherRun(f"{self.folder} was written by another version of alchemi_jax.")
            arrays = {name: from_text(coded) for name, coded in content["arrays"].items()}
            begin, saved = join_tree(content["begin"], arrays), content["saved"]
        except FileNotFoundError:
            return None
        except AnotherRun:
            raise
        except (ValueError, TypeError, KeyError, AttributeError):
            raise ValueError(f"{path} is damaged. Give another folder to begin again.") from None
        if saved and not self.numbers():
            # Going back to the beginning would remove all that the run has written.
            raise ValueError(
                f"{self.folder} had checkpoints, which are gone. Give another folder to begin again."
            )
        return begin

    # -- writing ---------------------------------------------------------------------------------

    def write_begin(self, tree: Any) -> None:
        """Write what is there when the run begins."""
        plain, arrays = split_tree(tree, "")
        coded = {name: as_text(x) for name, x in arrays.items()}
        self._put_begin({"format": FORMAT, "begin": plain, "arrays": coded, "saved": False})

    def _put_begin(self, content: dict[str, Any]) -> None:
        part = self.folder / f".part-{os.getpid()}-{_BEGIN}"
        try:
            part.write_text(json.dumps(content))
            os.replace(part, self.folder / _BEGIN)
        except OSError as e:
            raise not_written(e, self.folder / _BEGIN) from e

    def write(self, arrays: Arrays, about: dict[str, Any]) -> None:
        """Begin to write a checkpoint, which goes on in the background; waits for the one before.

        Raises:
            OSError: naming the folder, if this one cannot be begun or the one before was not written.
        """
        about = {"format": FORMAT, **about}
        sums = {name: google_crc32c.value(np.ascontiguousarray(x)) for name, x in arrays.items()}
        content = {"about": about, "sums": sums, "sum": _sum_of(about)}
        self.wait()
        with self._named_errors():
            if jax.process_count() > 1:
                if self._manager is None:
                    self._manager = CheckpointFiles(self.folder, _FILE, self.keep, _UNFINISHED)
                self._manager.save(self._next, arrays, content)
            else:
                self._save(arrays, content)
        self._next, self._written = self._next + 1, True

    def _save(self, arrays: Arrays, content: dict[str, Any]) -> None:
        """By orbax."""
        import orbax.checkpoint as ocp

        if self._manager is None:
            self._manager = ocp.CheckpointManager(
                self.folder,
                options=ocp.CheckpointManagerOptions(
                    preservation_policy=ocp.checkpoint_managers.LatestN(self.keep),
                    enable_async_checkpointing=True,
                    create=False,
                ),
            )
        items = {_STATE: ocp.args.StandardSave(arrays), _ABOUT: ocp.args.JsonSave(content)}
        self._manager.save(self._next, args=ocp.args.Composite(**items), force=True)

    def wait(self) -> None:
        """Wait until what was begun is written.

        Raises:
            OSError: naming the folder, if it was not written, or the folder is not there any more.
        """
        if self._lock is not None and not self._lock.holds(self.folder):
            raise OSError(
                f"no checkpoint was written: {self.folder} was removed or replaced while the run used it."
            )
        if self._manager is None:
            return
        with self._named_errors():
            self._manager.wait_until_finished()
        # A checkpoint that could not be written is told once, and is none.
        if self._written and not self._noted and self.numbers():
            self._noted = True
            self._note_saved()

    def _note_saved(self) -> None:
        """Write down that there are checkpoints: if they are removed, the run does not begin again."""
        with contextlib.suppress(FileNotFoundError, ValueError):
            content = json.loads((self.folder / _BEGIN).read_bytes())
            if not content["saved"]:
                self._put_begin(content | {"saved": True})

    @contextlib.contextmanager
    def _named_errors(self) -> Any:
        try:
            yield
        except (OSError, ValueError) as e:
            # The library that writes the arrays reports a full disk by a ValueError.
            raise not_written(e, self.folder) from e


def read(path: Path) -> Checkpoint:
    """A checkpoint, after a check of all its sums. Errors of any type if it is damaged."""
    for name in (_ABOUT,) if jax.process_count() > 1 else (_STATE, _ABOUT):
        if not (path / name).is_dir():
            raise ValueError(f"{path / name} is missing")
    if jax.process_count() > 1:
        found, content = read_file(path / _FILE)
    else:
        found, content = _read_by_orbax(path)
    about, sums = content["about"], content["sums"]
    if content["sum"] != _sum_of(about):
        raise ValueError("its description is not what was written")
    if about["format"] != FORMAT:
        raise AnotherRun(f"{path} was written by another version of alchemi_jax: this one does not read it.")
    arrays = {name: np.asarray(x) for name, x in found.items()}
    for name, wanted in sums.items():
        if name not in arrays or google_crc32c.value(np.ascontiguousarray(arrays[name])) != wanted:
            raise ValueError(f"the array {name} is not what was written")
    return Checkpoint(path, arrays, about)


def _read_by_orbax(path: Path) -> tuple[Any, Any]:
    import orbax.checkpoint as ocp

    with _without_late_reads(), ocp.Checkpointer(ocp.CompositeCheckpointHandler()) as reader:
        found = reader.restore(
            path,
            args=ocp.args.Composite(**{_STATE: ocp.args.StandardRestore(), _ABOUT: ocp.args.JsonRestore()}),
        )
    return found[_STATE], found[_ABOUT]


@contextlib.contextmanager
def _without_late_reads() -> Iterator[None]:
    """Orbax reads all arrays at once. If one is damaged, the others find its event loop closed, and would say
    so with a traceback each."""
    known = sys.unraisablehook

    def tell(args: Any) -> None:
        if "Event loop is closed" not in str(args.exc_value):
            known(args)

    sys.unraisablehook = tell
    try:
        yield
    except BaseException:
        time.sleep(0.2)
        raise
    finally:
        sys.unraisablehook = known


def _sum_of(about: dict[str, Any]) -> int:
    return int(google_crc32c.value(json.dumps(about, sort_keys=True).encode()))


def not_written(error: Exception, path: Path) -> OSError:
    """The error that says that no checkpoint was written, where and why."""
    reason = getattr(error, "strerror", None) or str(error).split("\n")[0][:300]
    where = "" if str(path) in reason else f"{path}: "
    return OSError(f"no checkpoint was written: {where}{reason.rstrip('.')}.")


__all__ = ["Checkpoint", "Checkpoints", "not_written", "read"]
