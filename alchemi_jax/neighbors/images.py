"""Which periodic images matter: those near the box that holds a system's wrapped atoms.

Along each lattice vector the shifts that bring an atom within reach of the box are a range of
integers, so the images of an atom are the box of three ranges without the zero shift. They are
numbered by arithmetic; nothing is searched.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, Shaped

from alchemi_jax.neighbors.geometry import face_distances, gather_columns, times_matrices
from alchemi_jax.neighbors.scans import MOST, count_upto, running_sum
from alchemi_jax.systems.batch import Batch
from alchemi_jax.systems.segments import max_by_system


class Images(NamedTuple):
    """Images of all systems, one system after another, atom by atom; coordinates apart."""

    source: Int[Array, " images"]
    shift: Float[Array, "3 places"]
    """What brings each atom into the cell, and of images, relative to the raw position of the source."""
    first: Int[Array, " systems"]
    count: Int[Array, " systems"]
    total: Int[Array, ""]
    low: Float[Array, "3 systems"]
    """Least coordinate of a wrapped atom along each lattice vector."""
    high: Float[Array, "3 systems"]
    reach: Float[Array, "3 systems"]
    """Reach along each lattice vector, with a margin."""
    inverse: Float[Array, "systems 3 3"]
    number: tuple[Array, Array, Array]
    """Of each atom: the number of its first image, [atoms]; the least shift of its images, relative
    to the wrapped atom, and how many there are, along each lattice vector, [3, atoms]."""


def no_images(batch: Batch, positions: Float[Array, "3 atoms"], reach: float) -> Images:
    """Those of systems none of which is periodic: a place for one, and `total` says if one is needed.

    Args:
        positions: finite.
    """
    n, s = batch.atom_capacity, batch.system_capacity
    none, atoms = jnp.zeros(s, jnp.int32), jnp.zeros((3, n), jnp.int32)
    periodic = jnp.any(batch.pbc & batch.system_mask[:, None])
    box = _bounds(batch, positions)
    return Images(
        source=jnp.zeros(1, jnp.int32),
        shift=jnp.zeros((3, n + 1), batch.dtype),
        first=none,
        count=none,
        # More than there is room for.
        total=jnp.where(periodic, 2, 0),
        low=-box[0],
        high=box[1],
        reach=jnp.full((3, s), _with_margin(reach), batch.dtype),
        inverse=jnp.broadcast_to(jnp.eye(3, dtype=batch.dtype), (s, 3, 3)),
        number=(jnp.zeros(n, jnp.int32), atoms, jnp.ones((3, n), jnp.int32)),
    )


def _to_atoms(batch: Batch, values: Shaped[Array, "k systems"]) -> Shaped[Array, "k atoms"]:
    """`segments.to_atoms` of coordinates apart."""
    return gather_columns(values, jnp.minimum(batch.batch_idx, batch.system_capacity - 1))


def _bounds(batch: Batch, along: Float[Array, "3 atoms"]) -> Float[Array, "2 3 systems"]:
    """Least coordinates of each system's atoms, with the other sign, and largest ones."""
    both = jnp.stack([-along, along])
    return jax.vmap(jax.vmap(lambda x: max_by_system(batch, x, -jnp.inf)))(both)


def _with_margin(reach: Any) -> Any:
    """A little more than reach: what rounding puts on the wrong side only costs an image."""
    return reach * (1 + 1e-4) + 1e-4


def find_images(
    batch: Batch, positions: Float[Array, "3 atoms"], inv: Array, reach: float, capacity: int
) -> Images:
    """Images within `reach` (Å) of the box, along the lattice vectors, that holds the wrapped atoms.

    Args:
        positions: finite.
        inv: [systems, 3, 3], the inverse of the working cell.
    """
    n = batch.atom_capacity
    margin = _with_margin(reach / face_distances(inv)).T
    # The three axes at once: what there is to compile counts here more than what there is to run.
    along = times_matrices(positions, inv, batch.batch_idx)
    periodic = _to_atoms(batch, batch.pbc.T) & batch.atom_mask[None]
    whole = jnp.where(periodic, jnp.floor(along), 0)
    inside = along - whole
    box = _bounds(batch, inside)
    ends = _to_atoms(batch, (box + margin[None]).reshape(6, -1))
    first = jnp.ceil(-ends[:3] - inside)
    last = jnp.floor(ends[3:] - inside)
    least = jnp.where(periodic, first, 0).astype(jnp.int32)
    width = jnp.where(periodic, last - first + 1, 1)
    product = width[0] * width[1] * width[2] - 1
    width = width.astype(jnp.int32)
    count = jnp.minimum(product, MOST).astype(jnp.int32)

    end = running_sum(count)
    start, total = end - count, end[-1]
    # So many atoms have all their images before this one.
    image = jnp.arange(capacity, dtype=jnp.int32)
    source = jnp.minimum(count_upto(end, image), n - 1)
    # Where the atom itself would be among its images.
    zero = (-least[0] * width[1] - least[1]) * width[2] - least[2]
    begin = least - whole.astype(jnp.int32)
    # One array of all that is gathered: else XLA computes what is above again for each image.
    table = jnp.stack([start, zero, width[1] * width[2], width[2], begin[0], begin[1], begin[2]])
    of = gather_columns(table, source)
    number = image - of[0]
    number = number + (number >= of[1])
    a, rest = _divide(number, of[2])
    b, c = _divide(rest, of[3])
    shift = jnp.where(image[None] < total, jnp.stack([a, b, c]) + of[4:], 0).astype(batch.dtype)
    shift = jnp.concatenate([0 - whole, shift], axis=1)

    ends = jnp.stack([batch.first_atom, batch.first_atom + batch.atoms_per_system])
    ends = jnp.where(ends > 0, end[jnp.clip(ends - 1, 0, n - 1)], 0)
    number = (start, least, width)
    return Images(source, shift, ends[0], ends[1] - ends[0], total, -box[0], box[1], margin, inv, number)


def place_of(images: Images, atom: Int[Array, "*n"], shift: list[Array]) -> Int[Array, "*n"]:
    """Where the image of an atom by a lattice shift, relative to the wrapped atom, stands in the
    extended array; -1 if it is not among the images."""
    start, least, width = images.number
    number, zero = jnp.zeros_like(atom), jnp.zeros_like(atom)
    inside, own = jnp.ones(atom.shape, bool), jnp.ones(atom.shape, bool)
    for k in range(3):
        w, at = width[k][atom], shift[k] - least[k][atom]
        number, zero = number * w + at, zero * w - least[k][atom]
        inside &= (at >= 0) & (at < w)
        own &= shift[k] == 0
    image = len(start) + start[atom] + number - (number > zero)
    return jnp.where(own, atom, jnp.where(inside, image, -1))


def _divide(number: Array, divisor: Array) -> tuple[Array, Array]:
    """Quotient and remainder of small positive integers: division of floats is vectorised."""
    quotient = jnp.floor((number.astype(jnp.float32) + 0.5) / divisor.astype(jnp.float32)).astype(jnp.int32)
    return quotient, number - quotient * divisor
