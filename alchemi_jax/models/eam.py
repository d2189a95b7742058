"""EAM: the embedded-atom method with tabulated functions."""

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from ase.data import chemical_symbols
from jaxtyping import Array, Float, Int

from alchemi_jax.models.elements import atomic_number, check_elements, check_numbers, types_of
from alchemi_jax.models.embedded import AbstractEmbedded
from alchemi_jax.models.files import Elements
from alchemi_jax.models.slots import gather
from alchemi_jax.models.tables import EAMTables, form_of, read_funcfl, read_setfl, slopes
from alchemi_jax.parameters import finite, optional, positive_length, positive_number
from alchemi_jax.systems.batch import Batch


class EAM(AbstractEmbedded):
    """The embedded-atom method, with functions from tables.

        E = sum_i F_i(rho_i) + 1/2 sum_ij phi_ij(r),  rho_i = sum_j rho_ij(r)

    Make one with `EAM.read`, or from arrays with `EAM.from_tables`. The functions are those that LAMMPS makes
    of a file: F, rho and r phi are cubics on each interval of the grid, with slopes at the points from five
    of them. Beyond the end of its table a function keeps the last value, but F continues as a straight line.
    Pairs beyond the cutoff of the file do not count, even if the tables are longer.

    Attributes:
        embedding: [elements, intervals, 4], coefficients of F (eV) on each interval, as a cubic of the part
            of the interval, 0 to 1.
        density: [elements, elements, intervals, 4], of the density at the first element from the second.
        pair: [elements, elements, intervals, 4], of r phi, eV Å.
        elements: symbols.
        density_step, distance_step: of the tables, the latter in Å.
        largest_density: from here on F is a straight line.
        cutoff, skin: Å.

    Raises:
        ValueError: from `check`, for an element of the batch without tables.

    Source: M. S. Daw, M. I. Baskes, Phys. Rev. B 29, 6443 (1984), doi:10.1103/PhysRevB.29.6443; M. W. Finnis,
    J. E. Sinclair, Philos. Mag. A 50, 45 (1984), doi:10.1080/01418618408244210 for densities of pairs of
    elements. Files and splines: the documentation of LAMMPS, `pair_style eam`.
    """

    elements: tuple[str, ...] = eqx.field(static=True)
    embedding: Float[Array, "elements intervals 4"] = eqx.field(repr=False, converter=finite("embedding"))
    density: Float[Array, "elements elements intervals 4"] = eqx.field(
        repr=False, converter=finite("density")
    )
    pair: Float[Array, "elements elements intervals 4"] = eqx.field(repr=False, converter=finite("pair"))
    density_step: float = eqx.field(static=True, repr=False, converter=positive_number("density_step"))
    distance_step: float = eqx.field(static=True, repr=False, converter=positive_number("distance_step"))
    cutoff: float = eqx.field(static=True, converter=positive_length("cutoff"))
    skin: float = eqx.field(static=True, converter=positive_length("skin", zero=True), default=0.6)
    largest_density: float | None = eqx.field(
        static=True, repr=False, converter=optional(positive_number("largest_density")), default=None
    )

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
        skin: float = 0.6,
        elements: Elements = None,
    ) -> "EAM":
        """Reads a file in a format of LAMMPS and DYNAMO, in its units `metal` or `real`.

        Args:
            path: path of the file; for funcfl, with one element per file, also a list of paths.
            form: "funcfl" (LAMMPS's eam), "setfl" (eam.alloy) or "fs" (eam.fs); by default known from
                the name: .eam or .funcfl, .alloy or .setfl, .fs.
            skin: Å.
            elements: those to take from a setfl or fs file, as symbols, or as a dict from symbols to names of
                the file; by default all. For funcfl, the symbol of each file.

        Raises:
            ValueError: naming the file and the line, for an unknown form, words that are not numbers, and too
                few or too many values; for elements that are not in the file.
        """
        single = isinstance(path, str | os.PathLike)
        paths = [Path(path)] if single else [Path(p) for p in path]  # pyright: ignore[reportArgumentType]
        if not paths:
            raise ValueError("EAM.read needs a file, the list is empty.")
        form = form_of(paths[0]) if form is None else form
        if form == "funcfl":
            if isinstance(elements, Mapping):
                raise ValueError("elements of funcfl files must be a list, a symbol for each file.")
            return cls.from_tables(read_funcfl(paths, elements), skin)
        if form not in ("setfl", "fs"):
            raise ValueError(f"form must be 'funcfl', 'setfl' or 'fs', not {form!r}.")
        if len(paths) > 1:
            raise ValueError(f"One {form} file has all its elements; EAM.read was given {len(paths)}.")
        return cls.from_tables(read_setfl(paths[0], form == "fs", elements), skin)

    @classmethod
    def from_tables(cls, tables: EAMTables, skin: float = 0.6) -> "EAM":
        """Makes the potential from arrays.

        Raises:
            ValueError: naming the table with values that are not finite or with fewer than five points.
        """
        for name in ("embedding", "density", "pair"):
            values = getattr(tables, name)
            check_numbers(f"the table {name} of EAM", values)
            if values.shape[-1] < 5:
                raise ValueError(f"The table {name} of EAM must have at least five points.")
        return cls(
            elements=tuple(chemical_symbols[z] for z in tables.elements),
            embedding=_cubics(tables.embedding),
            density=_cubics(tables.density),
            pair=_cubics(tables.pair),
            density_step=tables.density_step,
            distance_step=tables.distance_step,
            cutoff=tables.cutoff,
            skin=skin,
            largest_density=tables.largest_density,
        )

    def atom_parameters(self, batch: Batch) -> Any:
        return types_of(self._numbers, batch.numbers)

    @property
    def _numbers(self) -> tuple[int, ...]:
        return tuple(atomic_number(e) for e in self.elements)

    @property
    def one_density(self) -> bool:
        return len(self.elements) == 1

    def pair_functions(
        self, squared: Float[Array, "*pairs"], a: Any, b: Any
    ) -> tuple[Float[Array, "*pairs"], Float[Array, "*pairs"], Float[Array, "*pairs"]]:
        # Unused slots are far beyond the tables, and their cubes must not overflow.
        r = jnp.sqrt(jnp.minimum(squared, 4 * self.cutoff**2))
        n = len(self.elements)
        knots = self.pair.shape[-2]
        knot, t = _interval(r * (1 / self.distance_step), knots)

        def of(
            table: Float[Array, "elements elements knots 4"],
            first: Int[Array, "*#pairs"],
            second: Int[Array, "*#pairs"],
        ) -> Float[Array, "*#pairs"]:
            place = knot if n == 1 else (first * n + second) * knots + knot
            return _cubic(gather(table.reshape(-1, 4), place), t)

        phi = of(self.pair, a, b) / r
        g_ab = of(self.density, a, b)
        return phi, g_ab, g_ab if n == 1 else of(self.density, b, a)

    def pair_functions_and_slopes(
        self, squared: Float[Array, "*pairs"], a: Any, b: Any
    ) -> tuple[tuple[Float[Array, "*pairs"], ...], tuple[Float[Array, "*pairs"], ...]]:
        """The functions and their slopes in closed form. The coefficients of both functions are in one row,
        because gathering takes time."""
        r = jnp.sqrt(jnp.minimum(squared, 4 * self.cutoff**2))
        n = len(self.elements)
        knots = self.pair.shape[-2]
        # One division: in double precision they take as long as the rest.
        inverse, per_step = 1 / r, 1 / self.distance_step
        knot, t = _interval(r * per_step, knots)
        t = jnp.minimum(t, 1)
        rows = jnp.concatenate([self.pair, self.density], axis=-1).reshape(-1, 8)
        half = inverse / 2

        def slope(c: Float[Array, "*n 4"]) -> Float[Array, "*n"]:
            """In r²."""
            return (c[..., 1] + t * (2 * c[..., 2] + 3 * t * c[..., 3])) * (half * per_step)

        c = gather(rows, knot if n == 1 else (a * n + b) * knots + knot)
        phi = _polynomial(c[..., :4], t) * inverse
        functions = (phi, _polynomial(c[..., 4:], t))
        slopes = ((slope(c[..., :4]) - phi * half) * inverse, slope(c[..., 4:]))
        if n == 1:
            return functions, slopes
        other = gather(rows, (b * n + a) * knots + knot)[..., 4:]
        return (*functions, _polynomial(other, t)), (*slopes, slope(other))

    def embedding_energy(
        self, density: Float[Array, " atoms"], kind: Int[Array, " atoms"]
    ) -> Float[Array, " atoms"]:
        """F, eV, of densities, [atoms]; `kind` is the index of the atom's element in `elements`."""
        knots = self.embedding.shape[-2]
        knot, t = _interval(density * (1 / self.density_step), knots)
        c = self.embedding.reshape(-1, 4)[kind * knots + knot]
        largest = self.density_step * knots if self.largest_density is None else self.largest_density
        slope = (c[..., 1] + 2 * c[..., 2] + 3 * c[..., 3]) / self.density_step
        # From the end of the table to the largest density F is constant, but not its slope.
        over = jax.lax.stop_gradient(jnp.maximum(density - largest, 0) - density) + density
        over = jnp.where(t > 1, over, 0)
        return _polynomial(c, jnp.minimum(t, 1)) + slope * over

    def check(self, batch: Batch) -> None:
        check_elements(self, batch, "tables", self._numbers)


def _cubics(values: np.ndarray) -> Float[Array, "*tables intervals 4"]:
    """Coefficients, lowest power first, on the intervals between the points 0, 1, 2, ..."""
    slope = slopes(values)
    y, d = values[..., :-1], slope[..., :-1]
    step, end = np.diff(values, axis=-1), slope[..., 1:]
    return jnp.asarray(np.stack([y, d, 3 * step - 2 * d - end, d + end - 2 * step], axis=-1))


def _interval(x: Float[Array, "*n"], intervals: int) -> tuple[Int[Array, "*n"], Float[Array, "*n"]]:
    """The interval of a grid with steps of one, and where in it x is; both ends are unbounded."""
    k = jnp.clip(x.astype(jnp.int32), 0, intervals - 1)
    return k, x - k.astype(x.dtype)


def _polynomial(c: Float[Array, "*n 4"], t: Float[Array, "*n"]) -> Float[Array, "*n"]:
    return c[..., 0] + t * (c[..., 1] + t * (c[..., 2] + t * c[..., 3]))


def _cubic(c: Float[Array, "*n 4"], t: Float[Array, "*n"]) -> Float[Array, "*n"]:
    """A cubic of 0 to 1. Beyond 1 it keeps its value, and its derivative too: so LAMMPS treats distances
    between the end of a table and the cutoff."""
    beyond = jnp.where(t > 1, t - jax.lax.stop_gradient(t), 0)
    return _polynomial(c, jnp.minimum(t, 1)) + (c[..., 1] + 2 * c[..., 2] + 3 * c[..., 3]) * beyond


__all__ = ["EAM"]
