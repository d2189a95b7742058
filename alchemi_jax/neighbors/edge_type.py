"""EdgeList: pairs of a neighbor list as edges, for graph models."""

import equinox as eqx
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from alchemi_jax.systems.batch import Batch
from alchemi_jax.systems.segments import to_atoms


class EdgeList(eqx.Module):
    """Pairs within the cutoff, each in both directions, in the order of the receivers.

    The vector of an edge, from its receiver to the image of its sender, is
    `positions[senders] + shifts @ cell - positions[receivers]` (`vectors` does that).

    Attributes:
        senders: [edges], the neighbor; the number of atoms, which is no atom, in padding. Segment
            sums drop it.
        receivers: [edges], the atom whose neighbor it is; likewise.
        shifts: [edges, 3], whole numbers of lattice vectors, relative to raw positions.
        mask: [edges], False in padding.
        reverse: [edges], for each edge the one from its receiver to its sender; of padding itself. None where
            it is not asked for.
        needed: number of edges, those that found no room included.
        overflow: there are more edges than room for them, and those beyond are missing: `vectors` are NaN.
    """

    senders: Int[Array, " edges"]
    receivers: Int[Array, " edges"]
    shifts: Float[Array, "edges 3"]
    mask: Bool[Array, " edges"]
    reverse: Int[Array, " edges"] | None
    needed: Int[Array, ""]
    overflow: Bool[Array, ""]

    def vectors(self, batch: Batch, padding: float = 1.0e3) -> Float[Array, "edges 3"]:
        """From receivers to senders, Å; differentiable in positions and cell.

        Args:
            padding: Å, length of the vectors of padding: finite, so that gradients are, and beyond
                every cutoff.
        """
        last = batch.atom_capacity - 1
        i, j = jnp.minimum(self.receivers, last), jnp.minimum(self.senders, last)
        cell = to_atoms(batch, batch.cell)[i]
        there = batch.positions[j] + jnp.einsum("ea,eab->eb", self.shifts, cell)
        far = jnp.array([padding, 0, 0], batch.dtype)
        vectors = jnp.where(self.mask[:, None], there - batch.positions[i], far[None])
        # No wrong number comes out if `overflow` is not checked.
        return vectors + jnp.where(self.overflow, jnp.nan, 0).astype(batch.dtype)
