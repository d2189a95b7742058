"""Files of LAMMPS: what they do not say of elements, units and styles is refused, or said in a warning."""

import io
import re
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from ase import Atoms
from ase.data import atomic_masses, chemical_symbols
from ase.io.lammpsdata import read_lammps_data as read_data
from ase.io.lammpsrun import read_lammps_dump_text

from alchemi_jax.io.text import ReadError


_UNITS = ("metal", "real", "si", "cgs", "electron", "micro", "nano")
_HEADER = re.compile(rb"^[ \t]*(\d+)[ \t]+atoms\b", re.M)


def is_lammps_data(path: Path) -> bool:
    """Whether a file has the head of a LAMMPS data file: a number of atoms, and the edges of the box."""
    try:
        with open(path, "rb") as file:
            head = file.read(1 << 14)
    except OSError:
        return False
    return bool(_HEADER.search(head)) and (b"xlo xhi" in head or b"avec" in head)


def read_lammps_data(path: Path) -> Atoms:
    """The structure of a LAMMPS data file, with velocities.

    Raises:
        ReadError: if neither masses nor labels say what the types are, or units are those of no element.
    """
    text = _text_of(path)
    body = re.sub(r"#.*", "", text)
    declared = re.search(r"^[ \t]*(\d+)[ \t]+atoms\b", body, re.M)
    if declared and int(declared.group(1)) > len(text):
        raise ReadError(
            f"it says that it has {declared.group(1)} atoms, more than fit into its {len(text)} bytes."
        )
    if not re.search(r"^[ \t]*(Masses|Atom[ \t]+Type[ \t]+Labels)\b", body, re.M):
        raise ReadError(
            "it has types of LAMMPS and neither masses nor labels, so that elements are not known: add a "
            "section Masses."
        )
    units = _units(text.split("\n", 1)[0])
    style = re.search(r"^[ \t]*Atoms\b[ \t]*(#?)", text, re.M)
    if style and not style.group(1):
        warnings.warn("no atom style after `Atoms`; taken from the number of columns", stacklevel=2)
    atoms = read_data(io.StringIO(text), units=units or "metal")
    if units is None:
        warnings.warn("it does not say its units; taken as LAMMPS's metal (Å, ps, eV)", stacklevel=2)
    masses, usual = atoms.get_masses(), atomic_masses[atoms.numbers]
    odd = np.flatnonzero(np.abs(masses - usual) > 0.02 * usual)
    if len(odd):
        i = int(odd[0])
        warnings.warn(
            f"a mass of {masses[i]:g} is that of no element; taken as {chemical_symbols[atoms.numbers[i]]}, "
            "with this mass",
            stacklevel=2,
        )
    return atoms


def _units(comment: str) -> str | None:
    found = re.search(r"units\s*=\s*(\w+)", comment)
    if found is None:
        return None
    if found.group(1) not in _UNITS:
        raise ReadError(
            f"its units are {found.group(1)!r}, in which lengths and masses are those of no element."
        )
    return found.group(1)


def read_lammps_dump(path: Path) -> Iterator[Atoms]:
    """The frames of a LAMMPS dump.

    Raises:
        ReadError: naming the frame, if it breaks off, or has types and no elements.
    """
    text = _text_of(path)
    starts = [m.start() for m in re.finditer(r"^ITEM: TIMESTEP", text, re.M)]
    units = re.search(r"^ITEM: UNITS\s+(\w+)", text, re.M)
    known = units.group(1) if units else None
    if known is not None and known not in _UNITS:
        raise ReadError(f"its units are {known!r}, in which lengths and masses are those of no element.")
    for i, (start, end) in enumerate(zip(starts, [*starts[1:], len(text)], strict=True)):
        part = text[start:end]
        part = re.sub(r"^ITEM: (UNITS|TIME)\b.*\n.*\n", "", part, flags=re.M)
        number = re.search(r"^ITEM: NUMBER OF ATOMS\s*\n\s*(\d+)", part, re.M)
        columns = re.search(r"^ITEM: ATOMS ?(.*)$", part, re.M)
        if number is None or columns is None:
            raise ReadError(f"frame {i} breaks off before its atoms.")
        rows = [r for r in part[columns.end() :].split("\n") if r.strip() and not r.startswith("ITEM:")]
        names, n = columns.group(1).split(), int(number.group(1))
        if len(rows) != n or (rows and len(rows[-1].split()) < len(names)):
            raise ReadError(
                f"frame {i} says that it has {n} atoms, and has {len(rows)} whole or broken lines of them."
            )
        if not {"element", "mass"} & set(names):
            raise ReadError(
                f"frame {i} has types of LAMMPS and no elements: write the column `element` or `mass` "
                "(dump_modify ID element Ar Kr)."
            )
        if known is None and {"vx", "vy", "vz"} & set(names):
            warnings.warn(
                "it does not say its units; velocities are taken in those of LAMMPS's metal, Å/ps",
                stacklevel=2,
            )
        # The annotation of ASE says int.
        frames: Any = read_lammps_dump_text(io.StringIO(part), index=":", units=known or "metal")  # pyright: ignore[reportArgumentType]
        yield from frames


def _text_of(path: Path) -> str:
    try:
        return path.read_text()
    except UnicodeDecodeError:
        raise ReadError("it is no text, as files of LAMMPS are.") from None
