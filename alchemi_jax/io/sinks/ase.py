"""ExtXYZ and AseTrajectory: systems in files that common viewers open, written through ase.io."""

import contextlib
import io
import os
from abc import abstractmethod
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from ase import Atoms
from ase.io import ulm
from ase.io.extxyz import read_xyz, write_xyz
from ase.io.trajectory import TrajectoryReader, TrajectoryWriter

from alchemi_jax.io.sinks.base import Sink, systems_mask
from alchemi_jax.io.sinks.structures import SYSTEM_NAME, from_atoms, to_atoms
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

    def __init__(self, path: str | os.PathLike, mode: str = "a"):
        if mode not in ("a", "w", "x", "r"):
            raise ValueError(f"mode of {type(self).__name__} must be 'a', 'w', 'x' or 'r', not {mode!r}.")
        self.path = Path(path)
        self.mode = mode
        self._stays_open = False

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
        if exists:
            self._check()
        with self._naming():
            self.path.parent.mkdir(parents=True, exist_ok=True)
            if exists and self.mode == "w":
                self.path.unlink()
            self._begin()
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
        which = systems_mask(batch, mask)
        if not which.any():
            return
        if self.mode == "r":
            raise ValueError(f"{self.path} was opened to read, mode 'r'.")
        structures = to_atoms(batch.to_host(None if mask is None else which))
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
        if self._is_open:
            with self._naming():
                self._end()

    def __len__(self) -> int:
        if not self.path.exists() or self.path.stat().st_size == 0:
            return 0
        self._check()
        return self._count()


class ExtXYZ(AseFile):
    """An extended XYZ file: text with eight decimals, for OVITO, ASE and other programs.

    It stores positions, velocities (as momenta), masses, cell, pbc, fixed atoms (move_mask), energy, forces,
    stress, arrays and `info`, and fields of the run as entries of `info` (see `to_atoms`). Other constraints
    are not stored. Each write is one write of the file, so that it can be read during a run. An incomplete
    structure, left by a killed process, is not read, and is removed when the file is opened to append.
    """

    format = "an extended XYZ file"
    _file: Any = None
    _length = 0

    @property
    def _is_open(self) -> bool:
        return self._file is not None

    def _scan(self) -> tuple[int, int]:
        """Number of complete structures, and the position at which the last of them ends."""
        count = end = 0
        with open(self.path, "rb") as file:
            while line := file.readline():
                last = line
                for _ in range(int(line) + 1):
                    last = file.readline()
                if not last.endswith(b"\n"):
                    break
                count, end = count + 1, file.tell()
        return count, end

    def _count(self) -> int:
        return self._length if self._is_open else self._scan()[0]

    def _begin(self) -> None:
        exists = self.path.exists()
        self._length, end = self._scan() if exists else (0, 0)
        self._file = open(self.path, "r+b" if exists else "w+b", buffering=0)  # noqa: SIM115
        self._file.truncate(end)
        self._file.seek(end)

    def _put(self, structures: list[Atoms]) -> None:
        text = io.StringIO()
        for atoms in structures:
            self._refuse(atoms)
            # The annotation of ASE wants the file; this is a text.
            write_xyz(text, atoms)
        content, end = memoryview(text.getvalue().encode()), self._file.tell()
        try:
            while content:
                content = content[self._file.write(content) :]
        except OSError:
            with contextlib.suppress(OSError):
                self._file.truncate(end)
                self._file.seek(end)
            raise
        self._length += len(structures)

    def _refuse(self, atoms: Atoms) -> None:
        """Raise ValueError for arrays that the format cannot store: the file could not be read."""
        for key, values in atoms.arrays.items():
            text = values.dtype.kind in "OSU"
            if values.ndim > 2 or (text and any(len(str(v).split()) != 1 for v in values.ravel())):
                what = "values with spaces, or empty ones," if text else f"shape {values.shape},"
                raise ValueError(
                    f"{self.path}: array {key!r} of {atoms.info[SYSTEM_NAME]} has {what} which extended XYZ "
                    "does not hold: remove it, or write to ZarrData."
                )

    def _end(self) -> None:
        file, self._file = self._file, None
        file.close()

    def structures(self) -> Iterator[Atoms]:
        _, end = self._scan()
        with open(self.path, "rb") as file:
            text = io.StringIO(file.read(end).decode())
        # The annotation of ASE says int.
        yield from read_xyz(text, slice(None))  # pyright: ignore[reportArgumentType]


class AseTrajectory(AseFile):
    """A .traj file of ASE: binary, with all digits, for `ase gui` and scripts.

    It stores the same as ExtXYZ, and all constraints; arrays that ASE does not store in this format are in
    `info["_arrays"]`. Structures are complete in the file when `write` returns, so that it can be read during
    a run. An incomplete structure, left by a killed process, is ignored.
    """

    format = "an ASE trajectory"
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
                other = {k: atoms.arrays.pop(k) for k in set(atoms.arrays) - _TRAJ_ARRAYS}
                if other:
                    kept = {k: v if v.dtype.kind in "biuf" else v.tolist() for k, v in other.items()}
                    atoms.info["_arrays"] = kept
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
