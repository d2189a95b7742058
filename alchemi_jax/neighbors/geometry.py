"""Lattice geometry: a working cell, wrapping, face distances.

Written for one system or many at once. An array of all pairs of entries that a cross product needs is
gathered first: XLA makes a kernel of each concatenation, and compiling a kernel costs more than running it.
"""

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int, Shaped


_NEXT, _LAST = np.array([1, 2, 0]), np.array([2, 0, 1])
_ENTRIES = np.arange(9).reshape(3, 3)
#: Entries of a matrix whose products are those of the cross products of two of its rows, [4, row, 3].
_FACTORS = np.stack(
    [_ENTRIES[np.ix_(a, b)] for a, b in ((_NEXT, _NEXT), (_LAST, _LAST), (_NEXT, _LAST), (_LAST, _NEXT))]
)


def _sum3(v: Array) -> Array:
    """Over the last axis: elementwise, so that XLA makes it part of what reads it."""
    return v[..., 0] + v[..., 1] + v[..., 2]


def _cross_rows(cell: Float[Array, "*systems 3 3"], factors: np.ndarray) -> Float[Array, "*systems 3 3"]:
    f = cell.reshape(*cell.shape[:-2], 9)[..., factors]
    return f[..., 0, :, :] * f[..., 1, :, :] - f[..., 2, :, :] * f[..., 3, :, :]


def working_cell(
    cell: Float[Array, "*systems 3 3"], pbc: Bool[Array, "*systems 3"]
) -> Float[Array, "*systems 3 3"]:
    """The cell with every vector along which the system is not periodic replaced by a unit vector
    normal to the others, so that it can be inverted whatever the user left there (often zeros)."""
    tiny = jnp.finfo(cell.dtype).tiny
    # One periodic vector v: a reflection that takes its axis to v takes the other axes to normals of v.
    # None: nothing is reflected, and the other vectors are the axes.
    own = jnp.where(pbc[..., None], cell, 0)
    vector = own[..., 0, :] + own[..., 1, :] + own[..., 2, :]
    length = jnp.sqrt(_sum3(vector * vector))
    along = _sum3(jnp.where(pbc, vector, 0))
    mirror = vector + jnp.where(pbc, jnp.where(along < 0, -length, length)[..., None], 0)
    part = mirror / jnp.maximum(length * (length + abs(along)), tiny)[..., None]
    eye = jnp.broadcast_to(jnp.eye(3, dtype=cell.dtype), cell.shape)
    lone = eye - part[..., :, None] * mirror[..., None, :]
    normal = _cross_rows(cell, _FACTORS)
    normal = normal / jnp.maximum(jnp.sqrt(_sum3(normal * normal)), tiny)[..., None]
    two = _sum3(pbc.astype(jnp.int32)) == 2
    return jnp.where(pbc[..., None], cell, jnp.where(two[..., None, None], normal, lone))


def inverse(cell: Float[Array, "*systems 3 3"]) -> Float[Array, "*systems 3 3"]:
    """Inverse by cross products: as accurate as the cell's shape allows, no LAPACK call."""
    columns = _cross_rows(cell, _FACTORS.swapaxes(1, 2))
    return columns / _sum3(cell[..., 0, :] * columns[..., 0])[..., None, None]


def face_distances(cell_inverse: Float[Array, "*systems 3 3"]) -> Float[Array, "*systems 3"]:
    """Distance between opposite faces of the cell along each lattice vector, Å."""
    s = cell_inverse * cell_inverse
    return 1.0 / jnp.sqrt(s[..., 0, :] + s[..., 1, :] + s[..., 2, :])


def gather_columns(values: Shaped[Array, "k n"], index: Int[Array, "*m"]) -> Shaped[Array, "k *m"]:
    """`values[:, index]`, number by number: XLA would gather columns, and turn and cut them afterwards."""
    k, n = values.shape
    row = n * jnp.arange(k, dtype=jnp.int32).reshape(k, *(1,) * index.ndim)
    return values.reshape(-1).at[row + index[None]].get(mode="promise_in_bounds", wrap_negative_indices=False)


def times_matrices(
    vectors: Float[Array, "3 n"], matrices: Float[Array, "systems 3 3"], system: Int[Array, " n"]
) -> Float[Array, "3 n"]:
    """Row vectors, coordinates apart, each times the matrix of its system; padding takes the last one."""
    rows = jnp.take(matrices.reshape(-1, 9), system, axis=0, mode="clip").T.reshape(3, 3, -1)
    return vectors[:1] * rows[0] + vectors[1:2] * rows[1] + vectors[2:] * rows[2]
