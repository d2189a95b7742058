"""ExtXYZ: systems in a text file that common viewers open, written through ase.io."""

import contextlib
import io
import os
from collections.abc import Iterator
from typing import Any

from ase import Atoms
from ase.io.extxyz import read_xyz

from alchemi_jax.io.cut import check_end, cut_file, end_of_file
from alchemi_jax.io.sinks.extxyz import (
    Contents,
    ExtXYZDialect,
    frame_text,
    join_masks,
    scan_file,
    scan_frames,
)
from alchemi_jax.io.sinks.file import AseFile


class ExtXYZ(AseFile):
    """An extended XYZ file: text with eight decimals, for OVITO, ASE and other programs.

    It stores positions, velocities (as momenta), masses, cell, pbc, fixed atoms (move_mask), energy, forces,
    stress, arrays and `info`. Fields of the run are entries of `info`. Values that the format does not
    restore are stored as JSON in the entry `_alchemi_jax`, from which `read` takes them: tuples, dates, text
    that looks like a number, arrays of other shapes, names that cannot be names of columns, other
    constraints. Each write is one write of the file, so it can be read during a run.

    An incomplete structure that a killed process of this library left is not read, and the next write
    replaces it. Nothing else in a file is removed: a file that ends within a structure of another program is
    refused, and a file without a final line break gets one first.

    Args:
        path: path of the file, created when the first system is written or a run opens the sink.
        mode: "a" appends to an existing file, "w" replaces it, "x" raises an error if it exists, "r" only
            reads.

    Raises:
        ValueError: if the file has another format.
        FileExistsError and other OSErrors: naming the path. A write that fails does not change the file.
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
        with open(self._own, "rb") as file:
            return scan_file(file)

    def _count(self) -> int:
        return self._length if self._is_open else len(self._scan().frames)

    def _refuse_broken(self, contents: Contents) -> None:
        """Raise ValueError if the file breaks off in a structure that ExtXYZ did not write."""
        if contents.broken is not None and not contents.broken_is_ours:
            raise ValueError(
                f"{self._own} breaks off within the structure of line {contents.broken}, which alchemi_jax "
                "did not write: mend or remove that structure, or give another path."
            )

    def _begin(self) -> None:
        self._length = self._at = 0
        self._before = b""
        exists = self._own.exists()
        if exists:
            contents = self._scan()
            self._refuse_broken(contents)
            self._length, self._at = len(contents.frames), contents.end
            self._before = b"" if contents.ended else b"\n"
        self._file = open(self._own, "r+b" if exists else "w+b", buffering=0)  # noqa: SIM115

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

    def _state(self) -> dict[str, Any]:
        if self._is_open:
            return end_of_file(self._own, self._at) | {"systems": self._length}
        contents = self._scan()
        self._refuse_broken(contents)
        return end_of_file(self._own, contents.end) | {"systems": len(contents.frames)}

    def _cut(self, state: dict[str, Any]) -> None:
        check_end(self._own, state, f"{state['systems']} structures")
        cut_file(self._own, int(state["bytes"]))

    def _is_own(self) -> bool:
        try:
            with open(self._own, "rb") as file:
                return all(frame.ours is not False for frame in scan_frames(file))
        except ValueError:
            return False

    def _end(self) -> None:
        file, self._file = self._file, None
        file.close()

    def structures(self) -> Iterator[Atoms]:
        contents = self._scan()
        self._refuse_broken(contents)
        with open(self._own, "rb") as file:
            for frame in contents.frames:
                file.seek(frame.start)
                text = io.StringIO(file.read(frame.end - frame.start).decode())
                # The annotation of ASE says int.
                for atoms in read_xyz(text, slice(None)):  # pyright: ignore[reportArgumentType]
                    join_masks(atoms)
                    yield atoms
