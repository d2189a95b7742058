"""How many edges, bonds and triplets the systems of a batch have: counted on the host, not estimated.

A graph network costs far more than this, and so does compiling it again for a larger capacity.
"""

import itertools
from typing import Any

import numpy as np
from jaxtyping import Bool, Float, Shaped

from alchemi_jax.neighbors.requirements import Requirements


#: What is counted of each system: fields of Needs.
COUNTED = ("edges", "per_atom", "bonds", "triplets", "long_edges")
#: Systems with more images are not counted; they get the estimate.
_MOST_IMAGES = 2_000_000


def count_edges(
    positions: list[Float[np.ndarray, "_ 3"]],
    cells: Float[np.ndarray, "systems 3 3"],
    pbc: Bool[np.ndarray, "systems 3"],
    requirements: Requirements,
    estimates: Shaped[np.ndarray, " systems"],
) -> dict[str, Shaped[np.ndarray, " systems"]]:
    """What each system needs for its edges at these positions.

    Args:
        positions: of each system, Å.
        cells: Å, with three independent vectors each.
        estimates: numbers of edges, for systems that are too large to be counted.
    """
    rows = [
        _count(positions[s], cells[s], pbc[s], requirements, float(estimates[s]))
        for s in range(len(positions))
    ]
    return {name: np.array([row[name] for row in rows], float) for name in COUNTED}


def _count(
    positions: Float[np.ndarray, "atoms 3"],
    cell: Float[np.ndarray, "3 3"],
    pbc: Bool[np.ndarray, "3"],
    r: Requirements,
    estimate: float,
) -> dict[str, float]:
    # Imported here, since few models ask for edges.
    from scipy.spatial import KDTree

    n = len(positions)
    found: dict[str, float] = dict.fromkeys(COUNTED, 0.0)
    longest = max(c for c in (r.edge_cutoff, r.long_cutoff) if c is not None)
    extended = _with_images(positions, cell, pbc, longest)
    if extended is None:
        part = estimate / max(n, 1)
        inner = part * ((r.inner_cutoff or 0) / longest) ** 3
        return {
            "edges": estimate,
            "per_atom": 2 * part,
            "bonds": n * inner,
            "triplets": n * inner**2,
            "long_edges": estimate,
        }
    atoms, tree = extended[:n], KDTree(extended)

    def near(cutoff: float) -> Shaped[np.ndarray, " atoms"]:
        return tree.query_ball_point(atoms, cutoff, return_length=True) - 1

    if r.edge_cutoff is not None:
        of_atoms = near(r.edge_cutoff)
        found |= {"edges": float(of_atoms.sum()), "per_atom": float(of_atoms.max(initial=0))}
    if r.inner_cutoff is not None:
        bonds = near(r.inner_cutoff)
        found |= {"bonds": float(bonds.sum()), "triplets": float((bonds * (bonds - 1)).sum())}
    if r.long_cutoff is not None:
        found["long_edges"] = float(near(r.long_cutoff).sum())
    return found


def _with_images(
    positions: Float[np.ndarray, "atoms 3"], cell: Any, pbc: Any, cutoff: float
) -> Float[np.ndarray, "places 3"] | None:
    """Atoms, wrapped into the cell, then their images within the cutoff of any of them; None: too many."""
    if not pbc.any():
        return positions
    inverse = np.linalg.inv(cell)
    faces = 1 / np.linalg.norm(inverse, axis=0)
    along = (positions[:, None, :] * inverse.T).sum(axis=2)
    along = along - np.where(pbc, np.floor(along), 0)
    margin = cutoff / faces * (1 + 1e-6)
    low, high = along.min(axis=0), along.max(axis=0)
    reach = np.where(pbc, np.ceil(margin + high - low), 0)
    if not np.isfinite(reach).all() or np.prod(2 * reach + 1) * len(positions) > _MOST_IMAGES:
        return None
    ranges = [range(-int(k), int(k) + 1) for k in reach]
    shifts = np.array([s for s in itertools.product(*ranges) if any(s)], float).reshape(-1, 3)
    images = (along[None] + shifts[:, None]).reshape(-1, 3)
    near = ((images >= low - margin) & (images <= high + margin)).all(axis=1)
    places = np.concatenate([along, images[near]])
    return (places[:, None, :] * cell.T).sum(axis=2)


__all__ = ["COUNTED", "count_edges"]
