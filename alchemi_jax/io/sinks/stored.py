"""Read the layout of ZarrData: the arrays of a store, and the systems of some rows as a HostBatch."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Int, Shaped

from alchemi_jax.io.sinks.checksum import CHECKSUM, COUNTS, DamagedError
from alchemi_jax.io.sinks.columns import Column, read_json
from alchemi_jax.io.sinks.layout import DERIVED, FORMAT, READABLE, array_name, meta_from_text
from alchemi_jax.systems.host import HostBatch
from alchemi_jax.systems.levels import atom_rows, level_fields
from alchemi_jax.systems.metadata import Metadata, SystemMeta
from alchemi_jax.systems.outcome import outcome_from_flags


def attributes_of(path: Path) -> dict[str, Any]:
    """The attributes of a store: committed numbers of systems and atoms, and names of arrays.

    Raises:
        ValueError: if there is no store at the path, or it is damaged.
    """
    if not path.exists():
        raise ValueError(f"{path} does not exist.")
    try:
        group = json.loads((path / "zarr.json").read_text())
        if group["node_type"] != "group":
            raise ValueError
    except (OSError, ValueError, KeyError, TypeError):
        file = path / "zarr.json"
        if path.is_dir() and file.exists():
            raise DamagedError(f"{path} is not a zarr group: {file} is damaged.") from None
        raise ValueError(f"{path} is not a zarr group.") from None
    attributes = group.get("attributes", {})
    if attributes.get("format") != FORMAT:
        raise ValueError(f"{path} is a zarr group, but not one that ZarrData wrote.")
    version = attributes.get("version")
    if version not in READABLE:
        readable = " and ".join(map(str, READABLE))
        raise ValueError(f"{path} has version {version}, this ZarrData reads {readable}.")
    attributes = read_json(path / "zarr.json")["attributes"]
    if not set(COUNTS) <= attributes.keys():
        raise DamagedError(f"{path / 'zarr.json'} is damaged: a number of systems or atoms is not there.")
    # It is of these attributes, and made again when they are written.
    attributes.pop(CHECKSUM, None)
    return attributes


class StoredArray:
    """An array of a store: slices are read by zarr, after a check that their files are there.

    zarr takes a chunk without a file for one of the fill value, and does not say which file is damaged.
    """

    def __init__(self, folder: Path, array: Any):
        self.folder, self._array = folder, array
        self.shape: tuple[int, ...] = array.shape
        self.dtype = np.dtype(array.dtype)
        self._column: Column | None = None

    def __len__(self) -> int:
        return self.shape[0]

    def __getitem__(self, key: Any) -> np.ndarray:
        rows = range(self.shape[0])[key] if isinstance(key, slice) else [int(key)]
        return self._read(np.array(rows, dtype=np.int64), lambda: self._array[key])

    def rows(self, rows: Int[np.ndarray, " rows"]) -> np.ndarray:
        """Rows in any order."""
        return self._read(rows, lambda: self._array.oindex[rows])

    def _read(self, rows: Int[np.ndarray, " rows"], read: Callable[[], Any]) -> np.ndarray:
        if self._column is None:
            self._column = Column.existing(self.folder)
        column = self._column
        chunks = np.unique(rows // column.chunk).tolist()
        for index in chunks:
            column.has_file(index)
        try:
            return np.asarray(read())
        except Exception as e:
            for index in chunks:
                if column.has_file(index):
                    column.read_chunk(index)
            reason = " ".join(str(e).split()) or type(e).__name__
            raise DamagedError(f"{self.folder} is damaged: {reason}.") from None


class Substitute:
    """An array in memory with the methods of StoredArray."""

    def __init__(self, values: np.ndarray):
        self._values = values
        self.shape, self.dtype = values.shape, values.dtype

    def __getitem__(self, key: Any) -> np.ndarray:
        return np.asarray(self._values[key])

    def rows(self, rows: Int[np.ndarray, " rows"]) -> np.ndarray:
        """Rows in any order."""
        return self._values[rows]


class StoredSystems:
    """The systems of a store at the time of opening, read when they are used.

    Later writes are not included; a run may append to the store meanwhile.

    Attributes:
        frame: [systems], the number of the write of each system.
        sizes: [systems], numbers of atoms.
        first_atom: [systems], the first row of each system in arrays per atom.
        fields: name -> (level, name of the array), extras under their own names.
        missing: names of the fields that the store lacks, because it was written before they existed. They
            have default values: `outcome` from the flags, `reason` 0, `time` NaN.
    """

    def __init__(self, path: Path):
        import zarr

        self.path = path
        self.attributes = attributes_of(path)
        self.n_systems, self.n_atoms = int(self.attributes["systems"]), int(self.attributes["atoms"])
        self.fields: dict[str, tuple[str, str]] = {}
        self.missing: list[str] = []
        self._group = zarr.open_group(path, mode="r")
        self._arrays: dict[str, Any] = {}
        if not self.n_systems:
            self.frame = self.sizes = self.first_atom = np.zeros(0, np.int64)
            return
        for name, level in level_fields(HostBatch):
            if name.endswith("_extras"):
                own = {k: (level, array_name(level, k)) for k in self.attributes["extras"][level]}
                self.fields |= {k: v for k, v in own.items() if k not in self.fields}
            elif name not in DERIVED:
                self.fields[name] = (level, name)
                if name not in self.attributes["columns"] and not self._has_rows(name, level):
                    self.missing.append(name)
        self.frame = np.asarray(self._array("frame")[: self.n_systems])
        self.sizes = np.asarray(self._array("atoms_per_system")[: self.n_systems])
        self.first_atom = np.cumsum(self.sizes, dtype=np.int64) - self.sizes

    def _has_rows(self, name: str, level: str) -> bool:
        """Whether an array that the group does not name has all rows. A process that was killed while it
        added the array to a store of an earlier version may have left it without."""
        try:
            rows = int(read_json(self.path / name / "zarr.json")["shape"][0])
        except (DamagedError, NotADirectoryError):
            return False
        return rows >= (self.n_atoms if level == "atom" else self.n_systems)

    def _array(self, name: str) -> Any:
        if name not in self._arrays and name in self.missing:
            self._arrays[name] = Substitute(self._substitute(name))
        elif name not in self._arrays:
            try:
                self._arrays[name] = StoredArray(self.path / name, self._group[name])
            except Exception:
                file = self.path / name / "zarr.json"
                read_json(file)
                raise DamagedError(f"{file} is damaged: zarr cannot open this array.") from None
        return self._arrays[name]

    def _substitute(self, name: str) -> Shaped[np.ndarray, " systems"]:
        """The default values of a field that the store lacks."""
        if name == "outcome":
            return outcome_from_flags(*(self._array(k)[: self.n_systems] for k in ("converged", "failed")))
        if name == "fixed_components":
            return np.zeros((len(self._array("fixed")), 3), bool)
        if name == "reason":
            return np.zeros(self.n_systems, np.int32)
        if name == "time":
            return np.full(self.n_systems, np.nan, self._array("positions").dtype)
        raise ValueError(f"{self.path} is damaged: it has no array {name}.")

    def field(self, name: str) -> tuple[str, Any, int]:
        """Level, zarr array and committed length of a field or extra.

        Raises:
            KeyError: naming all fields.
        """
        if name not in self.fields:
            raise KeyError(f"{self.path} has no field {name!r}; it has {', '.join(self.fields) or 'none'}.")
        level, array = self.fields[name]
        return level, self._array(array), self.n_atoms if level == "atom" else self.n_systems

    def values(
        self, array: str, level: str, rows: Int[np.ndarray, " rows"]
    ) -> Shaped[np.ndarray, "length ..."]:
        """Values of an array for the systems in some rows, in this order; the length is rows or atoms."""
        if level == "atom":
            rows = atom_rows(self.first_atom[rows], self.sizes[rows])
        if not len(rows):
            return np.asarray(self._array(array)[:0])
        first, last = int(rows[0]), int(rows[-1])
        if last - first + 1 == len(rows) and (np.diff(rows) == 1).all():
            return np.asarray(self._array(array)[first : last + 1])
        return self._array(array).rows(rows)

    def batch(self, rows: Int[np.ndarray, " rows"]) -> HostBatch:
        """The systems in some rows."""
        fields: dict[str, Any] = {}
        for name, level in level_fields(HostBatch):
            if name.endswith("_extras"):
                keys = self.attributes["extras"][level]
                fields[name] = {k: self.values(array_name(level, k), level, rows) for k in keys}
            elif name not in DERIVED:
                fields[name] = self.values(name, level, rows)
        return HostBatch.from_fields(fields, self.meta(rows))

    def meta(self, rows: Int[np.ndarray, " rows"]) -> Metadata:
        """Names, info and constraints of the systems in some rows."""
        if not len(rows):
            return Metadata()
        first = int(rows.min())
        begin = max(first - 1, 0)
        ends = np.asarray(self._array("meta_end")[begin : int(rows.max()) + 1])
        starts = np.concatenate([[0], ends])[: len(ends)] if first == 0 else ends[:-1]
        ends = ends if first == 0 else ends[1:]
        text = np.asarray(self._array("meta")[int(starts[0]) : int(ends[-1])]).tobytes()
        at = int(starts[0])
        # The same texts occur in all frames of a run.
        known: dict[bytes, SystemMeta] = {}
        out = []
        for row in (rows - first).tolist():
            part = text[int(starts[row]) - at : int(ends[row]) - at]
            if part not in known:
                known[part] = meta_from_text(part)
            out.append(known[part])
        return Metadata(out)
