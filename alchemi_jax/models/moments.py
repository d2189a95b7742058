"""AbstractMoments: angles by sums over bonds, for potentials in which an angle is a square of a cosine.

    E = 1/2 sum_ij phi_ij(r) + 1/2 sum_i sum_{j != k} s_ijk e_ij e_ik (cos theta_jik - c_ijk)²

depends on the bonds of an atom i only through their sums S = sum_j e_ij, V = sum_j e_ij u_ij and
T = sum_j e_ij u_ij u_ij, where u is the direction of a bond and each element of j has sums of its own:

    sum_{j, k} e_ij e_ik (cos theta_jik - c)² = T : T - 2 c V . V + c² S²

from which the terms j = k, (1 - c)² e_ij², are taken. So the time grows with the number of bonds, not with
its square. Forces and stress are a second sum over the bonds, of the derivatives of E in these sums.
"""

from abc import abstractmethod
from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from alchemi_jax.models.base import AbstractModel, Results, cast, need_list, per_volume, virial_by_system
from alchemi_jax.models.slots import coordinates, extend, near_first, neighbor_sums
from alchemi_jax.neighbors import NeighborList
from alchemi_jax.systems.batch import Batch
from alchemi_jax.systems.segments import sum_by_system


#: Sums for each element of the neighbors: S, three of V, six of T (xx, yy, zz, yz, xz, xy), and of e².
SUMS = 11


class Bonds(NamedTuple):
    """phi (eV) and e of bonds from a to b, and their derivatives in the distance; zero beyond their range."""

    pair: Float[Array, "*bonds"]
    pair_slope: Float[Array, "*bonds"]
    weight: Float[Array, "*bonds"]
    weight_slope: Float[Array, "*bonds"]


class AbstractMoments(AbstractModel):
    """A potential of pairs and squares of cosines: write `bonds`, `angle_parameters` and `kinds`."""

    cutoff: eqx.AbstractVar[float]

    @abstractmethod
    def bonds(self, r: Float[Array, "*bonds"], a: Any, b: Any) -> Bonds:
        """phi and e of bonds from a to b, from distances, Å."""

    @abstractmethod
    def angle_parameters(self, a: Any, b: int, c: int) -> tuple[Any, Any]:
        """s (eV) and cos0 of angles at atoms of the kinds a, with neighbors of the kinds b and c."""

    @abstractmethod
    def kinds(self, batch: Batch) -> Any:
        """The kind of each atom, 0 to `n_kinds` - 1; not used if there is one."""

    @property
    @abstractmethod
    def n_kinds(self) -> int:
        """How many kinds of atoms there are."""

    def energy(self, batch: Batch, neighbors: NeighborList | None) -> Float[Array, " systems"]:
        model, places, kinds, near = self._prepare(batch, neighbors)
        pair, *sums = neighbor_sums(_sum_terms, model, places, kinds, near)
        own = kinds[: batch.atom_capacity]
        energy = pair / 2 + _angles(model, own, tuple(sums))
        return sum_by_system(batch, jnp.where(batch.atom_mask, energy, 0))

    def evaluate(self, batch: Batch, neighbors: NeighborList | None, *, stress: bool = False) -> Results:
        model, places, kinds, near = self._prepare(batch, neighbors)
        pair, *sums = neighbor_sums(_sum_terms, model, places, kinds, near)
        n = self.n_kinds
        own = kinds[: batch.atom_capacity]
        angles, pull = jax.vjp(lambda s: _angles(model, own, s), tuple(sums))
        energy = sum_by_system(batch, jnp.where(batch.atom_mask, pair / 2 + angles, 0))
        (slopes,) = pull(batch.atom_mask.astype(batch.dtype))
        # One row for each atom and each element that may look at it.
        rows = jnp.stack(slopes, axis=-1).reshape(-1, n * SUMS)
        values = (kinds, extend(rows, near))
        terms = _virial_terms if stress else _force_terms
        found = neighbor_sums(terms, model, places, values, near)
        forces = jnp.where(batch.atom_mask[:, None], jnp.stack(found[:3], axis=-1), 0)
        if not stress:
            return Results(energy, forces, None)
        sums = tuple(jnp.where(batch.atom_mask, v, 0) for v in found[3:])
        return Results(energy, forces, per_volume(batch, virial_by_system(batch, sums)))

    def _prepare(self, batch: Batch, neighbors: NeighborList | None) -> tuple:
        neighbors = need_list(self, neighbors)
        model = cast(self, batch.dtype)
        places = coordinates(batch, neighbors)
        near = near_first(places, neighbors, self.cutoff)
        return model, places, extend(model.kinds(batch), near), near


def _direction(d: tuple) -> tuple[Float[Array, "*bonds"], tuple, Float[Array, "*bonds"]]:
    """Length, direction, and one over the length."""
    x, y, z = d
    r = jnp.sqrt(x * x + y * y + z * z)
    inverse = 1 / r
    return r, (x * inverse, y * inverse, z * inverse), inverse


def _sum_terms(model: AbstractMoments, d: tuple, a: Any, b: Any) -> tuple[Float[Array, "*bonds"], ...]:
    r, (x, y, z), _ = _direction(d)
    of = model.bonds(r, a, b)
    out = [of.pair]
    for kind in range(model.n_kinds):
        e = of.weight if model.n_kinds == 1 else jnp.where(b == kind, of.weight, 0)
        ex, ey, ez = e * x, e * y, e * z
        out += [e, ex, ey, ez, ex * x, ey * y, ez * z, ey * z, ex * z, ex * y, e * e]
    return tuple(out)


def _angles(model: AbstractMoments, a: Any, sums: tuple) -> Float[Array, " atoms"]:
    """Energy of the angles at each atom, from the sums of its bonds."""
    n = model.n_kinds
    by_kind = [sums[SUMS * k : SUMS * (k + 1)] for k in range(n)]
    energy = jnp.zeros_like(sums[0])
    for b in range(n):
        for c in range(b, n):
            p, q = by_kind[b], by_kind[c]
            products = [v * w for v, w in zip(p, q, strict=True)]
            tensor = products[4] + products[5] + products[6] + 2 * (products[7] + products[8] + products[9])
            vector = products[1] + products[2] + products[3]
            # Both orders of two elements.
            for one, other in {(b, c), (c, b)}:
                strength, cos0 = model.angle_parameters(a, one, other)
                energy += strength / 2 * (tensor - 2 * cos0 * vector + cos0 * cos0 * products[0])
        strength, cos0 = model.angle_parameters(a, b, b)
        energy -= strength / 2 * (1 - cos0) ** 2 * by_kind[b][10]
    return energy


def _row(rows: Float[Array, "*bonds sums"], kind: Any, n: int) -> list[Any]:
    """Derivatives of an atom's energy in the sums that belong to neighbors of a kind."""
    out = [rows[..., k] for k in range(SUMS)]
    for other in range(1, n):
        here = kind == other
        out = [jnp.where(here, rows[..., SUMS * other + k], v) for k, v in enumerate(out)]
    return out


def _force_terms(model: AbstractMoments, d: tuple, a: Any, b: Any) -> tuple[Float[Array, "*bonds"], ...]:
    """The derivative of the energy in the vector of each bond: of the energies of both of its atoms."""
    (a, own), (b, other) = a, b
    n = model.n_kinds
    r, u, inverse = _direction(d)
    there = model.bonds(r, a, b)
    back = there if n == 1 else model.bonds(r, b, a)
    radial = (there.pair_slope + back.pair_slope) / 2
    across = [jnp.zeros_like(r)] * 3
    # Seen from the other atom the direction is the opposite one, which only V notices.
    for of, rows, kind, sign in ((there, own, b, 1), (back, other, a, -1)):
        s, vx, vy, vz, xx, yy, zz, yz, xz, xy, square = _row(rows, kind, n)
        v = (sign * vx, sign * vy, sign * vz)
        t = (
            2 * xx * u[0] + xy * u[1] + xz * u[2],
            2 * yy * u[1] + xy * u[0] + yz * u[2],
            2 * zz * u[2] + xz * u[0] + yz * u[1],
        )
        along = s + sum(u[k] * (v[k] + t[k] / 2) for k in range(3))
        radial += of.weight_slope * (along + 2 * of.weight * square)
        across = [old + of.weight * (v[k] + t[k]) for k, old in enumerate(across)]
    turning = sum(u[k] * across[k] for k in range(3))
    radial -= turning * inverse
    return tuple(radial * u[k] + across[k] * inverse for k in range(3))


def _virial_terms(model: AbstractMoments, d: tuple, a: Any, b: Any) -> tuple[Float[Array, "*bonds"], ...]:
    x, y, z = d
    fx, fy, fz = _force_terms(model, d, a, b)
    products = (2 * fx * x, 2 * fy * y, 2 * fz * z, fy * z + fz * y, fx * z + fz * x, fx * y + fy * x)
    # Each bond is in the lists of both atoms.
    return fx, fy, fz, *(p / 4 for p in products)


__all__ = ["SUMS", "AbstractMoments", "Bonds"]
