"""Structures, models and trajectories from the command line."""

import dataclasses
from pathlib import Path

from alchemi_jax import samples
from alchemi_jax.cli.outcome import UsageError
from alchemi_jax.io.read import read_structures
from alchemi_jax.io.trajectory import Trajectory
from alchemi_jax.systems.atoms import AtomicData


def read(
    files: list[str], format: str | None = None, index: str | None = None
) -> list[tuple[Path, int, AtomicData]]:
    """Every structure of every file, with file and index, which its `info` keeps.

    Args:
        files: files or folders; without any, the sample set.
        format: of the files, as ASE calls it; by default from their names and contents.
        index: which structures of each file: "-1", "::10"; by default all.

    Raises:
        UsageError: naming the file, and the structure in it, if one cannot be read or used.
    """
    out = []
    for path in files or samples.paths():
        try:
            structures = read_structures(path, format, index)
        except ValueError as e:
            raise UsageError(str(e)) from None
        for file, number, atoms in structures:
            try:
                data = AtomicData.from_ase(atoms, f"{file}:{number}")
            except ValueError as e:
                raise UsageError(str(e)) from None
            info = {**data.info, "source_file": str(file), "source_index": number}
            out.append((file, number, dataclasses.replace(data, info=info)))
    return out


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
