"""AseFile: the base of sinks that write a file through ase.io."""

import contextlib
import os
from abc import abstractmethod
from collections.abc import Iterator
from typing import Any

from ase import Atoms
from ase.io import ulm

from alchemi_jax.io.lock import WriteLock, open_locked
from alchemi_jax.io.parts import check_parts, part_paths
from alchemi_jax.io.sinks.base import check_batch, systems_mask
from alchemi_jax.io.sinks.on_disk import SinkOnDisk
from alchemi_jax.io.sinks.structures import Dialect, from_atoms, to_atoms
from alchemi_jax.systems.batch import Batch
from alchemi_jax.systems.host import HostBatch


class AseFile(SinkOnDisk):
    """The base of ExtXYZ and AseTrajectory, which say what arguments mean: files that each `write` extends at
    once."""

    format = ""
    dialect: Dialect

    def __init__(self, path: str | os.PathLike, mode: str = "a"):
        super().__init__(path, mode)
        self._stays_open = False
        self._lock: WriteLock | None = None

    @property
    def _is_open(self) -> bool:
        raise NotImplementedError

    @abstractmethod
    def _begin(self) -> None:
        """Open the file at its end; make it if there is none."""

    @abstractmethod
    def _put(self, structures: list[Atoms]) -> None:
        """Append all structures, or none if there is an error."""

    @abstractmethod
    def _end(self) -> None:
        """Close the file."""

    @abstractmethod
    def _count(self) -> int:
        """Number of structures in the file, which exists."""

    @abstractmethod
    def structures(self) -> Iterator[Atoms]:
        """The structures of the file, one after another."""

    @abstractmethod
    def _state(self) -> dict[str, Any]:
        """The state of the file, which exists."""

    @abstractmethod
    def _cut(self, state: dict[str, Any]) -> None:
        """Go back to a state, if the file is what it says."""

    @abstractmethod
    def _is_own(self) -> bool:
        """Whether all of the file, which exists, was written by a sink of this class."""

    def _exists(self) -> bool:
        return self._own.exists() and (self._own.is_dir() or self._own.stat().st_size > 0)

    @contextlib.contextmanager
    def _naming(self) -> Iterator[None]:
        try:
            yield
        except OSError as e:
            # numpy, which ASE writes arrays with, says only how much it could write.
            reason = e.strerror or f"{e} (is the disk full?)"
            raise type(e)(f"{self._own} cannot be written: {reason}.") from e

    def open(self) -> None:
        self._open()
        self._stays_open = True

    def _open(self) -> None:
        if self._is_open or self.mode == "r":
            return
        check_parts(self.path)
        # The process may change its folder while the file is open.
        self.path = self.path.absolute()
        exists = self._exists()
        self._refuse_existing(exists)
        self._release()

        def begin() -> None:
            if exists:
                self._check()
            with self._naming():
                self._own.parent.mkdir(parents=True, exist_ok=True)
                if exists and self.mode == "w":
                    self._own.unlink()
                self._begin()

        self._lock = open_locked(self._own, begin)
        # If the sink is opened again, it appends.
        self.mode = "a"

    def _check(self) -> None:
        """Raise ValueError if the file does not exist or has another format."""
        if not self._own.exists():
            raise ValueError(f"{self._own} does not exist.")
        try:
            self._count()
        except (OSError, ValueError, ulm.InvalidULMFileError):
            raise ValueError(f"{self._own} is not {self.format}.") from None

    def write(self, batch: Batch | HostBatch, mask: Any = None) -> None:
        check_batch(self, batch)
        which = systems_mask(batch, mask)
        if not which.any():
            return
        self._refuse_mode_r()
        structures = to_atoms(batch.to_host(None if mask is None else which), self.dialect)
        self._open()
        try:
            with self._naming():
                self._put(structures)
        finally:
            if not self._stays_open:
                self.close()

    def read(self, dtype: Any = None) -> HostBatch:
        """All systems, in the order in which they were written. Extras of systems become `info`.

        Files of several processes are read one after another.

        Args:
            dtype: dtype of the floats, as in `Batch.from_ase`; the file does not have it.
        """
        found = [atoms for part in self._parts() for atoms in part.structures()]
        if not found:
            raise ValueError(f"{self.path} is empty: nothing was written to it.")
        return from_atoms(found, dtype)

    def zero(self) -> None:
        self._refuse_mode_r()
        stays_open = self._stays_open
        if self.mode == "x":
            self._open()
        self.close()
        if self._own.exists():
            self._check()
            with self._naming():
                self._own.unlink()
        if stays_open:
            self.open()

    def state(self) -> Any:
        """Length of the file, number of its structures, and a checksum of its end."""
        if not self._is_open:
            self._refuse_existing(self._exists())
            if self.mode == "w" or not self._own.exists():
                return None
            self._check()
        return self._state()

    def set_state(self, state: Any) -> None:
        self._refuse_mode_r()
        stays_open = self._stays_open
        self.close()
        self._lock = WriteLock(self._own) if self._own.is_file() else None
        try:
            with self._naming():
                if state is None:
                    self._remove_own()
                elif state["systems"] or self._own.exists():
                    self._cut(state)
        finally:
            self._release()
        self.mode = "a"
        if stays_open:
            self.open()

    def _remove_own(self) -> None:
        """Remove the file, if sinks of this library wrote all of it."""
        if not self._own.exists():
            return
        if not self._is_own():
            raise ValueError(
                f"{self._own} exists, the checkpoint says that it does not, and not all of it was written by "
                "alchemi_jax: move it, or give another path."
            )
        self._own.unlink()

    def close(self) -> None:
        self._stays_open = False
        try:
            if self._is_open:
                with self._naming():
                    self._end()
        finally:
            self._release()

    def _release(self) -> None:
        lock, self._lock = self._lock, None
        if lock is not None:
            lock.release()

    def _parts(self) -> list["AseFile"]:
        """The files of all processes; this one if there is one."""
        paths = part_paths(self.path)
        parts: list[AseFile] = (
            [self] if paths in ([self.path], [self._own]) else [type(self)(path, "r") for path in paths]
        )
        for part in parts:
            part._check()
        return parts

    def __len__(self) -> int:
        if len(part_paths(self.path)) > 1:
            return sum(part._count() for part in self._parts())
        if not self._own.exists() or self._own.stat().st_size == 0:
            return 0
        self._check()
        return self._count()
