"""Checks of what readers of ASE return: nothing was guessed or left aside in silence."""

import re
import warnings
from pathlib import Path

import numpy as np
from ase import Atoms

from alchemi_jax import units
from alchemi_jax.io.text import ReadError


#: Columns with velocities, as OVITO, GPUMD, QUIP and others write them, Å/fs.
_VELOCITIES = ("velo", "vel", "velocities", "velocity")
#: Formats that begin with a number of atoms, and the place of that number in their first lines.
_COUNTS = {
    "gromacs": re.compile(rb"\A[^\n]*\n\s*(\d+)"),
    "gromos": re.compile(rb"\A[^\n]*\n\s*(\d+)"),
    "cube": re.compile(rb"\A[^\n]*\n[^\n]*\n\s*(\d+)"),
    "cfg": re.compile(rb"Number of particles\s*=\s*(\d+)"),
    "xsf": re.compile(rb"(?:PRIMCOORD|CONVCOORD)[^\n]*\n\s*(\d+)"),
    "n2p2": re.compile(rb"\A(?!)"),
}
_BARE = re.compile(rb"^\s*(\d+)\s*$", re.M)


def check_counts(path: Path, format: str) -> None:
    """Raise ReadError if a file says that it has more atoms than it has bytes: readers would never end."""
    if not path.is_file():
        return
    size = path.stat().st_size
    with open(path, "rb") as file:
        head = file.read(1 << 12)
    if b"\0" in head:
        return
    counts = [int(m) for m in (_COUNTS.get(format, _BARE)).findall(b"\n".join(head.split(b"\n")[:12]))]
    if format == "vasp":
        rows = [line.split() for line in head.split(b"\n")[5:7]]
        counts = [int(w) for row in rows if row and all(w.isdigit() for w in row) for w in row]
    largest = max(counts, default=0)
    if largest > max(size, 10**7):
        raise ReadError(f"it says that it has {largest} atoms, more than fit into its {size} bytes.")


def check_structure(atoms: Atoms, format: str) -> Atoms:
    """The structure, with velocities of other columns in place.

    Raises:
        ReadError: if sites are shared or partly empty, or atoms are ghosts.
    """
    _check_occupancies(atoms)
    ghosts = np.flatnonzero(atoms.numbers == 0)
    if len(ghosts):
        shown = ", ".join(map(str, ghosts[:5])) + (", ..." if len(ghosts) > 5 else "")
        raise ReadError(
            f"{len(ghosts)} atoms (from 0: {shown}) are ghosts, X, which have neither element nor mass: "
            "remove them, or write their elements."
        )
    _take_velocities(atoms)
    return atoms


def _check_occupancies(atoms: Atoms) -> None:
    """ASE takes the majority of a shared site, and takes it as full."""
    found = atoms.info.get("occupancy")
    if not isinstance(found, dict):
        return
    for site, kinds in found.items():
        total = sum(kinds.values())
        if len(kinds) > 1 or total < 0.995:
            what = " and ".join(f"{symbol} {share:g}" for symbol, share in kinds.items())
            how = "shared" if len(kinds) > 1 else "partly empty"
            raise ReadError(
                f"site {site} is {how}, its occupancy is {what}: make a structure with whole atoms, "
                "an ordered one or a supercell."
            )


def _take_velocities(atoms: Atoms) -> None:
    if "momenta" in atoms.arrays:
        return
    for name in _VELOCITIES:
        values = atoms.arrays.get(name)
        if values is not None and values.shape == (len(atoms), 3) and values.dtype.kind in "if":
            del atoms.arrays[name]
            break
    else:
        parts = [atoms.arrays.get(f"v{x}") for x in "xyz"]
        if any(p is None or p.shape != (len(atoms),) or p.dtype.kind not in "if" for p in parts):
            return
        values, name = np.stack([np.asarray(p) for p in parts], axis=1), "vx, vy, vz"
        for x in "xyz":
            del atoms.arrays[f"v{x}"]
    atoms.set_velocities(units.velocities_to_ase(np.asarray(values, float)))
    warnings.warn(f"velocities are taken from the column {name}, in Å/fs", stacklevel=3)
