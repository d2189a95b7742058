"""AbstractEmbedded: the energy of an atom depends on a density from its neighbors (EAM, EMT, glue)."""

from abc import abstractmethod
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from alchemi_jax.models.base import AbstractModel, Results, cast, per_volume
from alchemi_jax.models.slots import coordinates, extend, neighbor_sums
from alchemi_jax.neighbors import NeighborList
from alchemi_jax.systems.batch import Batch
from alchemi_jax.systems.segments import sum_by_system


class AbstractEmbedded(AbstractModel):
    """E = sum_i F_i(rho_i) + 1/2 sum_ij phi_ij(r), with rho_i = sum_j g_ij(r).

    Write `pair_functions` and `embedding_energy`, and `atom_parameters` if atoms differ. Forces and
    stress are a second sum over the neighbors, of the derivative of phi_ij + F'_i g_ij + F'_j g_ji.
    """

    cutoff: eqx.AbstractVar[float]

    @abstractmethod
    def pair_functions(
        self, squared: Float[Array, "*pairs"], a: Any, b: Any
    ) -> tuple[Float[Array, "*pairs"], Float[Array, "*pairs"], Float[Array, "*pairs"]]:
        """phi (eV), g_ab (the density at a from b) and g_ba (that at b from a), from squared distances, Å².

        a, b: values of `atom_parameters` at the two atoms.
        """

    @abstractmethod
    def embedding_energy(self, density: Float[Array, " atoms"], a: Any) -> Float[Array, " atoms"]:
        """F of each atom, eV, as a function of its density, [atoms]. A single atom has density 0."""

    def atom_parameters(self, batch: Batch) -> Any:
        """Arrays [atoms], gathered for both atoms of each pair; none by default."""
        return ()

    def energy(self, batch: Batch, neighbors: NeighborList | None) -> Float[Array, " systems"]:
        model, places, values = self._prepare(batch, neighbors)
        energy, _ = model._atoms(batch, neighbors, places, values)
        return sum_by_system(batch, energy)

    def evaluate(self, batch: Batch, neighbors: NeighborList | None, *, stress: bool = False) -> Results:
        model, places, values = self._prepare(batch, neighbors)
        energy, slope = model._atoms(batch, neighbors, places, values)
        terms = _virial_terms if stress else _force_terms
        values = (values, extend(slope, neighbors))  # pyright: ignore[reportArgumentType]
        sums = neighbor_sums(terms, model, places, values, neighbors)
        forces = jnp.where(batch.atom_mask[:, None], 2 * jnp.stack(sums[:3], axis=-1), 0)
        energy = sum_by_system(batch, energy)
        if not stress:
            return Results(energy, forces, None)
        return Results(energy, forces, per_volume(batch, virial(batch, sums[3:])))

    def _prepare(self, batch: Batch, neighbors: NeighborList | None) -> tuple:
        if neighbors is None:
            raise ValueError(f"{type(self).__name__} needs a neighbor list, got None.")
        model = cast(self, batch.dtype)
        return model, coordinates(batch, neighbors), extend(model.atom_parameters(batch), neighbors)

    def _atoms(
        self, batch: Batch, neighbors: Any, places: tuple, values: Any
    ) -> tuple[Float[Array, " atoms"], Float[Array, " atoms"]]:
        """Energy and F' of each atom, zero for padding."""
        pair, density = neighbor_sums(_density_terms, self, places, values, neighbors)
        own = jax.tree.map(lambda v: v[: batch.atom_capacity], values)
        energy, slope = jax.jvp(
            lambda d: self.embedding_energy(d, own), (density,), (jnp.ones_like(density),)
        )
        mask = batch.atom_mask
        return jnp.where(mask, energy + pair / 2, 0), jnp.where(mask, slope, 0)


def virial(batch: Batch, sums: tuple[Float[Array, " atoms"], ...]) -> Float[Array, "systems 3 3"]:
    """dE/dstrain, eV, from per-atom sums xx, yy, zz, yz, xz, xy."""
    s = sum_by_system(batch, jnp.stack(sums, axis=-1))
    xx, yy, zz, yz, xz, xy = (s[:, k] for k in range(6))
    return jnp.stack([xx, xy, xz, xy, yy, yz, xz, yz, zz], axis=-1).reshape(-1, 3, 3)


def _functions(
    model: AbstractEmbedded, squared: Float[Array, "*pairs"], a: Any, b: Any
) -> tuple[Float[Array, "*pairs"], ...]:
    inside = squared <= model.cutoff**2
    return tuple(jnp.where(inside, v, 0) for v in model.pair_functions(squared, a, b))


def _density_terms(model: AbstractEmbedded, d: tuple, a: Any, b: Any) -> tuple[Float[Array, "*pairs"], ...]:
    x, y, z = d
    return _functions(model, x * x + y * y + z * z, a, b)[:2]


def _force_terms(model: AbstractEmbedded, d: tuple, a: Any, b: Any) -> tuple[Float[Array, "*pairs"], ...]:
    x, y, z = d
    (a, slope_a), (b, slope_b) = a, b

    def energy(squared: Float[Array, "*pairs"]) -> Float[Array, "*pairs"]:
        phi, g_ab, g_ba = _functions(model, squared, a, b)
        return phi + slope_a * g_ab + slope_b * g_ba

    squared = x * x + y * y + z * z
    slope = jax.jvp(energy, (squared,), (jnp.ones_like(squared),))[1]
    return slope * x, slope * y, slope * z


def _virial_terms(model: AbstractEmbedded, d: tuple, a: Any, b: Any) -> tuple[Float[Array, "*pairs"], ...]:
    x, y, z = d
    fx, fy, fz = _force_terms(model, d, a, b)
    return fx, fy, fz, fx * x, fy * y, fz * z, fy * z, fx * z, fx * y


__all__ = ["AbstractEmbedded", "virial"]
