"""Pair potentials for ions, soft spheres and collisions: Buckingham, SoftSphere, ZBL."""

from typing import Any

import equinox as eqx
import jax.numpy as jnp
import numpy as np
from ase.data import chemical_symbols
from jaxtyping import Array, Float

from alchemi_jax.models.elements import ByElement, ByPair, by_element, by_pair, check_elements, check_pairs
from alchemi_jax.models.pair import AbstractPair
from alchemi_jax.parameters import as_flag, number, optional, positive_length
from alchemi_jax.systems.batch import Batch
from alchemi_jax.transforms import is_traced
from alchemi_jax.units import COULOMB


class Buckingham(AbstractPair):
    """Exponential repulsion and dispersion, u(r) = A exp(-r/rho) - C/r^6 for r <= cutoff.

    LAMMPS's `buck`, in eV and Å. For ions add an `Ewald`. At short distances, a few tenths of an Å for
    common parameters, -C/r^6 dominates and atoms collapse onto each other: start from reasonable structures.

    Args:
        A: eV. A number for all pairs, or a dict of pairs of elements, {("Mg", "O"): 1428.5, ...}; there
            are no mixing rules, so a pair without interaction has A = 0 and C = 0.
        rho: Å, given like A.
        C: eV Å^6, given like A.
        cutoff: Å.
        shift: subtract u(cutoff) from each pair, so that the energy is continuous there.
        skin: Å, added to the cutoff of the neighbor list.

    Raises:
        ValueError: for a cutoff that is not positive or an unknown element; from `check`, for a pair of
            elements of one system without parameters.

    Source: R. A. Buckingham, Proc. R. Soc. A 168, 264 (1938), doi:10.1098/rspa.1938.0173.
    """

    A: Any = eqx.field(converter=by_pair("A", "zero or positive"))
    rho: Any = eqx.field(converter=by_pair("rho", "positive"))
    C: Any = eqx.field(converter=by_pair("C"))
    cutoff: float = eqx.field(static=True, converter=positive_length("cutoff"), default=10.0)
    shift: bool = eqx.field(static=True, converter=as_flag("shift"), default=False)
    skin: float = eqx.field(static=True, converter=positive_length("skin", zero=True), default=1.0)

    def atom_parameters(self, batch: Batch) -> Any:
        tables = (self.A, self.rho, self.C)
        return tuple(t.types(batch.numbers) if isinstance(t, ByPair) else None for t in tables)

    def pair_energy(self, squared: Float[Array, "*pairs"], a: Any, b: Any) -> Float[Array, "*pairs"]:
        tables = (self.A, self.rho, self.C)
        A, rho, C = (t.of(i, j) if isinstance(t, ByPair) else t for t, i, j in zip(tables, a, b, strict=True))

        def u(r2: Float[Array, "*pairs"]) -> Float[Array, "*pairs"]:
            return A * jnp.exp(-jnp.sqrt(r2) / rho) - C / (r2 * r2 * r2)

        return u(squared) - u(jnp.full_like(squared, self.cutoff**2)) if self.shift else u(squared)

    def check(self, batch: Batch) -> None:
        for name in ("A", "rho", "C"):
            check_pairs(self, batch, name, getattr(self, name))


def _largest(sigma: Any) -> float:
    if is_traced(sigma):
        raise ValueError("SoftSphere needs a cutoff, the largest sigma to come, where sigma is traced.")
    return float(np.nanmax(np.asarray(sigma)))


class SoftSphere(AbstractPair):
    """Spheres that repel each other where they overlap.

    u(r) = (epsilon/alpha) (1 - r/sigma)^alpha for r < sigma.

    Purely repulsive and finite at r = 0: for random packings, and to separate atoms at random positions. With
    alpha = 2 the spheres are harmonic springs, 5/2 is the Hertzian contact.

    Args:
        epsilon: eV. A number, or per element (a dict of symbols or an array over atomic numbers);
            different elements mix as sqrt(e_i e_j).
        sigma: diameter, Å; given like epsilon; different spheres touch at (s_i + s_j)/2.
        alpha: exponent, larger than 1 for a continuous force.
        cutoff: Å, by default the largest sigma.
        skin: Å, added to the cutoff of the neighbor list.

    Raises:
        ValueError: for an unknown element; from `check`, for an element of the batch without parameters, or
            a sigma larger than the cutoff.

    Source: C. S. O'Hern, L. E. Silbert, A. J. Liu, S. R. Nagel, Phys. Rev. E 68, 011306 (2003),
    doi:10.1103/PhysRevE.68.011306.
    """

    epsilon: ByElement = eqx.field(converter=by_element("epsilon", "zero or positive"), default=1.0)
    sigma: ByElement = eqx.field(converter=by_element("sigma", "positive"), default=1.0)
    alpha: Float[Array, ""] = eqx.field(converter=number("alpha"), default=2.0)
    cutoff: float = eqx.field(
        static=True,
        converter=positive_length("cutoff"),
        default=None,  # pyright: ignore[reportArgumentType]
    )
    skin: float = eqx.field(static=True, converter=positive_length("skin", zero=True), default=1.0)

    def __post_init__(self):
        if self.cutoff is None:
            self.cutoff = _largest(by_element("sigma")(self.sigma))

    def atom_parameters(self, batch: Batch) -> Any:
        epsilon = jnp.sqrt(self.epsilon[batch.numbers]) if self.epsilon.ndim else None
        return epsilon, self.sigma[batch.numbers] / 2 if self.sigma.ndim else None

    def pair_energy(self, squared: Float[Array, "*pairs"], a: Any, b: Any) -> Float[Array, "*pairs"]:
        epsilon = self.epsilon if a[0] is None else a[0] * b[0]
        sigma = self.sigma if a[1] is None else a[1] + b[1]
        overlap = 1 - jnp.sqrt(squared) / sigma
        inside = overlap > 0
        # The derivative in alpha has a logarithm, which must not get zero.
        return jnp.where(inside, epsilon / self.alpha * jnp.where(inside, overlap, 0.5) ** self.alpha, 0)

    def check(self, batch: Batch) -> None:
        for name, table in (("epsilon", self.epsilon), ("sigma", self.sigma)):
            if table.ndim == 1:
                check_elements(self, batch, name, table)
        if _largest(self.sigma) > self.cutoff:
            raise ValueError(
                f"SoftSphere: the largest sigma, {_largest(self.sigma)} Å, is beyond the cutoff of "
                f"{self.cutoff} Å; give a cutoff that is as long."
            )


_SCREENING = ((0.02817, 0.20162), (0.28022, 0.40290), (0.50986, 0.94229), (0.18175, 3.19980))
"""Weights and inverse lengths of the universal screening function."""


class ZBL(AbstractPair):
    """Screened repulsion of nuclei, for collisions and for short distances under other potentials.

        u(r) = ke Z_i Z_j / r  sum_k c_k exp(-d_k r/a) + S(r)
        a = 0.46850 Å / (Z_i^0.23 + Z_j^0.23)

    with ke = e²/(4 pi epsilon_0), four terms c_k, d_k, and

        S(r) = C                                             r < onset
        S(r) = C + A/3 (r - onset)³ + B/4 (r - onset)⁴       onset <= r <= cutoff

    where A, B, C make energy, force and curvature vanish at the cutoff. This is LAMMPS's `zbl`; its "inner"
    is the onset and its "outer" the cutoff.

    Args:
        onset: Å, where the switching function starts.
        cutoff: Å.
        charges: nuclear charges, e; by default the atomic numbers. A number, or a dict of elements.
        skin: Å, added to the cutoff of the neighbor list.

    Raises:
        ValueError: for an onset that is not below the cutoff; from `check`, for an element without charge.

    Source: J. F. Ziegler, J. P. Biersack, U. Littmark, The Stopping and Range of Ions in Matter (1985).
    """

    onset: float = eqx.field(static=True, converter=positive_length("onset", zero=True), default=3.0)
    cutoff: float = eqx.field(static=True, converter=positive_length("cutoff"), default=4.0)
    charges: ByElement | None = eqx.field(
        converter=optional(by_element("charges", "zero or positive")), default=None
    )
    skin: float = eqx.field(static=True, converter=positive_length("skin", zero=True), default=1.0)

    def __check_init__(self):
        if not 0 <= self.onset < self.cutoff:
            raise ValueError(f"onset must lie between 0 and the cutoff of {self.cutoff} Å, not {self.onset}.")

    def atom_parameters(self, batch: Batch) -> Any:
        if self.charges is None:
            z = batch.numbers.astype(batch.dtype)
        else:
            z = (
                self.charges[batch.numbers]
                if self.charges.ndim
                else jnp.full_like(batch.masses, self.charges)
            )
        # Padding has no charge, and the derivative of 0**0.23 is infinite.
        z = jnp.where(batch.atom_mask, z, 1)
        return z, z**0.23

    def pair_energy(self, squared: Float[Array, "*pairs"], a: Any, b: Any) -> Float[Array, "*pairs"]:
        strength = COULOMB * a[0] * b[0]
        inverse = (a[1] + b[1]) / 0.46850
        width = self.cutoff - self.onset
        r = jnp.sqrt(squared)
        rc = self.cutoff
        u = e0 = e1 = e2 = 0.0
        for c, d in _SCREENING:
            k = d * inverse
            u += c * jnp.exp(-k * r)
            at = c * jnp.exp(-k * rc)
            e0 += at / rc
            e1 += -at * (1 / rc**2 + k / rc)
            e2 += at * (2 / rc**3 + 2 * k / rc**2 + k * k / rc)
        third = (-3 * e1 + width * e2) / width**2
        fourth = (2 * e1 - width * e2) / width**3
        constant = -e0 + width / 2 * e1 - width**2 / 12 * e2
        x = jnp.maximum(r - self.onset, 0)
        return strength * (u / r + constant + x * x * x * (third / 3 + fourth / 4 * x))

    def check(self, batch: Batch) -> None:
        if self.charges is None:
            known = tuple(range(1, len(chemical_symbols)))
            check_elements(self, batch, "nuclear charge", known)
        elif self.charges.ndim:
            check_elements(self, batch, "nuclear charge", self.charges)


__all__ = ["ZBL", "Buckingham", "SoftSphere"]
