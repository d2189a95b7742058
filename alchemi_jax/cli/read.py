"""Structures, models and trajectories from the command line."""

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

from alchemi_jax import samples
from alchemi_jax.cli.outcome import UsageError
from alchemi_jax.io.read import read_structures
from alchemi_jax.io.trajectory import Trajectory
from alchemi_jax.models import LennardJones, Morse
from alchemi_jax.models.base import AbstractModel
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


def model_from(text: str) -> AbstractModel:
    """A model from `name` or `name:parameter=number,...`.

    Raises:
        UsageError: saying which part is wrong.
    """
    name, _, rest = text.partition(":")
    makers: dict[str, Callable[..., Any]] = {"lj": LennardJones, "morse": Morse}
    required = {"lj": {"epsilon", "sigma"}, "morse": {"depth", "width", "r0"}}
    if name not in makers:
        raise UsageError(f"--model {name!r} is unknown: it can be {' or '.join(makers)}.")
    parameters = {}
    for part in filter(None, rest.split(",")):
        key, _, value = part.partition("=")
        if key not in required[name] | {"cutoff"}:
            known = ", ".join(sorted(required[name] | {"cutoff"}))
            raise UsageError(f"--model {name} has no parameter {key!r}: it has {known}.")
        try:
            parameters[key] = float(value)
        except ValueError:
            raise UsageError(f"--model {text}: {value!r} is no number.") from None
    missing = sorted(required[name] - set(parameters))
    try:
        if name == "lj" and len(missing) == 2:
            return LennardJones.noble_gases(**parameters)
        if missing:
            raise UsageError(f"--model {name} needs {', '.join(missing)}.")
        return makers[name](**parameters)
    except ValueError as e:
        raise UsageError(f"--model {text}: {e}") from None
