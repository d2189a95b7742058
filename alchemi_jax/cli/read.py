"""Structures, models and trajectories from the command line."""

import dataclasses
import warnings
from pathlib import Path

import ase.io
from ase import Atoms

from alchemi_jax import samples
from alchemi_jax.cli.outcome import UsageError
from alchemi_jax.io.trajectory import Trajectory
from alchemi_jax.systems.atoms import AtomicData


def read(files: list[str]) -> list[tuple[Path, int, AtomicData]]:
    """Every structure of every file, with file and index, which its `info` keeps.

    Raises:
        UsageError: naming the file, and the structure in it, if one cannot be read or used.
    """
    out = []
    for path in map(Path, files) if files else samples.paths():
        structures = _structures(path)
        for index, atoms in enumerate(structures):
            try:
                data = AtomicData.from_ase(atoms, f"{path}:{index}")
            except ValueError as e:
                raise UsageError(str(e)) from None
            info = {**data.info, "source_file": str(path), "source_index": index}
            out.append((path, index, dataclasses.replace(data, info=info)))
    return out


def _structures(path: Path) -> list[Atoms]:
    if not path.exists():
        raise UsageError(f"{path} does not exist.")
    if path.is_file() and path.stat().st_size == 0:
        raise UsageError(f"{path} is empty.")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            found = ase.io.read(path, ":")
    except Exception as e:
        # Readers raise anything, from StopIteration to AssertionError.
        reason = " ".join(str(e).split()) or type(e).__name__
        raise UsageError(f"{path} cannot be read by ASE: {reason}.") from None
    structures = [found] if isinstance(found, Atoms) else list(found)
    if not structures:
        raise UsageError(f"{path} holds no structures.")
    return structures


def open_trajectory(path: str) -> Trajectory:
    """The trajectory at a path.

    Raises:
        UsageError: if there is none, or nothing in it.
    """
    try:
        trajectory = Trajectory(path)
    except ValueError as e:
        raise UsageError(str(e)) from None
    if not len(trajectory):
        raise UsageError(f"{path} holds no frames.")
    return trajectory
