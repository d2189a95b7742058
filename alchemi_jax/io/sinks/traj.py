"""AseTrajectory: systems in a binary file of ASE, written through ase.io."""

import contextlib
import os
import zlib
from collections.abc import Collection, Iterator
from typing import Any

import numpy as np
from ase import Atoms
from ase.constraints import FixAtoms, FixCartesian
from ase.io import jsonio, ulm
from ase.io.trajectory import TrajectoryReader, TrajectoryWriter

from alchemi_jax.io.cut import ADVICE, cut_file
from alchemi_jax.io.encoding import is_same
from alchemi_jax.io.sinks.file import AseFile
from alchemi_jax.io.sinks.structures import Dialect


#: Per-atom arrays that the .traj format has.
_TRAJ_ARRAYS = {"numbers", "positions", "masses", "momenta", "tags", "initial_magmoms", "initial_charges"}


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

    It stores the same as ExtXYZ. Values that this format does not restore are stored as JSON in the entry
    `_alchemi_jax` of `info`, from which `read` takes them. Structures are complete in the file when `write`
    returns, so it can be read during a run. An incomplete structure that a killed process left is ignored.

    Args:
        path: path of the file, created when the first system is written or a run opens the sink.
        mode: "a" appends to an existing file, "w" replaces it, "x" raises an error if it exists, "r" only
            reads.

    Raises:
        ValueError: if the file has another format.
        FileExistsError and other OSErrors: naming the path. A write that fails does not change the file.
    """

    format = "an ASE trajectory"
    dialect = TrajDialect()
    _writer: TrajectoryWriter | None = None

    @property
    def _is_open(self) -> bool:
        return self._writer is not None

    def _count(self) -> int:
        if self._own.stat().st_size == 0:
            return 0
        with TrajectoryReader(self._own) as file:
            return len(file)

    def _begin(self) -> None:
        # ASE appends to an empty file as if it had a header.
        count = self._count() if self._own.exists() else 0
        self._writer = TrajectoryWriter(str(self._own), "a" if count else "w")
        if count > 1:
            # Once structures differ each has its own numbers, also in the writer that goes on.
            with ulm.Reader(self._own, count - 1) as last:
                self._writer.multiple_headers = "numbers" in last

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
        with contextlib.suppress(OSError), open(self._own, "r+b") as file:
            if self._own.stat().st_size >= 48:
                ulm.writeint(file, count, 32)

    def _state(self) -> dict[str, Any]:
        count = self._count()
        if not count:
            return {"systems": 0, "bytes": 0}
        with open(self._own, "rb") as file:
            file.seek(40)
            table = int.from_bytes(file.read(8), "little")
        size = self._own.stat().st_size
        return {"systems": count, "bytes": size, "table": table, "crc32": self._checksum(count - 1)}

    def _checksum(self, index: int) -> int:
        """Of a structure of the file."""
        with TrajectoryReader(self._own) as file:
            atoms = file[index]
        assert isinstance(atoms, Atoms)
        text = repr((atoms.get_chemical_formula("reduce"), sorted(atoms.info))).encode()
        arrays = (atoms.positions, atoms.arrays.get("momenta", np.zeros(0)), np.asarray(atoms.cell))
        return zlib.crc32(b"".join([text, *(np.ascontiguousarray(a).tobytes() for a in arrays)]))

    def _cut(self, state: dict[str, Any]) -> None:
        systems, length = int(state["systems"]), int(state["bytes"])
        size = self._own.stat().st_size if self._own.exists() else -1
        said = f"the checkpoint says {length} bytes with {systems} structures"
        if size < length:
            has = "does not exist" if size < 0 else f"has {size} bytes"
            raise ValueError(f"{self._own} {has}, {said}: {ADVICE}.")
        if systems:
            self._check_same(state, said)
            self._restore_header(systems, int(state["table"]))
        cut_file(self._own, length)

    def _check_same(self, state: dict[str, Any], said: str) -> None:
        systems = int(state["systems"])
        try:
            same = self._count() >= systems and self._checksum(systems - 1) == state["crc32"]
        except Exception:
            # ulm raises errors of all types for a file that is damaged.
            same = False
        if not same:
            raise ValueError(
                f"{self._own} is not the file of the checkpoint: {said}, and structure {systems - 1} is "
                f"another; {ADVICE}."
            )

    def _restore_header(self, count: int, table: int) -> None:
        """The number of structures, and the place of the table of their places, as they were: one write."""
        with open(self._own, "r+b", buffering=0) as file:
            os.pwrite(file.fileno(), np.array([count, table], "<i8").tobytes(), 32)
            # Entries after them are zero in a file that was never longer. The table has 42^k entries.
            room = 1
            while room < count:
                room *= 42
            os.pwrite(file.fileno(), bytes(8 * (room - count)), table + 8 * count)

    def _is_own(self) -> bool:
        try:
            return all("system_id" in atoms.info for atoms in self.structures())
        except Exception:
            return False

    def _end(self) -> None:
        writer, self._writer = self._writer, None
        assert writer is not None
        writer.close()

    def structures(self) -> Iterator[Atoms]:
        if self._count():
            with TrajectoryReader(self._own) as file:
                for i in range(len(file)):
                    atoms = file[i]
                    assert isinstance(atoms, Atoms)
                    yield atoms
