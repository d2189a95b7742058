"""NeighborList: who is near whom, as a matrix of fixed capacity over atoms and their images.

Every periodic image that may matter is an entry of its own in an extended array of positions: first
the atoms, wrapped into the cell, then images (atom plus lattice shift), then one place far away that
unused slots point to. A pair kernel so needs one gather for each coordinate and neither minimum images nor
masks, in any cell, however small or skewed. `index[k, i]` is the k-th neighbor of atom i in the
extended array; each pair stands in the rows of both atoms.

The list is a function of the positions and cells for which it was last due, system by system
(`ref_positions`, `ref_cell`). When one system is due all are built again, the others from their own
references, so that nobody's sum is ordered anew by what batch mates do.
"""

import dataclasses
import math

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from alchemi_jax.neighbors.geometry import times_matrices
from alchemi_jax.systems.batch import Batch


FAR = 1.0e6
"""Å. Where unused slots point: beyond any cutoff, yet its sixth power is finite in float32."""


ALL_PAIRS = 32
"""A free system of at most so many atoms lists all its pairs, and its list is never due again."""


@dataclasses.dataclass(frozen=True)
class ListSizes:
    """Capacities, hence shapes: changing one compiles anew."""

    neighbors: int
    """Neighbors of one atom."""
    images: int
    """Images of all systems together."""
    candidates: int
    """Places that one atom is compared with; lattice shifts to try, for the builder "warp"."""
    groups: int
    """Groups of a cell list; 0: brute force; -1: nvalchemi-toolkit-ops."""

    @property
    def periodic(self) -> bool:
        """Whether there is room for images; else all that is about cells is left out. One place is always
        there: XLA copies a list in every step of a loop that carries an array without elements."""
        return self.images > 1

    @property
    def builder(self) -> str:
        """Who makes the list: "brute force", "cell list" or "warp"."""
        return "cell list" if self.groups > 0 else "warp" if self.groups < 0 else "brute force"

    def times(self, factor: float | int) -> "ListSizes":
        """For so many times the systems: what is counted over all of them changes."""
        images = max(math.ceil(self.images * factor), 2) if self.periodic else self.images
        groups = max(math.ceil(self.groups * factor), 1) if self.groups > 0 else self.groups
        return dataclasses.replace(self, images=images, groups=groups)


class NeighborList(eqx.Module):
    """Neighbors within `cutoff + skin` at the last building; see the module's text.

    Attributes:
        index: [neighbors, atoms], into the extended array.
        used: the largest number of neighbors that any atom has: slots beyond it are unused.
        source: [images], the atom of each image.
        shift: [3, atoms + images], lattice shift of each place of the extended array.
        offset: [3, atoms + images], Å, that shift times the present cell.
        complete: [systems], the list holds all pairs of a free system and is never due.
        needs: what the last building needed, in the order of ListSizes: what the driver grows to.
        overflow: a capacity was too small. No force from this list may be used.
        builds: how often it was built.
        built: False for an empty list: the next update builds it, of systems that are not due from their
            references.
    """

    index: Int[Array, "neighbors atoms"]
    used: Int[Array, ""]
    source: Int[Array, " images"]
    shift: Float[Array, "3 atoms_and_images"]
    offset: Float[Array, "3 atoms_and_images"]
    ref_positions: Float[Array, "atoms 3"]
    ref_cell: Float[Array, "systems 3 3"]
    ref_inverse: Float[Array, "systems 3 3"]
    offset_cell: Float[Array, "systems 3 3"]
    ref_pbc: Bool[Array, "systems 3"]
    ref_id: Int[Array, " systems"]
    complete: Bool[Array, " systems"]
    needs: Int[Array, " 4"]
    overflow: Bool[Array, ""]
    builds: Int[Array, ""]
    built: Bool[Array, ""]
    cutoff: float = eqx.field(static=True)
    skin: float = eqx.field(static=True)
    sizes: ListSizes = eqx.field(static=True)

    @property
    def slots(self) -> int:
        """Capacity for the neighbors of one atom."""
        return self.index.shape[-2]

    @property
    def far(self) -> int:
        """Where unused slots point."""
        return self.ref_positions.shape[0] + self.source.shape[0]

    def neighbor_atom(self) -> Int[Array, "neighbors atoms"]:
        """The atom (not the image) in each slot; `atoms` where the slot is unused."""
        return self.atom_of(self.index)

    def atom_of(self, place: Int[Array, "*n"]) -> Int[Array, "*n"]:
        """The atom that stands, or whose image stands, at a place of the extended array."""
        n = self.ref_positions.shape[0]
        atoms = jnp.arange(n, dtype=jnp.int32)
        return jnp.concatenate([atoms, self.source, jnp.array([n], jnp.int32)])[place]


def lattice_offset(shift: Array, cell: Array, owner: Array) -> Array:
    """Shifts times cells, [3, places], Å."""
    return times_matrices(shift, cell, owner)


@jax.custom_jvp
def _offset(offset: Array, shift: Array, cell: Array, owner: Array) -> Array:
    """The cached offset of each place, differentiable with respect to the cell.

    `offset` is kept up to date by `update`; its gradient comes from the shift that it stands for.
    """
    return offset


@_offset.defjvp
def _offset_jvp(primals, tangents):
    _, shift, _, owner = primals
    # Not the bare `offset`: that would have no derivative, so that second ones lost half of the cell's.
    return _offset(*primals), lattice_offset(shift, tangents[2], owner)


def owners(batch: Batch, neighbors: NeighborList) -> Int[Array, " atoms_and_images"]:
    """The system of each place of the extended array."""
    return jnp.concatenate([batch.batch_idx, batch.batch_idx[neighbors.source]])


def extended_coordinates(batch: Batch, neighbors: NeighborList) -> list[Float[Array, " extended"]]:
    """x, y and z of atoms (wrapped), images and the far place, Å: what pair kernels gather from.

    Differentiable in positions and cell.
    """
    n = batch.atom_capacity
    far = jnp.full(1 if neighbors.sizes.periodic else 2, FAR, batch.dtype)
    if not neighbors.sizes.periodic:
        return [jnp.concatenate([batch.positions[:, k], far]) for k in range(3)]
    offset = _offset(neighbors.offset, neighbors.shift, batch.cell, owners(batch, neighbors))
    out = []
    for k in range(3):
        p = batch.positions[:, k]
        image = p.at[neighbors.source].get(mode="promise_in_bounds")
        out.append(jnp.concatenate([p + offset[k, :n], image + offset[k, n:], far]))
    return out


def extended_positions(batch: Batch, neighbors: NeighborList) -> Float[Array, "extended 3"]:
    """`extended_coordinates` as one array."""
    return jnp.stack(extended_coordinates(batch, neighbors), axis=-1)


def pair_vectors(
    batch: Batch, neighbors: NeighborList
) -> tuple[Array, Array, Array, Bool[Array, "neighbors atoms"]]:
    """Vectors from each atom to its neighbors, one coordinate at a time, and which are within the cutoff.

    Returns x, y, z, each [neighbors, atoms], Å, and the mask. For models that are not pair
    potentials; differentiable in positions and cell.
    """
    n = batch.atom_capacity
    x, y, z = (c[neighbors.index] - c[None, :n] for c in extended_coordinates(batch, neighbors))
    return x, y, z, x * x + y * y + z * z <= neighbors.cutoff**2
