"""The log of a run as columns: means with error bars, and a picture."""

import dataclasses
from collections.abc import Iterator, Mapping
from pathlib import Path

import numpy as np

from alchemi_jax.analysis import block_average
from alchemi_jax.cli.plot import quantities


@dataclasses.dataclass(frozen=True)
class Table:
    """Columns of a LoggingHook's CSV file, [rows] each."""

    step: np.ndarray
    system_id: np.ndarray
    status: np.ndarray
    energy: np.ndarray
    fmax: np.ndarray
    temperature: np.ndarray

    @classmethod
    def read(cls, path: Path) -> "Table":
        """From the file."""
        rows = np.genfromtxt(path, delimiter=",", names=True, ndmin=1)
        names = [f.name for f in dataclasses.fields(cls)]
        if rows.dtype.names is None or not rows.size:
            return cls(*(np.zeros(0) for _ in names))
        return cls(*(rows[n].astype(int) if n in names[:3] else rows[n] for n in names))


def means(table: Table, stage: int, sizes: Mapping[int, int]) -> Iterator[tuple[str, str]]:
    """Quantity -> mean over the systems of a stage, each by its block average."""
    mine = np.flatnonzero(table.status == stage)
    order = mine[np.argsort(table.system_id[mine], kind="stable")]
    ids = table.system_id[order]
    systems = np.split(order, np.flatnonzero(np.diff(ids)) + 1) if len(order) else []
    atoms = np.array([sizes[i] for i in table.system_id])
    for name, unit, values in (
        ("temperature", "K", table.temperature),
        ("energy", "eV/atom", table.energy / atoms),
    ):
        found = [block_average(values[rows]) for rows in systems if np.isfinite(values[rows]).all()]
        if not found:
            continue
        errors = np.array([f.error for f in found])
        error = np.sqrt(np.sum(errors**2)) / len(found)
        mean = float(np.mean([f.mean for f in found]))
        least = "" if all(f.converged for f in found) else " (at least: short series)"
        yield name, f"{mean:.6g} ± {error:.2g} {unit}{least}"


def picture(table: Table, sizes: Mapping[int, int], path: Path, title: str) -> None:
    """Temperature, energy and fmax of every system against the steps that it had taken."""
    order = np.argsort(table.system_id, kind="stable")
    ids = table.system_id[order]
    systems = np.split(order, np.flatnonzero(np.diff(ids)) + 1)
    steps = np.zeros(len(order))
    for rows in systems:
        # Systems enter at different steps of the run.
        steps[rows] = table.step[rows] - table.step[rows[0]]
    atoms = np.array([sizes[i] for i in table.system_id])
    shown = [
        ("temperature", "K", table.temperature),
        ("energy", "eV/atom", table.energy / atoms),
        ("fmax", "eV/Å", table.fmax),
    ]
    quantities(path, title, steps, shown, systems)
