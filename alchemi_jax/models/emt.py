"""EMT: effective medium theory for fcc metals."""

import math
from typing import Any

import equinox as eqx
import jax.numpy as jnp
import numpy as np
from ase.data import chemical_symbols
from jaxtyping import Array, Float

from alchemi_jax.models.elements import atomic_number, check_elements, types_of
from alchemi_jax.models.embedded import AbstractEmbedded
from alchemi_jax.parameters import finite, positive_length
from alchemi_jax.systems.batch import Batch
from alchemi_jax.units import BOHR


#: E0 (eV), s0 (bohr), V0 (eV), eta2, kappa, lambda (1/bohr), n0 (1/bohr³).
PARAMETERS = {
    "Al": (-3.28, 3.00, 1.493, 1.240, 2.000, 1.169, 0.00700),
    "Cu": (-3.51, 2.67, 2.476, 1.652, 2.740, 1.906, 0.00910),
    "Ag": (-2.96, 3.01, 2.132, 1.652, 2.790, 1.892, 0.00547),
    "Au": (-3.80, 3.00, 2.321, 1.674, 2.873, 2.182, 0.00703),
    "Ni": (-4.44, 2.60, 3.673, 1.669, 2.757, 1.948, 0.01030),
    "Pd": (-3.90, 2.87, 2.773, 1.818, 3.107, 2.155, 0.00688),
    "Pt": (-5.85, 2.90, 4.067, 1.812, 3.145, 2.192, 0.00802),
    "H": (-3.21, 1.31, 0.132, 2.652, 2.790, 3.892, 0.00547),
    "C": (-3.50, 1.81, 0.332, 1.652, 2.790, 1.892, 0.01322),
    "N": (-5.10, 1.88, 0.132, 1.652, 2.790, 1.892, 0.01222),
    "O": (-4.60, 1.95, 0.332, 1.652, 2.790, 1.892, 0.00850),
}

_BETA = 1.809
"""(16 pi/3)^(1/3)/sqrt(2), rounded as for the fit of the parameters."""


class EMT(AbstractEmbedded):
    """Effective medium theory, as in ASE's EMT: Al, Cu, Ag, Au, Ni, Pd, Pt and, for tests only, H, C, N, O.

        E = sum_i [ E0 (1 + lambda s) e^(-lambda s) + 6 V0 e^(-kappa s) - E0 ]
            - 1/2 sum_ij V0_i/(2 gamma2_i) chi_ij w(r) e^(-kappa_j (r/beta - s0_j))
            + the same of j, i
        s_i = -ln(sigma_i/(12 gamma1_i)) / (beta eta2_i)
        sigma_i = sum_j chi_ij w(r) e^(-eta2_j (r - beta s0_j)),   chi_ij = n0_j/n0_i
        w(r) = 1/(1 + e^(a (r - rc)))

    gamma1, gamma2 make s zero in the fcc crystal of three shells of neighbors. rc, the mean of the third
    and fourth neighbor distance there, and a (w is 10^-4 at the fourth) are those of the largest s0.
    The energy of a single atom is -E0: energies are relative to the bulk metals, as in ASE.

    Args:
        elements: symbols or atomic numbers. None, the default, takes all eleven; rc is then 5.38 Å, that of
            silver, and the cutoff rc + 0.5 Å, as in ASE. For named elements rc is that of the largest of them
            and the cutoff 1.045 rc: the convention of ASAP, `asap_cutoff=True` in ASE.
        parameters: [elements, 7], of each element E0 (eV), s0 (bohr), V0 (eV), eta2, kappa, lambda
            (1/bohr) and n0 (1/bohr³); by default the published ones. A leaf, so it can be fitted; rc
            always follows from the published s0.
        skin: Å, added to the cutoff of the neighbor list.

    The attribute `cutoff`, Å, follows from the elements.

    Raises:
        ValueError: for elements without parameters; from `check`, naming the system and the element.

    Source: K. W. Jacobsen, P. Stoltze, J. K. Nørskov, Surf. Sci. 366, 394 (1996),
    doi:10.1016/0039-6028(96)00816-3; parameters as in ASE.
    """

    elements: tuple[str, ...] | None = eqx.field(static=True, default=None)
    parameters: Float[Array, "elements 7"] = eqx.field(repr=False, default=None)  # pyright: ignore[reportAssignmentType]
    skin: float = eqx.field(static=True, converter=positive_length("skin", zero=True), default=1.0)

    def __post_init__(self):
        if self.elements is not None:
            if isinstance(self.elements, str):
                self.elements = (self.elements,)
            if not self.elements:
                raise ValueError("elements of EMT must be None or at least one element, not an empty list.")
            self.elements = tuple(chemical_symbols[atomic_number(e)] for e in self.elements)
        for name in self._names:
            if name not in PARAMETERS:
                raise ValueError(f"EMT has no parameters for {name}; it has {', '.join(PARAMETERS)}.")
        if self.parameters is None:
            self.parameters = jnp.asarray(np.array([PARAMETERS[name] for name in self._names]))
        self.parameters = finite("parameters")(self.parameters)
        shape = (len(self._names), 7)
        if self.parameters.shape[-2:] != shape:
            raise ValueError(
                f"parameters of EMT must be an array {list(shape)}, seven numbers for each of "
                f"{', '.join(self._names)}, not {list(self.parameters.shape)}."
            )

    @property
    def _names(self) -> tuple[str, ...]:
        return tuple(PARAMETERS) if self.elements is None else self.elements

    @property
    def _numbers(self) -> tuple[int, ...]:
        return tuple(atomic_number(name) for name in self._names)

    @property
    def _reach(self) -> tuple[float, float]:
        """rc, Å, and the steepness a of w, 1/Å."""
        nearest = _BETA * max(PARAMETERS[name][1] for name in self._names) * BOHR
        rc = nearest * (math.sqrt(3.0) + 2.0) / 2
        return rc, math.log(1e4 - 1) / (2 * nearest - rc)

    @property
    def cutoff(self) -> float:  # pyright: ignore[reportIncompatibleVariableOverride]
        """Cutoff, Å, which follows from the elements."""
        rc, _ = self._reach
        return rc + 0.5 if self.elements is None else 1.045 * rc

    def atom_parameters(self, batch: Batch) -> Any:
        e0, s0, v0, eta2, kappa, lam, n0 = self.parameters.T
        s0 = s0 * BOHR
        eta2, kappa, lam = eta2 / BOHR, kappa / BOHR, lam / BOHR
        # The first three shells of the fcc crystal: 12, 6 and 24 neighbors.
        shells = _BETA * s0[:, None] * jnp.sqrt(jnp.asarray([1.0, 2.0, 3.0], s0.dtype))[None]
        weight = self._w(shells) * jnp.asarray([1.0, 0.5, 2.0], s0.dtype)[None]
        beyond = shells - _BETA * s0[:, None]
        gamma1 = jnp.sum(weight * jnp.exp(-eta2[:, None] * beyond), axis=1)
        gamma2 = jnp.sum(weight * jnp.exp(-kappa[:, None] / _BETA * beyond), axis=1)
        columns = (e0, s0, v0, eta2, kappa, lam, n0, 12 * gamma1, v0 / (2 * gamma2))
        kind = types_of(self._numbers, batch.numbers)
        names = ("e0", "s0", "v0", "eta2", "kappa", "lam", "n0", "full", "attraction")
        return {name: column[kind] for name, column in zip(names, columns, strict=True)}

    def _w(self, r: Float[Array, "*n"]) -> Float[Array, "*n"]:
        rc, steepness = self._reach
        return 1 / (1 + jnp.exp(jnp.minimum(steepness * (r - rc), 80.0)))

    def pair_functions(
        self, squared: Float[Array, "*pairs"], a: Any, b: Any
    ) -> tuple[Float[Array, "*pairs"], Float[Array, "*pairs"], Float[Array, "*pairs"]]:
        r = jnp.sqrt(squared)
        w = self._w(r)

        def at(a: Any, b: Any) -> tuple[Float[Array, "*pairs"], Float[Array, "*pairs"]]:
            """Density at a from b, and the energy of a in it."""
            weight = w * b["n0"] / a["n0"]
            density = weight * jnp.exp(-b["eta2"] * (r - _BETA * b["s0"]))
            return density, -a["attraction"] * weight * jnp.exp(-b["kappa"] * (r / _BETA - b["s0"]))

        (g_ab, u_ab), (g_ba, u_ba) = at(a, b), at(b, a)
        return u_ab + u_ba, g_ab, g_ba

    def embedding_energy(self, density: Float[Array, " atoms"], a: Any) -> Float[Array, " atoms"]:
        some = density > 0
        s = -jnp.log(jnp.where(some, density, 1) / a["full"]) / (_BETA * a["eta2"])
        x = a["lam"] * s
        energy = a["e0"] * (1 + x) * jnp.exp(-x) + 6 * a["v0"] * jnp.exp(-a["kappa"] * s)
        return jnp.where(some, energy, 0) - a["e0"]

    def check(self, batch: Batch) -> None:
        check_elements(self, batch, "parameters", self._numbers)


__all__ = ["EMT", "PARAMETERS"]
