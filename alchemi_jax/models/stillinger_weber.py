"""StillingerWeber: pairs and angles, for silicon and other tetrahedral materials."""

from typing import Any

import equinox as eqx
import jax.numpy as jnp
from ase.data import chemical_symbols
from jaxtyping import Array, Float

from alchemi_jax.models.bond_order import AbstractBondOrder
from alchemi_jax.models.elements import atomic_number, check_elements
from alchemi_jax.parameters import between, number, positive_length
from alchemi_jax.systems.batch import Batch
from alchemi_jax.transforms import is_traced


class StillingerWeber(AbstractBondOrder):
    """Pairs and angles with the range a sigma, for one element.

        E = sum_{i<j} A epsilon [B (sigma/r)^p - (sigma/r)^q] e^{sigma/(r - a sigma)}
          + sum_i sum_{j<k} lam epsilon (cos theta_jik - cos0)²
            e^{gamma sigma/(r_ij - a sigma)} e^{gamma sigma/(r_ik - a sigma)}

    Both vanish smoothly at a sigma, with all derivatives. The defaults are those of silicon; `water` is
    another set.

    Args:
        epsilon: eV.
        sigma: Å.
        lam: strength of the angles.
        gamma, A, B, p, q, a, cos0: dimensionless.
        element: symbol of the only element that the parameters are for.
        cutoff: of the neighbor list, Å; by default a sigma, and never less.
        skin: Å, added to the cutoff of the neighbor list.

    Raises:
        ValueError: from `check`, for another element in the batch, or if a sigma is beyond the cutoff.

    Source: F. H. Stillinger, T. A. Weber, Phys. Rev. B 31, 5262 (1985).
    """

    epsilon: Float[Array, ""] = eqx.field(converter=number("epsilon", zero=True), default=2.1683)
    sigma: Float[Array, ""] = eqx.field(converter=number("sigma"), default=2.0951)
    lam: Float[Array, ""] = eqx.field(converter=number("lam", zero=True), default=21.0)
    gamma: Float[Array, ""] = eqx.field(converter=number("gamma", zero=True), default=1.20)
    A: Float[Array, ""] = eqx.field(converter=number("A", zero=True), default=7.049556277)
    B: Float[Array, ""] = eqx.field(converter=number("B", zero=True), default=0.6022245584)
    p: Float[Array, ""] = eqx.field(converter=number("p", zero=True), default=4.0)
    q: Float[Array, ""] = eqx.field(converter=number("q", zero=True), default=0.0)
    a: Float[Array, ""] = eqx.field(converter=number("a"), default=1.80)
    cos0: Float[Array, ""] = eqx.field(converter=between("cos0", -1.0, 1.0), default=-1 / 3)
    element: str = eqx.field(static=True, default="Si")
    cutoff: float = eqx.field(
        static=True,
        converter=positive_length("cutoff"),
        default=None,  # pyright: ignore[reportArgumentType]
    )
    skin: float = eqx.field(static=True, converter=positive_length("skin", zero=True), default=0.5)

    def __post_init__(self):
        self.element = chemical_symbols[atomic_number(self.element)]
        if self.cutoff is None:
            if is_traced((self.a, self.sigma)):
                raise ValueError(
                    "StillingerWeber needs a cutoff, the largest a sigma, where they are traced."
                )
            for name in ("a", "sigma"):
                # Converters come later.
                number(name)(getattr(self, name))
            self.cutoff = float(self.a) * float(self.sigma)

    @classmethod
    def water(cls, skin: float = 0.5) -> "StillingerWeber":
        """mW, a water molecule as one atom: give the batch oxygen atoms of 18.015 amu.

        Source: V. Molinero, E. B. Moore, J. Phys. Chem. B 113, 4008 (2009).
        """
        # 6.189 kcal/mol.
        return cls(epsilon=0.268381, sigma=2.3925, lam=23.15, element="O", skin=skin)

    def _decay(self, r: Float[Array, "*bonds"], strength: Any) -> Float[Array, "*bonds"]:
        """e^{strength sigma/(r - a sigma)}, zero beyond a sigma."""
        gap = r - self.a * self.sigma
        inside = gap < 0
        return jnp.where(inside, jnp.exp(strength * self.sigma / jnp.where(inside, gap, -1)), 0)

    def bond(
        self, r: Float[Array, "*bonds"], xi: Float[Array, "*bonds"], a: Any, b: Any
    ) -> Float[Array, "*bonds"]:
        s = self.sigma / r
        pair = self.A * (self.B * s**self.p - s**self.q) * self._decay(r, 1.0)
        return self.epsilon * (pair + self.lam * self._decay(r, self.gamma) * xi)

    def angle(
        self,
        rj: Float[Array, "*angles"],
        rk: Float[Array, "*angles"],
        cosine: Float[Array, "*angles"],
        a: Any,
        b: Any,
        c: Any,
    ) -> Float[Array, "*angles"]:
        return self._decay(rk, self.gamma) * (cosine - self.cos0) ** 2

    def check(self, batch: Batch) -> None:
        check_elements(self, batch, "parameters", (atomic_number(self.element),))
        if float(self.a) * float(self.sigma) > self.cutoff * (1 + 1e-6):
            raise ValueError(
                f"StillingerWeber: a sigma, {float(self.a) * float(self.sigma):.4f} Å, is beyond the cutoff "
                f"of {self.cutoff:.4f} Å; give a cutoff that is as long."
            )


__all__ = ["StillingerWeber"]
