"""The edges of each atom as a row, and pairs of edges at one atom."""

import dataclasses

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from alchemi_jax.neighbors.edge_type import EdgeList, Triplets
from alchemi_jax.systems.batch import Batch


def edges_per_atom(
    edges: EdgeList, atoms: int, places: int
) -> tuple[Int[Array, "atoms places"], Int[Array, ""]]:
    """The indices of the edges of each atom, and the largest number of edges of an atom."""
    count = jax.ops.segment_sum(edges.mask.astype(jnp.int32), edges.receivers, atoms, indices_are_sorted=True)
    first = jnp.cumsum(count, dtype=jnp.int32) - count
    place = jnp.arange(places, dtype=jnp.int32)[None]
    index = jnp.where(place < count[:, None], first[:, None] + place, len(edges.mask))
    return index, count.max()


def find_triplets(
    batch: Batch, edges: EdgeList, inner: Bool[Array, " edges"], bonds: int, triplets: int
) -> Triplets:
    """Pairs of edges of one atom, both of them inner ones.

    Args:
        inner: which edges are within the inner cutoff; the same for an edge and its reverse.
        bonds, triplets: capacities.
    """
    n, many = batch.atom_capacity, len(edges.mask)
    inner = inner & edges.mask
    before = jnp.cumsum(inner, dtype=jnp.int32) - inner.astype(jnp.int32)
    needed_bonds = inner.sum(dtype=jnp.int32)
    bond = jnp.nonzero(inner, size=bonds, fill_value=many)[0].astype(jnp.int32)
    bond_mask = jnp.arange(bonds) < needed_bonds
    centre = jnp.where(bond_mask, edges.receivers[jnp.minimum(bond, many - 1)], n)
    count = jax.ops.segment_sum(inner.astype(jnp.int32), edges.receivers, n, indices_are_sorted=True)
    start = jnp.cumsum(count, dtype=jnp.int32) - count
    at = jnp.minimum(centre, n - 1)
    partners = jnp.where(bond_mask, count[at] - 1, 0)
    end = jnp.cumsum(partners, dtype=jnp.int32)
    needed = end[-1]
    own = jnp.arange(bonds, dtype=jnp.int32)
    first = jnp.repeat(own, partners, total_repeat_length=triplets)
    rank = jnp.arange(triplets, dtype=jnp.int32) - (end - partners)[first]
    second = start[at][first] + rank
    # The bond itself is left out.
    second = second + (second >= first).astype(jnp.int32)
    mask = jnp.arange(triplets) < needed
    return Triplets(
        bonds=bond,
        bond_mask=bond_mask,
        bond_of_edge=jnp.where(inner & (before < bonds), before, bonds),
        first=jnp.where(mask, first, bonds),
        second=jnp.where(mask, second, bonds),
        mask=mask,
        needed_bonds=needed_bonds,
        needed=needed,
    )


def squared_lengths(batch: Batch, edges: EdgeList) -> Float[Array, " edges"]:
    """Squared lengths of edges, Å²: the same number for an edge and its reverse, bit for bit."""
    last = batch.atom_capacity - 1
    i, j = jnp.minimum(edges.receivers, last), jnp.minimum(edges.senders, last)
    cell = batch.cell[jnp.minimum(batch.batch_idx[i], batch.system_capacity - 1)]
    squared = jnp.zeros(len(edges.mask), batch.dtype)
    for k in range(3):
        along = sum(edges.shifts[:, a] * cell[:, a, k] for a in range(3))
        squared = squared + ((batch.positions[j, k] - batch.positions[i, k]) + along) ** 2
    return squared


def edges_within(batch: Batch, edges: EdgeList, cutoff: float) -> EdgeList:
    """The edges within a shorter cutoff; those beyond it become padding."""
    n, mask = batch.atom_capacity, edges.mask & (squared_lengths(batch, edges) <= cutoff**2)
    senders, receivers = (jnp.where(mask, x, n) for x in (edges.senders, edges.receivers))
    return dataclasses.replace(edges, mask=mask, senders=senders, receivers=receivers)


__all__ = ["edges_per_atom", "edges_within", "find_triplets", "squared_lengths"]
