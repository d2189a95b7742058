"""`alchemi-jax show`: what a trajectory holds, in numbers and a picture."""

import dataclasses
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax
import numpy as np

from alchemi_jax.analysis import BlockAverage, block_average
from alchemi_jax.cli.finished import FINISHED, read_finished
from alchemi_jax.cli.folder import check_target, find_store
from alchemi_jax.cli.outcome import OK, UsageError
from alchemi_jax.cli.plot import quantities
from alchemi_jax.cli.read import open_trajectory
from alchemi_jax.cli.record import SETTINGS, read_settings
from alchemi_jax.cli.settings import Show, describe
from alchemi_jax.cli.write import count_outcomes, whole_file
from alchemi_jax.io.trajectory import Trajectory
from alchemi_jax.systems.batch import Batch
from alchemi_jax.systems.observables import fmax, kinetic_energy, pressure, temperature
from alchemi_jax.systems.outcome import Outcome


#: So many systems have a line of their own.
_DETAILS = 20
#: Atoms that are looked at in one go.
_AT_ONCE = 1 << 18


@dataclasses.dataclass(frozen=True)
class Quantity:
    """A scalar of each row of a trajectory, NaN where it is not known."""

    name: str
    unit: str
    values: np.ndarray


def show(args: Show, signals: Any = None) -> int:
    """Prints the summary, draws the picture.

    Raises:
        UsageError: if something about the input is wrong.
    """
    picture = None if args.out is None else Path(args.out)
    if picture is not None:
        check_target(picture, args.overwrite, args.trajectory)
    # Sums are made in the precision of what is stored.
    jax.config.update("jax_enable_x64", True)
    store = find_store(args.trajectory)
    trajectory = open_trajectory(str(store))
    ids = trajectory["system_id"][:]
    order = np.argsort(ids, kind="stable")
    systems = np.split(order, np.flatnonzero(np.diff(ids[order])) + 1)
    if store.name == FINISHED:
        # A system that was given more steps is there once for each of its ends.
        systems = [rows[-1:] for rows in systems]
    shortest = min(map(len, systems))
    if args.skip >= max(map(len, systems)):
        raise UsageError(f"--skip {args.skip} leaves nothing: no system has more than that many frames.")
    found = scalars(trajectory)
    if store != Path(args.trajectory):
        print(_run_of(store))
    print(trajectory.path)
    for name, text in trajectory.summary():
        print(f"  {name:14}{text}")
    last = trajectory["outcome"][np.array([rows[-1] for rows in systems])]
    counts = {Outcome.CONVERGED: 0, Outcome.FAILED: 0} | count_outcomes(last)
    print(f"  {'at the end':14}{', '.join(f'{n} {outcome.text}' for outcome, n in counts.items())}")
    print()
    if not found:
        print("  There are no results in it: energies and forces were not evaluated, nothing moves.")
        if picture is not None:
            raise UsageError(f"{picture} is not drawn: there are no results to draw.")
        return OK
    _means(found, [rows[args.skip :] for rows in systems if len(rows) > args.skip])
    if shortest <= args.skip:
        print(f"  Systems of no more than {args.skip} frames are left out.")
    if len(systems) <= _DETAILS:
        _each(found, systems, ids, args.skip)
    if picture is not None:
        time = trajectory["time"][:] / 1000 if "time" in trajectory.fields else np.zeros(0)
        moves = bool(len(time) and np.ptp(time) > 0)
        x, label = (time, "time (ps)") if moves else (trajectory["steps_taken"][:], "step")
        names = [f"system {ids[rows[0]]}" for rows in systems]
        of_rows = [(q.name, q.unit, q.values) for q in found]
        title = f"{trajectory.path.name}: {len(systems)} systems, {trajectory.n_frames} frames"
        try:
            picture.parent.mkdir(parents=True, exist_ok=True)
            with whole_file(picture) as part:
                quantities(part, title, x, of_rows, systems, label=label, names=names)
        except (OSError, ValueError) as e:
            raise UsageError(f"{picture} cannot be written: {getattr(e, 'strerror', None) or e}.") from None
        print(f"\n  picture in {picture}")
    return OK


def _run_of(store: Path) -> str:
    """What run left the store in its folder, in a line."""
    try:
        settings = read_settings(store.parent / SETTINGS)
    except (OSError, ValueError):
        return f"{store.parent}"
    try:
        finished = read_finished(store.parent)
    except UsageError:
        return describe(settings)
    done = 0 if finished is None else len(finished)
    return f"{describe(settings)}; {done} structures are finished"


def scalars(trajectory: Trajectory) -> list[Quantity]:
    """What can be said of every row; a quantity that is known of none is left out."""
    rows = {k: np.full(trajectory.n_rows, np.nan) for k in ("potential", "total", "T", "P", "fmax")}
    for first, last in _pieces(trajectory):
        host = trajectory.to_batch(slice(first, last))
        # Padded to one of a few sizes, for each of which the functions are compiled.
        batch, n, at = Batch.from_host(host), len(host), trajectory.rows(first)[0]
        kinetic = np.asarray(kinetic_energy(batch))[:n]
        moving = kinetic > 0
        here = slice(at, at + n)
        rows["potential"][here] = host.energy / host.atoms_per_system
        rows["total"][here] = np.where(
            moving, rows["potential"][here] + kinetic / host.atoms_per_system, np.nan
        )
        rows["T"][here] = np.where(moving, np.asarray(temperature(batch))[:n], np.nan)
        rows["P"][here] = np.asarray(pressure(batch))[:n]
        rows["fmax"][here] = np.asarray(fmax(batch))[:n]
    named = [
        Quantity("potential energy", "eV/atom", rows["potential"]),
        Quantity("total energy", "eV/atom", rows["total"]),
        Quantity("temperature", "K", rows["T"]),
        Quantity("pressure", "GPa", rows["P"]),
        Quantity("fmax", "eV/Å", rows["fmax"]),
    ]
    return [q for q in named if np.isfinite(q.values).any()]


def _pieces(trajectory: Trajectory) -> Iterator[tuple[int, int]]:
    """Slices of frames of so many atoms that they fit into memory."""
    atoms = [int(trajectory.atoms_of_row[trajectory.rows(i)].sum()) for i in range(trajectory.n_frames)]
    first = atoms_so_far = 0
    for i, n in enumerate(atoms):
        if atoms_so_far and atoms_so_far + n > _AT_ONCE:
            yield first, i
            first, atoms_so_far = i, 0
        atoms_so_far += n
    yield first, trajectory.n_frames


def _average(values: np.ndarray) -> BlockAverage | None:
    values = values[np.isfinite(values)]
    return block_average(values) if len(values) else None


def _means(found: list[Quantity], systems: list[np.ndarray]) -> None:
    """One line a quantity: mean over frames and systems; systems are independent of one another."""
    print(f"  {'mean':18}{'unit':9}{'of frames and systems':>22}{'at the end':>14}{'from start to end':>20}")
    uncertain = False
    for q in found:
        each = [(a, q.values[rows]) for rows in systems if (a := _average(q.values[rows])) is not None]
        if not each:
            continue
        errors = np.array([a.error for a, _ in each])
        error = float(np.sqrt(np.sum(errors**2)) / len(errors))
        mean = float(np.mean([a.mean for a, _ in each]))
        known = all(a.converged for a, _ in each)
        uncertain |= not known and bool(np.isfinite(error))
        bar = "" if np.isnan(error) else f"{'±' if known else '±>'} {error:.2g}"
        last = np.array([v[np.isfinite(v)][-1] for _, v in each])
        first = np.array([v[np.isfinite(v)][0] for _, v in each])
        end = f"max {last.max():.3g}" if q.name == "fmax" else f"{last.mean():.6g}"
        print(f"  {q.name:18}{q.unit:9}{f'{mean:.6g} {bar}':>22}{end:>14}{(last - first).mean():>+20.3g}")
    if uncertain:
        print("  ±>: too few frames for the error to be known; it is at least this.")


def _each(found: list[Quantity], systems: list[np.ndarray], ids: np.ndarray, skip: int) -> None:
    """One line a system."""
    print()
    print("  " + f"{'system':>8}{'frames':>8}" + "".join(f"{f'{q.name}, {q.unit}':>27}" for q in found))
    for rows in systems:
        cells = []
        for q in found:
            a = _average(q.values[rows[skip:]])
            if q.name == "fmax":
                cells.append(f"{q.values[rows[-1]]:.3g} (last)")
            elif a is None:
                cells.append("-")
            else:
                bar = "" if np.isnan(a.error) else f" {'±' if a.converged else '±>'} {a.error:.2g}"
                cells.append(f"{a.mean:.6g}{bar}")
        print("  " + f"{ids[rows[0]]:>8}{len(rows):>8}" + "".join(f"{c:>27}" for c in cells))
