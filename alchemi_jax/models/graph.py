"""AbstractGraphModel: a network that gives the energy of each atom from a graph of edge vectors."""

import dataclasses
from abc import abstractmethod
from typing import Any, ClassVar

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, Shaped

from alchemi_jax.errors import UserCodeError, description, is_array, location, name_of, user_errors
from alchemi_jax.models.base import AbstractModel, Results, mask_atoms, need_edges, need_list, per_volume
from alchemi_jax.models.elements import check_elements, types_of
from alchemi_jax.neighbors import EdgeList, NeighborList, Requirements, Triplets, allocate
from alchemi_jax.neighbors.triplets import edges_within, squared_lengths
from alchemi_jax.systems.batch import Batch
from alchemi_jax.systems.segments import sum_by_system


class Edges(eqx.Module):
    """Pairs of atoms within a cutoff, each in both directions, in the order of the receivers.

    In padding `senders` and `receivers` are the number of atoms (an index out of range: segment sums drop
    it, and `x[senders]` reads the last row), and the vectors are finite and beyond every cutoff.

    Attributes:
        vectors: [edges, 3], from the receiver to the image of the sender, Å.
        distances: [edges], their lengths, Å.
        senders, receivers: [edges], atoms.
        shifts: [edges, 3], lattice vectors, whole numbers, from the sender to its image.
        mask: [edges], False in padding.
        reverse: [edges], the index of the opposite edge, if the model has `reverse_edges`.
    """

    vectors: Float[Array, "edges 3"]
    senders: Int[Array, " edges"]
    receivers: Int[Array, " edges"]
    shifts: Float[Array, "edges 3"]
    mask: Bool[Array, " edges"]
    reverse: Int[Array, " edges"] | None

    @property
    def distances(self) -> Float[Array, " edges"]:
        return jnp.sqrt(jnp.sum(self.vectors**2, axis=-1))


class Graph(eqx.Module):
    """The input of a graph network: all systems of a batch as one graph.

    Attributes:
        numbers: [atoms], atomic numbers; 0 in padding.
        species: [atoms], indices into the model's table `elements`; without one, atomic numbers.
        node_mask: [atoms], False in padding.
        node_system: [atoms], the system of each atom; in padding the number of systems.
        n_nodes: [systems], number of atoms. `system_mask`: [systems], False in padding.
        cell: [systems, 3, 3], Å. `pbc`: [systems, 3].
        charge: [systems], e. `spin`: [systems], multiplicity. `unpaired`: [systems], unpaired electrons.
        head: [systems], index of the data set or output head: the extra `head` of the structures, or 0.
        edges: pairs within `cutoff`. Their fields are also fields of the graph: `vectors`, `distances`,
            `senders`, `receivers`, `shifts`, `edge_mask`, `reverse`.
        triplets: pairs of edges at one atom, if the model has an `inner_cutoff` (see `Triplets`).
        per_atom: [atoms, places], indices of the edges of each atom (its receiver), if the model asks for
            them by `per_atom`; the number of edges in unused places.
        long_edges: pairs within `long_cutoff`, if the model has one.
    """

    numbers: Int[Array, " atoms"]
    species: Int[Array, " atoms"]
    node_mask: Bool[Array, " atoms"]
    node_system: Int[Array, " atoms"]
    n_nodes: Int[Array, " systems"]
    system_mask: Bool[Array, " systems"]
    cell: Float[Array, "systems 3 3"]
    pbc: Bool[Array, "systems 3"]
    charge: Float[Array, " systems"]
    spin: Float[Array, " systems"]
    head: Int[Array, " systems"]
    edges: Edges
    triplets: Triplets | None
    per_atom: Int[Array, "atoms places"] | None
    long_edges: Edges | None

    @property
    def vectors(self) -> Float[Array, "edges 3"]:
        return self.edges.vectors

    @property
    def distances(self) -> Float[Array, " edges"]:
        return self.edges.distances

    @property
    def senders(self) -> Int[Array, " edges"]:
        return self.edges.senders

    @property
    def receivers(self) -> Int[Array, " edges"]:
        return self.edges.receivers

    @property
    def shifts(self) -> Float[Array, "edges 3"]:
        return self.edges.shifts

    @property
    def edge_mask(self) -> Bool[Array, " edges"]:
        return self.edges.mask

    @property
    def reverse(self) -> Int[Array, " edges"] | None:
        return self.edges.reverse

    @property
    def unpaired(self) -> Float[Array, " systems"]:
        return self.spin - 1

    def with_vectors(
        self, vectors: Float[Array, "edges 3"], long_vectors: Float[Array, "long_edges 3"] | None = None
    ) -> "Graph":
        """The graph with other edge vectors, Å; forces are derivatives with respect to them."""
        edges, long_edges = dataclasses.replace(self.edges, vectors=vectors), self.long_edges
        if long_edges is not None and long_vectors is not None:
            long_edges = dataclasses.replace(long_edges, vectors=long_vectors)
        return dataclasses.replace(self, edges=edges, long_edges=long_edges)


class AbstractGraphModel(AbstractModel):
    """A graph network. Write `node_energies`; forces, stress and padding are handled by this class.

        class Net(AbstractGraphModel):
            params: Any
            cutoff: float = 5.0

            def node_energies(self, graph):
                ...                                   # [atoms], eV

    Forces and stress come from one reverse pass through the edge vectors. The energy must go to zero
    smoothly where an edge reaches the cutoff, or forces are not the gradient of the energy.

    Set what the network needs as class attributes or fields: `cutoff` (Å) of the edges; `reverse_edges` for
    the opposite of each edge; `inner_cutoff` (Å) for triplets; `per_atom` for a dense view of the edges;
    `long_cutoff` (Å) for a second list; `elements`, a table of atomic numbers, for `graph.species`.
    """

    cutoff: eqx.AbstractVar[float]  # pyright: ignore[reportIncompatibleVariableOverride]
    inner_cutoff = None
    long_cutoff = None
    reverse_edges: ClassVar[bool] = False
    per_atom: ClassVar[bool] = False

    @property
    def elements(self) -> tuple[int, ...] | None:
        """Atomic numbers that the model knows, in the order of its table; None: any."""
        return None

    @abstractmethod
    def node_energies(self, graph: Graph) -> Float[Array, " atoms"]:
        """Energy of each atom, eV, [atoms]. In padding any finite value is allowed."""

    def node_results(self, graph: Graph) -> tuple[Float[Array, " atoms"], dict[str, Shaped[Array, "..."]]]:
        """Energy of each atom, and the results that `extra_results` declare, for models that compute both at
        once."""
        return self.node_energies(graph), {}

    def make_graph(self, batch: Batch, neighbors: NeighborList | None = None) -> Graph:
        """The graph of a batch as the network gets it, for instance to initialize a module of flax.

        Args:
            neighbors: a list with edges; by default one is made, on the host.
        """
        if neighbors is None:
            neighbors = allocate(batch, self.requirements)
        return make_graph(self, batch, neighbors)

    @property
    def requirements(self) -> Requirements:
        """Edges within the cutoff, and what else the model declares."""
        return Requirements(
            self.cutoff,
            self.skin,
            edges=True,
            reverse_edges=self.reverse_edges,
            edge_cutoff=self.cutoff,
            inner_cutoff=self.inner_cutoff,
            per_atom=self.per_atom,
            long_cutoff=self.long_cutoff,
        )

    def energy(self, batch: Batch, neighbors: NeighborList | None) -> Float[Array, " systems"]:
        energies, _ = _results(self, make_graph(self, batch, neighbors))
        return sum_by_system(batch, jnp.where(batch.atom_mask, energies, 0))

    def evaluate(self, batch: Batch, neighbors: NeighborList | None, *, stress: bool = False) -> Results:
        # Only the vectors are differentiated, so the way from positions to vectors is not.
        graph = jax.lax.stop_gradient(make_graph(self, batch, neighbors))
        vectors = graph.vectors, None if graph.long_edges is None else graph.long_edges.vectors

        def total(vectors: Any) -> tuple[Float[Array, ""], Any]:
            energies, extras = _results(self, graph.with_vectors(*vectors))
            energies = jnp.where(batch.atom_mask, energies, 0)
            return energies.sum(), (energies, extras)

        slopes, (energies, extras) = jax.grad(total, has_aux=True)(vectors)
        forces = _forces_by_edges(batch, graph.edges, slopes[0])
        virial = _virial(batch, graph.edges, slopes[0]) if stress else None
        if graph.long_edges is not None:
            forces = forces + _forces_by_edges(batch, graph.long_edges, slopes[1])
            virial = None if virial is None else virial + _virial(batch, graph.long_edges, slopes[1])
        energy = sum_by_system(batch, energies)
        tensor = None if virial is None else per_volume(batch, virial)
        return Results(energy, mask_atoms(batch, forces), tensor, extras)

    @property
    def trained_elements(self) -> tuple[int, ...] | None:
        """The elements to which the parameters were fitted; `check` refuses others."""
        return self.elements

    def check(self, batch: Batch) -> None:
        """Refuse elements that the model was not fitted to.

        Raises:
            UnknownElementError: a ValueError that names the system, the element, the atom, the elements that
                have parameters, and registered models that know all elements of the system.
        """
        if self.trained_elements is not None:
            check_elements(self, batch, "parameters", self.trained_elements)


def _results(model: AbstractGraphModel, graph: Graph) -> tuple[Float[Array, " atoms"], dict[str, Any]]:
    """`node_results`, checked to be one number per atom."""
    method = "node_results" if model.extra_results else "node_energies"
    who, function = f"{name_of(model)}.{method}", model.source_of(method)
    with user_errors(who, "model"):
        energies, extras = (
            model.node_results(graph) if model.extra_results else (model.node_energies(graph), {})
        )
    real = is_array(energies) and jnp.issubdtype(jnp.asarray(energies).dtype, jnp.floating)
    if not real or jnp.shape(energies) != graph.node_mask.shape:
        atoms = graph.node_mask.shape[0]
        raise UserCodeError(
            f"{who} returned {description(energies)}; it must be floats of shape ({atoms},), the energy of "
            f"each atom{location(function)}."
        )
    return energies, extras


def make_graph(model: AbstractGraphModel, batch: Batch, neighbors: NeighborList | None) -> Graph:
    """The graph of a batch, as a model asks for it; differentiable in positions and cell.

    Raises:
        ValueError: if the list has no edges.
    """
    neighbors, found = need_list(model, neighbors), need_edges(model, neighbors)
    shared = neighbors.requirements
    short = None if shared.edge_cutoff == model.cutoff else model.cutoff
    triplets = found.triplets
    edges = _edges(batch, found, short)
    if not model.reverse_edges:
        edges = dataclasses.replace(edges, reverse=None)
    if model.inner_cutoff is None:
        triplets = None
    elif triplets is not None and (shared.inner_cutoff != model.inner_cutoff or short is not None):
        short_edge = squared_lengths(batch, found) <= model.inner_cutoff**2
        triplets = _within(triplets, edges.mask & short_edge)
    long_edges = None
    if model.long_cutoff is not None:
        far = neighbors.long_edges
        assert far is not None, "requirements ask for them"
        long_edges = _edges(
            batch, far, None if shared.long_cutoff == model.long_cutoff else model.long_cutoff
        )
    head = batch.system_extras.get("head", jnp.zeros(batch.system_capacity, jnp.int32))
    return Graph(
        numbers=batch.numbers,
        species=batch.numbers if model.elements is None else types_of(model.elements, batch.numbers),
        node_mask=batch.atom_mask,
        node_system=batch.batch_idx,
        n_nodes=batch.atoms_per_system,
        system_mask=batch.system_mask,
        cell=batch.cell,
        pbc=batch.pbc,
        charge=batch.charge,
        spin=batch.spin,
        head=jnp.asarray(head).astype(jnp.int32),
        edges=edges,
        triplets=triplets,
        per_atom=found.per_atom if model.per_atom else None,
        long_edges=long_edges,
    )


def _edges(batch: Batch, found: EdgeList, cutoff: float | None) -> Edges:
    """Edges with their vectors. With a cutoff shorter than that of the list, those beyond it are padding."""
    kept = found if cutoff is None else edges_within(batch, found, cutoff)
    return Edges(kept.vectors(batch), kept.senders, kept.receivers, kept.shifts, kept.mask, kept.reverse)


def _within(triplets: Triplets, near: Bool[Array, " edges"]) -> Triplets:
    """Triplets without the bonds beyond a shorter inner cutoff: these become padding."""
    many, edge_count = len(triplets.bonds), len(near)
    keep = triplets.bond_mask & near[jnp.minimum(triplets.bonds, edge_count - 1)]
    kept = jnp.concatenate([keep, jnp.zeros(1, bool)])
    mask = triplets.mask & kept[triplets.first] & kept[triplets.second]
    return dataclasses.replace(
        triplets,
        bonds=jnp.where(keep, triplets.bonds, edge_count),
        bond_mask=keep,
        bond_of_edge=jnp.where(kept[triplets.bond_of_edge], triplets.bond_of_edge, many),
        first=jnp.where(mask, triplets.first, many),
        second=jnp.where(mask, triplets.second, many),
        mask=mask,
    )


def _forces_by_edges(batch: Batch, edges: Edges, slope: Float[Array, "edges 3"]) -> Float[Array, "atoms 3"]:
    """Forces from dE/dvectors: an edge pulls its receiver one way and its sender the other."""
    n = batch.atom_capacity
    if edges.reverse is not None:
        both = jnp.where(edges.mask[:, None], slope - slope[edges.reverse], 0)
        return jax.ops.segment_sum(both, edges.receivers, n)
    own = jax.ops.segment_sum(slope, edges.receivers, n)
    return own - jax.ops.segment_sum(slope, edges.senders, n)


def _virial(batch: Batch, edges: Edges, slope: Float[Array, "edges 3"]) -> Float[Array, "systems 3 3"]:
    """dE/dstrain by system, eV, made symmetric."""
    outer = edges.vectors[:, :, None] * slope[:, None, :]
    outer = (outer + outer.swapaxes(1, 2)) / 2
    of_atoms = jax.ops.segment_sum(
        jnp.where(edges.mask[:, None], outer.reshape(-1, 9), 0), edges.receivers, batch.atom_capacity
    )
    return sum_by_system(batch, of_atoms).reshape(-1, 3, 3)


__all__ = ["AbstractGraphModel", "Edges", "Graph", "make_graph"]
