"""The folder that a run writes into: who has it, where in it files are written, and how they replace old
ones.

With `--overwrite` the new results are written into the folder `unfinished` inside of it and change places
with the old ones when they are whole.
"""

import contextlib
import os
import re
import shutil
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

from alchemi_jax.cli.folder import CHECKPOINTS, is_ours, is_same
from alchemi_jax.cli.inputs import INPUTS
from alchemi_jax.cli.outcome import UsageError, os_reason
from alchemi_jax.cli.record import SETTINGS
from alchemi_jax.cli.swap import SWAP, UNFINISHED, finish_swap, swap
from alchemi_jax.io.lock import LockedError, WriteLock
from alchemi_jax.io.parts import parts_there, whole_name
from alchemi_jax.io.replace import repair
from alchemi_jax.io.sinks.stored import attributes_of


#: Written and removed at once, to see whether anything can be written.
_PROBE = ".alchemi-jax"
#: What killed processes leave: files and stores that were to replace others, and were not complete.
_LEFT = re.compile(r"\.(part|new|old)-\d+-(.+)")


class Results:
    """Where a command writes.

    Attributes:
        out: the folder that the user named. `at`: where files are written now: `out`, or a folder in it.
        names: of all files and stores that the command may write.
    """

    def __init__(self, out: str, names: Sequence[str]):
        self.out, self.names = Path(out), tuple(names)
        self.at = self.out
        self._lock: WriteLock | None = None
        self._was_empty, self._overwrite = True, False

    def __enter__(self) -> "Results":
        return self

    def __exit__(self, *exc: Any) -> None:
        if self._lock is not None:
            self._lock.release()
            self._lock = None

    # -- what is there -------------------------------------------------------------------------------

    def hold(self) -> bool:
        """From now on no other run writes into the folder. What killed runs left is put right.

        Returns whether a run was killed while its results took the place of older ones, which they have now.
        Nothing is done if there is no folder.

        Raises:
            UsageError: if another run writes there, or what is left cannot be put right.
        """
        if self._lock is not None or not self.out.is_dir():
            return False
        try:
            self._lock = WriteLock(self.out)
        except LockedError as e:
            who = f" ({e.who})" if e.who else ""
            raise UsageError(
                f"{self.out} is being written by another run{who}: wait for its end, or give another --out."
            ) from None
        with self._named_errors():
            swapped = finish_swap(self.out)
            for folder in (self.out, self.out / UNFINISHED):
                repair(folder)
                self._tidy(folder)
            stage = self.out / UNFINISHED
            if not stage.is_symlink() and stage.is_dir() and not any(stage.iterdir()):
                stage.rmdir()
        return swapped

    def _tidy(self, folder: Path) -> None:
        """Remove what killed processes have left, of names that this command writes."""
        if folder.is_symlink() or not folder.is_dir():
            return
        for entry in list(folder.iterdir()):
            left = _LEFT.fullmatch(entry.name)
            if left is None or whole_name(left[2]) not in (*self.names, SWAP) or entry.is_symlink():
                if entry.name == _PROBE and entry.is_file() and not entry.stat().st_size:
                    entry.unlink()
                continue
            if left[1] == "old" and not os.path.lexists(folder / left[2]):
                # It was to be replaced, and is the only one.
                os.rename(entry, folder / left[2])
            elif entry.is_dir():
                shutil.rmtree(entry)
            else:
                entry.unlink()

    def _there(self, folder: Path) -> list[str]:
        """Names of the results in a folder, parts of several processes included, and broken links."""
        found = []
        for name in self.names:
            found += [name] if os.path.lexists(folder / name) else []
            found += [part.name for part in parts_there(folder / name)]
        return found

    def existing(self) -> list[str]:
        """Names of results that are there, broken links included. A list of structures alone is no result:
        the process was killed before it began."""
        found = self._there(self.out)
        return [] if found == [INPUTS] and is_ours(self.out / INPUTS) else found

    def check(self, overwrite: bool, inputs: Iterable[str | Path]) -> None:
        """Look, without writing, whether results can be written.

        Raises:
            UsageError: if results exist and are not to be replaced, or are not ours, or are read by this run.
        """
        existing = self.existing()
        self._was_empty, self._overwrite = not existing, overwrite
        if existing and not overwrite:
            raise UsageError(
                f"{self.out / existing[0]} exists: give another --out, or --overwrite to replace it."
            )
        stage = self.out / UNFINISHED
        replaces = overwrite and (bool(existing) or os.path.lexists(stage))
        if replaces and self.out.is_symlink():
            raise UsageError(f"{self.out} is a link, and --overwrite follows none: give the folder itself.")
        is_folder = stage.is_dir() and not stage.is_symlink()
        if replaces and os.path.lexists(stage) and not is_folder:
            raise UsageError(f"{stage} is in the way: move it, or give another --out.")
        old = list(stage.iterdir()) if replaces and is_folder else []
        for path in [self.out / name for name in existing] + old:
            for file in inputs:
                if is_same(path, Path(file)):
                    raise UsageError(f"{path} is an input of this run: give another --out.")
            if not is_ours(path):
                what = "is a link" if path.is_symlink() else "was not written by this program"
                raise UsageError(f"{path} {what}: move it, or give another --out.")

    # -- writing -------------------------------------------------------------------------------------

    def begin(self) -> None:
        """Make the folder, and the one in it if older results are to be replaced; what is in that one stays.

        Raises:
            UsageError: if nothing can be written there, or another run has written there since `check`.
        """
        with self._named_errors():
            self.out.mkdir(parents=True, exist_ok=True)
        self.hold()
        existing = self.existing()
        if existing and self._was_empty:
            raise UsageError(f"{self.out / existing[0]} has been written by another run meanwhile.")
        self.at = self.out / UNFINISHED if self._overwrite else self.out
        with self._named_errors():
            self.at.mkdir(exist_ok=True)
        self.probe()

    def probe(self) -> None:
        """Whether files can be written.

        Raises:
            UsageError: if not.
        """
        with self._named_errors():
            probe = self.at / _PROBE
            probe.touch()
            probe.unlink()

    def empty(self) -> None:
        """Remove what an earlier run left in the folder `unfinished`."""
        assert self.at != self.out
        with self._named_errors():
            shutil.rmtree(self.at)
            self.at.mkdir()

    @contextlib.contextmanager
    def _named_errors(self) -> Iterator[None]:
        try:
            yield
        except (OSError, ValueError) as e:
            reason = os_reason(e) if isinstance(e, OSError) else str(e)
            raise UsageError(f"{self.out} cannot be written: {reason}.") from None

    def finish(self) -> None:
        """The new results, which are whole, take the place of the old ones, of which none is left.

        Raises:
            UsageError: if one of the old ones is not ours any more, or that cannot be done.
        """
        if self.at == self.out:
            return
        old = self._there(self.out)
        for name in old:
            if not is_ours(self.out / name):
                raise UsageError(
                    f"{self.out / name} is not what this program wrote: move it; the new results are whole, "
                    f"in {self.at}, and the same command puts them in their place."
                )
        with self._named_errors():
            swap(self.out, self._there(self.at), old)
        self.at = self.out

    def forget(self) -> None:
        """Remove what was begun if it holds nothing: no row, no frame, no checkpoint; and then the folder.

        A process that is killed in between leaves what the next one can begin with: what says that a run was
        begun goes last.
        """
        paths = [self.at / name for name in self._there(self.at)]
        try:
            if not all(_holds_nothing(path) for path in paths):
                return
        except (OSError, ValueError):
            # What is damaged stays for somebody to look at.
            return
        last = (CHECKPOINTS, SETTINGS, INPUTS)
        with contextlib.suppress(OSError):
            for path in sorted(paths, key=lambda path: last.index(path.name) if path.name in last else -1):
                if path.is_dir():
                    shutil.rmtree(path)
                else:
                    path.unlink()
            self.at.rmdir()
            if self.at != self.out:
                self.out.rmdir()

    def made(self) -> list[str]:
        """Paths of the results that are there."""
        return [str(self.at / name) for name in self._there(self.at) if (self.at / name).exists()]


def _holds_nothing(path: Path) -> bool:
    """Whether a result that was begun holds no row, frame or checkpoint."""
    if not is_ours(path):
        return False
    if path.suffix == ".csv":
        with path.open("rb") as f:
            return not (f.readline() and f.readline())
    if whole_name(path.name) == CHECKPOINTS:
        return not any(entry.name.isdecimal() for entry in path.iterdir())
    if path.suffix == ".zarr":
        return not (path / "zarr.json").exists() or not attributes_of(path)["systems"]
    return path.suffix == ".json"
