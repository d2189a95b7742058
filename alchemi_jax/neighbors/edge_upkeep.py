"""The edges that a model asks for, in its neighbor list: empty ones, and those of present positions."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Int

from alchemi_jax.neighbors.edge_type import EdgeList, Triplets
from alchemi_jax.neighbors.edges import edge_list
from alchemi_jax.neighbors.list import ListSizes, NeighborList
from alchemi_jax.neighbors.requirements import Requirements
from alchemi_jax.neighbors.triplets import edges_per_atom, find_triplets, squared_lengths
from alchemi_jax.systems.batch import Batch


#: The first of the sizes that `renew_edges` counts; they are the last ones of `ListSizes`.
_FIRST = [f.name for f in dataclasses.fields(ListSizes)].index("edges")


def no_edges(
    atoms: int, dtype: Any, sizes: ListSizes, requirements: Requirements
) -> dict[str, EdgeList | None]:
    """`edges` and `long_edges` of an empty list. Made with numpy, so that nothing is compiled."""
    r = requirements
    edges = long_edges = None
    if sizes.edges:
        edges = _empty(atoms, dtype, sizes.edges, r.reverse_edges)
        per_atom = triplets = None
        if r.per_atom:
            per_atom = jnp.asarray(np.full((atoms, sizes.per_atom), sizes.edges, np.int32))
        if r.inner_cutoff is not None:
            triplets = _no_triplets(sizes)
        edges = dataclasses.replace(edges, per_atom=per_atom, triplets=triplets)
    if sizes.long_edges:
        long_edges = _empty(atoms, dtype, sizes.long_edges, False)
    return {"edges": edges, "long_edges": long_edges}


def _empty(atoms: int, dtype: Any, capacity: int, reverse: bool) -> EdgeList:
    no_atom = np.full(capacity, atoms, np.int32)
    return EdgeList(
        senders=jnp.asarray(no_atom),
        receivers=jnp.asarray(no_atom),
        shifts=jnp.asarray(np.zeros((capacity, 3), dtype)),
        mask=jnp.asarray(np.zeros(capacity, bool)),
        reverse=jnp.asarray(np.arange(capacity, dtype=np.int32)) if reverse else None,
        needed=jnp.asarray(np.int32(0)),
        overflow=jnp.asarray(np.zeros((), bool)),
    )


def _no_triplets(sizes: ListSizes) -> Triplets:
    def full(n: int) -> Int[Array, " n"]:
        return jnp.asarray(np.full(n, sizes.bonds, np.int32))

    def false(n: int) -> Bool[Array, " n"]:
        return jnp.asarray(np.zeros(n, bool))

    return Triplets(
        bonds=jnp.asarray(np.full(sizes.bonds, sizes.edges, np.int32)),
        bond_mask=false(sizes.bonds),
        bond_of_edge=full(sizes.edges),
        first=full(sizes.triplets),
        second=full(sizes.triplets),
        mask=false(sizes.triplets),
        needed_bonds=jnp.asarray(np.int32(0)),
        needed=jnp.asarray(np.int32(0)),
    )


def renew_edges(batch: Batch, neighbors: NeighborList) -> NeighborList:
    """The list with the edges of the present positions; `needs` includes the room that they need."""
    sizes, r = neighbors.sizes, neighbors.requirements
    edges = edge_list(batch, neighbors, sizes.edges, reverse=r.reverse_edges, cutoff=r.edge_cutoff)
    zero, overflow = jnp.zeros((), jnp.int32), edges.overflow
    needs = {"edges": edges.needed, "per_atom": zero, "bonds": zero, "triplets": zero, "long_edges": zero}
    if r.per_atom:
        rows, needs["per_atom"] = edges_per_atom(edges, batch.atom_capacity, sizes.per_atom)
        edges = dataclasses.replace(edges, per_atom=rows)
        overflow |= needs["per_atom"] > sizes.per_atom
    if r.inner_cutoff is not None:
        frozen = jax.lax.stop_gradient(batch)
        inner = squared_lengths(frozen, edges) <= r.inner_cutoff**2
        triplets = find_triplets(frozen, edges, inner, sizes.bonds, sizes.triplets)
        edges = dataclasses.replace(edges, triplets=triplets)
        needs |= {"bonds": triplets.needed_bonds, "triplets": triplets.needed}
        overflow |= (triplets.needed_bonds > sizes.bonds) | (triplets.needed > sizes.triplets)
    long_edges = neighbors.long_edges
    if long_edges is not None:
        long_edges = edge_list(batch, neighbors, sizes.long_edges, cutoff=r.long_cutoff)
        needs["long_edges"] = long_edges.needed
        overflow |= long_edges.overflow
        long_edges = dataclasses.replace(long_edges, overflow=overflow)
    edges = dataclasses.replace(edges, overflow=overflow)
    before = jnp.where(neighbors.overflow, neighbors.needs[_FIRST:], 0)
    counted = jnp.maximum(jnp.stack([needs[f.name] for f in _counted()]), before)
    return dataclasses.replace(
        neighbors,
        edges=edges,
        long_edges=long_edges,
        needs=jnp.concatenate([neighbors.needs[:_FIRST], counted]),
        overflow=overflow,
    )


def _counted() -> tuple[dataclasses.Field, ...]:
    return dataclasses.fields(ListSizes)[_FIRST:]


__all__ = ["no_edges", "renew_edges"]
