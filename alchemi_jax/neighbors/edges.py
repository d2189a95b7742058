"""The same list as edges, for graph models: senders, receivers, shifts and a mask, of fixed length."""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jax.lax import population_count
from jaxtyping import Array, Bool, Float, Int

from alchemi_jax.neighbors.list import NeighborList, pair_vectors
from alchemi_jax.systems.batch import Batch
from alchemi_jax.systems.capacity import round_up
from alchemi_jax.systems.segments import to_atoms


_WORD = 32


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
        overflow: there are more edges than room for them, and those beyond are missing. Energies
            of such a list must not be used.
    """

    senders: Int[Array, " edges"]
    receivers: Int[Array, " edges"]
    shifts: Float[Array, "edges 3"]
    mask: Bool[Array, " edges"]
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
        return jnp.where(self.mask[:, None], there - batch.positions[i], far[None])


def edge_capacity(batch: Batch, neighbors: NeighborList, room: float = 1.15) -> int:
    """A capacity for `edge_list`, on the host: the present number of edges and some room.

    Args:
        room: factor.
    """
    near = np.asarray(pair_vectors(batch, neighbors)[3]) & np.asarray(neighbors.index < neighbors.far)
    return round_up(int(np.ceil(near.sum() * room)) + 1, 8, 16)


def edge_list(batch: Batch, neighbors: NeighborList, capacity: int | None = None) -> EdgeList:
    """Edges of the pairs within the cutoff at the present positions.

    Args:
        neighbors: brought up to date for this batch, as a model gets it.
        capacity: number of edges to make room for (`edge_capacity` finds one); None: so many as
            the list has slots, which always suffices but is padding by half.

    Pure, for jit and vmap. Indices carry no derivative: `EdgeList.vectors` does.
    """
    batch, neighbors = jax.lax.stop_gradient((batch, neighbors))
    n, slots = batch.atom_capacity, neighbors.slots
    near = pair_vectors(batch, neighbors)[3] & (neighbors.index < neighbors.far) & batch.atom_mask[None]
    if capacity is None:
        slot, receiver = (v.T.reshape(-1) for v in jnp.indices((slots, n), jnp.int32))
        mask, overflow = near.T.reshape(-1), jnp.zeros((), bool)
    else:
        slot, receiver, mask, overflow = _compact(near, capacity)
    place = jnp.where(mask, neighbors.index[slot, receiver], 0)
    shift = neighbors.shift[:, place] - neighbors.shift[:, receiver]
    sender = neighbors.atom_of(place)
    return EdgeList(
        senders=jnp.where(mask, sender, n),
        receivers=jnp.where(mask, receiver, n),
        shifts=jnp.where(mask[:, None], shift.T, 0),
        mask=mask,
        overflow=overflow | neighbors.overflow,
    )


def _compact(near: Bool[Array, "slots atoms"], capacity: int) -> tuple[Array, Array, Array, Array]:
    """Slot and atom of each True, atom by atom: hits as bits of words, the k-th by population counts."""
    slots, n = near.shape
    words = -(-slots // _WORD)
    bits = jnp.pad(near, ((0, words * _WORD - slots), (0, 0))).reshape(words, _WORD, n)
    bit = (jnp.uint32(1) << jnp.arange(_WORD, dtype=jnp.uint32))[None, :, None]
    masks = jnp.sum(jnp.where(bits, bit, jnp.uint32(0)), axis=1, dtype=jnp.uint32)
    upto = jnp.cumsum(population_count(masks).astype(jnp.int32), axis=0, dtype=jnp.int32)
    end = jnp.cumsum(upto[-1], dtype=jnp.int32)
    atom = jnp.repeat(jnp.arange(n, dtype=jnp.int32), upto[-1], total_repeat_length=capacity)
    rank = jnp.arange(capacity, dtype=jnp.int32) - (end - upto[-1])[atom]
    word = jnp.zeros(capacity, jnp.int32)
    before = jnp.zeros(capacity, jnp.int32)
    for w in range(words - 1):
        beyond = rank >= upto[w][atom]
        word = jnp.where(beyond, w + 1, word)
        before = jnp.where(beyond, upto[w][atom], before)
    rest, rank = masks[word, atom], rank - before
    place = jnp.zeros(capacity, jnp.int32)
    for half in (16, 8, 4, 2, 1):
        lower = rest & jnp.uint32((1 << half) - 1)
        count = population_count(lower).astype(jnp.int32)
        up = rank >= count
        rank = jnp.where(up, rank - count, rank)
        rest = jnp.where(up, rest >> jnp.uint32(half), lower)
        place = place + jnp.where(up, half, 0)
    mask = jnp.arange(capacity) < end[-1]
    return jnp.minimum(word * _WORD + place, slots - 1), atom, mask, end[-1] > capacity
