"""The same list as edges, for graph models: senders, receivers, shifts and a mask, of fixed length."""

import jax
import jax.numpy as jnp
import numpy as np
from jax.lax import population_count
from jaxtyping import Array, Bool, Int

from alchemi_jax.neighbors.edge_type import EdgeList
from alchemi_jax.neighbors.list import NeighborList, pair_vectors
from alchemi_jax.systems.batch import Batch
from alchemi_jax.systems.capacity import round_up
from alchemi_jax.systems.segments import to_atoms


_WORD = 32


def edge_capacity(batch: Batch, neighbors: NeighborList, room: float = 1.15) -> int:
    """A capacity for `edge_list`, on the host: the present number of edges and some room.

    Args:
        room: factor.
    """
    near = np.asarray(pair_vectors(batch, neighbors)[3]) & np.asarray(neighbors.index < neighbors.far)
    return round_up(int(np.ceil(near.sum() * room)) + 1, 8, 16)


def edge_list(
    batch: Batch, neighbors: NeighborList, capacity: int | None = None, reverse: bool = False
) -> EdgeList:
    """Edges of the pairs within the cutoff at the present positions.

    A model that asks for edges in its `requirements` finds them in `neighbors.edges`, whose capacity grows.

    Args:
        neighbors: brought up to date for this batch, as a model gets it.
        capacity: number of edges to make room for (`edge_capacity` finds one); None: so many as
            the list has slots, which always suffices but is padding by half.
        reverse: whether to find the reverse of each edge.

    Pure, for jit and vmap. Indices carry no derivative: `EdgeList.vectors` does.
    """
    batch, neighbors = jax.lax.stop_gradient((batch, neighbors))
    n, slots = batch.atom_capacity, neighbors.slots
    used = (neighbors.index < neighbors.far) & batch.atom_mask[None]
    within = _within_both_ways(batch, neighbors) if reverse else pair_vectors(batch, neighbors)[3]
    near = within & used
    needed = near.sum(dtype=jnp.int32)
    if capacity is None:
        slot, receiver = (v.T.reshape(-1) for v in jnp.indices((slots, n), jnp.int32))
        mask, overflow = near.T.reshape(-1), jnp.zeros((), bool)
    else:
        slot, receiver, mask, overflow = _compact(near, capacity)
    place = jnp.where(mask, neighbors.index[slot, receiver], 0)
    shift = neighbors.shift[:, place] - neighbors.shift[:, receiver]
    sender = neighbors.atom_of(place)
    senders, receivers = jnp.where(mask, sender, n), jnp.where(mask, receiver, n)
    shifts = jnp.where(mask[:, None], shift.T, 0)
    return EdgeList(
        senders=senders,
        receivers=receivers,
        shifts=shifts,
        mask=mask,
        reverse=_reverse_of(senders, receivers, shifts) if reverse else None,
        needed=needed,
        overflow=overflow | neighbors.overflow,
    )


def _within_both_ways(batch: Batch, neighbors: NeighborList) -> Bool[Array, "slots atoms"]:
    """Which pairs are within the cutoff, by a distance that is the same number in both directions: an edge
    at the very cutoff must not lack its reverse."""
    n = batch.atom_capacity
    place = jnp.minimum(neighbors.index, neighbors.far - 1)
    atom = neighbors.atom_of(place)
    shift = neighbors.shift[:, place] - neighbors.shift[:, None, :n]
    cell = to_atoms(batch, batch.cell)
    squared = jnp.zeros(place.shape, batch.dtype)
    for k in range(3):
        along = sum(shift[a] * cell[None, :, a, k] for a in range(3))
        squared = squared + ((batch.positions[atom, k] - batch.positions[None, :, k]) + along) ** 2
    return squared <= neighbors.cutoff**2


def _reverse_of(senders: Array, receivers: Array, shifts: Array) -> Int[Array, " edges"]:
    """Edges sorted as they are, and as they are the other way round, come in the same order."""
    x, y, z = (shifts[:, k] for k in range(3))
    forward = jnp.lexsort((z, y, x, senders, receivers))
    backward = jnp.lexsort((-z, -y, -x, receivers, senders))
    return jnp.zeros(len(senders), jnp.int32).at[backward].set(forward.astype(jnp.int32))


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
