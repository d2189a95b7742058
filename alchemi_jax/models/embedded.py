"""AbstractEmbedded: the energy of an atom depends on a density from its neighbors (EAM, EMT, glue)."""

from abc import abstractmethod
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from alchemi_jax.models.base import AbstractModel, Results, cast, need_list, per_volume, virial_by_system
from alchemi_jax.models.slots import coordinates, extend, neighbor_sums
from alchemi_jax.neighbors import NeighborList
from alchemi_jax.systems.batch import Batch
from alchemi_jax.systems.segments import sum_by_system


class AbstractEmbedded(AbstractModel):
    """An embedded-atom potential. Write `pair_functions` and `embedding_energy`, and `atom_parameters` if
    atoms differ.

        E = sum_i F_i(rho_i) + 1/2 sum_ij phi_ij(r),  rho_i = sum_j g_ij(r)

    Forces and stress are a second sum over the neighbors, of the derivative of phi_ij + F'_i g_ij + F'_j
    g_ji. The derivatives of the functions are kept from the first sum.
    """

    cutoff: eqx.AbstractVar[float]

    @property
    def one_density(self) -> bool:
        """Whether g_ij = g_ji for all pairs, as with one element. It saves an array and its derivative."""
        return False

    @abstractmethod
    def pair_functions(
        self, squared: Float[Array, "*pairs"], a: Any, b: Any
    ) -> tuple[Float[Array, "*pairs"], Float[Array, "*pairs"], Float[Array, "*pairs"]]:
        """phi (eV), g_ab (the density at a from b) and g_ba (the density at b from a) of pairs.

        Args:
            squared: squared distances, Å².
        a, b: values of `atom_parameters` at the two atoms.
        """

    def pair_functions_and_slopes(
        self, squared: Float[Array, "*pairs"], a: Any, b: Any
    ) -> tuple[tuple[Float[Array, "*pairs"], ...], tuple[Float[Array, "*pairs"], ...]]:
        """phi, g_ab, g_ba (without g_ba if `one_density`), and their derivatives with respect to the squared
        distance."""
        kept = 2 if self.one_density else 3
        return jax.jvp(lambda s: self.pair_functions(s, a, b)[:kept], (squared,), (jnp.ones_like(squared),))

    @abstractmethod
    def embedding_energy(self, density: Float[Array, " atoms"], a: Any) -> Float[Array, " atoms"]:
        """F of each atom, eV, as a function of its density, [atoms]. A single atom has density 0."""

    def atom_parameters(self, batch: Batch) -> Any:
        """Arrays [atoms], gathered for both atoms of each pair; none by default."""
        return ()

    def energy(self, batch: Batch, neighbors: NeighborList | None) -> Float[Array, " systems"]:
        model, places, values, found = self._prepare(batch, neighbors)
        pair, density = neighbor_sums(_density_terms, model, places, values, found)
        energy, _ = model._atoms(batch, values, pair, density)
        return sum_by_system(batch, energy)

    def evaluate(self, batch: Batch, neighbors: NeighborList | None, *, stress: bool = False) -> Results:
        model, places, values, found = self._prepare(batch, neighbors)
        kept = 2 if self.one_density else 3
        pair, density, *slopes = neighbor_sums(_terms_and_slopes, model, places, values, found, keep=kept)
        energy, slope = model._atoms(batch, values, pair, density)
        terms = _virial_terms if stress else _force_terms
        slope = extend(slope, found)
        sums = neighbor_sums(terms, model, places, slope, found, tuple(slopes))
        forces = jnp.where(batch.atom_mask[:, None], 2 * jnp.stack(sums[:3], axis=-1), 0)
        energy = sum_by_system(batch, energy)
        if not stress:
            return Results(energy, forces, None)
        return Results(energy, forces, per_volume(batch, virial_by_system(batch, sums[3:])))

    def _prepare(self, batch: Batch, neighbors: NeighborList | None) -> tuple:
        neighbors = need_list(self, neighbors)
        model = cast(self, batch.dtype)
        values = extend(model.atom_parameters(batch), neighbors)
        return model, coordinates(batch, neighbors), values, neighbors

    def _atoms(
        self, batch: Batch, values: Any, pair: Float[Array, " atoms"], density: Float[Array, " atoms"]
    ) -> tuple[Float[Array, " atoms"], Float[Array, " atoms"]]:
        """Energy and F' of each atom, zero for padding."""
        own = jax.tree.map(lambda v: v[: batch.atom_capacity], values)
        energy, slope = jax.jvp(
            lambda d: self.embedding_energy(d, own), (density,), (jnp.ones_like(density),)
        )
        mask = batch.atom_mask
        return jnp.where(mask, energy + pair / 2, 0), jnp.where(mask, slope, 0)


def _functions(
    model: AbstractEmbedded, squared: Float[Array, "*pairs"], a: Any, b: Any
) -> tuple[Float[Array, "*pairs"], ...]:
    inside = squared <= model.cutoff**2
    return tuple(jnp.where(inside, v, 0) for v in model.pair_functions(squared, a, b))


def _density_terms(model: AbstractEmbedded, d: tuple, a: Any, b: Any) -> tuple[Float[Array, "*pairs"], ...]:
    x, y, z = d
    return _functions(model, x * x + y * y + z * z, a, b)[:2]


def _terms_and_slopes(
    model: AbstractEmbedded, d: tuple, a: Any, b: Any
) -> tuple[Float[Array, "*pairs"], ...]:
    """phi and g_ab, and the derivatives of phi, g_ab and g_ba in the squared distance."""
    x, y, z = d
    squared = x * x + y * y + z * z
    inside = squared <= model.cutoff**2
    (phi, g_ab, *_), slopes = model.pair_functions_and_slopes(squared, a, b)
    phi, g_ab, *slopes = (jnp.where(inside, v, 0) for v in (phi, g_ab, *slopes))
    return phi, g_ab, *slopes


def _force_terms(
    model: AbstractEmbedded, d: tuple, a: Any, b: Any, *slopes: Any
) -> tuple[Float[Array, "*pairs"], ...]:
    """a, b: F' at both atoms."""
    x, y, z = d
    if model.one_density:
        phi, g = slopes
        slope = phi + (a + b) * g
    else:
        phi, g_ab, g_ba = slopes
        slope = phi + a * g_ab + b * g_ba
    return slope * x, slope * y, slope * z


def _virial_terms(
    model: AbstractEmbedded, d: tuple, a: Any, b: Any, *slopes: Any
) -> tuple[Float[Array, "*pairs"], ...]:
    x, y, z = d
    fx, fy, fz = _force_terms(model, d, a, b, *slopes)
    return fx, fy, fz, fx * x, fy * y, fz * z, fy * z, fx * z, fx * y


__all__ = ["AbstractEmbedded"]
