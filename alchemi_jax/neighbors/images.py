"""The periodic images that matter: those near the box that contains the wrapped atoms of a system.

Along each lattice vector, the shifts that bring an atom within reach of the box are a range of integers. The
images of an atom are the product of three ranges without the zero shift, so their numbers follow from
arithmetic, without a search.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, Shaped

from alchemi_jax.neighbors.geometry import face_distances, gather_columns, times_matrices
from alchemi_jax.neighbors.scans import MOST, count_upto, running_sum
from alchemi_jax.systems.batch import Batch
from alchemi_jax.systems.segments import max_by_system
from alchemi_jax.transforms import compute_once


class Images(NamedTuple):
    """Images of all systems, sorted by system and atom; arrays of vectors have one row per coordinate."""

    source: Int[Array, " images"]
    shift: Float[Array, "3 places"]
    """Lattice shifts: of atoms, into the cell; of images, relative to the raw position of the source."""
    first: Int[Array, " systems"]
    count: Int[Array, " systems"]
    total: Int[Array, ""]
    low: Float[Array, "3 systems"]
    """Least coordinate of a wrapped atom along each lattice vector."""
    high: Float[Array, "3 systems"]
    reach: Float[Array, "3 systems"]
    """Reach along each lattice vector, with a margin."""
    inverse: Float[Array, "systems 3 3"]
    number: tuple[Int[Array, " atoms"], Int[Array, "3 atoms"], Int[Array, "3 atoms"]]
    """For each atom: the number of its first image; the least shift of its images along each lattice vector,
    relative to the wrapped atom; the number of shifts along each lattice vector."""


def no_images(batch: Batch, positions: Float[Array, "3 atoms"], reach: float) -> Images:
    """Images for a batch without periodic systems: room for one. `total` exceeds it if a system is periodic.

    Args:
        positions: finite.
    """
    n, s = batch.atom_capacity, batch.system_capacity
    none, shifts = jnp.zeros(s, jnp.int32), jnp.zeros((3, n), jnp.int32)
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
        number=(jnp.zeros(n, jnp.int32), shifts, jnp.ones((3, n), jnp.int32)),
    )


def _to_atoms(batch: Batch, values: Shaped[Array, "k systems"]) -> Shaped[Array, "k atoms"]:
    """`segments.to_atoms` for arrays with one row per coordinate."""
    return gather_columns(values, jnp.minimum(batch.batch_idx, batch.system_capacity - 1))


def _bounds(batch: Batch, along: Float[Array, "3 atoms"]) -> Float[Array, "2 3 systems"]:
    """The least coordinates of the atoms of each system, negated, and the largest ones."""
    both = jnp.stack([-along, along])
    return jax.vmap(jax.vmap(lambda x: max_by_system(batch, x, -jnp.inf)))(both)


def _with_margin(reach: Any) -> Any:
    """A little more than `reach`, so that rounding adds an image rather than loses one."""
    return reach * (1 + 1e-4) + 1e-4


def find_images(
    batch: Batch,
    positions: Float[Array, "3 atoms"],
    inv: Float[Array, "systems 3 3"],
    reach: float,
    capacity: int,
) -> Images:
    """Images within `reach` (Å) of the box, along the lattice vectors, that contains the wrapped atoms.

    Args:
        positions: finite.
        inv: [systems, 3, 3], the inverse of the working cell.
    """
    n = batch.atom_capacity
    margin = _with_margin(reach / face_distances(inv)).T
    # The three axes at once: here the time to compile matters more than the time to run.
    along = times_matrices(positions, inv, batch.batch_idx)
    periodic = _to_atoms(batch, batch.pbc.T) & batch.atom_mask[None]
    # Of an atom on a face of its cell all that follows must say alike on which side it is.
    once = (batch.atoms_per_system[0] >= 0).astype(jnp.int32)
    whole = compute_once(lambda: jnp.where(periodic, jnp.floor(along), 0), once)
    inside = along - whole
    # Otherwise XLA takes the extremes again for each atom, which is half of the time of a small batch's list.
    box = compute_once(lambda: _bounds(batch, inside), once)
    ends = _to_atoms(batch, (box + margin[None]).reshape(6, -1))

    def ranges() -> tuple[Float[Array, "3 atoms"], Float[Array, "3 atoms"]]:
        first = jnp.ceil(-ends[:3] - inside)
        last = jnp.floor(ends[3:] - inside)
        return jnp.where(periodic, first, 0), jnp.where(periodic, last - first + 1, 1)

    least, width = compute_once(ranges, once)
    least = least.astype(jnp.int32)
    product = width[0] * width[1] * width[2] - 1
    width = width.astype(jnp.int32)
    # NaN becomes MOST, which is too many for any capacity.
    count = jnp.where(product < MOST, product, MOST).astype(jnp.int32)

    end = running_sum(count)
    start, total = end - count, end[-1]
    # The atom of an image: the number of atoms that have all their images before this one.
    image = jnp.arange(capacity, dtype=jnp.int32)
    source = jnp.minimum(count_upto(end, image), n - 1)
    # The number that the zero shift, the atom itself, would have among its images.
    zero = (-least[0] * width[1] - least[1]) * width[2] - least[2]
    begin = least - whole.astype(jnp.int32)
    # One array of all that is gathered: otherwise XLA repeats the computation above for each image.
    table = jnp.stack([start, zero, width[1] * width[2], width[2], begin[0], begin[1], begin[2]])
    of = gather_columns(table, source)
    number = image - of[0]
    number = number + (number >= of[1]).astype(number.dtype)
    a, rest = _divide(number, of[2])
    b, c = _divide(rest, of[3])
    shift = jnp.where(image[None] < total, jnp.stack([a, b, c]) + of[4:], 0).astype(batch.dtype)
    shift = jnp.concatenate([0 - whole, shift], axis=1)

    ends = jnp.stack([batch.first_atom, batch.first_atom + batch.atoms_per_system])
    ends = jnp.where(ends > 0, end[jnp.clip(ends - 1, 0, n - 1)], 0)
    number = (start, least, width)
    return Images(source, shift, ends[0], ends[1] - ends[0], total, -box[0], box[1], margin, inv, number)


def place_of(images: Images, atom: Int[Array, "*n"], shift: list[Int[Array, "*n"]]) -> Int[Array, "*n"]:
    """The index in the extended array of an atom moved by a lattice shift; -1 if it is not among the images.

    Args:
        shift: three numbers of lattice vectors for each atom, relative to the wrapped atom.
    """
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


def _divide(
    number: Int[Array, " images"], divisor: Int[Array, " images"]
) -> tuple[Int[Array, " images"], Int[Array, " images"]]:
    """Quotient and remainder of small positive integers, through floats: their division is vectorized."""
    quotient = jnp.floor((number.astype(jnp.float32) + 0.5) / divisor.astype(jnp.float32)).astype(jnp.int32)
    return quotient, number - quotient * divisor


__all__ = ["Images", "find_images", "no_images", "place_of"]
