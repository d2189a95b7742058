"""A store that several processes have written, each its part, read as one."""

from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Int, Shaped

from alchemi_jax.io.parts import part_paths
from alchemi_jax.io.sinks.stored import StoredSystems
from alchemi_jax.systems.host import HostBatch
from alchemi_jax.systems.levels import atom_rows
from alchemi_jax.systems.metadata import Metadata


class JoinedArray:
    """An array of all parts, with the methods of `StoredArray`.

    Args:
        arrays: of the parts. part, row: [rows], of which part a row is, and its row there.
    """

    def __init__(self, arrays: list[Any], part: Int[np.ndarray, " rows"], row: Int[np.ndarray, " rows"]):
        self._arrays, self._part, self._row = arrays, part, row
        self.shape: tuple[int, ...] = (len(part), *arrays[0].shape[1:])
        self.dtype = np.dtype(arrays[0].dtype)

    def __len__(self) -> int:
        return self.shape[0]

    def __getitem__(self, key: Any) -> np.ndarray:
        rows = np.arange(len(self))[key]
        return self.rows(rows) if isinstance(key, slice) else self.rows(np.array([rows]))[0]

    def rows(self, rows: Int[np.ndarray, " rows"]) -> np.ndarray:
        """Rows in any order."""
        out = np.empty((len(rows), *self.shape[1:]), self.dtype)
        part, row = self._part[rows], self._row[rows]
        for number in np.unique(part).tolist():
            mine = part == number
            out[mine] = self._arrays[number].rows(row[mine])
        return out


class StoredParts:
    """The systems of all parts, as `StoredSystems` has those of one store.

    The first frames of all parts are the first frame, and so on; systems of a frame are in the order of their
    ids. Attributes are those of `StoredSystems`.

    Raises:
        ValueError: if the parts have systems of different dtypes or with different extras.
    """

    def __init__(self, path: Path, paths: list[Path]):
        found = [StoredSystems(part) for part in paths]
        self.path, self._stores = path, [store for store in found if store.n_systems]
        first = (self._stores or found)[0]
        self.attributes, self.fields, self.missing = first.attributes, first.fields, first.missing
        for store in self._stores[1:]:
            odd = sorted({*store.fields} ^ {*first.fields})
            if odd:
                raise ValueError(
                    f"{store.path} and {first.path} have systems with different extras, {', '.join(odd)}: "
                    "read them one by one."
                )
        sizes = [store.sizes for store in self._stores]
        frames = [np.unique(store.frame, return_inverse=True)[1].ravel() for store in self._stores]
        ids = [np.asarray(s.field("system_id")[1][: s.n_systems]) for s in self._stores]
        none = [np.zeros(0, np.int64)]
        part = np.repeat(np.arange(len(sizes)), [len(n) for n in sizes])
        row = np.concatenate([*none, *(np.arange(len(n)) for n in sizes)])
        frame = np.concatenate([*none, *frames])
        order = np.lexsort((np.concatenate([*none, *ids]), frame))
        self._part, self._row, self.frame = part[order], row[order], frame[order]
        self.sizes = np.concatenate([*none, *sizes])[order]
        self.first_atom = np.cumsum(self.sizes, dtype=np.int64) - self.sizes
        self.n_systems, self.n_atoms = len(order), int(self.sizes.sum())

    def field(self, name: str) -> tuple[str, Any, int]:
        """Level, array and length of a field or extra.

        Raises:
            KeyError: naming all fields.
        """
        if name not in self.fields:
            raise KeyError(f"{self.path} has no field {name!r}; it has {', '.join(self.fields) or 'none'}.")
        level = self.fields[name][0]
        arrays = [store.field(name)[1] for store in self._stores]
        part, row = self._part, self._row
        if level == "atom":
            first = np.array(
                [self._stores[p].first_atom[r] for p, r in zip(part, row, strict=True)], np.int64
            )
            part, row = np.repeat(part, self.sizes), atom_rows(first, self.sizes)
        return level, JoinedArray(arrays, part, row), self.n_atoms if level == "atom" else self.n_systems

    def values(
        self, array: str, level: str, rows: Int[np.ndarray, " rows"]
    ) -> Shaped[np.ndarray, "length ..."]:
        """Values of an array for the systems in some rows, in this order; the length is rows or atoms."""
        name = next(name for name, known in self.fields.items() if known == (level, array))
        found = self.field(name)[1]
        return found.rows(atom_rows(self.first_atom[rows], self.sizes[rows]) if level == "atom" else rows)

    def _of_parts(self, rows: Int[np.ndarray, " rows"]) -> list[tuple[StoredSystems, Any, Any]]:
        """Store, rows in it, and places among the rows that were asked for."""
        part, row = self._part[rows], self._row[rows]
        return [
            (self._stores[p], row[part == p], np.flatnonzero(part == p)) for p in np.unique(part).tolist()
        ]

    def batch(self, rows: Int[np.ndarray, " rows"]) -> HostBatch:
        """The systems in some rows."""
        found = self._of_parts(rows)
        if not found:
            return self._stores[0].batch(rows)
        host = HostBatch.concatenate([store.batch(mine) for store, mine, _ in found])
        return host.take(np.argsort(np.concatenate([places for _, _, places in found])))

    def meta(self, rows: Int[np.ndarray, " rows"]) -> Metadata:
        """Names, info and constraints of the systems in some rows."""
        entries: list[Any] = [None] * len(rows)
        for store, mine, places in self._of_parts(rows):
            for place, entry in zip(places.tolist(), store.meta(mine), strict=True):
                entries[place] = entry
        return Metadata(entries)


Stored = StoredSystems | StoredParts


def open_stored(path: Path) -> Stored:
    """The systems at a path: of a store, or of the parts that several processes have written.

    Raises:
        ValueError: if there is none, it is damaged, or a part is missing.
    """
    paths = part_paths(path)
    return StoredSystems(path) if paths == [path] else StoredParts(path, paths)


__all__ = ["JoinedArray", "Stored", "StoredParts", "open_stored"]
