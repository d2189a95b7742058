"""Marks of the systems that a run was given, so that another call with other systems is told.

A checkpoint has the systems as they are by then. What they were before the first step is known by a checksum
of each, so that a result of other positions is not taken for that of these.
"""

import zlib
from typing import Any

import numpy as np
from jaxtyping import Int

from alchemi_jax.dynamics.saved import AnotherRun
from alchemi_jax.systems.host import HostBatch


#: What a run takes from a system.
_OF_ATOMS = ("numbers", "positions", "velocities", "masses", "fixed", "fixed_components")
_OF_SYSTEMS = ("cell", "pbc", "charge", "spin")

Marks = Int[np.ndarray, " systems"]


def marks_of(host: HostBatch) -> Marks:
    """[systems] A checksum of each system, of all that a run takes from it."""
    atoms = [getattr(host, name) for name in _OF_ATOMS]
    systems = [getattr(host, name) for name in _OF_SYSTEMS]
    ends = np.cumsum(host.atoms_per_system)
    out = np.zeros(len(ends), np.int64)
    for row, (begin, end) in enumerate(zip(ends - host.atoms_per_system, ends, strict=True)):
        mark = 0
        for values in atoms:
            mark = zlib.crc32(np.ascontiguousarray(values[begin:end]).data, mark)
        for values in systems:
            mark = zlib.crc32(np.ascontiguousarray(values[row]).data, mark)
        out[row] = mark
    return out


def check_marks(where: str, stored: Any, now: Marks, host: HostBatch) -> None:
    """Check that the systems of a batch are those with which the run of a checkpoint began.

    Raises:
        AnotherRun: naming the first that differs.
    """
    if stored is None or np.array_equal(stored, now):
        return
    row = int(np.flatnonzero(np.asarray(stored) != now)[0])
    raise AnotherRun(
        f"{where} is of another batch: positions, velocities, cell, masses or charge of {host.name_of(row)} "
        "were others when its run began. Give the same batch, or another folder."
    )


class SourceMarks:
    """Marks of the systems that a stream has read, and a check of those that a run took before it went on.

    Args:
        saved: what `of` gave for the systems that were taken; None: a run that begins.
    """

    def __init__(self, saved: dict[str, Any] | None = None):
        ids = np.zeros(0, int) if saved is None else np.asarray(saved["ids"])
        marks = ids if saved is None else np.asarray(saved["marks"])
        self._known = dict(zip(ids.tolist(), marks.tolist(), strict=True))
        self._missing = set(self._known)
        self._read: list[tuple[np.ndarray, np.ndarray]] = []

    def look(self, host: HostBatch) -> None:
        """Note systems as they were read.

        Raises:
            AnotherRun: if a system that was taken before was another one.
        """
        marks = marks_of(host)
        self._read.append((np.array(host.system_id), marks))
        for row, number in enumerate(host.system_id.tolist() if self._known else ()):
            if self._known.get(number, marks[row]) != marks[row]:
                raise AnotherRun(
                    f"{host.name_of(row)} is not the system that the checkpoint has in its place, number "
                    f"{number} of the source: positions, velocities, cell, masses or charge were others. "
                    "Give the same source."
                )
            self._missing.discard(number)

    def end(self) -> None:
        """The source has no more systems.

        Raises:
            AnotherRun: if one is missing that was taken before.
        """
        if self._missing:
            raise AnotherRun(
                f"the source has no system number {min(self._missing)}, which the checkpoint has: give the "
                "same source. A generator can be read once; make it anew for each call."
            )

    def of(self, taken: Int[np.ndarray, " systems"]) -> dict[str, Any]:
        """What a checkpoint keeps: ids and marks of the systems that were taken."""
        read = list(self._read)
        ids = np.concatenate([np.zeros(0, int), *(ids for ids, _ in read)])
        marks = np.concatenate([np.zeros(0, np.int64), *(marks for _, marks in read)])
        mine = np.isin(ids, taken)
        return {"ids": ids[mine], "marks": marks[mine]}


__all__ = ["Marks", "SourceMarks", "check_marks", "marks_of"]
