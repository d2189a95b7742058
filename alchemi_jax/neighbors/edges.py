"""The pairs of a neighbor list as edges of fixed number: senders, receivers, shifts and a mask."""

import jax
import jax.numpy as jnp
import numpy as np
from jax.lax import population_count
from jaxtyping import Array, Bool, Float, Int

from alchemi_jax.neighbors.edge_type import EdgeList
from alchemi_jax.neighbors.list import NeighborList, pair_vectors
from alchemi_jax.systems.batch import Batch
from alchemi_jax.systems.capacity import round_up
from alchemi_jax.systems.segments import to_atoms


_WORD = 32
_PAIRS = 46000
_ALONG = 1 << 16


def edge_capacity(batch: Batch, neighbors: NeighborList, room: float = 1.15) -> int:
    """A capacity for `edge_list`: the present number of edges times `room`, rounded up. On the host.

    Args:
        room: factor by which the capacity exceeds the present number.
    """
    near = np.asarray(pair_vectors(batch, neighbors)[3]) & np.asarray(neighbors.index < neighbors.far)
    return round_up(int(np.ceil(near.sum() * room)) + 1, 8, 16)


def edge_list(
    batch: Batch,
    neighbors: NeighborList,
    capacity: int | None = None,
    reverse: bool = False,
    *,
    cutoff: float | None = None,
) -> EdgeList:
    """Edges of the pairs within the cutoff at the present positions.

    A model that asks for edges in its `requirements` gets them in `neighbors.edges`, whose capacity grows
    automatically.

    Args:
        neighbors: a list that is up to date for this batch, as a model gets it.
        capacity: room for this many edges (`edge_capacity` finds a number). None: one edge per slot of the
            list, which always suffices, but about half of it is padding.
        reverse: whether to find the reverse of each edge.
        cutoff: Å, at most that of the list, which is the default.

    Pure, for jit and vmap. Indices have no derivative; `EdgeList.vectors` has one.
    """
    batch, neighbors = jax.lax.stop_gradient((batch, neighbors))
    n, slots = batch.atom_capacity, neighbors.slots
    used = (neighbors.index < neighbors.far) & batch.atom_mask[None]
    reach = neighbors.cutoff if cutoff is None else cutoff
    if reverse or reach != neighbors.cutoff:
        within = _within_both_ways(batch, neighbors, reach)
    else:
        within = pair_vectors(batch, neighbors)[3]
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
        reverse=_reverse_of(senders, receivers, shifts, n) if reverse else None,
        needed=needed,
        overflow=overflow | neighbors.overflow,
    )


def _within_both_ways(batch: Batch, neighbors: NeighborList, cutoff: float) -> Bool[Array, "slots atoms"]:
    """Which pairs are within a cutoff.

    The distance is the same number in both directions, so that an edge at exactly the cutoff has its reverse.
    """
    n = batch.atom_capacity
    place = jnp.minimum(neighbors.index, neighbors.far - 1)
    atom = neighbors.atom_of(place)
    shift = neighbors.shift[:, place] - neighbors.shift[:, None, :n]
    cell = to_atoms(batch, batch.cell)
    squared = jnp.zeros(place.shape, batch.dtype)
    for k in range(3):
        along = sum(shift[a] * cell[None, :, a, k] for a in range(3))
        squared = squared + ((batch.positions[atom, k] - batch.positions[None, :, k]) + along) ** 2
    return squared <= cutoff**2


def _reverse_of(
    senders: Int[Array, " edges"],
    receivers: Int[Array, " edges"],
    shifts: Float[Array, "edges 3"],
    atoms: int,
) -> Int[Array, " edges"]:
    """The opposite of each edge: edges sorted forward and edges sorted backward come in the same order."""
    x, y, z = (shifts[:, k].astype(jnp.int32) for k in range(3))
    # Few keys make a sort fast. Sums may wrap around: images of one pair of atoms are never so far apart that
    # two of them get the same number.
    plane = x * _ALONG + y
    if atoms < _PAIRS:
        there, back = [receivers * (atoms + 1) + senders], [senders * (atoms + 1) + receivers]
    else:
        there, back = [senders, receivers], [receivers, senders]
    order = jnp.lexsort((z, plane, *there)).astype(jnp.int32)
    return jnp.zeros(len(senders), jnp.int32).at[jnp.lexsort((-z, -plane, *back))].set(order)


def _compact(
    near: Bool[Array, "slots atoms"], capacity: int
) -> tuple[Int[Array, " edges"], Int[Array, " edges"], Bool[Array, " edges"], Bool[Array, ""]]:
    """Slot and atom of each True, atom by atom; which of them are valid; whether there were more.

    Each True is a bit of a word, and population counts find the k-th bit.
    """
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


__all__ = ["edge_capacity", "edge_list"]
