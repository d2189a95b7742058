"""Needs: the capacities that the list of each system of a batch needs."""

import dataclasses
from collections.abc import Sequence

import numpy as np
from jaxtyping import Shaped


@dataclasses.dataclass(frozen=True)
class Needs:
    """What the neighbor list of each system needs, counted or estimated from densities. All arrays are
    [systems]."""

    neighbors: Shaped[np.ndarray, " systems"]
    """Largest number of neighbors of an atom."""
    everyone: Shaped[np.ndarray, " systems"]
    """Number of atoms and images."""
    images: Shaped[np.ndarray, " systems"]
    """Number of images; at least 1 for a periodic system."""
    groups: Shaped[np.ndarray, " systems"]
    """Number of groups of the cell list: each has some atoms of one cell."""
    in_cells: Shaped[np.ndarray, " systems"]
    """Largest number of atoms and images in a cell and the cells around it."""
    tried: Shaped[np.ndarray, " systems"]
    """Number of lattice shifts per atom that the kernels of `warp` try."""
    edges: Shaped[np.ndarray, " systems"]
    """Number of pairs within the cutoff of the edges, in both directions."""
    per_atom: Shaped[np.ndarray, " systems"]
    """Largest number of edges of an atom."""
    bonds: Shaped[np.ndarray, " systems"]
    """Number of edges within the inner cutoff."""
    triplets: Shaped[np.ndarray, " systems"]
    """Number of pairs of bonds at one atom."""
    long_edges: Shaped[np.ndarray, " systems"]
    """Number of pairs within the long cutoff."""

    def take(self, rows: Shaped[np.ndarray, " rows"]) -> "Needs":
        """The needs of some of the systems."""
        return Needs(*(getattr(self, f.name)[rows] for f in dataclasses.fields(self)))

    def largest(self, n: int, before: "Needs | None" = None) -> "Needs":
        """The n largest values of each array, in order; the rows no longer belong to one system. They are
        enough to choose the capacities of a batch of n systems.

        Args:
            before: the result for other systems; no value is then smaller than there.
        """

        def of(name: str) -> np.ndarray:
            mine = np.sort(getattr(self, name))[-n:]
            mine = np.pad(mine, (n - len(mine), 0))
            return mine if before is None else np.maximum(mine, getattr(before, name))

        return Needs(*(of(f.name) for f in dataclasses.fields(self)))

    @classmethod
    def join(cls, parts: Sequence["Needs"]) -> "Needs":
        """The needs of several batches, one after another."""
        names = [f.name for f in dataclasses.fields(cls)]
        return cls(*(np.concatenate([getattr(p, name) for p in parts]) for name in names))


__all__ = ["Needs"]
