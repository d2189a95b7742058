"""AbstractBondOrder: three-body potentials, in which the energy of a bond depends on the other bonds.

    E = 1/2 sum_i sum_j bond(r_ij, xi_ij),    xi_ij = sum_{k != j} angle(r_ij, r_ik, cos theta_jik)

The number of angles is the square of the number of bonds. So the few neighbors within the cutoff are moved
to the first slots (the list also has those within the skin), and loops over pairs of slots end at the largest
number of bonds of an atom. No array in them is longer than the number of atoms; the memory is that of the
neighbor matrix. Each bond and angle is differentiated in the loop; forces and stress are sums of these
slopes.

Higher derivatives, and derivatives with respect to parameters, use a scan over all slots. It needs no more
memory, but is slower by (slots / bonds)².
"""

from abc import abstractmethod
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from alchemi_jax.models.base import AbstractModel, Results, cast, need_list, per_volume, virial_by_system
from alchemi_jax.models.slots import coordinates, extend, jvp_of, near_first
from alchemi_jax.neighbors import NeighborList
from alchemi_jax.systems.batch import Batch
from alchemi_jax.systems.segments import sum_by_system


class AbstractBondOrder(AbstractModel):
    """A bond-order potential. Write `bond` and `angle`, and `atom_parameters` if atoms differ.

        E = 1/2 sum_i sum_j bond(r_ij, xi_ij)
        xi_ij = sum_{k != j} angle(r_ij, r_ik, cos theta_jik)

    Forces and stress follow from both functions by differentiation.
    """

    cutoff: eqx.AbstractVar[float]

    @abstractmethod
    def bond(
        self, r: Float[Array, "*bonds"], xi: Float[Array, "*bonds"], a: Any, b: Any
    ) -> Float[Array, "*bonds"]:
        """Energy of bonds from a to b, eV. Half of it counts, because the bond from b to a is there too.

        Args:
            r: distances, Å. The function is also called somewhat beyond the cutoff, where it may have any
                finite value.
            xi: sums of `angle` over the other bonds of a.
            a, b: values of `atom_parameters` at the two atoms.
        """

    @abstractmethod
    def angle(
        self,
        rj: Float[Array, "*angles"],
        rk: Float[Array, "*angles"],
        cosine: Float[Array, "*angles"],
        a: Any,
        b: Any,
        c: Any,
    ) -> Float[Array, "*angles"]:
        """Contribution of the bond from a to c to xi of the bond from a to b.

        Args:
            rj, rk: distances from a to b and to c, Å.
            cosine: of the angle between both bonds.
            a, b, c: values of `atom_parameters` at the three atoms.
        """

    def atom_parameters(self, batch: Batch) -> Any:
        """Arrays [atoms], gathered for the atoms of each bond; none by default."""
        return ()

    def energy(self, batch: Batch, neighbors: NeighborList | None) -> Float[Array, " systems"]:
        bonds, _, model = self._bonds(batch, neighbors)
        energy, _ = _local(model, *bonds)
        return sum_by_system(batch, jnp.where(batch.atom_mask, energy, 0))

    def evaluate(self, batch: Batch, neighbors: NeighborList | None, *, stress: bool = False) -> Results:
        bonds, atom, model = self._bonds(batch, neighbors)
        energy, slopes = _local(model, *bonds)
        energy = sum_by_system(batch, jnp.where(batch.atom_mask, energy, 0))
        n = batch.atom_capacity
        forces = jnp.stack([g.sum(axis=0) - _scatter(g, atom, n) for g in slopes], axis=-1)
        if not stress:
            return Results(energy, forces, None)
        (x, y, z), (gx, gy, gz) = bonds[0], slopes
        products = (
            gx * x,
            gy * y,
            gz * z,
            (gy * z + gz * y) / 2,
            (gx * z + gz * x) / 2,
            (gx * y + gy * x) / 2,
        )
        sums = tuple(jnp.where(batch.atom_mask, p.sum(axis=0), 0) for p in products)
        return Results(energy, forces, per_volume(batch, virial_by_system(batch, sums)))

    def _bonds(self, batch: Batch, neighbors: NeighborList | None) -> tuple:
        """Vectors, mask, number of used slots and parameters of the bonds; atom in each slot; model."""
        neighbors = need_list(self, neighbors)
        model = cast(self, batch.dtype)
        places = coordinates(batch, neighbors)
        n = batch.atom_capacity
        near = near_first(places, neighbors, self.cutoff)
        index, used, atom = near.index, near.used, near.neighbor_atom()
        inside = atom < n
        d = tuple(c[index] - c[None, :n] for c in places)
        # Slots without a bond get a vector at which everything is finite.
        d = tuple(jnp.where(inside, c, 1.5 * self.cutoff if a == 0 else 0.0) for a, c in enumerate(d))
        own = model.atom_parameters(batch)
        other = jax.tree.map(lambda v: v[index], extend(own, neighbors))
        return (d, inside, used, own, other), atom, model


def _scatter(
    values: Float[Array, "slots atoms"], atom: Int[Array, "slots atoms"], n: int
) -> Float[Array, " atoms"]:
    """Sum over the slots in which each atom is."""
    return jnp.zeros(n, values.dtype).at[atom.reshape(-1)].add(values.reshape(-1), mode="drop")


def _norm(x: Float[Array, "*n"], y: Float[Array, "*n"], z: Float[Array, "*n"]) -> Float[Array, "*n"]:
    return jnp.sqrt(x * x + y * y + z * z)


def _value_and_slopes(
    f: Any, *arguments: Float[Array, "*n"]
) -> tuple[Float[Array, "*n"], tuple[Float[Array, "*n"], ...]]:
    """Value and derivatives of an elementwise function."""
    value, pull = jax.vjp(f, *arguments)
    return value, pull(jnp.ones_like(value))


def _fast(
    model: Any, d: tuple, inside: Bool[Array, "slots atoms"], used: Int[Array, ""], own: Any, other: Any
) -> tuple:
    """Energy of each atom, and its derivatives with respect to each vector of the atom, [slots, atoms]."""

    def slot(k: Int[Array, ""] | int) -> tuple:
        x, y, z = (c[k] for c in d)
        return (x, y, z), _norm(x, y, z), inside[k], jax.tree.map(lambda v: v[k], other)

    def pair(j: Int[Array, ""], carry: tuple) -> tuple:
        energy, slopes = carry
        (xj, yj, zj), rj, here, b = slot(j)

        def other_bond(k: Int[Array, ""] | int) -> tuple:
            (x, y, z), rk, there, c = slot(k)
            cosine = (xj * x + yj * y + zj * z) / (rj * rk)
            f = lambda rj, rk, cosine: model.angle(rj, rk, cosine, own, b, c)  # noqa: E731
            return (x, y, z), rk, cosine, here & there & (k != j), f

        def gather(k: Int[Array, ""] | int, xi: Float[Array, " atoms"]) -> Float[Array, " atoms"]:
            _, rk, cosine, counts, f = other_bond(k)
            return xi + jnp.where(counts, f(rj, rk, cosine), 0)

        xi = jax.lax.fori_loop(0, used, gather, jnp.zeros_like(rj))
        value, (along, by_xi) = _value_and_slopes(lambda r, xi: model.bond(r, xi, own, b), rj, xi)
        along, by_xi = jnp.where(here, along / 2, 0), jnp.where(here, by_xi / 2, 0)

        def push(k: Int[Array, ""] | int, carry: tuple) -> tuple:
            mine, slopes = carry
            (x, y, z), rk, cosine, counts, f = other_bond(k)
            _, (by_j, by_k, by_cosine) = _value_and_slopes(f, rj, rk, cosine)
            by_j, by_k, by_cosine = (jnp.where(counts, by_xi * s, 0) for s in (by_j, by_k, by_cosine))
            cross = by_cosine / (rj * rk)
            pj = by_j / rj - by_cosine * cosine / (rj * rj)
            pk = by_k / rk - by_cosine * cosine / (rk * rk)
            mine = tuple(
                m + pj * u + cross * v for m, u, v in zip(mine, (xj, yj, zj), (x, y, z), strict=True)
            )
            new = (pk * v + cross * u for u, v in zip((xj, yj, zj), (x, y, z), strict=True))
            return mine, tuple(s.at[k].add(g) for s, g in zip(slopes, new, strict=True))

        mine = tuple(along / rj * c for c in (xj, yj, zj))
        mine, slopes = jax.lax.fori_loop(0, used, push, (mine, slopes))
        slopes = tuple(s.at[j].add(m) for s, m in zip(slopes, mine, strict=True))
        return energy + jnp.where(here, value / 2, 0), slopes

    x = d[0]
    start = (jnp.zeros(x.shape[1], x.dtype), (jnp.zeros_like(x),) * 3)
    return jax.lax.fori_loop(0, used, pair, start)


def _atoms(
    model: Any, d: tuple, inside: Bool[Array, "slots atoms"], own: Any, other: Any
) -> Float[Array, " atoms"]:
    """Energy of each atom, as a function that JAX can differentiate any number of times."""
    x, y, z = d
    r = _norm(x, y, z)
    wide = jax.tree.map(lambda v: v[None], own)
    k = jnp.arange(x.shape[0])

    @jax.checkpoint
    def pair(energy: Float[Array, " atoms"], at: tuple) -> tuple[Float[Array, " atoms"], None]:
        j, (xj, yj, zj), rj, here, b = at
        cosine = (xj[None] * x + yj[None] * y + zj[None] * z) / (rj[None] * r)
        wide_b = jax.tree.map(lambda v: v[None], b)
        xi = model.angle(jnp.broadcast_to(rj[None], r.shape), r, cosine, wide, wide_b, other)
        xi = jnp.where(here[None] & inside & (k != j)[:, None], xi, 0).sum(axis=0)
        return energy + jnp.where(here, model.bond(rj, xi, own, b) / 2, 0), None

    return jax.lax.scan(pair, jnp.zeros(x.shape[1], x.dtype), (k, d, r, inside, other))[0]


def _reference(
    model: Any, d: tuple, inside: Bool[Array, "slots atoms"], used: Int[Array, ""], own: Any, other: Any
) -> tuple:
    """The same as `_fast`, by differentiating `_atoms`."""

    def total(d: tuple) -> tuple[Float[Array, ""], Float[Array, " atoms"]]:
        energy = _atoms(model, d, inside, own, other)
        return energy.sum(), energy

    slopes, energy = jax.grad(total, has_aux=True)(d)
    return energy, slopes


@eqx.filter_custom_jvp
def _local(
    model: Any, d: tuple, inside: Bool[Array, "slots atoms"], used: Int[Array, ""], own: Any, other: Any
) -> tuple:
    return _fast(model, d, inside, used, own, other)


@_local.def_jvp
def _local_jvp(primals: tuple, tangents: tuple) -> tuple:
    return jvp_of(_reference, primals, tangents)


__all__ = ["AbstractBondOrder"]
