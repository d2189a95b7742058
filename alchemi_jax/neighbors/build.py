"""Build a neighbor list on the device: images, then groups, then hits, then slots."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from alchemi_jax.neighbors.edge_upkeep import no_edges
from alchemi_jax.neighbors.geometry import gather_columns, inverse, working_cell
from alchemi_jax.neighbors.groups import brute_force, cell_list
from alchemi_jax.neighbors.images import find_images, no_images
from alchemi_jax.neighbors.list import ALL_PAIRS, ListSizes, NeighborList, lattice_offset
from alchemi_jax.neighbors.pairs import list_pairs
from alchemi_jax.neighbors.requirements import Requirements
from alchemi_jax.neighbors.sizes import grow
from alchemi_jax.neighbors.warp import find_pairs
from alchemi_jax.systems.batch import Batch
from alchemi_jax.systems.segments import any_by_system, largest_of, to_atoms
from alchemi_jax.transforms import is_traced


def empty_list(
    batch: Batch,
    cutoff: float,
    skin: float,
    sizes: ListSizes,
    requirements: Requirements | None = None,
) -> NeighborList:
    """A list of these capacities in which every system is due, so that the next `update` builds it."""
    return _empty(
        sizes,
        cutoff,
        skin,
        requirements or Requirements(cutoff, skin, edges=sizes.edges > 0),
        ref_positions=jnp.asarray(batch.positions),
        ref_cell=jnp.asarray(batch.cell),
        ref_pbc=jnp.asarray(batch.pbc),
        ref_id=np.full(batch.system_capacity, -2, np.int32),
    )


def enlarge(neighbors: NeighborList, needs: Int[np.ndarray, " sizes"]) -> NeighborList:
    """The list with capacities for `needs`, [sizes], not built yet. On the host; compiles nothing.

    The next `update` builds it from the same references, so that systems that are not due have the same sums
    as before, bit for bit.
    """
    return resized(neighbors, grow(neighbors.sizes, needs))


def resized(neighbors: NeighborList, sizes: ListSizes) -> NeighborList:
    """The list with other capacities and the same references, not built yet."""
    names = ("ref_positions", "ref_cell", "ref_inverse", "ref_pbc", "ref_id", "builds")
    arrays = {name: getattr(neighbors, name) for name in names}
    return _empty(sizes, neighbors.cutoff, neighbors.skin, neighbors.requirements, **arrays)


def _empty(
    sizes: ListSizes, cutoff: float, skin: float, requirements: Requirements, **kept: Any
) -> NeighborList:
    """An empty list. New arrays are made with numpy, so that nothing is compiled to make them."""
    n, s, dtype = kept["ref_positions"].shape[0], kept["ref_cell"].shape[0], kept["ref_cell"].dtype
    places = n + sizes.images
    fields = {
        "index": np.full((sizes.neighbors, n), places, np.int32),
        "used": np.zeros((), np.int32),
        "source": np.zeros(sizes.images, np.int32),
        "shift": np.zeros((3, places), dtype),
        "offset": np.zeros((3, places), dtype),
        "ref_inverse": np.zeros((s, 3, 3), dtype),
        "offset_cell": kept["ref_cell"],
        "complete": np.zeros(s, bool),
        "needs": np.zeros(len(dataclasses.fields(ListSizes)), np.int32),
        "overflow": np.zeros((), bool),
        "builds": np.zeros((), np.int32),
        "built": np.zeros((), bool),
    }
    fields |= kept
    # Put on the device in one call: one array after another takes ten times as long.
    traced = is_traced(kept)
    fields = {name: jnp.asarray(x) for name, x in fields.items()} if traced else jax.device_put(fields)
    static: dict[str, Any] = {"cutoff": cutoff, "skin": skin, "sizes": sizes, "requirements": requirements}
    return NeighborList(**fields, **no_edges(n, dtype, sizes, requirements), **static)


def _near_origin(
    batch: Batch, extended: Float[Array, "3 places"], owner: Int[Array, " places"]
) -> Float[Array, "3 places"]:
    """Coordinates relative to the first atom of each system: what follows is in single precision.

    Positions of single precision are not large enough to need it.
    """
    if extended.dtype.itemsize < 8:
        return extended
    last = batch.system_capacity - 1
    base = gather_columns(extended, jnp.minimum(batch.first_atom, batch.atom_capacity - 1))
    return extended - gather_columns(base, jnp.minimum(owner, last))


def build(batch: Batch, neighbors: NeighborList, stale: Bool[Array, " systems"]) -> NeighborList:
    """The list from the present positions of stale systems and the reference positions of the others."""
    stale_atom = to_atoms(batch, stale)[:, None]
    positions = jnp.where(stale_atom, batch.positions, neighbors.ref_positions)
    # Positions that are not finite show in the energy. Here they must not affect other atoms.
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
        near = _near_origin(batch, extended, owner)
        index, found = list_pairs(near, groups, reaches, sizes.neighbors, batch.atom_mask, far)
        needs = [largest_of(found), images.total, *groups.needs]

    missing = any_by_system(batch, found < to_atoms(batch, batch.atoms_per_system) - 1)
    # Edges are counted by `update`, at the present positions.
    later = len(dataclasses.fields(ListSizes)) - len(needs)
    needs = jnp.stack([*needs, *[jnp.zeros((), jnp.int32)] * later])
    used = jnp.minimum(needs[0], sizes.neighbors)
    # If the list is built twice before the host reads `needs`, the larger needs of both are reported.
    needs = jnp.where(neighbors.overflow, jnp.maximum(needs, neighbors.needs), needs)
    available = jnp.array(dataclasses.astuple(sizes), jnp.int32)
    return dataclasses.replace(
        neighbors,
        index=index,
        used=used,
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
        overflow=neighbors.overflow | jnp.any(needs > available),
        builds=neighbors.builds + 1,
        built=jnp.ones((), bool),
    )


__all__ = ["build", "empty_list", "enlarge", "resized"]
