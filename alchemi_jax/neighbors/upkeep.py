"""Keeping a neighbor list up to date: when it is due, system by system, and what is renewed then."""

import dataclasses
import functools
import operator
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool

from alchemi_jax.neighbors.build import build
from alchemi_jax.neighbors.geometry import times_matrices
from alchemi_jax.neighbors.list import NeighborList, lattice_offset, owners
from alchemi_jax.systems.batch import Batch
from alchemi_jax.systems.segments import any_of, max_by_system
from alchemi_jax.transforms import cond_any


def due(batch: Batch, neighbors: NeighborList) -> Bool[Array, " systems"]:
    """Systems whose list may miss a pair.

    With deformation F = 1 + E since the last building and u the largest displacement beyond it, a
    pair that was left out is now at least (1 - |E|)(cutoff + skin) - 2u apart. Displacements are
    raw: a wrapped atom asks for a new list because its shifts changed.
    """
    moved, size = batch.positions - neighbors.ref_positions, jnp.zeros((), batch.dtype)
    if neighbors.sizes.periodic:
        moved, size = _strained(batch, neighbors, moved)
    x, y, z = moved[:, 0], moved[:, 1], moved[:, 2]
    furthest = jnp.sqrt(max_by_system(batch, x * x + y * y + z * z))
    reach = neighbors.cutoff + neighbors.skin
    used_up = (1 - size) * reach - 2 * furthest < neighbors.cutoff
    # A position that is not finite must not pass for one that has not moved.
    lost = ~jnp.isfinite(furthest)
    fresh = (batch.system_id != neighbors.ref_id) | _differ(batch.pbc, neighbors.ref_pbc)
    return batch.system_mask & (fresh | (~neighbors.complete & (used_up & ~lost)))


def _strained(batch: Batch, neighbors: NeighborList, moved: Array) -> tuple[Array, Array]:
    """Displacements beyond those that follow the strain of the cell since the last building, and |E|."""
    change = jnp.where(batch.pbc[:, :, None], batch.cell - neighbors.ref_cell, 0)
    inv = neighbors.ref_inverse
    strain = inv[:, :, :1] * change[:, :1] + inv[:, :, 1:2] * change[:, 1:2] + inv[:, :, 2:] * change[:, 2:]
    size = jnp.sqrt(jnp.sum(strain**2, axis=(1, 2)))
    return moved - times_matrices(neighbors.ref_positions.T, strain, batch.batch_idx).T, size


def offsets_outdated(batch: Batch, neighbors: NeighborList) -> Bool[Array, ""]:
    """Whether the offsets of images are those of another cell."""
    if not neighbors.sizes.periodic:
        return jnp.zeros((), bool)
    return any_of(_differ(batch.cell, neighbors.offset_cell))


def _differ(a: Array, b: Array) -> Bool[Array, " systems"]:
    """Where rows of two arrays differ: elementwise, hence no kernel of its own."""
    different = (a != b).reshape(len(a), -1)
    return functools.reduce(operator.or_, (different[:, k] for k in range(different.shape[1])))


def may_be_due(batch: Batch, neighbors: NeighborList) -> Bool[Array, ""]:
    """Whether `due` needs to be asked: one pass over the atoms, without sorting them by system."""
    moved = batch.positions - neighbors.ref_positions
    x, y, z = moved[:, 0], moved[:, 1], moved[:, 2]
    # A little early, so that rounding cannot make it late.
    far = any_of(x * x + y * y + z * z > (0.49999 * neighbors.skin) ** 2)
    if neighbors.sizes.periodic:
        far |= _differ(batch.cell, neighbors.ref_cell)
    fresh = (batch.system_id != neighbors.ref_id) | _differ(batch.pbc, neighbors.ref_pbc)
    return any_of(batch.system_mask & (fresh | (~neighbors.complete & far)))


def update(batch: Batch, neighbors: NeighborList) -> NeighborList:
    """The list brought up to date: built anew where due, offsets renewed where a cell changed.

    Nothing of it is differentiated: gradients go through the positions and the cell that
    `extended_positions` puts together.
    """
    batch, neighbors = jax.lax.stop_gradient((batch, neighbors))

    def rebuild(operands: Any) -> NeighborList:
        return build(*operands)

    def ask(operands: Any) -> NeighborList:
        batch, neighbors = operands
        stale = due(batch, neighbors)
        return cond_any(any_of(stale) | ~neighbors.built, rebuild, lambda o: o[1], (batch, neighbors, stale))

    neighbors = cond_any(
        may_be_due(batch, neighbors) | ~neighbors.built, ask, lambda o: o[1], (batch, neighbors)
    )
    if not neighbors.sizes.periodic:
        return neighbors

    def renew(operands: Any) -> NeighborList:
        batch, neighbors = operands
        offset = lattice_offset(neighbors.shift, batch.cell, owners(batch, neighbors))
        return dataclasses.replace(neighbors, offset=offset, offset_cell=batch.cell)

    return cond_any(
        offsets_outdated(batch, neighbors),
        renew,
        lambda operands: operands[1],
        (batch, neighbors),
    )
