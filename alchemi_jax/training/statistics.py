"""Statistics of labels, with which a network is prepared: energies of elements and a scale of forces."""

from typing import Any

import numpy as np
from ase.data import chemical_symbols


def fit_element_energies(data: Any) -> dict[str, float]:
    """Energy of an atom of each element, eV, by least squares: their sum over a structure is nearest to its
    energy.

    Where compositions do not tell elements apart, such as in structures of one compound alone, the energies
    are the smallest that fit.

    Args:
        data: Batches or a Mixture; structures without an energy are left out.

    Raises:
        ValueError: if no structure has an energy.
    """
    structures = [s for s in structures_of(data) if np.isfinite(s.energy)]
    if not structures:
        raise ValueError("fit_element_energies needs structures with energies, there are none.")
    numbers = np.unique(np.concatenate([s.numbers for s in structures]))
    counts = np.array([(s.numbers[:, None] == numbers[None]).sum(axis=0) for s in structures], float)
    energies = np.array([float(s.energy) for s in structures])
    # Per atom, so that large structures do not count more than small ones.
    size = counts.sum(axis=1)
    found = np.linalg.lstsq(counts / size[:, None], energies / size, rcond=None)[0]
    return {chemical_symbols[z]: float(e) for z, e in zip(numbers, found, strict=True)}


def force_scale(data: Any) -> float:
    """Root of the mean square of the components of forces, eV/Å; 1 without forces.

    Args:
        data: Batches or a Mixture.
    """
    components = np.concatenate([s.forces[np.isfinite(s.forces)] for s in structures_of(data)])
    scale = float(np.sqrt(np.mean(components**2))) if len(components) else 1.0
    return scale if scale > 0 else 1.0


def structures_of(data: Any) -> list[Any]:
    """The structures of Batches, or of all sources of a Mixture."""
    if hasattr(data, "parts"):
        return [s for source, _ in data.parts for s in structures_of(source)]
    return list(data.structures)


__all__ = ["fit_element_energies", "force_scale", "structures_of"]
