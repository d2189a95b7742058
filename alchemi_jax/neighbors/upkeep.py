"""Keep a neighbor list up to date: when it is due, system by system, and what is renewed then."""

import dataclasses
import functools
import operator
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Shaped

from alchemi_jax.neighbors.build import build
from alchemi_jax.neighbors.edge_upkeep import renew_edges
from alchemi_jax.neighbors.geometry import times_matrices
from alchemi_jax.neighbors.list import NeighborList, lattice_offset, owners
from alchemi_jax.systems.batch import Batch
from alchemi_jax.systems.segments import any_of, max_by_system
from alchemi_jax.transforms import cond_any


def due(batch: Batch, neighbors: NeighborList) -> Bool[Array, " systems"]:
    """Systems whose list may miss a pair, [systems].

    With deformation F = 1 + E since the list was built, and u the largest displacement beyond it, a pair that
    was left out is now at least (1 - |E|)(cutoff + skin) - 2u apart. Displacements are not wrapped: if an
    atom was moved by a lattice vector, its shifts changed and the list is due.
    """
    moved, size = batch.positions - neighbors.ref_positions, jnp.zeros((), batch.dtype)
    if neighbors.sizes.periodic:
        moved, size = _subtract_strain(batch, neighbors, moved)
    x, y, z = moved[:, 0], moved[:, 1], moved[:, 2]
    furthest = jnp.sqrt(max_by_system(batch, x * x + y * y + z * z))
    reach = neighbors.cutoff + neighbors.skin
    used_up = (1 - size) * reach - 2 * furthest < neighbors.cutoff
    # Positions that are not finite do not make the list due: the energy shows them.
    lost = ~jnp.isfinite(furthest)
    fresh = (batch.system_id != neighbors.ref_id) | _differ(batch.pbc, neighbors.ref_pbc)
    return batch.system_mask & (fresh | (~neighbors.complete & (used_up & ~lost)))


def _subtract_strain(
    batch: Batch, neighbors: NeighborList, moved: Float[Array, "atoms 3"]
) -> tuple[Float[Array, "atoms 3"], Float[Array, " systems"]]:
    """Displacements without those that follow the strain E of the cell since the list was built, and |E|."""
    change = jnp.where(batch.pbc[:, :, None], batch.cell - neighbors.ref_cell, 0)
    inv = neighbors.ref_inverse
    strain = inv[:, :, :1] * change[:, :1] + inv[:, :, 1:2] * change[:, 1:2] + inv[:, :, 2:] * change[:, 2:]
    size = jnp.sqrt(jnp.sum(strain**2, axis=(1, 2)))
    return moved - times_matrices(neighbors.ref_positions.T, strain, batch.batch_idx).T, size


def offsets_outdated(batch: Batch, neighbors: NeighborList) -> Bool[Array, ""]:
    """Whether the offsets of images belong to another cell than the present one, a bool."""
    if not neighbors.sizes.periodic:
        return jnp.zeros((), bool)
    return any_of(_differ(batch.cell, neighbors.offset_cell))


def _differ(a: Shaped[Array, "systems *dims"], b: Shaped[Array, "systems *dims"]) -> Bool[Array, " systems"]:
    """Rows in which two arrays differ; elementwise, so that XLA makes no kernel for it."""
    different = (a != b).reshape(len(a), -1)
    return functools.reduce(operator.or_, (different[:, k] for k in range(different.shape[1])))


def may_be_due(batch: Batch, neighbors: NeighborList) -> Bool[Array, ""]:
    """Whether `due` may be true for any system: a cheap check, one pass over the atoms without sums by
    system."""
    moved = batch.positions - neighbors.ref_positions
    x, y, z = moved[:, 0], moved[:, 1], moved[:, 2]
    # A little early, so that rounding cannot make it late.
    far = any_of(x * x + y * y + z * z > (0.49999 * neighbors.skin) ** 2)
    if neighbors.sizes.periodic:
        far |= _differ(batch.cell, neighbors.ref_cell)
    fresh = (batch.system_id != neighbors.ref_id) | _differ(batch.pbc, neighbors.ref_pbc)
    return any_of(batch.system_mask & (fresh | (~neighbors.complete & far)))


def update(batch: Batch, neighbors: NeighborList) -> NeighborList:
    """The neighbor list for the present positions: built again if it is due, with new offsets if a cell
    changed. If a capacity is too small, `overflow` is set.

    Pure, for jit and vmap. It has no derivative; models differentiate `pair_vectors` and
    `extended_positions`.
    """
    batch, neighbors = jax.lax.stop_gradient((batch, neighbors))

    def rebuild(operands: Any) -> NeighborList:
        return build(*operands)

    def ask(operands: Any) -> NeighborList:
        batch, neighbors = operands
        stale = due(batch, neighbors)
        return cond_any(any_of(stale) | ~neighbors.built, rebuild, lambda o: o[1], (batch, neighbors, stale))

    ask_now = may_be_due(batch, neighbors) | ~neighbors.built
    neighbors = cond_any(ask_now, ask, lambda o: o[1], (batch, neighbors))
    if neighbors.sizes.periodic:
        outdated = offsets_outdated(batch, neighbors)
        neighbors = cond_any(outdated, _renew_offsets, lambda o: o[1], (batch, neighbors))
    return neighbors if neighbors.edges is None else renew_edges(batch, neighbors)


def _renew_offsets(operands: tuple[Batch, NeighborList]) -> NeighborList:
    batch, neighbors = operands
    offset = lattice_offset(neighbors.shift, batch.cell, owners(batch, neighbors))
    return dataclasses.replace(neighbors, offset=offset, offset_cell=batch.cell)


__all__ = ["due", "may_be_due", "offsets_outdated", "update"]
