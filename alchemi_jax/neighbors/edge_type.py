"""EdgeList and Triplets: pairs of a neighbor list as edges, and pairs of edges, for graph models."""

import equinox as eqx
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from alchemi_jax.products import einsum
from alchemi_jax.systems.batch import Batch
from alchemi_jax.systems.segments import to_atoms


class Triplets(eqx.Module):
    """Pairs of edges with the same receiver, both within an inner cutoff, in both orders.

    The edges within the inner cutoff are the *bonds*, in the order of the edges. `bonds[first]` and
    `bonds[second]` are indices of edges.

    Attributes:
        bonds: [bonds], the index of the edge; in padding the number of edges, an index out of range.
        bond_mask: [bonds], False in padding.
        bond_of_edge: [edges], the index of an edge in `bonds`; for edges that are not bonds the number of
            bonds, an index out of range.
        first, second: [triplets], two different bonds of one atom, sorted by the first. In padding the number
            of bonds.
        mask: [triplets], False in padding.
        needed_bonds, needed: numbers of bonds and triplets, including those beyond the capacity.
    """

    bonds: Int[Array, " bonds"]
    bond_mask: Bool[Array, " bonds"]
    bond_of_edge: Int[Array, " edges"]
    first: Int[Array, " triplets"]
    second: Int[Array, " triplets"]
    mask: Bool[Array, " triplets"]
    needed_bonds: Int[Array, ""]
    needed: Int[Array, ""]


class EdgeList(eqx.Module):
    """Pairs within the cutoff, each in both directions, in the order of the receivers.

    The vector of an edge points from its receiver to the image of its sender:
    `positions[senders] + shifts @ cell - positions[receivers]`. The method `vectors` computes it.

    Attributes:
        senders: [edges], the neighbor. In padding it is the number of atoms, an index out of range, which
            segment sums drop.
        receivers: [edges], the atom that has this neighbor. Padding as in `senders`.
        shifts: [edges, 3], numbers of lattice vectors, relative to positions as they are (not wrapped).
        mask: [edges], False in padding.
        reverse: [edges], the index of the opposite edge; in padding the index of the edge itself. None unless
            a model asks for it.
        needed: number of edges, including those beyond the capacity.
        overflow: whether there were more edges (or bonds, triplets, edges of one atom) than the capacity.
            Some are missing then, so `vectors` are NaN.
        per_atom: [atoms, places], the indices of the edges of each atom (as receiver); in unused places the
            number of edges, an index out of range. None unless a model asks for it.
        triplets: pairs of edges. None unless a model asks for them.
    """

    senders: Int[Array, " edges"]
    receivers: Int[Array, " edges"]
    shifts: Float[Array, "edges 3"]
    mask: Bool[Array, " edges"]
    reverse: Int[Array, " edges"] | None
    needed: Int[Array, ""]
    overflow: Bool[Array, ""]
    per_atom: Int[Array, "atoms places"] | None = None
    triplets: Triplets | None = None

    def vectors(self, batch: Batch, padding: float = 1.0e3) -> Float[Array, "edges 3"]:
        """Vectors from receivers to senders, Å; differentiable in positions and cell.

        Args:
            padding: length of the vectors in padding, Å. It must be finite, so that gradients are finite, and
                beyond every cutoff.
        """
        last = batch.atom_capacity - 1
        i, j = jnp.minimum(self.receivers, last), jnp.minimum(self.senders, last)
        cell = to_atoms(batch, batch.cell)[i]
        sender = batch.positions[j] + einsum("ea,eab->eb", self.shifts, cell)
        far = jnp.array([padding, 0, 0], batch.dtype)
        vectors = jnp.where(self.mask[:, None], sender - batch.positions[i], far[None])
        # NaN, so that missing edges cannot go unnoticed.
        return vectors + jnp.where(self.overflow, jnp.nan, 0).astype(batch.dtype)


__all__ = ["EdgeList", "Triplets"]
