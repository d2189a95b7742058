"""EAM: the embedded-atom method with tabulated functions."""

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import equinox as eqx
import jax.numpy as jnp
import numpy as np
from ase.data import chemical_symbols
from jaxtyping import Array, Float, Int
from scipy.interpolate import CubicSpline

from alchemi_jax.models.elements import atomic_number, check_elements, check_numbers, types_of
from alchemi_jax.models.embedded import AbstractEmbedded
from alchemi_jax.models.tables import EAMTables, form_of, read_funcfl, read_setfl
from alchemi_jax.parameters import finite, positive_length, positive_number
from alchemi_jax.systems.batch import Batch


class EAM(AbstractEmbedded):
    """E = sum_i F_i(rho_i) + 1/2 sum_ij phi_ij(r),  rho_i = sum_j rho_ij(r), functions from tables.

    Make one with `EAM.read`, or from arrays with `EAM.from_tables`. The tables of F, rho and r phi are
    interpolated by cubic splines with not-a-knot ends, as in matscipy. (ASE interpolates phi instead of r
    phi, and LAMMPS takes slopes from five points: with the usual fine tables they agree to about six digits.)
    Beyond the last density F is continued as a straight line, as in LAMMPS. Pairs beyond the cutoff of the
    file do not count, whatever the tables have there.

    Attributes:
        embedding: [elements, knots, 4], coefficients of F (eV) on each interval, as a cubic of the part of
            the interval, 0 to 1.
        density: [elements, elements, knots, 4], of the density that the second element makes at the first.
        pair: [elements, elements, knots, 4], of r phi, eV Å.
        elements: symbols.
        density_step, distance_step: of the tables, the latter in Å.
        cutoff, skin: Å.

    Raises:
        ValueError: from `check`, for an element of the batch without tables.

    Source: M. S. Daw, M. I. Baskes, Phys. Rev. B 29, 6443 (1984); M. W. Finnis, J. E. Sinclair, Philos.
    Mag. A 50, 45 (1984) for densities of pairs of elements.
    """

    elements: tuple[str, ...] = eqx.field(static=True)
    embedding: Float[Array, "elements density_knots 4"] = eqx.field(repr=False, converter=finite("embedding"))
    density: Float[Array, "elements elements distance_knots 4"] = eqx.field(
        repr=False, converter=finite("density")
    )
    pair: Float[Array, "elements elements distance_knots 4"] = eqx.field(repr=False, converter=finite("pair"))
    density_step: float = eqx.field(static=True, repr=False, converter=positive_number("density_step"))
    distance_step: float = eqx.field(static=True, repr=False, converter=positive_number("distance_step"))
    cutoff: float = eqx.field(static=True, converter=positive_length("cutoff"))
    skin: float = eqx.field(static=True, converter=positive_length("skin", zero=True), default=1.0)

    def __check_init__(self):
        for element in self.elements:
            atomic_number(element)
        n = len(self.elements)
        shapes = {"embedding": (n,), "density": (n, n), "pair": (n, n)}
        for name, shape in shapes.items():
            found = getattr(self, name).shape
            if found[-2 - len(shape) : -2] != shape or found[-1] != 4:
                wanted = [*shape, "knots", 4]
                raise ValueError(f"{name} of EAM must be an array {wanted}, not {list(found)}.")

    @classmethod
    def read(
        cls,
        path: str | os.PathLike | Sequence[str | os.PathLike],
        form: str | None = None,
        skin: float = 1.0,
    ) -> "EAM":
        """Reads a file in a format of LAMMPS and DYNAMO.

        Args:
            path: of the file; for funcfl, with one element per file, also a list of files.
            form: "funcfl" (LAMMPS's eam), "setfl" (eam.alloy) or "fs" (eam.fs); by default known from
                the name: .eam or .funcfl, .alloy or .setfl, .fs.

        Raises:
            ValueError: naming the file, for an unknown form, words that are not numbers, too few or too
                many values, or several funcfl files with different grids.
        """
        single = isinstance(path, str | os.PathLike)
        paths = [Path(path)] if single else [Path(p) for p in path]  # pyright: ignore[reportArgumentType]
        if not paths:
            raise ValueError("EAM.read needs a file, the list is empty.")
        form = form_of(paths[0]) if form is None else form
        if form == "funcfl":
            return cls.from_tables(read_funcfl(paths), skin)
        if form not in ("setfl", "fs"):
            raise ValueError(f"form must be 'funcfl', 'setfl' or 'fs', not {form!r}.")
        if len(paths) > 1:
            raise ValueError(f"One {form} file has all its elements; EAM.read was given {len(paths)}.")
        return cls.from_tables(read_setfl(paths[0], by_pair=form == "fs"), skin)

    @classmethod
    def from_tables(cls, tables: EAMTables, skin: float = 1.0) -> "EAM":
        """Makes the potential from arrays.

        Raises:
            ValueError: naming the table that holds what is not finite.
        """
        for name in ("embedding", "density", "pair"):
            check_numbers(f"the table {name} of EAM", getattr(tables, name))
        return cls(
            elements=tuple(chemical_symbols[z] for z in tables.elements),
            embedding=_spline(tables.embedding),
            density=_spline(tables.density),
            pair=_spline(tables.pair),
            density_step=tables.density_step,
            distance_step=tables.distance_step,
            cutoff=tables.cutoff,
            skin=skin,
        )

    def atom_parameters(self, batch: Batch) -> Any:
        return types_of(self._numbers, batch.numbers)

    @property
    def _numbers(self) -> tuple[int, ...]:
        return tuple(atomic_number(e) for e in self.elements)

    def pair_functions(
        self, squared: Float[Array, "*pairs"], a: Any, b: Any
    ) -> tuple[Float[Array, "*pairs"], Float[Array, "*pairs"], Float[Array, "*pairs"]]:
        # Unused slots are far beyond the tables, and their cubes must not overflow.
        r = jnp.sqrt(jnp.minimum(squared, 4 * self.cutoff**2))
        n = len(self.elements)
        knots = self.pair.shape[-2]
        x = r / self.distance_step
        knot = jnp.clip(x.astype(jnp.int32), 0, knots - 1)
        t = x - knot.astype(x.dtype)

        def of(
            table: Float[Array, "elements elements knots 4"],
            first: Int[Array, "*#pairs"],
            second: Int[Array, "*#pairs"],
        ) -> Float[Array, "*#pairs"]:
            return _cubic(table.reshape(-1, 4)[(first * n + second) * knots + knot], t)

        phi = of(self.pair, a, b) / r
        g_ab = of(self.density, a, b)
        return phi, g_ab, g_ab if n == 1 else of(self.density, b, a)

    def embedding_energy(
        self, density: Float[Array, " atoms"], kind: Int[Array, " atoms"]
    ) -> Float[Array, " atoms"]:
        """F, eV, of densities, [atoms]; `kind` is the index of the atom's element in `elements`."""
        knots = self.embedding.shape[-2]
        x = density / self.density_step
        knot = jnp.clip(x.astype(jnp.int32), 0, knots - 1)
        c = self.embedding.reshape(-1, 4)[kind * knots + knot]
        t = x - knot.astype(x.dtype)
        inside = jnp.minimum(t, 1)
        slope = c[..., 1] + 2 * c[..., 2] + 3 * c[..., 3]
        return _cubic(c, inside) + slope * jnp.maximum(t - 1, 0)

    def check(self, batch: Batch) -> None:
        check_elements(self, batch, "tables", self._numbers)


def _spline(values: np.ndarray) -> Float[Array, "*tables knots 4"]:
    """Coefficients [..., knots, 4], lowest power first, of not-a-knot splines over 0, 1, 2, ..."""
    found = CubicSpline(np.arange(values.shape[-1]), values, axis=-1, bc_type="not-a-knot").c
    return jnp.asarray(np.moveaxis(found[::-1], (0, 1), (-1, -2)))


def _cubic(c: Float[Array, "*n 4"], t: Float[Array, "*n"]) -> Float[Array, "*n"]:
    return c[..., 0] + t * (c[..., 1] + t * (c[..., 2] + t * c[..., 3]))


__all__ = ["EAM"]
