"""Energies of elements: found by least squares, and subtracted from those of structures."""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from ase.data import atomic_numbers, chemical_symbols

from alchemi_jax.errors import description
from alchemi_jax.systems.atoms import AtomicData


def least_squares(structures: Sequence[AtomicData]) -> dict[str, float]:
    """Energy of an atom of each element, eV, by symbol: their sum over a structure is nearest to its energy.

    Raises:
        ValueError: if no structure has an energy.
    """
    known = [s for s in structures if np.isfinite(s.energy)]
    if not known:
        raise ValueError("energies of elements need structures with energies, there are none.")
    numbers = np.unique(np.concatenate([s.numbers for s in known]))
    counts = np.array([(s.numbers[:, None] == numbers[None]).sum(axis=0) for s in known], float)
    energies = np.array([float(s.energy) for s in known])
    # Per atom, so that large structures do not count more than small ones.
    size = counts.sum(axis=1)
    found = np.linalg.lstsq(counts / size[:, None], energies / size, rcond=None)[0]
    return {chemical_symbols[z]: float(e) for z, e in zip(numbers, found, strict=True)}


def without_elements(structures: list[AtomicData], given: Any) -> tuple[list[AtomicData], dict[str, float]]:
    """The structures with energies of elements subtracted, and these energies, eV, by symbol.

    Raises:
        ValueError: naming what is no energy of an element, and an element without one.
    """
    if given is None or (isinstance(given, Mapping) and not given):
        return structures, {}
    if isinstance(given, str) and given == "fit":
        given = least_squares(structures)
    if not isinstance(given, Mapping):
        raise ValueError(
            f'subtract must be "fit" or energies of elements in eV, such as {{"Cu": -3.7}}, not '
            f"{description(given)}."
        )
    table = np.full(len(chemical_symbols), np.nan)
    for symbol, energy in given.items():
        number = isinstance(energy, int | float) and not isinstance(energy, bool)
        if symbol not in atomic_numbers or not number or not np.isfinite(energy):
            raise ValueError(f"subtract has {symbol!r}: {energy!r}, which is no energy of an element in eV.")
        table[atomic_numbers[symbol]] = energy
    out = []
    for data in structures:
        total = table[data.numbers].sum()
        if np.isfinite(data.energy):
            missing = np.isnan(table[data.numbers])
            if missing.any():
                symbol = chemical_symbols[data.numbers[int(np.argmax(missing))]]
                raise ValueError(f"{data.name} has {symbol}, of which subtract has no energy.")
            data = dataclasses.replace(data, energy=float(data.energy) - total)
        out.append(data)
    return out, {symbol: float(energy) for symbol, energy in given.items()}


def check_same_references(data: Any, others: Any, what: str) -> None:
    """Check that two sets of data have had the same energies subtracted, if both say which.

    Raises:
        ValueError: if they have not.
    """
    mine, theirs = (getattr(x, "subtracted", None) for x in (data, others))
    if mine is not None and theirs is not None and mine != theirs:
        raise ValueError(
            f"{what} has other energies of elements subtracted ({_few(theirs)}) than the data to train on "
            f"({_few(mine)}): give it Batches(..., subtract=data.subtracted)."
        )


def _few(energies: Mapping[str, float]) -> str:
    shown = ", ".join(f"{symbol} {energy:.6g} eV" for symbol, energy in list(energies.items())[:4])
    return (shown or "none") + (", ..." if len(energies) > 4 else "")


__all__ = ["check_same_references", "least_squares", "without_elements"]
