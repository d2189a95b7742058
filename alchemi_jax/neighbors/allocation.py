"""Lists for a model, made on the host: capacities are found by building, and grown until they suffice."""

import functools
from typing import Any

import equinox as eqx
import numpy as np

from alchemi_jax.neighbors.build import empty_list, enlarge
from alchemi_jax.neighbors.list import NeighborList
from alchemi_jax.neighbors.requirements import Requirements
from alchemi_jax.neighbors.sizes import Needs, guess_sizes
from alchemi_jax.neighbors.upkeep import update
from alchemi_jax.systems.batch import Batch
from alchemi_jax.transforms import RUNS_ONCE, is_traced


#: Compiled without optimization, since it runs once. The types of equinox do not declare the options.
_filter_jit: Any = eqx.filter_jit
_update_once = functools.partial(_filter_jit, compiler_options=RUNS_ONCE)(update)


def allocate(
    batch: Batch,
    cutoff: float | Requirements,
    skin: float = 1.0,
    *,
    edges: bool = False,
    reverse_edges: bool = False,
    builder: str | None = None,
) -> NeighborList:
    """A neighbor list for a batch, with sufficient capacities: to call a model without an engine.

        neighbors = allocate(batch, model.requirements)
        energies = model.energy(batch, neighbors)

    For other positions of the same systems use `update(batch, neighbors)`, which also works inside
    transforms. If a capacity is then too small, `neighbors.overflow` is set.

    Args:
        cutoff: Å; or the `requirements` of a model, which include the other options.
        skin: Å added to the cutoff, so that `update` does not build the list each time.
        edges: whether to make `neighbors.edges`. `reverse_edges`: whether to make `neighbors.edges.reverse`.
        builder: see `guess_sizes`.

    Raises:
        ValueError: inside a transform, since capacities are chosen on the host; or without a cutoff.
    """
    needs = cutoff if isinstance(cutoff, Requirements) else Requirements(cutoff, skin, edges, reverse_edges)
    if is_traced(batch):
        raise ValueError(
            "neighbors.allocate chooses capacities on the host, so it cannot be traced: call it outside of "
            "jit, vmap and grad, and neighbors.update inside."
        )
    neighbors = unbuilt_list(batch, needs, builder)
    if neighbors is None:
        raise ValueError("neighbors.allocate: a model without a cutoff needs no list; give it None.")
    return update_with_room(batch, neighbors)


def update_with_room(batch: Batch, neighbors: NeighborList) -> NeighborList:
    """`update`, compiled and on the host, with larger capacities if they are too small."""
    while True:
        found = _update_once(batch, neighbors)
        if not bool(found.overflow):
            return found
        neighbors = enlarge(neighbors, np.asarray(found.needs))


def unbuilt_list(
    batch: Batch,
    requirements: Requirements,
    builder: str | None = None,
    waiting: Needs | None = None,
) -> NeighborList | None:
    """An empty list with estimated capacities for what a model needs; None for a model without a cutoff.

    Args:
        builder, waiting: see `guess_sizes`.
    """
    r = requirements
    if r.cutoff is None:
        return None
    sizes = guess_sizes(batch, r.cutoff, r.skin, builder=builder, waiting=waiting, requirements=r)
    return empty_list(batch, r.cutoff, r.skin, sizes, r)


__all__ = ["allocate", "unbuilt_list", "update_with_room"]
