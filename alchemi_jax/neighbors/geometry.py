"""Lattice geometry: a working cell, wrapping, face distances.

Functions take one system or many at once. Cross products gather all factors first: XLA makes a kernel of
each concatenation, and compiling a kernel costs more than running it.
"""

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int, Shaped


_NEXT, _LAST = np.array([1, 2, 0]), np.array([2, 0, 1])
#: 32 bits: JAX remembers constants by identity, so that one of 64 bits breaks where x64 is switched on later.
_ENTRIES = np.arange(9, dtype=np.int32).reshape(3, 3)
#: Entries of a matrix that are factors in the cross products of two of its rows, [4, row, 3].
_FACTORS = np.stack(
    [_ENTRIES[np.ix_(a, b)] for a, b in ((_NEXT, _NEXT), (_LAST, _LAST), (_NEXT, _LAST), (_LAST, _NEXT))]
)


def _sum3(v: Shaped[Array, "*n 3"]) -> Shaped[Array, "*n"]:
    """Sum over the last axis, elementwise, so that XLA fuses it with what reads it."""
    return v[..., 0] + v[..., 1] + v[..., 2]


def _cross_rows(
    cell: Float[Array, "*systems 3 3"], factors: Int[np.ndarray, "4 3 3"]
) -> Float[Array, "*systems 3 3"]:
    f = cell.reshape(*cell.shape[:-2], 9)[..., factors]
    return f[..., 0, :, :] * f[..., 1, :, :] - f[..., 2, :, :] * f[..., 3, :, :]


def working_cell(
    cell: Float[Array, "*systems 3 3"], pbc: Bool[Array, "*systems 3"]
) -> Float[Array, "*systems 3 3"]:
    """The cell with a unit vector, normal to the others, along each direction that is not periodic.

    It can be inverted whatever vectors the user gave for these directions (often zeros).
    """
    tiny = jnp.finfo(cell.dtype).tiny
    # With one periodic vector v, a reflection that maps its axis to v maps the other axes to normals of v.
    # Without a periodic vector nothing is reflected: the vectors are the axes.
    own = jnp.where(pbc[..., None], cell, 0)
    vector = own[..., 0, :] + own[..., 1, :] + own[..., 2, :]
    length = jnp.sqrt(_sum3(vector * vector))
    along = _sum3(jnp.where(pbc, vector, 0))
    mirror = vector + jnp.where(pbc, jnp.where(along < 0, -length, length)[..., None], 0)
    part = mirror / jnp.maximum(length * (length + abs(along)), tiny)[..., None]
    eye = jnp.broadcast_to(jnp.eye(3, dtype=cell.dtype), cell.shape)
    reflected = eye - part[..., :, None] * mirror[..., None, :]
    normal = _cross_rows(cell, _FACTORS)
    normal = normal / jnp.maximum(jnp.sqrt(_sum3(normal * normal)), tiny)[..., None]
    two = _sum3(pbc.astype(jnp.int32)) == 2
    return jnp.where(pbc[..., None], cell, jnp.where(two[..., None, None], normal, reflected))


def inverse(cell: Float[Array, "*systems 3 3"]) -> Float[Array, "*systems 3 3"]:
    """Inverse by cross products: as accurate as the cell's shape allows, no LAPACK call."""
    columns = _cross_rows(cell, _FACTORS.swapaxes(1, 2))
    return columns / _sum3(cell[..., 0, :] * columns[..., 0])[..., None, None]


def face_distances(cell_inverse: Float[Array, "*systems 3 3"]) -> Float[Array, "*systems 3"]:
    """Distance between opposite faces of the cell along each lattice vector, Å."""
    s = cell_inverse * cell_inverse
    return 1.0 / jnp.sqrt(s[..., 0, :] + s[..., 1, :] + s[..., 2, :])


def gather_columns(values: Shaped[Array, "k n"], index: Int[Array, "*m"]) -> Shaped[Array, "k *m"]:
    """`values[:, index]`, gathered number by number: XLA would gather columns, then transpose and slice."""
    k, n = values.shape
    row = n * jnp.arange(k, dtype=jnp.int32).reshape(k, *(1,) * index.ndim)
    return values.reshape(-1).at[row + index[None]].get(mode="promise_in_bounds", wrap_negative_indices=False)


def times_matrices(
    vectors: Float[Array, "3 n"], matrices: Float[Array, "systems 3 3"], system: Int[Array, " n"]
) -> Float[Array, "3 n"]:
    """Row vectors, one row per coordinate, times the matrix of their system; padding takes the last one."""
    rows = jnp.take(matrices.reshape(-1, 9), system, axis=0, mode="clip").T.reshape(3, 3, -1)
    return vectors[:1] * rows[0] + vectors[1:2] * rows[1] + vectors[2:] * rows[2]


__all__ = ["face_distances", "gather_columns", "inverse", "times_matrices", "working_cell"]
