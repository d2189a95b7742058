"""ExtXYZ and AseTrajectory: systems in files that common viewers open, written through ase.io."""

import contextlib
import io
import os
from abc import abstractmethod
from collections.abc import Collection, Iterator
from typing import Any

import numpy as np
from ase import Atoms
from ase.constraints import FixAtoms, FixCartesian
from ase.io import jsonio, ulm
from ase.io.extxyz import read_xyz
from ase.io.trajectory import TrajectoryReader, TrajectoryWriter

from alchemi_jax.io.encoding import is_same
from alchemi_jax.io.lock import WriteLock, open_locked
from alchemi_jax.io.sinks.base import Sink, check_batch, check_mode, systems_mask
from alchemi_jax.io.sinks.extxyz import Contents, ExtXYZDialect, frame_text, join_masks, scan_file
from alchemi_jax.io.sinks.structures import Dialect, from_atoms, to_atoms
from alchemi_jax.parameters import as_path
from alchemi_jax.systems.batch import Batch
from alchemi_jax.systems.host import HostBatch


#: Per-atom arrays that the .traj format has.
_TRAJ_ARRAYS = {"numbers", "positions", "masses", "momenta", "tags", "initial_magmoms", "initial_charges"}


class AseFile(Sink):
    """The base of ExtXYZ and AseTrajectory: a file to which each write goes at once.

    Args:
        path: path of the file, made when the first system is written or a run opens the sink.
        mode: "a" appends to an existing file, "w" replaces it, "x" raises an error if it exists, "r" only
            reads.

    Raises:
        ValueError: if the file has another format.
        FileExistsError and other OSErrors: naming the path. A write that fails does not change the file.
    """

    format = ""
    dialect: Dialect

    def __init__(self, path: str | os.PathLike, mode: str = "a"):
        self.path = as_path(f"path of {type(self).__name__}")(path)
        self.mode = check_mode(self, mode)
        self._stays_open = False
        self._lock: WriteLock | None = None

    def __repr__(self) -> str:
        return f"{type(self).__name__}({str(self.path)!r})"

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

    @contextlib.contextmanager
    def _naming(self) -> Iterator[None]:
        try:
            yield
        except OSError as e:
            raise type(e)(f"{self.path} cannot be written: {e.strerror or e}.") from e

    def open(self) -> None:
        self._open()
        self._stays_open = True

    def _open(self) -> None:
        if self._is_open or self.mode == "r":
            return
        exists = self.path.exists() and (self.path.is_dir() or self.path.stat().st_size > 0)
        if exists and self.mode == "x":
            raise FileExistsError(f"{self.path} exists: give another path, or mode='w' or 'a'.")
        self._release()

        def begin() -> None:
            if exists:
                self._check()
            with self._naming():
                self.path.parent.mkdir(parents=True, exist_ok=True)
                if exists and self.mode == "w":
                    self.path.unlink()
                self._begin()

        self._lock = open_locked(self.path, begin)
        # If the sink is opened again, it appends.
        self.mode = "a"

    def _check(self) -> None:
        """Raise ValueError if the file does not exist or has another format."""
        if not self.path.exists():
            raise ValueError(f"{self.path} does not exist.")
        try:
            self._count()
        except (OSError, ValueError, ulm.InvalidULMFileError):
            raise ValueError(f"{self.path} is not {self.format}.") from None

    def write(self, batch: Batch | HostBatch, mask: Any = None) -> None:
        check_batch(self, batch)
        which = systems_mask(batch, mask)
        if not which.any():
            return
        if self.mode == "r":
            raise ValueError(f"{self.path} was opened to read, mode 'r'.")
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

        Args:
            dtype: dtype of the floats, as in `Batch.from_ase`; the file does not have it.
        """
        self._check()
        found = list(self.structures())
        if not found:
            raise ValueError(f"{self.path} is empty: nothing was written to it.")
        return from_atoms(found, dtype)

    def zero(self) -> None:
        if self.mode == "r":
            raise ValueError(f"{self.path} was opened to read, mode 'r'.")
        stays_open = self._stays_open
        if self.mode == "x":
            self._open()
        self.close()
        if self.path.exists():
            self._check()
            with self._naming():
                self.path.unlink()
        if stays_open:
            self.open()

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

    def __len__(self) -> int:
        if not self.path.exists() or self.path.stat().st_size == 0:
            return 0
        self._check()
        return self._count()


class ExtXYZ(AseFile):
    """An extended XYZ file: text with eight decimals, for OVITO, ASE and other programs.

    It stores positions, velocities (as momenta), masses, cell, pbc, fixed atoms (move_mask), energy, forces,
    stress, arrays and `info`, and fields of the run as entries of `info` (see `to_atoms`). What the format
    does not give back as it was is JSON in the entry `_alchemi_jax`, from which `read` takes it: tuples,
    dates, text that reads as a number, arrays of other shapes, names that are no names of columns, other
    constraints. Each write is one write of the file, so that it can be read during a run.

    An incomplete structure that a killed process of ours left is not read, and the next write replaces it.
    Nothing else of a file is ever removed: one that breaks off within a structure of somebody else's is
    refused, and a file without a final line break gets one before the first structure that is added.
    """

    format = "an extended XYZ file"
    dialect = ExtXYZDialect()
    _file: Any = None
    _length = 0
    #: What is written before the next structure, and where.
    _before, _at = b"", 0

    @property
    def _is_open(self) -> bool:
        return self._file is not None

    def _scan(self) -> Contents:
        with open(self.path, "rb") as file:
            return scan_file(file)

    def _count(self) -> int:
        return self._length if self._is_open else len(self._scan().frames)

    def _refuse_broken(self, contents: Contents) -> None:
        """Raise ValueError if the file breaks off in a structure that ExtXYZ did not write."""
        if contents.broken is not None and not contents.broken_is_ours:
            raise ValueError(
                f"{self.path} breaks off within the structure of line {contents.broken}, which alchemi_jax "
                "did not write: mend or remove that structure, or give another path."
            )

    def _begin(self) -> None:
        self._length = self._at = 0
        self._before = b""
        exists = self.path.exists()
        if exists:
            contents = self._scan()
            self._refuse_broken(contents)
            self._length, self._at = len(contents.frames), contents.end
            self._before = b"" if contents.ended else b"\n"
        self._file = open(self.path, "r+b" if exists else "w+b", buffering=0)  # noqa: SIM115

    def _put(self, structures: list[Atoms]) -> None:
        text = "".join(map(frame_text, structures))
        content = memoryview(self._before + text.encode())
        self._file.seek(0, os.SEEK_END)
        if self._file.tell() > self._at:
            # Blank lines, or what a killed process left of a structure of ours.
            self._file.truncate(self._at)
            self._file.seek(self._at)
        length = len(content)
        try:
            while content:
                content = content[self._file.write(content) :]
        except OSError:
            with contextlib.suppress(OSError):
                self._file.truncate(self._at)
            raise
        self._at += length
        self._before = b""
        self._length += len(structures)

    def _end(self) -> None:
        file, self._file = self._file, None
        file.close()

    def structures(self) -> Iterator[Atoms]:
        contents = self._scan()
        self._refuse_broken(contents)
        with open(self.path, "rb") as file:
            for frame in contents.frames:
                file.seek(frame.start)
                text = io.StringIO(file.read(frame.end - frame.start).decode())
                # The annotation of ASE says int.
                for atoms in read_xyz(text, slice(None)):  # pyright: ignore[reportArgumentType]
                    join_masks(atoms)
                    yield atoms


class TrajDialect(Dialect):
    """What a .traj file gives back equal: `info` is JSON there, of ASE's kind."""

    def holds(self, key: str, value: Any) -> bool:
        return list(_through_json(key, value) or ()) == [key]

    def keeps(self, key: str, value: Any) -> bool:
        found = _through_json(key, value)
        return found is not None and is_same(found, {key: value})

    def keeps_array(self, key: str, values: np.ndarray, others: Collection[str]) -> bool:
        kind, shape = values.dtype.kind, values.shape[1:]
        if key in ("tags", "initial_charges"):
            return shape == () and kind == ("i" if key == "tags" else "f")
        return key in _TRAJ_ARRAYS and kind in "if" and shape in ((), (3,))

    def keeps_constraint(self, constraint: Any) -> bool:
        return type(constraint) in (FixAtoms, FixCartesian)


def _through_json(key: str, value: Any) -> Any:
    """An entry as the JSON of ASE gives it back, as a dictionary; None if it does not."""
    try:
        return jsonio.decode(jsonio.encode({key: value}), always_array=False)
    except Exception:
        return None


class AseTrajectory(AseFile):
    """A .traj file of ASE: binary, with all digits, for `ase gui` and scripts.

    It stores the same as ExtXYZ. What ASE does not store in this format, or not as it was, is JSON in the
    entry `_alchemi_jax` of `info`, from which `read` takes it. Structures are complete in the file when
    `write` returns, so that it can be read during a run. An incomplete structure, left by a
    killed process, is ignored.
    """

    format = "an ASE trajectory"
    dialect = TrajDialect()
    _writer: TrajectoryWriter | None = None

    @property
    def _is_open(self) -> bool:
        return self._writer is not None

    def _count(self) -> int:
        if self.path.stat().st_size == 0:
            return 0
        with TrajectoryReader(self.path) as file:
            return len(file)

    def _begin(self) -> None:
        # ASE appends to an empty file as if it had a header.
        exists = self.path.exists() and self._count() > 0
        self._writer = TrajectoryWriter(str(self.path), "a" if exists else "w")

    def _put(self, structures: list[Atoms]) -> None:
        assert self._writer is not None
        before = len(self._writer)
        try:
            for atoms in structures:
                self._writer.write(atoms)
        except BaseException:
            self._withdraw(before)
            raise

    def _withdraw(self, count: int) -> None:
        """Set the number of structures of the file, so that later ones are ignored."""
        writer, self._writer = self._writer, None
        backend: Any = writer and writer.backend
        with contextlib.suppress(OSError):
            # Closing the writer of ASE would complete the broken write.
            backend.fd.close()
        with contextlib.suppress(OSError), open(self.path, "r+b") as file:
            if self.path.stat().st_size >= 48:
                ulm.writeint(file, count, 32)

    def _end(self) -> None:
        writer, self._writer = self._writer, None
        assert writer is not None
        writer.close()

    def structures(self) -> Iterator[Atoms]:
        if self._count():
            with TrajectoryReader(self.path) as file:
                for i in range(len(file)):
                    atoms = file[i]
                    assert isinstance(atoms, Atoms)
                    yield atoms
