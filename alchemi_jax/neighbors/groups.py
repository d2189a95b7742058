"""Groups: some atoms of one system beside all places that may be near them.

Both builders make groups, and pairs are found in groups alone. Brute force: the atoms of a system
beside all its atoms and images. Cell list: the atoms of a cell beside those of the 27 cells around it.
A group holds so many atoms that the arrays of all groups have little padding.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Int

from alchemi_jax.neighbors.images import Images, along_lattice
from alchemi_jax.systems.batch import Batch
from alchemi_jax.systems.segments import number_in_system, to_atoms, use_rows


ROWS = 32
"""Atoms of a group, where a group is not a whole system."""
_ENOUGH_CELLS = 12
"""Along each axis of a system."""


class Groups(NamedTuple):
    """Who is to be compared with whom. Places are those of the extended array, -1: none."""

    atoms: Int[Array, "groups rows"]
    candidates: Int[Array, "candidates groups"]
    count: Int[Array, " groups"]
    """Candidates of each group."""
    place: Int[Array, " atoms"]
    """Where each atom stands in `atoms`, flattened."""
    needs: tuple[Array, Array]
    """Candidates of a group, and groups: only a cell list can have too few of these."""


class _Runs(NamedTuple):
    """Candidates as runs of an order of places."""

    start: Int[Array, "runs groups"]
    length: Int[Array, "runs groups"]


def brute_force(batch: Batch, images: Images, candidates: int) -> Groups:
    """All atoms and images of a system beside each of its atoms."""
    if use_rows(batch):
        return _whole_systems(batch, images, candidates)
    n = batch.atom_capacity
    order = jnp.arange(n, dtype=jnp.int32)
    split = _split(batch.batch_idx, order, batch.atom_mask, group_capacity(batch))
    split = split._replace(needed=jnp.zeros((), jnp.int32))
    system = batch.batch_idx[jnp.maximum(split.atoms[:, 0], 0)]
    runs = _of_systems(batch, images, jnp.where(split.atoms[:, 0] >= 0, system, batch.system_capacity))
    return _filled(split, runs, None, candidates)


def group_capacity(batch: Batch) -> int:
    """Groups that always suffice if a group is part of a system."""
    return batch.atom_capacity // ROWS + batch.system_capacity


def _whole_systems(batch: Batch, images: Images, candidates: int) -> Groups:
    local = jnp.arange(batch.largest, dtype=jnp.int32)
    atoms = jnp.where(
        local[None] < batch.atoms_per_system[:, None], batch.first_atom[:, None] + local[None], -1
    )
    own = number_in_system(batch)
    system = jnp.minimum(batch.batch_idx, batch.system_capacity - 1)
    place = system * batch.largest + jnp.clip(own, 0, batch.largest - 1)
    split = _Split(atoms, place, jnp.zeros((), jnp.int32))
    runs = _of_systems(batch, images, jnp.arange(batch.system_capacity, dtype=jnp.int32))
    return _filled(split, runs, None, candidates)


def _of_systems(batch: Batch, images: Images, system: Array) -> _Runs:
    def take(values: Array) -> Array:
        return jnp.take(values, system, mode="fill", fill_value=0)

    n = batch.atom_capacity
    return _Runs(
        jnp.stack([take(batch.first_atom), n + take(images.first)]),
        jnp.stack([take(batch.atoms_per_system), take(images.count)]),
    )


def cell_list(
    batch: Batch,
    images: Images,
    extended: list[Array],
    owner: Int[Array, " places"],
    one_cell: Bool[Array, " systems"],
    groups: int,
    candidates: int,
) -> Groups:
    """The 27 cells around it beside each atom.

    Cells follow the lattice vectors, are at least as wide as the reach, and begin at the least
    coordinate of a system's atoms; one more on each side takes the images.

    Args:
        extended: x, y and z of all places.
        owner: the system of each place.
        one_cell: systems whose atoms are to be in one cell, whatever their distances.
    """
    n, places = batch.atom_capacity, len(owner)
    # Cells are numbered in 31 bits, however far apart the atoms of a free system are. Where cell and
    # place together fit into 32, sorting is five times faster.
    narrow = (2**32 / places / batch.system_capacity) ** (1 / 3) >= _ENOUGH_CELLS
    most = (
        int((2 ** (32 if narrow else 31) / (places if narrow else 1) / batch.system_capacity) ** (1 / 3)) - 3
    )
    span = jnp.maximum(images.high - images.low, 0)
    inner = jnp.clip(jnp.floor(span / images.reach), 1, most)
    inner = jnp.where((batch.system_mask & ~one_cell)[None], inner, 1)
    width = jnp.maximum(span / inner, images.reach)
    dims = inner.astype(jnp.int32) + 2
    cells = jnp.where(batch.system_mask, jnp.prod(dims, axis=0, dtype=jnp.int32), 0)
    begin = jnp.cumsum(cells, dtype=jnp.int32) - cells

    def of(values: Array) -> Array:
        return values[jnp.minimum(owner, batch.system_capacity - 1)]

    border = (jnp.arange(places) < n).astype(jnp.int32)
    key = jnp.zeros(places, jnp.int32)
    for k, along in enumerate(along_lattice(batch, owner, images.inverse, extended)):
        at = jnp.floor((along - of(images.low[k])) / of(width[k])).astype(jnp.int32) + 1
        key = key * of(dims[k]) + jnp.clip(at, border, of(dims[k]) - 1 - border)
    real = jnp.concatenate([batch.atom_mask, jnp.arange(places - n) < images.total])
    none = jnp.iinfo(jnp.int32).max
    key = jnp.where(real, key + of(begin), none)
    number = jnp.arange(places, dtype=jnp.int32)
    if narrow:
        both = jnp.where(real, key, 2**32 // places - 1).astype(jnp.uint32) * places + number.astype(
            jnp.uint32
        )
        both = jnp.sort(both)
        order = (both % places).astype(jnp.int32)
        keys = jnp.where(real[order], key[order], none)
    else:
        keys, order = jax.lax.sort((key, number), num_keys=1, is_stable=True)
    # The atoms alone, in that order.
    is_atom = (order < n) & (keys < none)
    rank = jnp.where(is_atom, jnp.cumsum(is_atom, dtype=jnp.int32) - 1, n)
    own_order = jnp.full(n, n - 1, jnp.int32).at[rank].set(order, mode="drop", unique_indices=True)
    own_keys = jnp.full(n, none, jnp.int32).at[rank].set(keys, mode="drop", unique_indices=True)
    split = _split(own_keys, own_order, own_keys < none, groups)

    # Three cells in a row along the last vector are one run of the order.
    one = split.atoms[:, 0]
    b, c = (to_atoms(batch, dims[k])[jnp.maximum(one, 0)] for k in (1, 2))
    centre = key[jnp.maximum(one, 0)]
    across = jnp.arange(9, dtype=jnp.int32)[:, None]
    row = centre[None] + ((across // 3 - 1) * b[None] + across % 3 - 1) * c[None]
    start = jnp.searchsorted(keys, row - 1, side="left").astype(jnp.int32)
    stop = jnp.searchsorted(keys, row + 1, side="right").astype(jnp.int32)
    runs = _Runs(start, jnp.where(one[None] >= 0, stop - start, 0))
    return _filled(split, runs, order, candidates)


class _Split(NamedTuple):
    atoms: Array
    place: Array
    needed: Array


def _split(keys: Array, order: Array, real: Array, groups: int) -> _Split:
    """Atoms in an order by key, split where the key changes and after every ROWS atoms."""
    n = len(order)
    position = jnp.arange(n, dtype=jnp.int32)
    changes = jnp.concatenate([jnp.ones(1, bool), keys[1:] != keys[:-1]])
    begun = jax.lax.cummax(jnp.where(changes, position, 0))
    rank = (position - begun) % ROWS
    opens = (rank == 0) & real
    group = jnp.cumsum(opens, dtype=jnp.int32) - 1
    place = jnp.where(real & (group < groups), group * ROWS + rank, groups * ROWS)
    atoms = jnp.full(groups * ROWS, -1, jnp.int32).at[place].set(order, mode="drop", unique_indices=True)
    back = jnp.zeros(n, jnp.int32).at[jnp.where(real, order, n)].set(place, mode="drop")
    return _Split(atoms.reshape(groups, ROWS), jnp.minimum(back, groups * ROWS - 1), group[-1] + 1)


def _filled(split: _Split, runs: _Runs, order: Array | None, capacity: int) -> Groups:
    """Candidate by candidate from the runs."""
    number = jnp.arange(capacity, dtype=jnp.int32)[:, None]
    before = jnp.cumsum(runs.length, axis=0, dtype=jnp.int32) - runs.length
    place = number + runs.start[0][None]
    for k in range(1, len(runs.start)):
        place = jnp.where(number >= before[k][None], number + (runs.start[k] - before[k])[None], place)
    count = before[-1] + runs.length[-1]
    if order is not None:
        place = jnp.take(order, place, mode="clip")
    place = jnp.where(number < count[None], place, -1)
    return Groups(split.atoms, place, count, split.place, (count.max(), split.needed))
