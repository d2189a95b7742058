"""Building a neighbor list on the device: images, groups, hits, slots."""

import dataclasses

import jax.numpy as jnp
from jaxtyping import Array, Bool

from alchemi_jax.batch import Batch
from alchemi_jax.neighbors.geometry import gather_columns, inverse, working_cell
from alchemi_jax.neighbors.groups import brute_force, cell_list
from alchemi_jax.neighbors.images import find_images, no_images
from alchemi_jax.neighbors.list import ALL_PAIRS, ListSizes, NeighborList, lattice_offset
from alchemi_jax.neighbors.pairs import find_hits, list_hits
from alchemi_jax.neighbors.warp import find_pairs
from alchemi_jax.segments import any_by_system, largest_of, to_atoms


def empty_list(batch: Batch, cutoff: float, skin: float, sizes: ListSizes) -> NeighborList:
    """A list of the right shapes in which every system is due."""
    n, s = batch.atom_capacity, batch.system_capacity
    places = n + sizes.images
    false = jnp.zeros((), bool)
    zero = jnp.zeros((), jnp.int32)
    return NeighborList(
        index=jnp.full((sizes.neighbors, n), places, jnp.int32),
        used=zero,
        source=jnp.zeros(sizes.images, jnp.int32),
        shift=jnp.zeros((3, places), batch.dtype),
        offset=jnp.zeros((3, places), batch.dtype),
        ref_positions=jnp.asarray(batch.positions),
        ref_cell=jnp.asarray(batch.cell),
        ref_inverse=jnp.zeros_like(batch.cell),
        offset_cell=jnp.asarray(batch.cell),
        ref_pbc=jnp.asarray(batch.pbc),
        ref_id=jnp.full(s, -2, jnp.int32),
        complete=jnp.zeros(s, bool),
        needs=jnp.zeros(4, jnp.int32),
        overflow=false,
        builds=zero,
        cutoff=cutoff,
        skin=skin,
        sizes=sizes,
    )


def build(batch: Batch, neighbors: NeighborList, stale: Bool[Array, " systems"]) -> NeighborList:
    """The list from the present positions of stale systems and the references of the others."""
    stale_atom = to_atoms(batch, stale)[:, None]
    positions = jnp.where(stale_atom, batch.positions, neighbors.ref_positions)
    # What is not finite is flagged by the energy; here it only must not spread.
    safe = jnp.where(jnp.isfinite(positions), positions, 0).T
    cell = jnp.where(stale[:, None, None], batch.cell, neighbors.ref_cell)
    sizes, reach = neighbors.sizes, neighbors.cutoff + neighbors.skin
    far = batch.atom_capacity + sizes.images

    if sizes.periodic:
        inv = inverse(working_cell(cell, batch.pbc))
        images = find_images(batch, safe, inv, reach, sizes.images)
        source, shift = images.source, images.shift
        owner = jnp.concatenate([batch.batch_idx, batch.batch_idx[source]])
        offset = lattice_offset(shift, cell, owner)
        extended = jnp.concatenate([safe, gather_columns(safe, source)], axis=1) + offset
    else:
        images = no_images(batch, safe, reach)
        source, owner, extended = neighbors.source, batch.batch_idx, safe
        shift, offset, inv = neighbors.shift, neighbors.offset, neighbors.ref_inverse

    free = ~(batch.pbc[:, 0] | batch.pbc[:, 1] | batch.pbc[:, 2])
    if sizes.builder == "warp":
        wrapped = extended[:, : batch.atom_capacity].T
        index, found, tried = find_pairs(batch, wrapped, cell, images, reach, sizes)
        needs = [largest_of(found), images.total, tried, jnp.array(sizes.groups, jnp.int32)]
    else:
        everyone = free & (batch.atoms_per_system <= ALL_PAIRS)
        if sizes.builder == "cell list":
            groups = cell_list(batch, images, extended, owner, everyone, sizes.groups, sizes.candidates)
        else:
            groups = brute_force(batch, images, sizes.candidates)
        reaches = jnp.where(everyone, jnp.inf, reach).astype(batch.dtype)
        reaches = jnp.take(reaches, batch.batch_idx[groups.atoms[:, 0]], mode="clip")
        index, found = list_hits(
            find_hits(extended, groups, reaches), groups, sizes.neighbors, batch.atom_mask, far
        )
        needs = [largest_of(found), images.total, *groups.needs]

    missing = any_by_system(batch, found < to_atoms(batch, batch.atoms_per_system) - 1)
    needs = jnp.stack(needs)
    held = jnp.array(dataclasses.astuple(sizes), jnp.int32)
    return dataclasses.replace(
        neighbors,
        index=index,
        used=jnp.minimum(needs[0], sizes.neighbors),
        source=source,
        shift=shift,
        offset=offset,
        ref_positions=positions,
        ref_cell=cell,
        ref_inverse=inv,
        offset_cell=cell,
        ref_pbc=batch.pbc,
        ref_id=batch.system_id,
        complete=free & ~missing,
        needs=needs,
        overflow=neighbors.overflow | jnp.any(needs > held),
        builds=neighbors.builds + 1,
    )


def resized(batch: Batch, neighbors: NeighborList, sizes: ListSizes) -> NeighborList:
    """The same list with other capacities. It is a function of its references, so that systems whose
    list is not due get the very same sums as before."""
    fresh = empty_list(batch, neighbors.cutoff, neighbors.skin, sizes)
    kept = ("ref_positions", "ref_cell", "ref_pbc", "ref_id", "builds")
    fresh = dataclasses.replace(fresh, **{name: getattr(neighbors, name) for name in kept})
    return build(batch, fresh, (fresh.ref_id != batch.system_id) & batch.system_mask)
