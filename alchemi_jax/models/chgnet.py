"""CHGNet: the pretrained universal potential for crystals, a graph network on atoms, bonds and angles.

The weights are those of the `chgnet` package (modified BSD license); see `chgnet_weights`.

Symbols: atoms i have features v_i, edges i <- j within 6 Å (5 Å in version 0.2.0) features e_ij, the bonds
among them within 3 Å change theirs, angles (two bonds of one atom) features a. A gated perceptron is
phi(x) = silu(norm(core(x))) * sigmoid(norm(gate(x))). Each layer is

    v_i  += L sum_j  w_ij phi(v_i, e_ij, v_j)
    e_ij += L sum_k  u_ij u_ik phi(e_ij, e_ik, a_jik, v_i)     and the same sum at the other end
    a_jik += phi(e_ij, e_ik, a_jik, v_i)

with weights w, u that vanish at the cutoffs. The first linear layer of phi is applied to each of its inputs
where there are fewest rows, to atoms or bonds, and then gathered and added.
"""

import dataclasses
import math
from collections.abc import Mapping
from typing import Any, ClassVar

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from alchemi_jax.models.base import cast
from alchemi_jax.models.chgnet_weights import Weights, get
from alchemi_jax.models.chunks import Rows, sum_chunks, sum_rows
from alchemi_jax.models.graph import AbstractGraphModel, Graph
from alchemi_jax.neighbors import NeighborList, Triplets
from alchemi_jax.parameters import as_flag, positive_length
from alchemi_jax.products import matmul
from alchemi_jax.systems.batch import Batch
from alchemi_jax.systems.levels import Level


ELEMENTS = tuple(range(1, 95))
"""Atomic numbers in CHGNet's tables: hydrogen to plutonium."""
#: In the tables, but not in the structures that the weights were fitted to: Po to Ra still have the numbers
#: that they were initialized with, and r2scan has no energy of the Yb atom.
UNTRAINED = {version: (84, 85, 86, 87, 88) for version in ("0.3.0", "0.2.0")} | {
    "r2scan": (70, 84, 85, 86, 87, 88)
}


class Linear(eqx.Module):
    """x W + b."""

    weight: Float[Array, "inputs outputs"]
    bias: Float[Array, " outputs"] | None

    def __call__(self, x: Float[Array, "rows inputs"]) -> Float[Array, "rows outputs"]:
        y = matmul(x, self.weight)
        return y if self.bias is None else y + self.bias[None]


class Norm(eqx.Module):
    """Layer norm over the features."""

    scale: Float[Array, " features"]
    offset: Float[Array, " features"]

    def __call__(self, x: Float[Array, "rows features"]) -> Float[Array, "rows features"]:
        mean = x.mean(axis=-1, keepdims=True)
        centred = x - mean
        variance = (centred * centred).mean(axis=-1, keepdims=True)
        return centred * jax.lax.rsqrt(variance + 1e-5) * self.scale[None] + self.offset[None]


class Gated(eqx.Module):
    """A gated perceptron: two branches, core and gate, each of one or two linear layers and a norm.

    `first` is the weight of the first layer in blocks, one per input: [2, inputs, features, hidden].
    """

    first: Float[Array, "2 inputs features hidden"]
    first_bias: Float[Array, "2 hidden"]
    second: tuple[Linear, Linear] | None
    norms: tuple[Norm, Norm] | None

    @property
    def joined(self) -> Float[Array, "inputs features both"]:
        """The blocks with core and gate side by side."""
        return jnp.concatenate([self.first[0], self.first[1]], axis=-1)

    @property
    def bias(self) -> Float[Array, "1 both"]:
        return self.first_bias.reshape(1, -1)

    def part(self, k: int, x: Float[Array, "rows features"]) -> Float[Array, "rows both"]:
        """What input k adds to the first layer of core and gate."""
        return matmul(x, self.joined[k])

    def rest(self, sums: Float[Array, "rows both"]) -> Float[Array, "rows outputs"]:
        """The perceptron from the sums of its first layer on."""
        core, gate = jnp.split(sums, 2, axis=-1)
        if self.second is not None:
            core, gate = self.second[0](jax.nn.silu(core)), self.second[1](jax.nn.silu(gate))
        if self.norms is not None:
            core, gate = self.norms[0](core), self.norms[1](gate)
        return jax.nn.silu(core) * jax.nn.sigmoid(gate)


class Layer(eqx.Module):
    """One layer of messages; the last has no bonds and angles, the one before it no angles."""

    atoms: Gated
    atoms_out: Linear
    bonds: Gated | None
    bonds_out: Linear | None
    angles: Gated | None


class CHGNet(AbstractGraphModel):
    """CHGNet with pretrained weights, for H to Bi and Ac to Pu: `CHGNet.load()`.

    Energies are those of the chgnet package for the same version, in eV, corrected as in the Materials
    Project. Results also have `magmoms`, [atoms], absolute values of magnetic moments in Bohr magnetons.

    Attributes:
        version: of the weights: "0.3.0", "0.2.0" or "r2scan".
        cutoff: Å, of the edges. `inner_cutoff`: Å, of the bonds.

    Source: Deng et al., Nat. Mach. Intell. 5, 1031 (2023), doi:10.1038/s42256-023-00716-3.
    """

    references: Float[Array, " elements"] = eqx.field(repr=False)
    embedding: Float[Array, "elements features"] = eqx.field(repr=False)
    frequencies: Float[Array, " radial"] = eqx.field(repr=False)
    bond_frequencies: Float[Array, " radial"] = eqx.field(repr=False)
    angle_frequencies: Float[Array, " angular"] = eqx.field(repr=False)
    edge_features: Linear = eqx.field(repr=False)
    edge_weights: Linear = eqx.field(repr=False)
    bond_weights: Linear = eqx.field(repr=False)
    angle_features: Linear = eqx.field(repr=False)
    layers: tuple[Layer, ...] = eqx.field(repr=False)
    moments: Linear = eqx.field(repr=False)
    readout_norm: Norm | None = eqx.field(repr=False)
    readout: tuple[Linear, ...] = eqx.field(repr=False)
    version: str = eqx.field(static=True)
    cutoff: float = eqx.field(static=True, converter=positive_length("cutoff"))
    inner_cutoff: float = eqx.field(static=True, converter=positive_length("inner_cutoff"))
    exponent: int = eqx.field(static=True, repr=False)
    skin: float = eqx.field(static=True, converter=positive_length("skin", zero=True), default=0.6)
    #: Whether edges and angles are treated in chunks: less time and memory, and no forward-mode derivatives.
    in_chunks: bool = eqx.field(static=True, converter=as_flag("in_chunks"), default=True, repr=False)

    extra_results: ClassVar[Mapping[str, Level]] = {"magmoms": "atom"}
    never_negative: ClassVar[tuple[str, ...]] = ("magmoms",)
    reverse_edges: ClassVar[bool] = True

    @property
    def elements(self) -> tuple[int, ...]:
        return ELEMENTS

    @property
    def trained_elements(self) -> tuple[int, ...]:
        """Hydrogen to plutonium without polonium to radium, which the training set did not have."""
        return tuple(z for z in ELEMENTS if z not in UNTRAINED.get(self.version, ()))

    @classmethod
    def load(cls, version: str = "0.3.0", *, skin: float = 0.6) -> "CHGNet":
        """CHGNet with pretrained weights.

        The weights come from an installed `chgnet` or from the user's cache; on first use pip downloads the
        wheel of `chgnet` (13.7 MB) into that cache.

        Args:
            version: "0.3.0", "0.2.0" or "r2scan".
            skin: Å, added to the cutoff of the neighbor list.

        Raises:
            ValueError: for another version.
            OSError: if the weights cannot be downloaded; the message says which file to put where.
        """
        return from_weights(get(version), skin)

    def energy(self, batch: Batch, neighbors: NeighborList | None) -> Float[Array, " systems"]:
        # Whoever differentiates an energy may want forward mode, too, which chunks do not have.
        return AbstractGraphModel.energy(dataclasses.replace(self, in_chunks=False), batch, neighbors)

    def node_energies(self, graph: Graph) -> Float[Array, " atoms"]:
        return self.node_results(graph)[0]

    def node_results(self, graph: Graph) -> tuple[Float[Array, " atoms"], dict[str, Array]]:
        return cast(self, graph.vectors.dtype)._node_results(graph)

    def _node_results(self, graph: Graph) -> tuple[Float[Array, " atoms"], dict[str, Array]]:
        triplets = graph.triplets
        if triplets is None or graph.reverse is None:
            raise ValueError("CHGNet needs a graph with triplets and reverse edges.")
        atoms, edge_count = self.embedding[graph.species], len(graph.senders)
        last = atoms.shape[0] - 1
        distances = graph.distances
        radial = _radial(distances, self.frequencies, self.cutoff, self.exponent)

        at = jnp.minimum(triplets.bonds, edge_count - 1)
        centres = jnp.minimum(graph.receivers[at], last)
        opposite = triplets.bond_of_edge[graph.reverse[at]]
        near = jnp.where(triplets.bond_mask, distances[at], 2 * self.cutoff)
        bond_weights = self.bond_weights(
            _radial(near, self.bond_frequencies, self.inner_cutoff, self.exponent)
        )
        angles = _bond_angles(graph, triplets)
        # Bonds have the features of their edges, and what the layers have added.
        added = jnp.zeros((len(at), atoms.shape[1]), atoms.dtype)
        own = self.edge_features(radial[at])
        # Version 0.2.0: the layers add a bias to all edges of a system that has angles.
        common, angular = (
            jnp.zeros((1, atoms.shape[1]), atoms.dtype),
            self._has_angles(graph, triplets, centres),
        )

        edge_rows, angle_rows = graph.edge_mask.sum(), triplets.mask.sum()
        # Chunks are for the cache of a core; another device works on whole arrays at once.
        add_up: Any = sum_chunks if self.in_chunks and jax.default_backend() == "cpu" else sum_rows
        update: tuple[Gated, Any] | None = None
        magmoms = jnp.zeros(atoms.shape[0], atoms.dtype)
        for layer in self.layers:
            phi = layer.atoms
            own_part = phi.part(0, atoms) + phi.part(1, angular[:, None] * common) + phi.bias
            rows = Rows(
                tables=(own_part, phi.part(2, atoms), phi.part(1, added)),
                indices=(graph.receivers, graph.senders, triplets.bond_of_edge),
                values=radial,
                target=graph.receivers,
                used=edge_rows,
            )
            weights = (phi, matmul(self.edge_features.weight, phi.joined[1]), self.edge_weights)
            summed, _ = add_up(_edge_messages, last + 1, weights, rows)
            if layer.bonds is None:
                magmoms = jnp.abs(self.moments(atoms)[:, 0])
            atoms = atoms + layer.atoms_out(summed)
            if layer.bonds is None or layer.bonds_out is None:
                continue
            bonds = own + added + common
            phi = layer.bonds
            tables = (phi.part(0, bonds) + phi.part(3, atoms[centres]) + phi.bias, phi.part(1, bonds))
            rows = Rows(
                tables=(*tables, bond_weights, bond_weights) + (() if update is None else update[1]),
                indices=(triplets.first, triplets.second) * (2 if update is None else 3),
                values=angles,
                target=triplets.first,
                used=angle_rows,
            )
            series = (self.angle_frequencies, self.angle_features) if update is None else None
            weights = (phi, None if update is None else update[0], series)
            summed, angles = add_up(_angle_messages, len(at), weights, rows)
            summed = summed + summed.at[opposite].get(mode="fill", fill_value=0)
            added = added + matmul(summed, layer.bonds_out.weight)
            common = common + (0 if layer.bonds_out.bias is None else layer.bonds_out.bias[None])
            if layer.angles is not None:
                # These angles are read by the next layer, in the same pass over the rows.
                phi, bonds = layer.angles, own + added + common
                first = phi.part(0, bonds) + phi.part(3, atoms[centres]) + phi.bias
                update = phi, (first, phi.part(1, bonds))
        if self.readout_norm is not None:
            atoms = self.readout_norm(atoms)
        for linear in self.readout[:-1]:
            atoms = jax.nn.silu(linear(atoms))
        energies = self.readout[-1](atoms)[:, 0] + self.references[graph.species]
        return energies, {"magmoms": jnp.where(graph.node_mask, magmoms, 0)}

    def _has_angles(self, graph: Graph, triplets: Triplets, centres: Any) -> Float[Array, " atoms"]:
        """1 for atoms of systems with any angle, else 0."""
        count = len(graph.n_nodes)
        if all(layer.bonds_out is None or layer.bonds_out.bias is None for layer in self.layers):
            return jnp.zeros(len(graph.species), graph.vectors.dtype)
        at = centres[jnp.minimum(triplets.first, len(centres) - 1)]
        system = jnp.where(triplets.mask, graph.node_system[at], count)
        many = jax.ops.segment_sum(triplets.mask.astype(jnp.int32), system, count)
        return (many[jnp.minimum(graph.node_system, count - 1)] > 0).astype(graph.vectors.dtype)


def _bond_angles(graph: Graph, triplets: Triplets) -> Float[Array, " triplets"]:
    """The angle between the bonds of each triplet."""
    last = len(triplets.bonds) - 1
    at = jnp.minimum(triplets.bonds, len(graph.senders) - 1)
    # In padding, bonds at right angles, where the derivative of the angle is finite.
    vectors = jnp.where(triplets.bond_mask[:, None], graph.vectors[at], 1.0)
    units = vectors / jnp.sqrt(jnp.sum(vectors**2, axis=-1, keepdims=True))
    first, second = jnp.minimum(triplets.first, last), jnp.minimum(triplets.second, last)
    cosine = units[first, 0] * units[second, 0]
    for k in (1, 2):
        cosine = cosine + units[first, k] * units[second, k]
    return jnp.arccos(jnp.where(triplets.mask, cosine, 0) * (1 - 1e-6))


def _fourier(
    angles: Float[Array, " rows"], frequencies: Float[Array, " orders"]
) -> Float[Array, "rows angular"]:
    """Fourier series of angles."""
    phase = angles[:, None] * frequencies[None]
    constant = jnp.full_like(angles[:, None], 2**-0.5)
    return jnp.concatenate([constant, jnp.sin(phase), jnp.cos(phase)], axis=1) / math.sqrt(math.pi)


def _radial(
    distances: Float[Array, " edges"], frequencies: Float[Array, " radial"], cutoff: float, p: int
) -> Float[Array, "edges radial"]:
    """Bessel functions of the distance times a polynomial that vanishes smoothly at the cutoff."""
    x = distances / cutoff
    low = jnp.minimum(x, 1.0)
    polynomial = 1 - low**p * ((p + 1) * (p + 2) / 2 - low * (p * (p + 2) - low * (p * (p + 1) / 2)))
    envelope = jnp.where(x < 1, polynomial, 0) / distances * (2 / cutoff) ** 0.5
    return envelope[:, None] * jnp.sin(frequencies[None] * low[:, None])


def _edge_messages(weights: Any, gathered: Any, radial: Any) -> tuple[Any, None]:
    """Messages of edges, times their weights."""
    phi, of_distance, edge_weights = weights
    receiver, sender, bond = gathered
    return phi.rest(receiver + sender + bond + matmul(radial, of_distance)) * edge_weights(radial), None


def _angle_messages(weights: Any, gathered: Any, angles: Any) -> tuple[Any, Any]:
    """Messages of angles, times the weights of both bonds, and the features of the angles.

    `angles` are the angles themselves in the first layer, then their features.
    """
    phi, update, series = weights
    first, second, weight, other_weight, *to_update = gathered
    if series is not None:
        angles = series[1](_fourier(angles, series[0]))
    else:
        angles = angles + update.rest(sum(to_update) + update.part(2, angles))
    return phi.rest(first + second + phi.part(2, angles)) * (weight * other_weight), angles


def from_weights(weights: Weights, skin: float = 0.6) -> CHGNet:
    """The model from named weights, as the chgnet package names them."""
    w = {name: np.asarray(value) for name, value in weights.arrays.items()}
    args = weights.arguments

    def linear(name: str) -> Linear:
        bias = w.get(f"{name}.bias")
        return Linear(jnp.asarray(w[f"{name}.weight"].T), None if bias is None else jnp.asarray(bias))

    def norm(name: str) -> Norm | None:
        if f"{name}.weight" not in w:
            return None
        return Norm(jnp.asarray(w[f"{name}.weight"]), jnp.asarray(w[f"{name}.bias"]))

    def gated(name: str, inputs: int) -> Gated:
        branches = [f"{name}.mlp_core.layers", f"{name}.mlp_gate.layers"]
        # With a hidden layer, layers 0 and 3 are linear; without one it is layer 1 alone.
        index = 0 if f"{branches[0]}.0.weight" in w else 1
        matrices = np.stack([w[f"{b}.{index}.weight"].T for b in branches])
        biases = np.stack([w[f"{b}.{index}.bias"] for b in branches])
        core, gate = norm(f"{name}.bn1"), norm(f"{name}.bn2")
        return Gated(
            first=jnp.asarray(matrices.reshape(2, inputs, -1, matrices.shape[-1])),
            first_bias=jnp.asarray(biases),
            second=(linear(f"{branches[0]}.3"), linear(f"{branches[1]}.3")) if index == 0 else None,
            norms=None if core is None or gate is None else (core, gate),
        )

    count = int(args["n_conv"])
    layers = []
    for k in range(count):
        with_bonds, with_angles = k < count - 1, k < count - 2
        layers.append(
            Layer(
                atoms=gated(f"atom_conv_layers.{k}.twoBody_atom", 3),
                atoms_out=linear(f"atom_conv_layers.{k}.mlp_out.layers.1"),
                bonds=gated(f"bond_conv_layers.{k}.twoBody_bond", 4) if with_bonds else None,
                bonds_out=linear(f"bond_conv_layers.{k}.mlp_out.layers.1") if with_bonds else None,
                # The angles of the last layer with bonds are not read any more.
                angles=gated(f"angle_layers.{k}.twoBody_bond", 4) if with_angles else None,
            )
        )
    readout = sorted(
        (name.removesuffix(".weight") for name in w if name.startswith("mlp.layers.") and "weight" in name),
        key=lambda name: int(name.rsplit(".", 1)[1]),
    )
    return CHGNet(
        references=jnp.asarray(w["composition_model.fc.weight"][0]),
        embedding=jnp.asarray(w["atom_embedding.embedding.weight"]),
        frequencies=jnp.asarray(w["bond_basis_expansion.rbf_expansion_ag.frequencies"]),
        bond_frequencies=jnp.asarray(w["bond_basis_expansion.rbf_expansion_bg.frequencies"]),
        angle_frequencies=jnp.asarray(w["angle_basis_expansion.fourier_expansion.frequencies"]),
        edge_features=linear("bond_embedding"),
        edge_weights=linear("bond_weights_ag"),
        bond_weights=linear("bond_weights_bg"),
        angle_features=linear("angle_embedding"),
        layers=tuple(layers),
        moments=linear("site_wise"),
        readout_norm=norm("readout_norm"),
        readout=tuple(linear(name) for name in readout),
        version=weights.version,
        cutoff=float(args["atom_graph_cutoff"]),
        inner_cutoff=float(args["bond_graph_cutoff"]),
        exponent=int(args["cutoff_coeff"]),
        skin=skin,
    )


__all__ = ["ELEMENTS", "UNTRAINED", "CHGNet", "Gated", "Layer", "Linear", "Norm", "from_weights"]
