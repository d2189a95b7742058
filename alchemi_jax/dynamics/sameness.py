"""Marks of the systems that a run was given, so that another call with other systems is told.

A checkpoint has the systems as they are by then. What they were before the first step is known by a checksum
of each, so that a result of other positions is not taken for that of these.

What the `prepare` of a sampler makes of them is compared by sums, since it is computed: its last digits may
be others on another machine, where a run may go on.
"""

import warnings
import zlib
from collections.abc import Mapping
from typing import Any

import numpy as np
from jaxtyping import Float, Int

from alchemi_jax.dynamics.saved import AnotherRun
from alchemi_jax.systems.host import HostBatch


#: So many systems of each window are compared after `prepare`, and so much may they differ.
_COMPARED, _TOLERANCE = 8, 1e-4
#: What a run takes from a system.
_OF_ATOMS = ("numbers", "positions", "velocities", "masses", "fixed", "fixed_components")
_OF_SYSTEMS = ("cell", "pbc", "charge", "spin")

Marks = Int[np.ndarray, " systems"]


def marks_of(host: HostBatch) -> Marks:
    """[systems] A checksum of each system, of all that a run takes from it."""
    atoms, systems = _taken_from(host)
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


def sums_of(host: HostBatch) -> Float[np.ndarray, "systems arrays 2"]:
    """Weighted sums of each array of each system, and the same sums of absolute values."""

    def sums(rows: np.ndarray) -> Float[np.ndarray, "rows 2"]:
        rows = rows.reshape(len(rows), -1).astype(np.float64)
        weighted = rows * _weights(np.arange(rows.shape[1]))
        return np.stack([weighted.sum(axis=1), abs(weighted).sum(axis=1)], axis=1)

    atoms, systems = _taken_from(host)
    of_atom = _weights(np.arange(len(host.batch_idx)) - host.first_atom[host.batch_idx])[:, None]
    columns = [np.add.reduceat(of_atom * sums(values), host.first_atom, axis=0) for values in atoms]
    return np.stack([*columns, *map(sums, systems)], axis=1)


def _weights(index: np.ndarray) -> Float[np.ndarray, " rows"]:
    """Positive and different, so that values that change places or signs are noticed."""
    return 1.5 + np.cos(index)


def _taken_from(host: HostBatch) -> tuple[list[np.ndarray], list[np.ndarray]]:
    """What a run takes from systems: arrays of atoms, and of systems."""

    def numbers(extras: Mapping[str, Any]) -> list[np.ndarray]:
        found = [np.asarray(extras[name]) for name in sorted(extras)]
        return [values for values in found if values.dtype.kind in "biuf"]

    atoms, systems = ([getattr(host, name) for name in names] for names in (_OF_ATOMS, _OF_SYSTEMS))
    return [*atoms, *numbers(host.atom_extras)], [*systems, *numbers(host.system_extras)]


def check_marks(where: str, stored: Any, now: Marks, host: HostBatch) -> None:
    """Check that the systems of a batch are those with which the run of a checkpoint began.

    Raises:
        AnotherRun: naming the first that differs.
    """
    if stored is None or np.array_equal(stored, now):
        return
    row = int(np.flatnonzero(np.asarray(stored) != now)[0])
    raise AnotherRun(
        f"{where} is of another batch: extras, positions, velocities, cell, masses or charge of "
        f"{host.name_of(row)} were others when its run began. Give the same batch, or another folder."
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
        #: Sums of systems after `prepare`, by id: of the run so far, and as they are now.
        begun = {} if saved is None else saved["prepared"]
        self._begun = dict(zip(begun.get("ids", []), begun.get("sums", []), strict=True))
        self._prepared: dict[int, np.ndarray] = {}
        self._told = False

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
                    f"{number} of the source: extras, positions, velocities, cell, masses or charge were "
                    "others. Give the same source."
                )
            self._missing.discard(number)

    def look_prepared(self, host: HostBatch) -> None:
        """Note some systems as they are when they enter. Warns if one was another when the run began.

        What entered stays as it is, and a `prepare` that draws numbers of its own cannot be had again, so
        that this is no error.
        """
        some = host.take(np.arange(min(len(host), _COMPARED)))
        for row, (number, new) in enumerate(zip(some.system_id.tolist(), sums_of(some), strict=True)):
            old = self._begun.get(number, new)
            self._prepared[number] = old
            if self._told or (old.shape == new.shape and _about_equal(old, new)):
                continue
            self._told = True
            warnings.warn(
                f"{some.name_of(row)} enters with other positions, velocities or other values than when the "
                "run of the checkpoint began: prepare of the Sampler was another, or is not the same in "
                "each call. Systems that have entered go on as they are, others enter as it makes them now.",
                RuntimeWarning,
                stacklevel=2,
            )

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
        prepared = self._prepared.copy()
        sums = {"ids": np.array([*prepared], int), "sums": np.array([*prepared.values()], np.float64)}
        return {"ids": ids[mine], "marks": marks[mine], "prepared": sums}


def _about_equal(old: np.ndarray, new: np.ndarray) -> bool:
    """Whether sums of a system are equal but for rounding."""
    close = abs(new[:, 0] - old[:, 0]) <= _TOLERANCE * new[:, 1]
    return bool(np.all(close | (np.isnan(new[:, 0]) & np.isnan(old[:, 0]))))


__all__ = ["Marks", "SourceMarks", "check_marks", "marks_of", "sums_of"]
