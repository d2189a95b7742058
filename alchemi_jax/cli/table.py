"""The log of a run as columns: means with error bars, drift, and a picture."""

import dataclasses
from collections.abc import Iterator, Mapping
from pathlib import Path

import numpy as np

from alchemi_jax.analysis import block_average
from alchemi_jax.cli.plot import quantities, read_rows
from alchemi_jax.cli.settings import MD


#: column -> name, unit, and whether it is divided by the number of atoms.
QUANTITIES = {
    "temperature": ("temperature", "K", False),
    "energy": ("energy", "eV/atom", True),
    "total_energy": ("total energy", "eV/atom", True),
    "pressure": ("pressure", "GPa", False),
    "volume": ("volume", "Å³", False),
    "density": ("density", "g/cm³", False),
    "fmax": ("fmax", "eV/Å", False),
}


@dataclasses.dataclass(frozen=True)
class Table:
    """Columns of a LoggingHook's CSV file, [rows] each; `more` has those beyond the first six."""

    step: np.ndarray
    system_id: np.ndarray
    status: np.ndarray
    energy: np.ndarray
    fmax: np.ndarray
    temperature: np.ndarray
    more: dict[str, np.ndarray] = dataclasses.field(default_factory=dict)

    @classmethod
    def read(cls, path: Path) -> "Table":
        """From the file."""
        rows = read_rows(path)
        names = [f.name for f in dataclasses.fields(cls) if f.name != "more"]
        if rows.dtype.names is None or not rows.size:
            rows = dict.fromkeys(names, np.zeros(0))
        columns = names if isinstance(rows, dict) else rows.dtype.names or ()
        step, system_id, status = (np.asarray(rows[n]).astype(int) for n in names[:3])
        energy, fmax, temperature = (np.asarray(rows[n]) for n in names[3:])
        more = {n: np.asarray(rows[n]) for n in columns if n not in names}
        return cls(step, system_id, status, energy, fmax, temperature, more)

    def values(self, column: str, sizes: Mapping[int, int]) -> np.ndarray | None:
        """A column of QUANTITIES, [rows]; None if it is not in the file or says nothing."""
        found = self.more.get(column) if column in self.more else getattr(self, column, None)
        if found is None or not np.isfinite(found).any():
            return None
        per_atom = QUANTITIES[column][2]
        return found / np.array([sizes[i] for i in self.system_id]) if per_atom else found

    def by_system(self, rows: np.ndarray) -> list[np.ndarray]:
        """Rows of each system, in order."""
        order = rows[np.argsort(self.system_id[rows], kind="stable")]
        ids = self.system_id[order]
        return np.split(order, np.flatnonzero(np.diff(ids)) + 1) if len(order) else []


def means(table: Table, code: int, stage: MD, sizes: Mapping[int, int]) -> Iterator[tuple[str, str]]:
    """Quantity -> mean over the systems of a stage of dynamics, each by its block average; and the drift."""
    systems = table.by_system(np.flatnonzero(table.status == code))
    for column, (name, unit, _) in QUANTITIES.items():
        values = table.values(column, sizes)
        if values is None or column == "fmax":
            continue
        found = [block_average(values[rows]) for rows in systems if np.isfinite(values[rows]).all()]
        if not found:
            continue
        errors = np.array([f.error for f in found])
        error = np.sqrt(np.sum(errors**2)) / len(found)
        mean = float(np.mean([f.mean for f in found]))
        least = "" if all(f.converged for f in found) else " (at least: short series)"
        bar = f" ± {error:.2g}" if np.isfinite(error) else ""
        yield name, f"{mean:.6g}{bar} {unit}{least if bar else ''}"
    total, time = table.values("total_energy", sizes), table.more.get("time")
    if stage.ensemble == "nve" and total is not None and time is not None:
        yield from _drift(table, systems, time, total)


def _drift(
    table: Table, systems: list[np.ndarray], time: np.ndarray, total: np.ndarray
) -> Iterator[tuple[str, str]]:
    """Slopes of the total energy over the time, which constant energy should leave at zero."""
    slopes = {
        int(table.system_id[rows[0]]): 1000 * float(np.polyfit(time[rows], total[rows], 1)[0])
        for rows in systems
        if len(rows) > 2 and np.isfinite(total[rows]).all()
    }
    if not slopes:
        return
    worst = max(slopes, key=lambda i: abs(slopes[i]))
    mean = np.mean(list(slopes.values()))
    largest = f", at most {abs(slopes[worst]):.2g} (system {worst})" if len(slopes) > 1 else ""
    yield "drift", f"{mean:+.2g} meV/atom/ps{largest}"


def picture(table: Table, sizes: Mapping[int, int], path: Path, title: str, stages: list) -> None:
    """The quantities of every system against its time, or against its steps if nothing moves in time."""
    systems = table.by_system(np.arange(len(table.step)))
    x, label = np.zeros(len(table.step)), "step"
    time, taken = table.more.get("time"), table.more.get("steps_taken")
    if time is not None and np.ptp(time) > 0:
        x, label = time, "time (ps)"
    else:
        for rows in systems:
            # Systems enter at different steps of the run.
            x[rows] = taken[rows] if taken is not None else table.step[rows] - table.step[rows[0]]
    shown, set_values = [], {}
    for column, (name, unit, _) in QUANTITIES.items():
        values = table.values(column, sizes)
        if column == "fmax" and all(isinstance(s, MD) for s in stages):
            continue
        if values is not None:
            shown.append((name, unit, values))
            wanted = {getattr(s, column, None) for s in stages if isinstance(s, MD)} - {None}
            if len(wanted) == 1 and any(s.ensemble != "nve" for s in stages if isinstance(s, MD)):
                set_values[name] = wanted.pop()
    names = [f"system {table.system_id[rows[0]]}" for rows in systems]
    quantities(path, title, x, shown, systems, label=label, names=names, set_values=set_values)
