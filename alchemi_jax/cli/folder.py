"""The folder of results: what of it is ours, and how new results replace old ones.

Only what this program wrote is ever replaced or removed, which its content tells; links are not followed.
With `--overwrite` the new results are written into the folder `unfinished` inside of it and change places
with the old ones when they are whole.
"""

import contextlib
import json
import os
import re
import shutil
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

from alchemi_jax.cli.outcome import UsageError, os_reason
from alchemi_jax.io.lock import WriteLock


#: The folder of results while there are older ones.
UNFINISHED = "unfinished"
#: A mark in pictures: the program that drew them, as PNG, PDF and SVG keep it.
SOFTWARE = "alchemi-jax"
_STORE_FILES = re.compile(r"(zarr\.json|c(\.\d+)*|\d+)(\.new|\.begun)?")


#: Stores of results, the one with most frames first.
_STORES = ("trajectory.zarr", "finished.zarr", "relaxed.zarr")


def find_store(path: str) -> Path:
    """The store at a path: itself, or the one in a folder of results, also of a run that is not finished.

    Raises:
        UsageError: if there is none.
    """
    at = Path(path)
    try:
        if not at.exists():
            raise UsageError(f"{path} does not exist.")
        if not at.is_dir():
            raise UsageError(f"{path} is a file: give a folder of results, or a store that ZarrData wrote.")
        if (at / "zarr.json").exists():
            return at
        for folder in (at, at / UNFINISHED):
            for name in _STORES:
                if (folder / name / "zarr.json").exists():
                    return folder / name
    except (OSError, ValueError) as e:
        reason = os_reason(e) if isinstance(e, OSError) else str(e)
        raise UsageError(f"{path!r} cannot be read: {reason}.") from None
    raise UsageError(f"{path} holds no results: none of {', '.join(_STORES)} is in it.")


def is_ours(path: Path) -> bool:
    """Whether this program wrote the file or store, or it is empty. A link is not ours."""
    if path.is_symlink():
        return False
    if path.is_dir():
        return path.suffix == ".zarr" and _is_store(path)
    try:
        with path.open("rb") as f:
            start = f.read(1 << 16)
    except OSError:
        return False
    if not start:
        return True
    lines = start.split(b"\n", 2)
    if path.suffix == ".csv":
        return lines[0].startswith(b"step,system_id,status,")
    if path.suffix == ".extxyz":
        return len(lines) > 1 and b"outcome=" in lines[1]
    if path.suffix == ".json":
        return _is_settings(path)
    return SOFTWARE.encode() in start


def _is_store(path: Path) -> bool:
    entries = list(path.iterdir())
    if not entries:
        return True
    for folder, folders, files in os.walk(path):
        if any(not _STORE_FILES.fullmatch(name) for name in files):
            return False
        if any((Path(folder) / name).is_symlink() for name in folders + files):
            return False
    try:
        content = json.loads((path / "zarr.json").read_text())
        return str(content["attributes"]["format"]).startswith("alchemi_jax")
    except FileNotFoundError:
        return not any(entry.is_dir() for entry in entries)
    except (OSError, ValueError, KeyError, TypeError):
        return False


def _is_settings(path: Path) -> bool:
    try:
        content = json.loads(path.read_text())
    except (OSError, ValueError, RecursionError):
        return False
    return isinstance(content, dict) and {"stages", "model"} <= content.keys()


def check_target(path: Path, overwrite: bool, source: str) -> None:
    """Whether a file that the user names may be written.

    Raises:
        UsageError: if it exists and is not to be replaced, is a folder or a link, or lies in the store read.
    """
    try:
        if os.path.lexists(path) and not overwrite:
            raise UsageError(f"{path} exists: give another file, or --overwrite to replace it.")
        if path.is_symlink():
            raise UsageError(f"{path} is a link, and --overwrite follows none: give the file itself.")
        if path.is_dir():
            raise UsageError(f"{path} is a folder.")
        store = find_store(source).resolve()
        if store == path.resolve() or store in path.resolve().parents:
            raise UsageError(f"{path} lies in {source}, which is read: give another file.")
    except (OSError, ValueError) as e:
        reason = os_reason(e) if isinstance(e, OSError) else str(e)
        raise UsageError(f"{str(path)!r} cannot be written: {reason}.") from None


class Results:
    """Where a command writes.

    Attributes:
        out: the folder that the user named. `at`: where files are written now: `out`, or a folder in it.
        names: of all files and stores that the command may write.
    """

    def __init__(self, out: str, names: Sequence[str]):
        self.out, self.names = Path(out), tuple(names)
        self.at = self.out
        self._replaces = False
        self._lock: WriteLock | None = None

    def __enter__(self) -> "Results":
        return self

    def __exit__(self, *exc: Any) -> None:
        if self._lock is not None:
            self._lock.release()

    def hold(self) -> None:
        """From now on no other run writes into the folder, which exists.

        Raises:
            UsageError: if another run does.
        """
        try:
            self._lock = WriteLock(self.out)
        except ValueError:
            raise UsageError(
                f"{self.out} is being written by another run: wait for its end, or give another --out."
            ) from None

    def existing(self) -> list[str]:
        """Names of results that are there, broken links included."""
        return [name for name in self.names if os.path.lexists(self.out / name)]

    def check(self, overwrite: bool, inputs: Iterable[str | Path]) -> None:
        """Look, without writing, whether results can be written.

        Raises:
            UsageError: if results exist and are not to be replaced, or are not ours, or are read by this run.
        """
        existing = self.existing()
        self._replaces = bool(existing)
        if existing and not overwrite:
            raise UsageError(
                f"{self.out / existing[0]} exists: give another --out, or --overwrite to replace it."
            )
        if existing and self.out.is_symlink():
            raise UsageError(f"{self.out} is a link, and --overwrite follows none: give the folder itself.")
        stage = self.out / UNFINISHED
        old = list(stage.iterdir()) if existing and stage.is_dir() and not stage.is_symlink() else []
        if existing and os.path.lexists(stage) and not (stage.is_dir() and not stage.is_symlink()):
            raise UsageError(f"{stage} is in the way: move it, or give another --out.")
        for path in [self.out / name for name in existing] + old:
            for file in inputs:
                if _same(path, Path(file)):
                    raise UsageError(f"{path} is an input of this run: give another --out.")
            if not is_ours(path):
                what = "is a link" if path.is_symlink() else "was not written by this program"
                raise UsageError(f"{path} {what}: move it, or give another --out.")

    def begin(self) -> None:
        """Make the folder.

        Raises:
            UsageError: if nothing can be written there, or another run has written there since `check`.
        """
        with self._named_errors():
            self.out.mkdir(parents=True, exist_ok=True)
        self.hold()
        existing = self.existing()
        if existing and not self._replaces:
            raise UsageError(f"{self.out / existing[0]} has been written by another run meanwhile.")
        self.at = self.out / UNFINISHED if existing else self.out
        with self._named_errors():
            if self.at != self.out and self.at.exists():
                shutil.rmtree(self.at)
            self.at.mkdir(parents=True, exist_ok=True)
            probe = self.at / ".alchemi-jax"
            probe.touch()
            probe.unlink()

    @contextlib.contextmanager
    def _named_errors(self) -> Iterator[None]:
        try:
            yield
        except (OSError, ValueError) as e:
            reason = os_reason(e) if isinstance(e, OSError) else str(e)
            raise UsageError(f"{self.out} cannot be written: {reason}.") from None

    def finish(self) -> None:
        """The new results take the place of the old ones, of which none is left."""
        if self.at == self.out:
            return
        for name in self.names:
            old, new = self.out / name, self.at / name
            if os.path.lexists(old) and (not new.exists() or new.is_dir() or old.is_dir()):
                if not is_ours(old):
                    continue
                aside = self.at / f"old-{name}"
                os.rename(old, aside)
                if new.exists():
                    os.rename(new, old)
                _remove(aside)
            elif new.exists():
                os.replace(new, old)
        self.discard()
        self.at = self.out

    def discard(self) -> None:
        """Remove the folder of unfinished results, if it is empty."""
        if self.at != self.out:
            with contextlib.suppress(OSError):
                self.at.rmdir()

    def forget(self) -> None:
        """Remove what was begun if it holds nothing: a log without rows, settings, and then the folder."""
        for name in self.names:
            path = self.at / name
            if path.suffix == ".csv" and path.is_file() and is_ours(path):
                with path.open("rb") as f:
                    if f.readline() and f.readline():
                        return
            elif path.exists() and path.suffix != ".json":
                return
        for name in self.names:
            if (self.at / name).is_file():
                (self.at / name).unlink()
        with contextlib.suppress(OSError):
            self.at.rmdir()
            if self.at != self.out:
                self.out.rmdir()

    def made(self) -> list[str]:
        """Paths of the results that are there."""
        return [str(self.at / name) for name in self.names if (self.at / name).exists()]


def _remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink()


def _same(a: Path, b: Path) -> bool:
    """Whether b is the file a, by whatever name, lies in the folder a, or is the folder of a."""
    # ASE takes an index behind the name: x.extxyz@-1.
    for name in (str(b), str(b).rpartition("@")[0]):
        try:
            if not name or not os.path.exists(name):
                continue
            inner, outer = Path(name).resolve(), a.resolve()
            if os.path.samefile(a, name) or outer in inner.parents or inner == outer.parent:
                return True
        except (OSError, ValueError):
            continue
    return False
