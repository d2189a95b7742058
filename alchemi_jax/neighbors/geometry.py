"""Lattice geometry of one system: a working cell, wrapping, face distances."""

import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int


def _unit(v: Array) -> Array:
    return v / jnp.linalg.norm(v)


def working_cell(cell: Float[Array, "3 3"], pbc: Bool[Array, " 3"]) -> Float[Array, "3 3"]:
    """The cell with every vector along which the system is not periodic replaced by a unit vector
    normal to the others, so that it can be inverted whatever the user left there (often zeros)."""
    periodic = pbc.sum()
    # One periodic vector: an orthonormal pair normal to it, built from the axis it is least along.
    vector = jnp.where(pbc[:, None], cell, 0).sum(axis=0)
    axis = jnp.eye(3, dtype=cell.dtype)[jnp.argmin(jnp.abs(vector))]
    u = _unit(jnp.cross(jnp.where(periodic == 1, vector, jnp.roll(axis, 1)), axis))
    w = _unit(jnp.cross(jnp.where(periodic == 1, vector, axis), u))
    rows = []
    for k in range(3):
        a, b = (k + 1) % 3, (k + 2) % 3
        normal = jnp.cross(cell[a], cell[b])
        normal = normal / jnp.maximum(jnp.linalg.norm(normal), jnp.finfo(cell.dtype).tiny)
        lone = jnp.where(pbc[b], u, w)
        free = jnp.eye(3, dtype=cell.dtype)[k]
        other = jnp.where(periodic == 2, normal, jnp.where(periodic == 1, lone, free))
        rows.append(jnp.where(pbc[k], cell[k], other))
    return jnp.stack(rows)


def inverse(cell: Float[Array, "3 3"]) -> Float[Array, "3 3"]:
    """Inverse by cross products: as accurate as the cell's shape allows, no LAPACK call."""
    a, b, c = cell
    columns = jnp.stack([jnp.cross(b, c), jnp.cross(c, a), jnp.cross(a, b)], axis=-1)
    return columns / jnp.dot(a, columns[:, 0])


def entries_of(matrices: Float[Array, "systems 3 3"], system: Int[Array, " n"]) -> list[list[Array]]:
    """Entries [a][k] of some systems' matrices, each [n]: one gather for all nine."""
    nine = matrices.reshape(-1, 9).T[:, system]
    return [[nine[3 * a + k] for k in range(3)] for a in range(3)]


def face_distances(cell_inverse: Float[Array, "3 3"]) -> Float[Array, " 3"]:
    """Distance between opposite faces of the cell along each lattice vector, Å."""
    return 1.0 / jnp.linalg.norm(cell_inverse, axis=0)
