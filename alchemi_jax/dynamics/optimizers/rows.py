"""Vectors of atoms as one row per system, for algorithms that treat each system as a whole."""

import jax.numpy as jnp
from jaxtyping import Array, Float

from alchemi_jax.systems.batch import Batch
from alchemi_jax.systems.segments import number_in_system, row_index


def to_rows(batch: Batch, values: Float[Array, "atoms 3"]) -> Float[Array, "systems largest 3"]:
    """[atoms, 3] as [systems, largest, 3], zero where a system has fewer atoms."""
    index, valid = row_index(batch)
    return jnp.where(valid[:, :, None], jnp.take(values, index, axis=0, mode="clip"), 0)


def from_rows(batch: Batch, rows: Float[Array, "systems largest 3"]) -> Float[Array, "atoms 3"]:
    """The inverse of `to_rows`, zero for padding atoms."""
    local = number_in_system(batch)
    flat = jnp.minimum(batch.batch_idx, batch.system_capacity - 1) * batch.largest + local
    values = jnp.take(rows.reshape(-1, 3), flat, axis=0, mode="clip")
    return jnp.where(batch.atom_mask[:, None], values, 0)


__all__ = ["from_rows", "to_rows"]
