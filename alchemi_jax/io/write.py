"""Systems in a format of other programs, by the writers of ASE, and what the format does not hold."""

import warnings
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import ase.io
import numpy as np
from ase import Atoms
from ase.constraints import FixAtoms
from ase.io.formats import UnknownFileTypeError, filetype, ioformats, open_with_compression

from alchemi_jax.io.read import explain, read_structures
from alchemi_jax.io.sinks.extxyz import ExtXYZDialect, frame_text
from alchemi_jax.io.sinks.structures import to_atoms
from alchemi_jax.io.sinks.traj import TrajDialect
from alchemi_jax.systems.host import HostBatch


class WriteError(ValueError):
    """Why structures cannot be written, in a sentence."""


def format_of_name(path: Path) -> str:
    """The format that ASE writes to a file of this name; `.data` is LAMMPS's.

    Raises:
        WriteError: if the name says none, or ASE does not write it.
    """
    try:
        format = "lammps-data" if path.suffix == ".data" else filetype(str(path), read=False)
    except UnknownFileTypeError:
        format = None
    if format not in ioformats:
        raise WriteError(f"{path}: its name says no format that ASE knows; out.extxyz would, for example.")
    if not ioformats[format].can_write:
        raise WriteError(f"{path}: ASE reads the format {format}, but does not write it.")
    return format


def write_structures(path: Path, batches: Iterable[HostBatch], format: str) -> list[str]:
    """Write all systems with ASE, and read them again to see what the format does not hold.

    In a database (.db, .json) entries of `info` are key-value pairs where ASE allows it, otherwise `data`.

    Args:
        path: of the file, which is replaced.
        batches: of the systems.
        format: as ASE calls it.

    Returns:
        A sentence for the user on what is not in the file, if anything.

    Raises:
        WriteError: if structures do not fit into the format: another number of them, or of their atoms, comes
            back.
        OSError: if the file cannot be written.
    """
    if format in ("db", "json"):
        _write_database(path, batches)
        return []
    if format == "extxyz":
        # The name may ask for compression.
        with open_with_compression(str(path), "wt") as file:
            file.write("".join(frame_text(a) for host in batches for a in to_atoms(host, ExtXYZDialect())))
        return []
    structures = [atoms for host in batches for atoms in to_atoms(host)]
    options: dict[str, Any] = {}
    if format == "lammps-data":
        options = {"masses": True, "velocities": any("momenta" in a.arrays for a in structures)}
    try:
        with warnings.catch_warnings():
            # What is lost is found by reading.
            warnings.simplefilter("ignore")
            ase.io.write(path, structures, format=format, **options)
    except OSError:
        raise
    except Exception as e:
        # Writers raise anything where a structure does not fit their format.
        raise WriteError(f"ASE cannot write these structures as {format}: {explain(e, format)}") from None
    missing = _missing(path, structures, format)
    if missing is None:
        return [f"What is not in it was not checked, since ASE does not read the format {format}."]
    return (
        [f"Not in it, since the format {format} does not hold it: {', '.join(missing)}."] if missing else []
    )


def _write_database(path: Path, batches: Iterable[HostBatch]) -> None:
    import ase.db
    from ase.db.core import check

    path.unlink(missing_ok=True)
    base: Any = ase.db.connect(path, use_lock_file=False)
    with base:
        for host in batches:
            for atoms in to_atoms(host, TrajDialect()):
                pairs, data = {}, {}
                for key, value in atoms.info.items():
                    try:
                        check({key: value})
                        pairs[key] = value
                    except (ValueError, TypeError, AttributeError):
                        data[key] = value
                atoms.info = {}
                base.write(atoms, key_value_pairs=pairs, data=data)


def _missing(path: Path, written: list[Atoms], format: str) -> list[str] | None:
    """What structures that are read again do not have; None if they cannot be read."""
    if not ioformats[format].can_read:
        return None
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            found = [s.atoms for s in read_structures(path, format)]
    except ValueError:
        return None
    if len(found) != len(written):
        raise WriteError(
            f"of {len(written)} structures a file of the format {format} gives back {len(found)}."
        )
    missing: dict[str, None] = {}
    for before, after in zip(written, found, strict=True):
        if len(before) != len(after):
            raise WriteError(
                f"a file of the format {format} gives back {len(after)} atoms for {len(before)}"
                ": it holds structures of one size alone."
            )
        missing |= dict.fromkeys(_differences(before, after))
    return list(missing)


def _differences(before: Atoms, after: Atoms) -> list[str]:
    """What of a structure another one does not have; it may be turned, and digits may be lost."""
    out = []
    if not np.array_equal(before.numbers, after.numbers):
        same = np.array_equal(np.sort(before.numbers), np.sort(after.numbers))
        out.append("the order of atoms" if same else "elements")
    if before.cell.array.any() and not np.allclose(before.cell.cellpar(), after.cell.cellpar(), atol=0.01):
        out.append("the cell")
    if (before.pbc != after.pbc).any():
        out.append("periodicity (pbc)")
    ordered = not out or out[0] not in ("the order of atoms", "elements")
    if ordered:
        speeds = [np.linalg.norm(a.get_velocities(), axis=1) for a in (before, after)]
        if not np.allclose(*speeds, rtol=0.01, atol=0.01 * max(speeds[0].max(), 1e-12)):
            out.append("velocities")
        if not np.allclose(before.get_masses(), after.get_masses(), rtol=1e-3):
            out.append("masses")
    fixed = [sum(len(c.index) for c in a.constraints if isinstance(c, FixAtoms)) for a in (before, after)]
    if fixed[0] != fixed[1] or len(before.constraints) > len(after.constraints):
        out.append("constraints")
    for name in ("energy", "forces", "stress"):
        results = [a.calc.results if a.calc is not None else {} for a in (before, after)]
        if name in results[0] and name not in results[1]:
            out.append(name)
    if before.info.keys() - after.info.keys():
        out.append("info and outcomes of the run")
    if set(before.arrays) - set(after.arrays) - {"momenta", "masses"}:
        out.append("further arrays")
    return out
