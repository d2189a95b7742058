"""Needs: the capacities that the list of each system of a batch needs."""

import dataclasses
from collections.abc import Sequence

import numpy as np
from jaxtyping import Shaped


@dataclasses.dataclass(frozen=True)
class Needs:
    """What the list of each system needs: counted, or estimated from densities."""

    neighbors: Shaped[np.ndarray, " systems"]
    """Of the atom with the most."""
    everyone: Shaped[np.ndarray, " systems"]
    """Atoms and images."""
    images: Shaped[np.ndarray, " systems"]
    """At least 1 for a periodic system."""
    groups: Shaped[np.ndarray, " systems"]
    """Groups of at most ROWS atoms of one cell."""
    in_cells: Shaped[np.ndarray, " systems"]
    """Atoms and images in the cells around one."""
    tried: Shaped[np.ndarray, " systems"]
    """Lattice shifts per atom that the kernels of `warp` try."""
    edges: Shaped[np.ndarray, " systems"]
    """Pairs within the cutoff of the edges, in both directions."""
    per_atom: Shaped[np.ndarray, " systems"]
    """Edges of the atom with the most."""
    bonds: Shaped[np.ndarray, " systems"]
    """Edges within the inner cutoff."""
    triplets: Shaped[np.ndarray, " systems"]
    """Pairs of bonds at one atom."""
    long_edges: Shaped[np.ndarray, " systems"]
    """Pairs within the long cutoff."""

    def take(self, rows: Shaped[np.ndarray, " rows"]) -> "Needs":
        """The needs of some of the systems."""
        return Needs(*(getattr(self, f.name)[rows] for f in dataclasses.fields(self)))

    def largest(self, n: int, before: "Needs | None" = None) -> "Needs":
        """The n largest values of each kind, in order; they no longer belong together. Enough to choose the
        capacities of a batch with n places.

        Args:
            before: what this gave for other systems: then no value is smaller than there.
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
