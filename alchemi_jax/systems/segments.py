"""Reductions over the atoms of each system, and the way back from systems to atoms.

The atoms of a system are contiguous, so a system is a row of a rectangle [systems, atoms of the largest]. If
the rectangle has little padding, a gather into rows and a sum along them costs a third of a `segment_sum`.
Batches of very unequal systems use `segment_sum`.

Precision in float32: sums are made in blocks, within blocks first and then over blocks, so that the rounding
error of a sum over N atoms grows at most like that of sqrt(N) terms, not of N.
"""

from __future__ import annotations

import math
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Int, Shaped

from alchemi_jax.systems.fields import AbstractBatch
from alchemi_jax.systems.levels import Data


_BLOCK = 64
_PIECE = 32


def use_rows(batch: AbstractBatch) -> bool:
    """Whether the rectangle [systems, largest] has at most twice as many places as there are atoms. It
    depends on shapes only."""
    return batch.system_capacity * batch.largest <= 2 * batch.atom_capacity


def row_index(
    batch: AbstractBatch,
) -> tuple[Int[Array, "systems largest"], Bool[Array, "systems largest"]]:
    """Index of the atom at each place of the rectangle [systems, largest], and whether there is one."""
    place = jnp.arange(batch.largest, dtype=jnp.int32)
    valid = place[None] < batch.atoms_per_system[:, None]
    index = jnp.where(valid, batch.first_atom[:, None] + place[None], 0)
    return index, valid


def to_atoms(batch: AbstractBatch, values: Shaped[Data, "systems *dims"]) -> Shaped[Array, "atoms *dims"]:
    """The value of its system for each atom, [atoms, ...]. Padding atoms get that of the last system."""
    if use_rows(batch) and values.ndim <= 2 and jnp.issubdtype(values.dtype, jnp.inexact):
        # On a CPU XLA would fuse a sum over atoms into the gather and repeat it for each atom (60 % of the
        # time of LBFGS). A broadcast in between prevents that; only one of the two copies is read.
        doubled = jnp.broadcast_to(values[..., None], (*values.shape, 2))
        return jnp.take(doubled, batch.batch_idx, axis=0, mode="clip")[..., 0]
    return jnp.take(values, batch.batch_idx, axis=0, mode="clip")


def number_in_system(batch: AbstractBatch) -> Int[Array, " atoms"]:
    """Number of each atom in its system, from 0, [atoms]; undefined in padding."""
    return jnp.arange(batch.atom_capacity, dtype=jnp.int32) - to_atoms(batch, batch.first_atom)


def _rows(
    batch: AbstractBatch, values: Shaped[Data, "atoms *dims"], fill: Any
) -> Shaped[Array, "systems largest *dims"]:
    """Values of atoms as a rectangle of one row per system, with `fill` in its padding."""
    index, valid = row_index(batch)
    rows = jnp.take(values, index, axis=0, mode="clip")
    return jnp.where(valid.reshape(valid.shape + (1,) * (values.ndim - 1)), rows, fill)


def _blocked_sum(rows: Shaped[Array, "systems n *dims"]) -> Shaped[Array, "systems *dims"]:
    """Sum over axis 1, in blocks of at most _BLOCK terms; the barrier keeps XLA from merging the sums."""
    n = rows.shape[1]
    if n <= _BLOCK:
        return rows.sum(axis=1)
    blocks = -(-n // _BLOCK)
    pad = [(0, 0)] * rows.ndim
    pad[1] = (0, blocks * _BLOCK - n)
    rows = jnp.pad(rows, pad).reshape(rows.shape[0], blocks, _BLOCK, *rows.shape[2:])
    return _blocked_sum(jax.lax.optimization_barrier(rows.sum(axis=2)))


def sum_by_system(
    batch: AbstractBatch, values: Shaped[Data, "atoms *dims"]
) -> Shaped[Array, "systems *dims"]:
    """Sum over the atoms of each system, [systems, ...], without padding."""
    if use_rows(batch):
        return _blocked_sum(_rows(batch, values, jnp.zeros((), values.dtype)))
    # Sums over blocks of at most _BLOCK atoms of one system, then over the blocks of each system.
    systems = batch.system_capacity
    blocks = batch.atom_capacity // _BLOCK + systems
    per_system = -(-batch.atoms_per_system // _BLOCK)
    first = jnp.cumsum(per_system, dtype=jnp.int32) - per_system
    local = number_in_system(batch)
    block = jnp.where(batch.atom_mask, to_atoms(batch, first) + local // _BLOCK, blocks)
    partial = jax.ops.segment_sum(values, block, blocks, indices_are_sorted=True)
    system = jnp.repeat(jnp.arange(systems, dtype=jnp.int32), per_system, total_repeat_length=blocks)
    system = jnp.where(jnp.arange(blocks) < per_system.sum(), system, systems)
    return jax.ops.segment_sum(partial, system, systems, indices_are_sorted=True)


def max_by_system(
    batch: AbstractBatch, values: Shaped[Data, " atoms"], empty: float | int = 0.0
) -> Shaped[Array, " systems"]:
    """Largest value among the atoms of each system, [systems]; `empty` for a system without atoms."""
    low = jnp.asarray(empty, values.dtype)
    if use_rows(batch):
        return largest_of(_rows(batch, values, low))
    index = jnp.where(batch.atom_mask, batch.batch_idx, batch.system_capacity)
    found = jax.ops.segment_max(values, index, batch.system_capacity, indices_are_sorted=True)
    return jnp.where(batch.system_mask, found, low)


def largest_of(values: Shaped[Array, "*dims n"]) -> Shaped[Array, "*dims"]:
    """The maximum over the last axis.

    On a CPU XLA makes one kernel of a reduction over at most 32 numbers, and several of a longer one, each of
    which takes longer to compile than to run. So the axis is split into pieces.
    """
    n, pieces = values.shape[-1], ()
    while n > _PIECE:
        n, pieces = -(-n // _PIECE), (_PIECE, *pieces)
    if not pieces:
        return values.max(axis=-1)
    inexact = jnp.issubdtype(values.dtype, jnp.inexact)
    least = jnp.array(-jnp.inf if inexact else -jnp.iinfo(values.dtype).max, values.dtype)
    filling = [(0, 0, 0)] * (values.ndim - 1) + [(0, n * math.prod(pieces) - values.shape[-1], 0)]
    rows = jax.lax.pad(values, least, filling).reshape(*values.shape[:-1], n, *pieces)
    # A maximum and a minimum: XLA would merge two reductions of the same kind.
    return -jnp.min(-rows.max(axis=range(-len(pieces), 0)), axis=-1)


def any_of(values: Bool[Array, " n"]) -> Bool[Array, ""]:
    """Whether any value is True."""
    return largest_of(values.astype(jnp.int32)) > 0


def any_by_system(batch: AbstractBatch, values: Shaped[Data, " atoms"]) -> Shaped[Array, " systems"]:
    """Whether the value of any atom of each system is True, [systems]."""
    return max_by_system(batch, values.astype(jnp.int32), 0) > 0


__all__ = [
    "any_by_system",
    "any_of",
    "largest_of",
    "max_by_system",
    "number_in_system",
    "row_index",
    "sum_by_system",
    "to_atoms",
    "use_rows",
]
