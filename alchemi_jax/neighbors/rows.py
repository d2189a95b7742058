"""The neighbors of one structure, found on the host: for data that do not move, such as those of training.

Nothing is compiled, and every number is known, so that room can be made for exactly what is there.
"""

import dataclasses
import itertools
from typing import Any

import numpy as np
from jaxtyping import Bool, Float, Int

from alchemi_jax.neighbors.requirements import Requirements


@dataclasses.dataclass(frozen=True)
class NeighborRows:
    """The neighbor matrix of one structure, and how many edges, bonds and triplets are made of it.

    Attributes:
        index: [atoms, neighbors], places of the neighbors: atoms, then images; -1 where there are fewer.
        source: [images], the atom of each image.
        shift: [images, 3], lattice vectors from the position of that atom, as given, to the image.
        wrap: [atoms, 3], lattice vectors that bring each atom into the cell.
        edges, per_atom, bonds, triplets, long_edges: as in `ListSizes`.
    """

    index: Int[np.ndarray, "atoms neighbors"]
    source: Int[np.ndarray, " images"]
    shift: Int[np.ndarray, "images 3"]
    wrap: Int[np.ndarray, "atoms 3"]
    edges: int
    per_atom: int
    bonds: int
    triplets: int
    long_edges: int


#: Å, for positions rounded to single precision: a pair this far beyond the cutoff is listed, too.
_MARGIN = 1e-3
#: Structures with more images are refused.
_MOST_IMAGES = 4_000_000


def neighbor_rows(
    positions: Float[np.ndarray, "atoms 3"],
    cell: Float[np.ndarray, "3 3"],
    pbc: Bool[np.ndarray, "3"],
    requirements: Requirements,
) -> NeighborRows:
    """The neighbors of each atom of a structure within the cutoff of a model.

    Args:
        positions: Å, anywhere.
        cell: Å, with independent vectors along the periodic directions.

    Raises:
        ValueError: if the cell is so thin that there are millions of images.
    """
    # Imported here: it takes a while.
    from scipy.spatial import KDTree

    r, n = requirements, len(positions)
    assert r.cutoff is not None, "a model without a cutoff has no list"
    reach = r.cutoff + _MARGIN
    inside, wrap, source, shift, images = _places(positions, cell, pbc, reach)
    tree = KDTree(np.concatenate([inside, images]))
    pairs = KDTree(inside).sparse_distance_matrix(tree, reach, output_type="ndarray")
    i, j, d = pairs["i"], pairs["j"], pairs["v"]
    other = i != j
    order = np.lexsort((j[other], i[other]))
    i, j, d = i[other][order], j[other][order], d[other][order]

    # Images that nobody sees get no place.
    seen = np.unique(j[j >= n])
    j = np.where(j >= n, n + np.searchsorted(seen, j), j)
    counts = np.bincount(i, minlength=n)
    index = np.full((n, int(counts.max(initial=0))), -1, np.int32)
    index[i, np.arange(len(i)) - np.repeat(np.cumsum(counts) - counts, counts)] = j
    return NeighborRows(
        index, source[seen - n].astype(np.int32), shift[seen - n], wrap, **_counts(i, d, n, r)
    )


def _counts(i: Any, d: Any, atoms: int, r: Requirements) -> dict[str, int]:
    def near(cutoff: float | None) -> Int[np.ndarray, " atoms"]:
        return np.bincount(i[d <= (-1 if cutoff is None else cutoff + _MARGIN)], minlength=atoms)

    edges, bonds, far = near(r.edge_cutoff), near(r.inner_cutoff), near(r.long_cutoff)
    return {
        "edges": int(edges.sum()),
        "per_atom": int(edges.max(initial=0)),
        "bonds": int(bonds.sum()),
        "triplets": int((bonds * (bonds - 1)).sum()),
        "long_edges": int(far.sum()),
    }


def _places(positions: Any, cell: Any, pbc: Any, reach: float) -> tuple[Any, Any, Any, Any, Any]:
    """Atoms in the cell, the shifts that brought them there; images near them: atoms, shifts, positions."""
    n = len(positions)
    if not pbc.any():
        none = np.zeros((0, 3), np.int32)
        return positions, np.zeros((n, 3), np.int32), np.zeros(0, np.int32), none, np.zeros((0, 3))
    full = cell.copy()
    if not pbc.all():
        # Unit vectors normal to the others along directions that are not periodic.
        full[~pbc] = np.linalg.svd(cell[pbc])[2][int(pbc.sum()) :]
    inverse = np.linalg.inv(full)
    along = np.matmul(positions, inverse)
    wrap = -np.where(pbc, np.floor(along), 0)
    along = along + wrap
    margin = reach * np.linalg.norm(inverse, axis=0) * (1 + 1e-9)
    low, high = along.min(axis=0) - margin, along.max(axis=0) + margin
    # Shifts that bring some atom between these bounds.
    most = np.where(pbc, np.ceil(high - low), 0)
    if not np.prod(2 * most + 1) * n < _MOST_IMAGES:
        raise ValueError("its cell is so small that an atom has millions of images within the cutoff")
    ranges = [range(-int(k), int(k) + 1) for k in most]
    shifts = np.array([s for s in itertools.product(*ranges) if any(s)], float).reshape(-1, 3)
    images = along[None] + shifts[:, None]
    step, source = np.nonzero(((images >= low) & (images <= high)).all(axis=2))
    shift = (shifts[step] + wrap[source]).astype(np.int32)
    entries = np.matmul(images[step, source], full)
    return np.matmul(along, full), wrap.astype(np.int32), source, shift, entries


__all__ = ["NeighborRows", "neighbor_rows"]
