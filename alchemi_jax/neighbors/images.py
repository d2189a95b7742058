"""Which periodic images matter: those near the box that holds a system's wrapped atoms.

Along each lattice vector the shifts that bring an atom within reach of the box are a range of
integers, so the images of an atom are the box of three ranges without the zero shift. They are
numbered by arithmetic; nothing is searched.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from alchemi_jax.batch import Batch
from alchemi_jax.neighbors.geometry import face_distances, inverse, working_cell
from alchemi_jax.segments import max_by_system, to_atoms


_MOST = 1 << 24
"""What is needed is counted in floats beyond this, so that a collapsed cell cannot overflow integers."""


class Images(NamedTuple):
    """Images of all systems, one system after another, atom by atom; coordinates apart."""

    wrapped: Int[Array, "3 atoms"]
    """Lattice shift to be taken off each atom, so that it lies in the cell."""
    source: Int[Array, " images"]
    shift: Int[Array, "3 images"]
    """Relative to the raw position of the source."""
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


def along_lattice(batch: Batch, owner: Array, inv: Array, positions: list[Array]) -> list[Array]:
    """Coordinates along the lattice vectors of each place's owner."""
    system = jnp.minimum(owner, batch.system_capacity - 1)
    rows = [[inv[:, a, k][system] for a in range(3)] for k in range(3)]
    return [sum(p * r for p, r in zip(positions, row, strict=True)) for row in rows]  # pyright: ignore


def find_images(batch: Batch, positions: list[Array], cell: Array, reach: float, capacity: int) -> Images:
    """Images within `reach` (Å) of the box, along the lattice vectors, that holds the wrapped atoms.

    Args:
        positions: x, y and z of all atoms, finite.
    """
    n = batch.atom_capacity
    inv = jax.vmap(inverse)(jax.vmap(working_cell)(cell, batch.pbc))
    # A little more than reach: what rounding puts on the wrong side only costs an image.
    margin = (reach / jax.vmap(face_distances)(inv) * (1 + 1e-4) + 1e-4).T
    wrapped, low, high, least, width = [], [], [], [], []
    for k, along in enumerate(along_lattice(batch, batch.batch_idx, inv, positions)):
        periodic = to_atoms(batch, batch.pbc[:, k]) & batch.atom_mask
        whole = jnp.where(periodic, jnp.floor(along), 0)
        inside = along - whole
        low.append(-max_by_system(batch, -inside, -jnp.inf))
        high.append(max_by_system(batch, inside, -jnp.inf))
        first = jnp.ceil(to_atoms(batch, low[k] - margin[k]) - inside)
        last = jnp.floor(to_atoms(batch, high[k] + margin[k]) - inside)
        least.append(jnp.where(periodic, first, 0))
        width.append(jnp.where(periodic, last - first + 1, 1))
        wrapped.append(whole.astype(jnp.int32))
    product = width[0] * width[1] * width[2] - 1
    count = jnp.minimum(product, _MOST).astype(jnp.int32)
    total = jnp.where(product.sum() < _MOST, count.sum(dtype=jnp.int32), _MOST)

    end = jnp.cumsum(count, dtype=jnp.int32)
    source = jnp.repeat(jnp.arange(n, dtype=jnp.int32), count, total_repeat_length=capacity)

    def of(values: Array) -> Array:
        return values.at[source].get(mode="promise_in_bounds")

    least, width = ([v.astype(jnp.int32) for v in axes] for axes in (least, width))
    zero = (-least[0] * width[1] - least[1]) * width[2] - least[2]
    start = end - count
    stride = [width[1] * width[2], width[2], jnp.ones(n, jnp.int32)]
    begin = [first - whole for first, whole in zip(least, wrapped, strict=True)]
    real = jnp.arange(capacity) < total

    def axis(_, at: Any) -> tuple[None, Array]:
        stride, width, begin = at
        number = jnp.arange(capacity, dtype=jnp.int32) - of(start)
        number = number + (number >= of(zero))
        quotient = _divided(number, of(stride))[0]
        return None, jnp.where(real, _divided(quotient, of(width))[1] + of(begin), 0)

    # One axis after another: in one piece XLA computes all of the above again for each image.
    stride, width, begin = (jnp.stack(v) for v in (stride, width, begin))
    _, shift = jax.lax.scan(axis, None, (stride, width, begin))
    starts = jnp.concatenate([jnp.zeros(1, jnp.int32), end])
    first = starts[jnp.clip(batch.first_atom, 0, n)]
    stop = starts[jnp.clip(batch.first_atom + batch.atoms_per_system, 0, n)]
    whole, low, high = (jnp.stack(v) for v in (wrapped, low, high))
    number = (start, jnp.stack(least), width)
    return Images(whole, source, shift, first, stop - first, total, low, high, margin, inv, number)


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


def _divided(number: Array, divisor: Array) -> tuple[Array, Array]:
    """Quotient and remainder of small positive integers: division of floats is vectorised."""
    quotient = jnp.floor((number.astype(jnp.float32) + 0.5) / divisor.astype(jnp.float32)).astype(jnp.int32)
    return quotient, number - quotient * divisor
