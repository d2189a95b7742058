"""EdgeList: pairs of a neighbor list as edges, for graph models."""

import equinox as eqx
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from alchemi_jax.products import einsum
from alchemi_jax.systems.batch import Batch
from alchemi_jax.systems.segments import to_atoms


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
        needed: number of edges, including those for which there was no room.
        overflow: there were more edges than room. Some are missing, so `vectors` are NaN.
    """

    senders: Int[Array, " edges"]
    receivers: Int[Array, " edges"]
    shifts: Float[Array, "edges 3"]
    mask: Bool[Array, " edges"]
    reverse: Int[Array, " edges"] | None
    needed: Int[Array, ""]
    overflow: Bool[Array, ""]

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


__all__ = ["EdgeList"]
