"""NeighborList: the neighbors of each atom, as a matrix of fixed capacity over atoms and their images.

Each periodic image that may matter is an entry of an extended array of positions: first the atoms, wrapped
into the cell, then images (atom plus lattice shift), then one place far away that unused slots point to. A
pair kernel then needs one gather per coordinate and neither minimum images nor masks, in any cell, however
small or skewed. `index[k, i]` is the k-th neighbor of atom i in the extended array; each pair occurs twice,
once for each of its atoms.

The list is a function of the positions and cells for which it was last due, system by system
(`ref_positions`, `ref_cell`). When one system is due, the lists of all systems are built again, the others
from their own references, so that no sum changes its order because of other systems.
"""

import dataclasses
import math
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from alchemi_jax.neighbors.edge_type import EdgeList
from alchemi_jax.neighbors.geometry import times_matrices
from alchemi_jax.neighbors.requirements import Requirements
from alchemi_jax.systems.batch import Batch


FAR = 1.0e6
"""Coordinate of the place that unused slots point to in single precision, Å: beyond any cutoff from all
positions that a run may have; its sixth power is finite."""

_FAR_DOUBLE = 1.0e15


def far_place(dtype: Any) -> float:
    """Coordinate of the place that unused slots point to, Å. In double precision it is further away, since
    there positions may be larger (`systems.bounds`)."""
    return _FAR_DOUBLE if jnp.dtype(dtype).itemsize == 8 else FAR


ALL_PAIRS = 32
"""A free system of at most this many atoms lists all its pairs, and its list is never due again."""


@dataclasses.dataclass(frozen=True)
class ListSizes:
    """Capacities of a neighbor list. They are array shapes, so another value recompiles."""

    neighbors: int
    """Neighbors of one atom."""
    images: int
    """Images of all systems together."""
    candidates: int
    """Places that one atom is compared with. For the builder "warp": lattice shifts to try."""
    groups: int
    """Groups of a cell list; 0: brute force; -1: nvalchemi-toolkit-ops."""
    edges: int = 0
    """Edges of all systems together; 0: no edges are made."""
    per_atom: int = 0
    """Edges of one atom, in `edges.per_atom`; 0: it is not made."""
    bonds: int = 0
    """Edges within the inner cutoff, of all systems together; 0: no triplets are made."""
    triplets: int = 0
    """Triplets of all systems together."""
    long_edges: int = 0
    """Edges within the long cutoff, of all systems together; 0: none are made."""

    @property
    def periodic(self) -> bool:
        """Whether there is room for images; if not, nothing about cells is computed.

        `images` is at least 1: in a loop that carries an array without elements, XLA copies the list in every
        step.
        """
        return self.images > 1

    @property
    def builder(self) -> str:
        """How the list is built: "brute force", "cell list" or "warp"."""
        return "cell list" if self.groups > 0 else "warp" if self.groups < 0 else "brute force"

    def times(self, factor: float | int) -> "ListSizes":
        """Capacities for `factor` times the systems: those that count over all systems are scaled."""
        images = max(math.ceil(self.images * factor), 2) if self.periodic else self.images
        groups = max(math.ceil(self.groups * factor), 1) if self.groups > 0 else self.groups
        summed = ("edges", "bonds", "triplets", "long_edges")
        edges = {name: math.ceil(getattr(self, name) * factor) for name in summed}
        return dataclasses.replace(self, images=images, groups=groups, **edges)


class NeighborList(eqx.Module):
    """Neighbors within `cutoff + skin` of each atom, at the positions for which the list was last built.

    Each periodic image that may be a neighbor is a place of an extended array of positions: first the atoms,
    wrapped into the cell, then images (atom plus lattice shift), then one place far away to which unused
    slots point. `index[k, i]` is the place of the k-th neighbor of atom i. Each pair occurs twice, once for
    each of its atoms. `pair_vectors` gives the vectors.

    Attributes:
        index: [neighbors, atoms], places in the extended array.
        used: the largest number of neighbors of an atom; slots beyond it are unused.
        source: [images], the atom of each image.
        shift: [3, atoms + images], lattice shift of each place of the extended array, in lattice vectors.
        offset: [3, atoms + images], the shift times the present cell, Å.
        complete: [systems], whether the list contains all pairs of a free system, so that it is never due.
        needs: [sizes], capacities that the last build needed, in the order of ListSizes; the driver grows to
            them.
        overflow: whether a capacity was too small. Forces from this list must not be used then.
        edges: pairs within the cutoff of the edges at the last update, an EdgeList; None unless a model asks
            for it.
        long_edges: pairs within the long cutoff, likewise.
        builds: number of times that the list was built.
        built: False for an empty list. The next update builds it, from the references of systems that are
            not due.
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
    needs: Int[Array, " sizes"]
    overflow: Bool[Array, ""]
    builds: Int[Array, ""]
    built: Bool[Array, ""]
    edges: EdgeList | None
    long_edges: EdgeList | None
    cutoff: float = eqx.field(static=True)
    skin: float = eqx.field(static=True)
    sizes: ListSizes = eqx.field(static=True)
    requirements: Requirements = eqx.field(static=True)

    @property
    def slots(self) -> int:
        """Capacity for the neighbors of one atom."""
        return self.index.shape[-2]

    @property
    def far(self) -> int:
        """The place to which unused slots point."""
        return self.ref_positions.shape[0] + self.source.shape[0]

    def neighbor_atom(self) -> Int[Array, "neighbors atoms"]:
        """The atom (not the image) in each slot, [neighbors, atoms]; the number of atoms in unused slots."""
        return self.atom_of(self.index)

    def atom_of(self, place: Int[Array, "*n"]) -> Int[Array, "*n"]:
        """The atom at a place of the extended array, or the atom of the image there."""
        n = self.ref_positions.shape[0]
        atoms = jnp.arange(n, dtype=jnp.int32)
        return jnp.concatenate([atoms, self.source, jnp.array([n], jnp.int32)])[place]


def lattice_offset(
    shift: Float[Array, "3 places"], cell: Float[Array, "systems 3 3"], owner: Int[Array, " places"]
) -> Float[Array, "3 places"]:
    """Shifts times cells, Å. `owner` is the system of each place."""
    return times_matrices(shift, cell, owner)


@jax.custom_jvp
def _offset(
    offset: Float[Array, "3 places"],
    shift: Float[Array, "3 places"],
    cell: Float[Array, "systems 3 3"],
    owner: Int[Array, " places"],
) -> Float[Array, "3 places"]:
    """The cached offset of each place, differentiable with respect to the cell.

    `update` keeps `offset` up to date; its gradient comes from the shift.
    """
    return offset


@_offset.defjvp
def _offset_jvp(primals, tangents):
    _, shift, _, owner = primals
    # Not `offset` itself: it has no derivative, so second derivatives would lose half of the cell's part.
    return _offset(*primals), lattice_offset(shift, tangents[2], owner)


def owners(batch: Batch, neighbors: NeighborList) -> Int[Array, " atoms_and_images"]:
    """The system of each place of the extended array."""
    return jnp.concatenate([batch.batch_idx, batch.batch_idx[neighbors.source]])


def extended_coordinates(batch: Batch, neighbors: NeighborList) -> list[Float[Array, " extended"]]:
    """x, y and z of the extended array, Å: atoms (wrapped), images, and the place far away. Pair kernels
    gather from it.

    Differentiable in positions and cell.
    """
    n = batch.atom_capacity
    far = jnp.full(1 if neighbors.sizes.periodic else 2, far_place(batch.dtype), batch.dtype)
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
) -> tuple[
    Float[Array, "neighbors atoms"],
    Float[Array, "neighbors atoms"],
    Float[Array, "neighbors atoms"],
    Bool[Array, "neighbors atoms"],
]:
    """Vectors from each atom to its neighbors, by coordinate, and the mask of pairs within the cutoff.

    For models that are not pair potentials. Differentiable in positions and cell.

    Returns:
        x, y, z and mask, each [neighbors, atoms], Å. Vectors outside the mask can have any length.
    """
    n = batch.atom_capacity
    x, y, z = (c[neighbors.index] - c[None, :n] for c in extended_coordinates(batch, neighbors))
    return x, y, z, x * x + y * y + z * z <= neighbors.cutoff**2


__all__ = [
    "ALL_PAIRS",
    "FAR",
    "ListSizes",
    "NeighborList",
    "extended_coordinates",
    "extended_positions",
    "far_place",
    "lattice_offset",
    "owners",
    "pair_vectors",
]
