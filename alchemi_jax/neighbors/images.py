"""Which periodic images matter: those near the box that holds a system's wrapped atoms.

Along each lattice vector the shifts that bring an atom within reach of the box are a range of
integers, so the images of an atom are the box of three ranges without the zero shift. They are
numbered by arithmetic; nothing is searched.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from alchemi_jax.batch import Batch
from alchemi_jax.neighbors.geometry import face_distances, inverse, working_cell
from alchemi_jax.segments import max_by_system, to_atoms


_MOST = 1 << 24
"""What is needed is counted in floats beyond this, so that a collapsed cell cannot overflow integers."""


class Images(NamedTuple):
    """Images of all systems, one system after another, atom by atom."""

    wrapped: Int[Array, "atoms 3"]
    """Lattice shift to be taken off each atom, so that it lies in the cell."""
    source: Int[Array, " images"]
    shift: Int[Array, "images 3"]
    """Relative to the raw position of the source."""
    first: Int[Array, " systems"]
    count: Int[Array, " systems"]
    total: Int[Array, ""]
    low: Float[Array, "systems 3"]
    """Least coordinate of a wrapped atom along each lattice vector."""
    high: Float[Array, "systems 3"]
    reach: Float[Array, "systems 3"]
    """Reach along each lattice vector, with a margin."""
    inverse: Float[Array, "systems 3 3"]


def find_images(
    batch: Batch, positions: Float[Array, "atoms 3"], cell: Array, reach: float, capacity: int
) -> Images:
    """Images within `reach` (Å) of the box, along the lattice vectors, that holds the wrapped atoms."""
    n = batch.atom_capacity
    inv = jax.vmap(inverse)(jax.vmap(working_cell)(cell, batch.pbc))
    fractional = jnp.einsum("na,nab->nb", positions, to_atoms(batch, inv))
    pbc = to_atoms(batch, batch.pbc) & batch.atom_mask[:, None]
    wrapped = jnp.where(pbc, jnp.floor(fractional), 0)
    inside = fractional - wrapped

    # A little more than reach: what rounding puts on the wrong side only costs an image.
    margin = reach / jax.vmap(face_distances)(inv) * (1 + 1e-4) + 1e-4
    high = jnp.stack([max_by_system(batch, inside[:, k], -jnp.inf) for k in range(3)], -1)
    low = -jnp.stack([max_by_system(batch, -inside[:, k], -jnp.inf) for k in range(3)], -1)
    least = jnp.where(pbc, jnp.ceil(to_atoms(batch, low - margin) - inside), 0)
    most = jnp.where(pbc, jnp.floor(to_atoms(batch, high + margin) - inside), 0)
    width = most - least + 1
    product = jnp.prod(width, axis=-1) - 1
    count = jnp.minimum(product, _MOST).astype(jnp.int32)
    total = jnp.where(product.sum() < _MOST, count.sum(dtype=jnp.int32), _MOST)

    end = jnp.cumsum(count, dtype=jnp.int32)
    start = end - count
    m = jnp.arange(capacity, dtype=jnp.int32)
    source = jnp.repeat(jnp.arange(n, dtype=jnp.int32), count, total_repeat_length=capacity)
    least, width = least.astype(jnp.int32), width.astype(jnp.int32)
    zero = (-least[:, 0] * width[:, 1] - least[:, 1]) * width[:, 2] - least[:, 2]
    number = m - start[source]
    number = number + (number >= zero[source])
    b, c = width[source, 1], width[source, 2]
    row, column = number // c, number % c
    shift = jnp.stack([row // b, row % b, column], axis=-1) + (least - wrapped.astype(jnp.int32))[source]
    shift = jnp.where((m < total)[:, None], shift, 0)

    starts = jnp.concatenate([jnp.zeros(1, jnp.int32), end])
    first = starts[jnp.clip(batch.first_atom, 0, n)]
    last = starts[jnp.clip(batch.first_atom + batch.atoms_per_system, 0, n)]
    return Images(
        wrapped.astype(jnp.int32), source, shift, first, last - first, total, low, high, margin, inv
    )
