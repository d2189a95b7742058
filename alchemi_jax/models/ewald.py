"""Ewald: the Coulomb energy of periodic charges, summed directly."""

import dataclasses
import math
import operator
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float

from alchemi_jax.models.base import AbstractModel, Results, cast
from alchemi_jax.models.elements import by_element, check_elements
from alchemi_jax.models.pair import AbstractPair
from alchemi_jax.neighbors import NeighborList
from alchemi_jax.parameters import ExtraName, as_parameter, positive_length, positive_number
from alchemi_jax.products import einsum
from alchemi_jax.systems.batch import Batch
from alchemi_jax.systems.segments import sum_by_system
from alchemi_jax.units import COULOMB


def _as_waves(value: Any) -> tuple[int, int, int]:
    """Three positive counts."""
    try:
        counts = tuple(operator.index(n) for n in value)
    except TypeError:
        counts = ()
    if len(counts) != 3 or min(counts) < 1:
        raise ValueError(f"waves must be three positive counts, not {value!r}.")
    return counts[0], counts[1], counts[2]


class Ewald(AbstractModel):
    """Point charges in cells that are periodic in all directions, with conducting (tin foil) boundary
    conditions.

        E = ke/2 sum_ij q_i q_j erfc(alpha r)/r             (r <= cutoff, all images)
          + 2 pi ke/V sum_{k != 0} e^(-k²/(4 alpha²))/k² |sum_i q_i e^(i k r_i)|²
          - ke alpha/sqrt(pi) sum_i q_i² - pi ke Q²/(2 V alpha²)

    ke = e²/(4 pi epsilon_0). The last term is that of a uniform background that compensates a net charge
    Q. Both sums are direct. At a fixed cutoff the second one costs N², so it is for hundreds to a few
    thousand atoms. All systems of a batch have the same number of waves, so that shapes are fixed.

    Args:
        charges: charges, e: a dict of elements, one number, or the name of a per-atom extra of the batch; by
            default the charges of `atoms.set_initial_charges`.
        cutoff: cutoff of the first sum, Å.
        accuracy: relative error of each sum; alpha = sqrt(-ln accuracy)/cutoff follows.
        waves: number of multiples of each reciprocal vector in the second sum. `Ewald.of` chooses it for a
            batch. If a cell grows so much during a run that it no longer suffices, the energy is NaN and the
            system fails.
        skin: Å, added to the cutoff of the neighbor list.

    Raises:
        ValueError: from `check`, for a system that is not periodic in all directions or that needs more
            waves, for an element without charge, or for a batch without the extra.

    Source: P. P. Ewald, Ann. Phys. 369, 253 (1921), doi:10.1002/andp.19213690304; S. W. de Leeuw, J. W.
    Perram, E. R. Smith, Proc. R. Soc. A 373, 27 (1980), doi:10.1098/rspa.1980.0135.
    """

    charges: Any = eqx.field(
        converter=lambda c: ExtraName(c) if isinstance(c, str) else by_element("charges")(c),
        default="initial_charges",
    )
    cutoff: float = eqx.field(static=True, converter=positive_length("cutoff"), default=9.0)
    accuracy: float = eqx.field(static=True, converter=positive_number("accuracy"), default=1e-6)
    waves: tuple[int, int, int] = eqx.field(static=True, converter=_as_waves, default=(6, 6, 6))
    skin: float = eqx.field(static=True, converter=positive_length("skin", zero=True), default=1.0)

    def __check_init__(self):
        if not 0 < self.accuracy < 0.1:
            raise ValueError(f"accuracy must lie between 0 and 0.1, not {self.accuracy}.")

    @classmethod
    def of(cls, batch: Batch, margin: float = 1.1, **arguments: Any) -> "Ewald":
        """An Ewald sum with enough waves for a batch, even if its cells become `margin` times as long.

        Args:
            batch: the systems.
            margin: factor on the lengths of the cells.
            arguments: other arguments of the class.
        """
        model = cls(**arguments)
        rows = np.asarray(batch.system_mask) & np.asarray(batch.pbc).all(axis=-1)
        needed = np.asarray(model._needed(batch.cell))[rows].max(axis=0, initial=0)
        waves = tuple(max(1, math.ceil(n * margin)) for n in needed)
        return dataclasses.replace(model, waves=waves)

    @property
    def alpha(self) -> float:
        """Inverse width of the Gaussians that split the two sums, 1/Å."""
        return math.sqrt(-math.log(self.accuracy)) / self.cutoff

    def _needed(self, cell: Float[Array, "systems 3 3"]) -> Float[Array, "systems 3"]:
        """Multiples of the reciprocal vectors that the accuracy needs, [systems, 3]."""
        longest = 2 * self.alpha * math.sqrt(-math.log(self.accuracy))
        return longest * jnp.sqrt(jnp.sum(cell**2, axis=-1)) / (2 * math.pi)

    def _parts(self, batch: Batch) -> AbstractModel:
        charges = self.charges
        if isinstance(charges, str):
            charges = batch[charges]
        elif charges.ndim:
            charges = charges[batch.numbers]
        charges = jnp.where(batch.atom_mask, charges.astype(batch.dtype), 0)
        screened = _Screened(charges=charges, alpha=self.alpha, cutoff=self.cutoff, skin=self.skin)
        return screened + _Waves(charges=charges, alpha=self.alpha, waves=self.waves)

    def energy(self, batch: Batch, neighbors: NeighborList | None) -> Float[Array, " systems"]:
        energy = cast(self, batch.dtype)._parts(batch).energy(batch, neighbors)
        return jnp.where(self._suffice(batch), energy, jnp.nan)

    def evaluate(self, batch: Batch, neighbors: NeighborList | None, *, stress: bool = False) -> Results:
        r = cast(self, batch.dtype)._parts(batch).evaluate(batch, neighbors, stress=stress)
        return Results(jnp.where(self._suffice(batch), r.energy, jnp.nan), r.forces, r.stress)

    def _suffice(self, batch: Batch) -> Bool[Array, " systems"]:
        waves = jnp.asarray(self.waves, batch.dtype)[None] + 1e-6
        enough = jnp.all(self._needed(batch.cell) <= waves, axis=-1)
        return (enough & jnp.all(batch.pbc, axis=-1)) | ~batch.system_mask

    def check(self, batch: Batch) -> None:
        mask, pbc = np.asarray(batch.system_mask), np.asarray(batch.pbc)
        needed = np.asarray(self._needed(jnp.asarray(batch.cell)))
        for row in np.flatnonzero(mask).tolist():
            if not pbc[row].all():
                raise ValueError(
                    f"{batch.name_of(row)}: Ewald takes cells that are periodic in all directions, not "
                    f"pbc {pbc[row].tolist()}."
                )
            if (needed[row] > np.array(self.waves) + 1e-6).any():
                least = tuple(math.ceil(n) for n in needed[row])
                raise ValueError(
                    f"{batch.name_of(row)}: its cell needs {least} waves for an accuracy of "
                    f"{self.accuracy}; this Ewald has {tuple(self.waves)}. Make it with Ewald.of(batch, ...)."
                )
        if isinstance(self.charges, str):
            if self.charges not in batch.atom_extras:
                raise ValueError(
                    f"Ewald takes charges from the per-atom extra {self.charges!r}, which this batch has "
                    "not: an array that all its structures have. By element they are given as "
                    "charges={'Na': 1, 'Cl': -1}."
                )
        elif self.charges.ndim:
            check_elements(self, batch, "charge", self.charges)


class _Screened(AbstractPair):
    """ke q_i q_j erfc(alpha r)/r."""

    charges: Float[Array, " atoms"] = eqx.field(converter=as_parameter)
    alpha: float = eqx.field(static=True)
    cutoff: float = eqx.field(static=True)
    skin: float = eqx.field(static=True)

    def atom_parameters(self, batch: Batch) -> Any:
        return self.charges

    def pair_energy(self, squared: Float[Array, "*pairs"], a: Any, b: Any) -> Float[Array, "*pairs"]:
        r = jnp.sqrt(squared)
        return COULOMB * a * b * jax.scipy.special.erfc(self.alpha * r) / r


class _Waves(AbstractModel):
    """The sum over waves, the self-energy of the charges and the energy with the background."""

    charges: Float[Array, " atoms"] = eqx.field(converter=as_parameter)
    alpha: float = eqx.field(static=True)
    waves: tuple[int, int, int] = eqx.field(static=True)
    cutoff: None = eqx.field(static=True, default=None)

    def energy(self, batch: Batch, neighbors: NeighborList | None) -> Float[Array, " systems"]:
        q, kind = self.charges, batch.dtype
        periodic = jnp.all(batch.pbc, axis=-1)
        cell = jnp.where(periodic[:, None, None], batch.cell, jnp.eye(3, dtype=kind)[None])
        a, b, c = (cell[:, k] for k in range(3))
        signed = jnp.sum(a * jnp.cross(b, c), axis=-1)
        reciprocal = (
            jnp.stack([jnp.cross(b, c), jnp.cross(c, a), jnp.cross(a, b)], axis=1) / signed[:, None, None]
        )
        owner = jnp.minimum(batch.batch_idx, batch.system_capacity - 1)
        turns = 2 * jnp.pi * einsum("nx,nax->na", batch.positions, reciprocal[owner])

        w1, w2, w3 = self.waves
        third = jnp.arange(-w3, w3 + 1, dtype=kind)
        phase = turns[:, 2:] * third[None]
        cosine, sine = q[:, None] * jnp.cos(phase), q[:, None] * jnp.sin(phase)

        @jax.checkpoint
        def plane(
            energy: Float[Array, " systems"], n: Float[Array, "2"]
        ) -> tuple[Float[Array, " systems"], None]:
            """Waves (n1, n2, all n3). Those of -n1 give the same, so they are counted twice."""
            angle = turns[:, 0] * n[0] + turns[:, 1] * n[1]
            u, v = jnp.cos(angle)[:, None], jnp.sin(angle)[:, None]
            real = sum_by_system(batch, u * cosine - v * sine)
            imaginary = sum_by_system(batch, u * sine + v * cosine)
            k = n[0] * reciprocal[:, 0] + n[1] * reciprocal[:, 1]
            k = 2 * jnp.pi * (k[:, None] + third[None, :, None] * reciprocal[:, None, 2])
            squared = jnp.sum(k * k, axis=-1)
            some = (n[0] != 0) | (n[1] != 0) | (third != 0)
            squared = jnp.where(some[None], squared, 1)
            weight = jnp.where(some[None], jnp.exp(-squared / (4 * self.alpha**2)) / squared, 0)
            sum_ = jnp.sum(weight * (real * real + imaginary * imaginary), axis=1)
            return energy + jnp.where(n[0] > 0, 2, 1) * sum_, None

        n1, n2 = np.meshgrid(np.arange(w1 + 1), np.arange(-w2, w2 + 1), indexing="ij")
        planes = jnp.asarray(np.stack([n1.ravel(), n2.ravel()], axis=1), kind)
        waves, _ = jax.lax.scan(plane, jnp.zeros(len(signed), kind), planes)
        size = jnp.abs(signed)
        own = self.alpha / math.sqrt(math.pi) * sum_by_system(batch, q * q)
        background = math.pi / (2 * self.alpha**2) * sum_by_system(batch, q) ** 2 / size
        return COULOMB * (2 * math.pi / size * waves - own - background)


__all__ = ["Ewald"]
