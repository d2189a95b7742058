"""Groups: some atoms of one system, with candidates for their neighbors.

Both builders make groups, and pairs are only looked for within groups. Brute force: the candidates of the
atoms of a system are all its atoms and images. Cell list: the candidates of the atoms of a cell are the
places in the 27 cells around it. Groups have a size at which their arrays have little padding.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from alchemi_jax.neighbors.geometry import gather_columns, times_matrices
from alchemi_jax.neighbors.images import Images
from alchemi_jax.neighbors.scans import MOST, count_upto, running_sum, scan_with
from alchemi_jax.systems.batch import Batch
from alchemi_jax.systems.segments import largest_of, use_rows
from alchemi_jax.transforms import compute_once


ROWS = 32
"""Atoms in a group, unless a group is an entire system."""
WORD = 32
"""Candidates that are tested together."""
_ENOUGH_CELLS = 12
"""Along each axis of a system."""


class Groups(NamedTuple):
    """Atoms and the candidates to compare them with. Places index the extended array; -1 is none."""

    atoms: Int[Array, "groups rows"]
    candidates: Int[Array, "candidates groups"]
    """Padded to a multiple of WORD."""
    count: Int[Array, " groups"]
    """Candidates of each group."""
    place: Int[Array, " atoms"]
    """The index of each atom in `atoms`, flattened."""
    needs: tuple[Int[Array, ""], Int[Array, ""]]
    """Most candidates of a group, and number of groups: only a cell list can have too few groups."""


class _Runs(NamedTuple):
    """Candidates as ranges of an order of places."""

    start: Int[Array, "runs groups"]
    length: Int[Array, "runs groups"]


def brute_force(batch: Batch, images: Images, candidates: int) -> Groups:
    """Groups in which the candidates of each atom are all atoms and images of its system."""
    n, needed = batch.atom_capacity, jnp.zeros((), jnp.int32)
    start = jnp.stack([batch.first_atom, n + images.first])
    length = jnp.stack([batch.atoms_per_system, images.count])
    if use_rows(batch):
        split = _whole_systems(batch)
    else:
        order = jnp.arange(n, dtype=jnp.int32)
        split = _split(n, batch.batch_idx, order, batch.atom_mask, group_capacity(batch))
        one = split.atoms[:, 0]
        system = batch.batch_idx[jnp.maximum(one, 0)]
        start, length = start[:, system], jnp.where(one[None] >= 0, length[:, system], 0)
    return _fill(split._replace(needed=needed), _Runs(start, length), None, candidates)


def group_capacity(batch: Batch) -> int:
    """A number of groups that always suffices if each group is part of one system."""
    return batch.atom_capacity // ROWS + batch.system_capacity


def _whole_systems(batch: Batch) -> "_Split":
    local = jnp.arange(batch.largest, dtype=jnp.int32)
    atoms = jnp.where(
        local[None] < batch.atoms_per_system[:, None], batch.first_atom[:, None] + local[None], -1
    )
    system = jnp.minimum(batch.batch_idx, batch.system_capacity - 1)
    own = jnp.arange(batch.atom_capacity, dtype=jnp.int32) - batch.first_atom[system]
    place = system * batch.largest + jnp.clip(own, 0, batch.largest - 1)
    return _Split(atoms, place, jnp.zeros((), jnp.int32))


def cell_list(
    batch: Batch,
    images: Images,
    extended: Float[Array, "3 places"],
    owner: Int[Array, " places"],
    one_cell: Bool[Array, " systems"],
    groups: int,
    candidates: int,
) -> Groups:
    """Groups in which the candidates of each atom are the places in the 27 cells around it.

    Cells follow the lattice vectors, are at least as wide as the reach, and begin at the least coordinate of
    the atoms of a system. One more cell on each side contains the images.

    Args:
        extended: coordinates of all places, Å.
        owner: the system of each place.
        one_cell: systems with all atoms in one cell, whatever their distances.
    """
    n, places = batch.atom_capacity, len(owner)
    # The number of a cell must fit into 31 bits, however far apart the atoms of a free system are. Sorting is
    # five times faster if cell and place together fit into 32 bits.
    narrow = (2**32 / places / batch.system_capacity) ** (1 / 3) >= _ENOUGH_CELLS
    most = (
        int((2 ** (32 if narrow else 31) / (places if narrow else 1) / batch.system_capacity) ** (1 / 3)) - 3
    )
    span = jnp.maximum(images.high - images.low, 0)
    inner = jnp.clip(jnp.floor(span / images.reach), 1, most)
    inner = jnp.where((batch.system_mask & ~one_cell)[None], inner, 1)
    width = jnp.maximum(span / inner, images.reach)
    dims = inner.astype(jnp.int32) + 2
    cells = jnp.where(batch.system_mask, dims[0] * dims[1] * dims[2], 0)
    begin = jnp.cumsum(cells, dtype=jnp.int32) - cells

    number = jnp.arange(places, dtype=jnp.int32)
    system = jnp.minimum(owner, batch.system_capacity - 1)
    border, size = (number < n).astype(jnp.int32)[None], gather_columns(dims, system)
    along = times_matrices(extended, images.inverse, owner) - gather_columns(images.low, system)
    once = (batch.atoms_per_system[0] >= 0).astype(jnp.int32)
    # The cell in which a place is put is the one around which its neighbors are looked for.
    at = compute_once(lambda: jnp.floor(along / gather_columns(width, system)).astype(jnp.int32) + 1, once)
    at = jnp.clip(at, border, size - 1 - border)
    key = (at[0] * size[1] + at[1]) * size[2] + at[2] + begin[system]
    real = jnp.concatenate([batch.atom_mask, number[: places - n] < images.total])
    none = 2**32 // places - 1 if narrow else jnp.iinfo(jnp.int32).max
    key = jnp.where(real, key, none)
    if narrow:
        both = jnp.sort(key.astype(jnp.uint32) * places + number.astype(jnp.uint32))
        keys = jax.lax.bitcast_convert_type(both // places, jnp.int32)
        order = (both - keys.astype(jnp.uint32) * places).astype(jnp.int32)
    else:
        keys, order = jax.lax.sort((key, number), num_keys=1, is_stable=True)
    split = _split(n, keys, order, (order < n) & (keys < none), groups)

    # Three cells in a row along the last vector are one run of the order.
    one = jnp.maximum(split.atoms[:, 0], 0)
    size = gather_columns(dims, system[one])
    across = np.arange(9, dtype=np.int32)[:, None]
    row = key[one][None] + ((across // 3 - 1) * size[1][None] + (across % 3 - 1)) * size[2][None]
    start, stop = count_upto(keys, jnp.stack([row - 2, row + 1]))
    runs = _Runs(start, jnp.where(split.atoms[None, :, 0] >= 0, stop - start, 0))
    return _fill(split, runs, order, candidates)


class _Split(NamedTuple):
    atoms: Int[Array, "groups rows"]
    place: Int[Array, " atoms"]
    needed: Int[Array, ""]


def _split(
    n: int,
    keys: Int[Array, " places"],
    order: Int[Array, " places"],
    is_atom: Bool[Array, " places"],
    groups: int,
) -> _Split:
    """Atoms in the order of their keys, split where the key changes and after every ROWS atoms.

    Args:
        n: number of atoms.
        order: places sorted by key; those that are not atoms are left out.
    """
    capacity = groups * ROWS
    # The number of atoms with the same key up to each place: the sum restarts where the key changes.
    changes = jnp.concatenate([jnp.ones(1, bool), keys[1:] != keys[:-1]])
    count = is_atom.astype(jnp.int32) + jnp.where(changes, MOST, 0)
    count = scan_with(lambda a, b: jnp.where(b >= MOST, b, a + b), count, jnp.zeros((), jnp.int32))
    rank = (count - 1) % ROWS
    group = running_sum((is_atom & (rank == 0)).astype(jnp.int32)) - 1
    place = jnp.where(is_atom & (group < groups), group * ROWS + rank, capacity)
    # One scatter for both: the atom in each place, and the place of each atom.
    both = jnp.full(capacity + n, -1, jnp.int32)
    target = jnp.concatenate(
        [jnp.where(place < capacity, place, capacity + n), jnp.where(is_atom, capacity + order, capacity + n)]
    )
    both = both.at[target].set(jnp.concatenate([order, place]), mode="drop", unique_indices=True)
    return _Split(
        both[:capacity].reshape(groups, ROWS), jnp.clip(both[capacity:], 0, capacity - 1), group[-1] + 1
    )


def _fill(split: _Split, runs: _Runs, order: Int[Array, " places"] | None, capacity: int) -> Groups:
    """Groups with the candidates that the runs describe."""
    number = jnp.arange(-(-capacity // WORD) * WORD, dtype=jnp.int32)[:, None]
    place, count = number, jnp.zeros_like(runs.start[0])
    for start, length in zip(runs.start, runs.length, strict=True):
        place = jnp.where(number >= count[None], number + (start - count)[None], place)
        count = count + length
    if order is not None:
        place = jnp.take(order, place, mode="clip")
    place = jnp.where(number < count[None], place, -1)
    return Groups(split.atoms, place, count, split.place, (largest_of(count), split.needed))


__all__ = ["ROWS", "WORD", "Groups", "brute_force", "cell_list", "group_capacity"]
