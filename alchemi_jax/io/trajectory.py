"""Trajectory: reads what a run wrote to a ZarrData store, without loading all of it."""

from __future__ import annotations

import html
import importlib
import operator
import os
from collections.abc import Iterator
from typing import Any, overload

import numpy as np
from ase import Atoms
from jaxtyping import Int, Shaped

from alchemi_jax.io.sinks.joined import Stored, open_stored
from alchemi_jax.parameters import as_path
from alchemi_jax.systems.host import HostBatch
from alchemi_jax.systems.viewer import draw_frames


class Trajectory:
    """A store of ZarrData as a sequence of frames, read from disk as needed.

    A frame has the systems of one write: all systems of the batch for a SnapshotHook, those that had just
    converged for a ConvergedSnapshotHook. A row is one system in one frame. Positions and other fields are
    read from disk when they are used; only three numbers per row are in memory.

    The parts of several processes, `traj.0-of-2.zarr` and so on, are read as one store under the path that
    the run was given: the systems in the first frames of all parts are the first frame, and so on.

    It shows what was committed when it was opened, also while a run is writing. `refresh` adds what was
    committed since.

        traj = Trajectory("traj.zarr")
        traj[-1]                          # the last frame, a HostBatch
        traj["energy"][-100:]             # eV, of the last hundred rows
        traj.system(3).positions          # [frames, atoms, 3], Å
        traj.to_ase(slice(None, None, 10))

    Args:
        path: path of the store.

    Raises:
        ValueError: if there is no store at the path.
    """

    def __init__(self, path: str | os.PathLike):
        self.path = as_path("path of Trajectory")(path)
        self.refresh()

    def refresh(self) -> Trajectory:
        """Add what was committed since; returns itself."""
        self._stored = open_stored(self.path)
        frame = self._stored.frame
        begins = np.concatenate([[True], frame[1:] != frame[:-1]])[: len(frame)]
        #: Row at which each frame begins, and the number of rows.
        self._bounds = np.append(np.flatnonzero(begins), len(frame))
        self._ids: Int[np.ndarray, " rows"] | None = None
        return self

    # -- contents --------------------------------------------------------------------------------

    @property
    def n_frames(self) -> int:
        """Number of frames."""
        return len(self._bounds) - 1

    @property
    def n_rows(self) -> int:
        """Number of rows; each system in each frame is a row."""
        return self._stored.n_systems

    @property
    def fields(self) -> list[str]:
        """Names of the fields that are stored, extras included."""
        return list(self._stored.fields)

    @property
    def system_ids(self) -> Int[np.ndarray, " systems"]:
        """The `system_id` of all systems, in increasing order."""
        return np.unique(self._row_ids())

    @property
    def frame_of_row(self) -> Int[np.ndarray, " rows"]:
        """The frame of each row, [rows]."""
        return np.repeat(np.arange(self.n_frames), np.diff(self._bounds))

    @property
    def atoms_of_row(self) -> Int[np.ndarray, " rows"]:
        """Number of atoms of each row, [rows]."""
        return self._stored.sizes

    def _row_ids(self) -> Int[np.ndarray, " rows"]:
        if self._ids is None:
            self._ids = np.asarray(self["system_id"][:]) if self.n_rows else np.zeros(0, np.int32)
        return self._ids

    def __len__(self) -> int:
        return self.n_frames

    # -- reading ---------------------------------------------------------------------------------

    @overload
    def __getitem__(self, key: str) -> Field: ...
    @overload
    def __getitem__(self, key: int | slice) -> HostBatch: ...
    def __getitem__(self, key: Any) -> Any:
        """A field by its name, or the HostBatch of a frame or of a slice of frames."""
        if isinstance(key, str):
            return Field(self._stored, key)
        return self.to_batch(key)

    def __iter__(self) -> Iterator[HostBatch]:
        return (self.to_batch(i) for i in range(self.n_frames))

    def rows(self, frames: Any = slice(None)) -> Int[np.ndarray, " rows"]:
        """The rows of a frame or of a slice of frames.

        Raises:
            IndexError: if there is no such frame.
        """
        if isinstance(frames, slice):
            numbers = range(self.n_frames)[frames]
        else:
            if isinstance(frames, bool) or not hasattr(frames, "__index__"):
                raise TypeError(f"frames are chosen by a whole number or a slice, not by {frames!r}.")
            n = operator.index(frames)
            if not -self.n_frames <= n < self.n_frames:
                raise IndexError(f"{self.path} has {self.n_frames} frames, there is no frame {n}.")
            numbers = [n % self.n_frames]
        if isinstance(numbers, range) and numbers.step == 1 and len(numbers):
            return np.arange(self._bounds[numbers[0]], self._bounds[numbers[-1] + 1])
        parts = [np.arange(self._bounds[i], self._bounds[i + 1]) for i in numbers]
        return np.concatenate(parts) if parts else np.zeros(0, int)

    def to_batch(self, frames: Any = slice(None)) -> HostBatch:
        """The systems of a frame, or of a slice of frames one after another.

        Raises:
            IndexError: if there are none.
        """
        rows = self.rows(frames)
        if not len(rows):
            raise IndexError(f"{self.path} has {self.n_frames} frames, none of them in {frames}.")
        return self._stored.batch(rows)

    def to_ase(self, frames: Any = slice(None)) -> list[Atoms]:
        """The systems of a frame, or of a slice of frames, one ase.Atoms per row."""
        return self.to_batch(frames).to_ase() if len(self.rows(frames)) else []

    def system(self, system_id: int) -> SystemSeries:
        """One system through all its frames.

        Raises:
            KeyError: if there is no system with this id.
            ValueError: if systems of different sizes have this id.
        """
        rows = np.flatnonzero(self._row_ids() == system_id)
        if not len(rows):
            ids = self.system_ids
            known = f"from {ids[0]} to {ids[-1]}" if len(ids) else "none"
            raise KeyError(f"{self.path} has no system {system_id}; its ids are {known}.")
        sizes = np.unique(self._stored.sizes[rows])
        if len(sizes) > 1:
            raise ValueError(
                f"{self.path} has systems of {sizes[0]} and of {sizes[-1]} atoms under the id {system_id}: "
                "they were written by different runs; read them by frames."
            )
        frames = np.searchsorted(self._bounds, rows, side="right") - 1
        return SystemSeries(self._stored, int(system_id), rows, frames)

    # -- tables ----------------------------------------------------------------------------------

    def _scalars(self) -> dict[str, Shaped[np.ndarray, " rows"]]:
        out = {"frame": self.frame_of_row}
        for name in self.fields:
            field = self[name]
            if field.level == "system" and field.ndim == 1:
                out[name] = field[:]
        return out

    def to_pandas(self) -> Any:
        """A pandas.DataFrame with the rows of the trajectory and the fields that are one number per system.

        Raises:
            ImportError: if pandas is not installed.
        """
        pandas = _optional("pandas")
        return pandas.DataFrame(self._scalars()).rename_axis("row")

    def to_xarray(self) -> Any:
        """The same as an xarray.Dataset with the dimension `row`; frame and system_id are coordinates.

        Raises:
            ImportError: if xarray is not installed.
        """
        xarray = _optional("xarray")
        data = {name: ("row", values) for name, values in self._scalars().items()}
        return xarray.Dataset(data).set_coords([k for k in ("frame", "system_id") if k in data])

    # -- showing ---------------------------------------------------------------------------------

    def view(self, system_id: int | None = None, frames: slice = slice(None), **options: Any) -> Any:
        """An animation of one system (by default the first) in a notebook: see `SystemSeries.view`."""
        return self.system(int(self.system_ids[0]) if system_id is None else system_id).view(
            frames, **options
        )

    def summary(self) -> list[tuple[str, str]]:
        """The contents as pairs of name and text: systems, frames, fields."""
        ids, sizes = self.system_ids, self._stored.sizes
        atoms = "" if not len(sizes) else f", {sizes.min()} to {sizes.max()} atoms each"
        if len(sizes) and sizes.min() == sizes.max():
            atoms = f", {sizes[0]} atoms each"
        steps = self["steps_taken"][:] if self.n_rows else np.zeros(1, int)
        return [
            ("systems", f"{len(ids)}{atoms}"),
            ("frames", f"{self.n_frames}, {self.n_rows} rows, steps {steps.min()} to {steps.max()}"),
            ("fields", ", ".join(self.fields)),
        ]

    def __repr__(self) -> str:
        return (
            f"Trajectory({str(self.path)!r}: {self.n_frames} frames of {len(self.system_ids)} systems, "
            f"{self.n_rows} rows)"
        )

    def _repr_html_(self) -> str:
        rows = "".join(f"<tr><th>{k}</th><td>{html.escape(v)}</td></tr>" for k, v in self.summary())
        return f"<table><caption>{html.escape(str(self.path))}</caption>{rows}</table>"


def _optional(name: str) -> Any:
    try:
        return importlib.import_module(name)
    except ImportError:
        raise ImportError(f"Trajectory.to_{name} needs {name}: pip install {name}.") from None


class Field:
    """One field of all rows; slices are read from disk.

    The shape is [rows, ...] for a field per system, [atoms of all rows, ...] for a field per atom.

    Attributes:
        level: "system" or "atom".
        shape, dtype: of the field for all rows.
    """

    def __init__(self, stored: Stored, name: str):
        self.name = name
        self.level, self._array, self._length = stored.field(name)
        self.shape: tuple[int, ...] = (self._length, *self._array.shape[1:])
        self.dtype = np.dtype(self._array.dtype)
        self.ndim = len(self.shape)

    def __len__(self) -> int:
        return self._length

    def __getitem__(self, key: Any) -> Any:
        first, rest = (key[0], key[1:]) if isinstance(key, tuple) and key else (key, ())
        if isinstance(first, slice):
            rows = range(self._length)[first]
            if not len(rows):
                values = np.zeros((0, *self.shape[1:]), self.dtype)
            elif rows.step > 0:
                values = np.asarray(self._array[rows[0] : rows[-1] + 1 : rows.step])
            else:
                values = np.asarray(self._array[rows[-1] : rows[0] + 1 : -rows.step])[::-1]
            return values[(slice(None), *rest)] if rest else values
        if isinstance(first, int | np.integer):
            if not -self._length <= first < self._length:
                raise IndexError(f"{self.name} has {self._length} rows, there is no row {first}.")
            value = np.asarray(self._array[int(first) % self._length])
            return value[rest] if rest or not value.ndim else value
        if first is Ellipsis:
            return np.asarray(self)[key]
        index = np.asarray(first)
        if index.ndim != 1 or (index.dtype.kind not in "biu" and index.size):
            raise TypeError(f"rows are chosen by whole numbers, a slice or a mask, not by {first!r}.")
        if index.dtype == bool:
            if len(index) != self._length:
                raise IndexError(f"{self.name} has {self._length} rows, the mask has {len(index)}.")
            index = np.flatnonzero(index)
        if (odd := index[(index < -self._length) | (index >= self._length)]).size:
            raise IndexError(f"{self.name} has {self._length} rows, there is no row {odd[0]}.")
        if not len(index):
            return np.zeros((0, *self.shape[1:]), self.dtype)
        values = np.asarray(self._array.rows(index % self._length))
        return values[(slice(None), *rest)] if rest else values

    def __array__(self, dtype: Any = None, copy: Any = None) -> np.ndarray:
        return np.asarray(self[:], dtype)

    def __repr__(self) -> str:
        return f"Field({self.name!r}, per {self.level}, {self.dtype}{list(self.shape)})"


class SystemSeries:
    """One system in all its frames.

    Each field of the trajectory is an attribute, read from disk when it is used: `positions` is [frames,
    atoms, 3], Å, `energy` [frames], eV, `steps_taken` [frames].

    Attributes:
        id: its system_id.
        rows, frames: [frames], its rows and frames in the trajectory.
    """

    def __init__(
        self,
        stored: Stored,
        system_id: int,
        rows: Int[np.ndarray, " frames"],
        frames: Int[np.ndarray, " frames"],
    ):
        self._stored, self.id, self.rows, self.frames = stored, system_id, rows, frames

    @property
    def n_frames(self) -> int:
        """Number of frames that have the system."""
        return len(self.rows)

    @property
    def name(self) -> str:
        """Name of the system in errors."""
        return self._stored.meta(self.rows[:1])[0].name

    def __len__(self) -> int:
        return self.n_frames

    def __getitem__(self, name: str) -> np.ndarray:
        level, _, _ = self._stored.field(name)
        values = self._stored.values(self._stored.fields[name][1], level, self.rows)
        return values if level == "system" else values.reshape(self.n_frames, -1, *values.shape[1:])

    def __getattr__(self, name: str) -> np.ndarray:
        if name.startswith("_") or name not in self._stored.fields:
            raise AttributeError(f"{type(self).__name__} has no {name!r}.")
        return self[name]

    def __dir__(self) -> list[str]:
        return [*super().__dir__(), *self._stored.fields]

    def to_batch(self, frames: slice = slice(None)) -> HostBatch:
        """A HostBatch with one system per frame."""
        return self._stored.batch(self.rows[frames])

    def to_ase(self, frames: slice = slice(None)) -> list[Atoms]:
        """One ase.Atoms per frame."""
        return self.to_batch(frames).to_ase()

    def view(
        self, frames: slice = slice(None), *, width: int = 640, height: int = 480, interval: int = 50
    ) -> Any:
        """An animation of the system in a notebook, in a loop with `interval` ms per frame.

        All positions become part of the notebook: for a long run use `slice(None, None, 10)`, for example.

        Raises:
            IndexError: if there are no such frames.
            ImportError: if py3Dmol is not installed.
        """
        shown = self.to_ase(frames)
        if not shown:
            raise IndexError(f"{self.name} has {self.n_frames} frames, none of them in {frames}.")
        return draw_frames(shown, width, height, interval)

    def __repr__(self) -> str:
        atoms = self._stored.sizes[self.rows[0]]
        return f"SystemSeries({self.name!r}, id {self.id}: {self.n_frames} frames, {atoms} atoms)"
