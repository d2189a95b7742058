"""Structures in few buckets by size: each has one shape, so one compilation, and little padding."""

import itertools
from collections.abc import Sequence

import numpy as np
from jaxtyping import Int


#: Buckets are joined as long as the padding of all makes the work at most this many times larger.
_PADDED = 1.2
#: Buckets to begin with, of as many structures each.
_FINEST = 48


def split_by_size(
    atoms: Int[np.ndarray, " structures"], pairs: Int[np.ndarray, " structures"], most: int
) -> list[Int[np.ndarray, " some"]]:
    """Numbers of the structures in each bucket, smallest structures first, in increasing order within it.

    The work for a structure is taken to be its atoms times the neighbors of one atom. Neighboring buckets
    are joined, those first where that costs least, until there are at most `most` and as long as padding
    costs little.

    Args:
        atoms: of each structure. pairs: atoms times the most neighbors of an atom.
        most: number of buckets.
    """
    order = np.lexsort((np.arange(len(atoms)), atoms, pairs))
    buckets: list[Int[np.ndarray, " some"]] = []
    for part in np.array_split(order, min(_FINEST, len(order))):
        buckets.append(part)

    def cost(rows: Int[np.ndarray, " some"]) -> float:
        width = np.max(pairs[rows] / atoms[rows]) + 1
        return float(len(rows) * atoms[rows].max() * width)

    least = float((pairs + atoms).sum())
    costs = [cost(b) for b in buckets]
    while len(buckets) > 1:
        joined = [cost(np.concatenate(two)) for two in itertools.pairwise(buckets)]
        more = [j - a - b for j, a, b in zip(joined, costs, costs[1:], strict=False)]
        k = int(np.argmin(more))
        if len(buckets) <= most and sum(costs) + more[k] > _PADDED * least:
            break
        buckets[k : k + 2] = [np.concatenate(buckets[k : k + 2])]
        costs[k : k + 2] = [joined[k]]
    return [np.sort(b) for b in buckets]


def batch_size(
    names: Sequence[str],
    atoms: Int[np.ndarray, " some"],
    edges: Int[np.ndarray, " some"],
    max_systems: int,
    max_atoms: int | None,
    max_edges: int | None,
) -> int:
    """Number of structures of a bucket in one batch.

    Raises:
        ValueError: naming a structure that exceeds a budget alone.
    """
    found = min(max_systems, len(atoms))
    for what, budget, counts in (("atoms", max_atoms, atoms), ("edges", max_edges, edges)):
        if budget is None:
            continue
        largest = int(np.argmax(counts))
        if counts[largest] > budget:
            raise ValueError(
                f"{names[largest]} has {counts[largest]} {what}, more than max_{what}={budget} of a batch."
            )
        found = min(found, budget // max(int(counts[largest]), 1))
    return max(found, 1)


__all__ = ["batch_size", "split_by_size"]
