"""Tersoff: bonds with a strength that depends on the other bonds."""

import itertools
import math
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import equinox as eqx
import jax.numpy as jnp
import numpy as np
from ase.data import chemical_symbols
from jaxtyping import Array, Float, Int

from alchemi_jax.models.bond_order import AbstractBondOrder
from alchemi_jax.models.elements import ByPair, atomic_number, check_elements, check_pairs, types_of
from alchemi_jax.models.files import Elements, Lines, energy_unit, read_entries
from alchemi_jax.parameters import as_parameter, positive_length
from alchemi_jax.systems.batch import Batch
from alchemi_jax.transforms import is_traced


#: In the order of LAMMPS's files, where they follow three elements.
NAMES = ("m", "gamma", "lam3", "c", "d", "cos0", "n", "beta", "lam2", "B", "R", "D", "lam1", "A")


#: What values must be: of all triples, and of (i, j, j), which have the strengths of bonds.
_POSITIVE, _NOT_NEGATIVE = ("d", "R"), ("gamma", "c", "n", "beta", "B", "D", "A", "lam1", "lam2")
_POSITIVE_IN_BONDS = ("n",)


def _check_values(parameters: dict[str, np.ndarray]) -> None:
    """Check that each triple has all parameters or none, and that they can mean something.

    Raises:
        ValueError: naming the parameter.
    """
    missing = np.isnan(parameters["A"])
    if missing.all():
        raise ValueError("Tersoff: no triple of elements has parameters, A is NaN everywhere.")
    for name, values in parameters.items():
        if name != "m" and (np.isnan(values) != missing).any():
            raise ValueError(f"Tersoff: {name} must be NaN where A is NaN, and nowhere else.")
        known = values[~missing]
        if not np.isfinite(known).all():
            raise ValueError(f"Tersoff: {name} must be finite, not {known[~np.isfinite(known)][0]}.")
        low = 0 if name in _NOT_NEGATIVE else np.nextafter(0, 1) if name in _POSITIVE else -np.inf
        if (known < low).any():
            what = "positive" if name in _POSITIVE else "zero or positive"
            raise ValueError(f"Tersoff: {name} must be {what}, not {known[known < low][0]}.")
        bonds = np.einsum("...ijj->...ij", values)
        if name in _POSITIVE_IN_BONDS and (bonds <= 0).any():
            raise ValueError(f"Tersoff: {name} must be positive where the last two elements are the same.")
    if (parameters["D"] > parameters["R"]).any():
        raise ValueError("Tersoff: D must not be greater than R.")


#: Ends of names of files that look like these and are not.
_OTHERS = {
    ".tersoff.mod": "tersoff/mod",
    ".tersoff.modc": "tersoff/mod/c",
    ".tersoff.zbl": "tersoff/zbl",
    ".poly": "several models in one file (.poly)",
}


class Tersoff(AbstractBondOrder):
    """The potential of Tersoff, and those in the form of Brenner and of Erhart and Albe.

        E = 1/2 sum_i sum_{j != i} f(r_ij) [A e^(-lam1 r_ij) - b_ij B e^(-lam2 r_ij)]
        b_ij = (1 + (beta xi_ij)^n)^(-1/(2n))
        xi_ij = sum_{k != i,j} f(r_ik) g(cos theta_jik) e^{lam3^m (r_ij - r_ik)^m}
        g(x) = gamma [1 + c²/d² - c²/(d² + (x - cos0)²)]
        f(r) = 1 below R - D, 1/2 - 1/2 sin(pi (r - R)/(2 D)), 0 beyond R + D

    As in LAMMPS, every parameter depends on three elements: those of atom i, of the other atom j of the bond,
    and of the third atom k. Two-body terms take it from (i, j, j). Units: A, B eV; R, D Å; lam1, lam2, lam3
    1/Å; the others are dimensionless.

    Make one with `Tersoff.group_iv()` (C, Si, Ge), `Tersoff.silicon_carbide()`, or from a file of
    LAMMPS with `Tersoff.read`.

    Args:
        elements: symbols.
        parameters: an array [elements, elements, elements] for each of the 14 names; leaves. NaN marks
            triples without parameters.
        cutoff: of the neighbor list, Å; by default the largest R + D, and never less.
        skin: Å, added to the cutoff of the neighbor list.

    Raises:
        ValueError: for missing names or m other than 1 and 3; from `check`, for an element or a pair of
            elements without parameters.

    Source: J. Tersoff, Phys. Rev. B 37, 6991 (1988), doi:10.1103/PhysRevB.37.6991; 39, 5566 (1989),
    doi:10.1103/PhysRevB.39.5566.
    """

    elements: tuple[str, ...] = eqx.field(static=True)
    parameters: dict[str, Float[Array, "*runs elements elements elements"]] = eqx.field(repr=False)
    cutoff: float = eqx.field(
        static=True,
        converter=positive_length("cutoff"),
        default=None,  # pyright: ignore[reportArgumentType]
    )
    skin: float = eqx.field(static=True, converter=positive_length("skin", zero=True), default=0.5)

    def __post_init__(self):
        self.elements = tuple(chemical_symbols[atomic_number(e)] for e in self.elements)
        shape = (len(self.elements),) * 3
        wrong = set(self.parameters) ^ set(NAMES)
        if wrong:
            raise ValueError(
                f"Tersoff takes the parameters {', '.join(NAMES)}; check {', '.join(sorted(wrong))}."
            )
        self.parameters = {name: as_parameter(self.parameters[name], f"Tersoff: {name}") for name in NAMES}
        for name, values in self.parameters.items():
            if values.shape[-3:] != shape:
                raise ValueError(f"Tersoff: {name} must be an array {list(shape)}, not {list(values.shape)}.")
        traced = is_traced((self.parameters["R"], self.parameters["D"], self.parameters["m"]))
        if not traced and not np.isin(np.asarray(self.parameters["m"]), (1, 3)).all():
            raise ValueError("Tersoff: m must be 1 or 3.")
        if not is_traced(self.parameters):
            _check_values({name: np.asarray(values) for name, values in self.parameters.items()})
        if self.cutoff is None:
            if traced:
                raise ValueError("Tersoff needs a cutoff, the largest R + D, where they are traced.")
            self.cutoff = float(np.nanmax(self.parameters["R"] + self.parameters["D"]))

    @classmethod
    def from_entries(
        cls, entries: Mapping[tuple[str, ...], Mapping[str, Any]], skin: float = 0.5
    ) -> "Tersoff":
        """The potential from the 14 parameters of triples of elements.

        Args:
            entries: parameters by name, of each triple of symbols. A triple that is missing has no parameters
                (NaN).
            skin: Å.
        """
        elements = tuple(dict.fromkeys(key[0] for key in entries))
        tables = {name: np.full((len(elements),) * 3, 1.0 if name == "m" else np.nan) for name in NAMES}
        for key, values in entries.items():
            for e in key:
                if e not in elements:
                    raise ValueError(f"Tersoff has no entry whose first element is {e}, but one for {key}.")
            place = tuple(elements.index(e) for e in key)
            for name in NAMES:
                tables[name][place] = values[name]
        parameters = {name: jnp.asarray(values) for name, values in tables.items()}
        return cls(elements=elements, parameters=parameters, skin=skin)

    @classmethod
    def read(
        cls, path: str | os.PathLike, elements: Elements = None, skin: float = 0.5, average: bool = False
    ) -> "Tersoff":
        """Reads a file of LAMMPS's `tersoff` style, in its units `metal` or `real`.

        Args:
            path: path of the file.
            elements: those to take from it, as symbols, or as a dict from symbols to names of the file, such
                as {"Si": "Si(D)"}; by default all.
            skin: Å.
            average: whether the repulsion of i-j and j-i may differ; then their mean is taken. LAMMPS takes
                one of them, depending on the numbers of the atoms.

        Raises:
            ValueError: naming the file and the line, for values that are missing or not numbers; for elements
                that it does not have; for files of `tersoff/mod` and `tersoff/zbl`; for a repulsion that
                differs between i-j and j-i.
        """
        path = Path(path)
        for end, what in _OTHERS.items():
            if path.name.lower().endswith(end):
                raise ValueError(f"{path.name} is of another kind, {what}, which Tersoff does not read.")
        entries = read_entries(path, NAMES, elements)
        unit = energy_unit(Lines(path))
        for key, values in entries.items():
            entries[key] = values | {"A": unit * values["A"], "B": unit * values["B"]}
        if not average:
            _check_bonds(path, entries)
        try:
            return cls.from_entries(entries, skin)
        except ValueError as error:
            raise ValueError(f"{path.name}: {error}") from None

    @classmethod
    def group_iv(cls, skin: float = 0.5) -> "Tersoff":
        """Parameters of C, Si, Ge, SiC and SiGe. C with Ge has none.

        Source: J. Tersoff, Phys. Rev. B 39, 5566 (1989), doi:10.1103/PhysRevB.39.5566, table I; erratum 41,
        3248 (1990), doi:10.1103/PhysRevB.41.3248.2.
        """
        # A, B, lambda, mu, beta, n, c, d, h, R, S
        own = {
            "C": (1393.6, 346.74, 3.4879, 2.2119, 1.5724e-7, 0.72751, 38049.0, 4.3484, -0.57058, 1.8, 2.1),
            "Si": (1830.8, 471.18, 2.4799, 1.7322, 1.1e-6, 0.78734, 100390.0, 16.217, -0.59825, 2.7, 3.0),
            "Ge": (1769.0, 419.23, 2.4451, 1.7047, 9.0166e-7, 0.75627, 106430.0, 15.652, -0.43884, 2.8, 3.1),
        }
        chi = {frozenset(("C", "Si")): 0.9776, frozenset(("Si", "Ge")): 1.00061}

        def entry(i: str, j: str, k: str) -> dict[str, Any]:
            a, b, c = own[i], own[j], own[k]
            inner, outer = math.sqrt(a[9] * c[9]), math.sqrt(a[10] * c[10])
            return {
                "m": 1, "gamma": 1, "lam3": 0, "c": a[6], "d": a[7], "cos0": a[8], "n": a[5], "beta": a[4],
                "lam1": (a[2] + b[2]) / 2, "lam2": (a[3] + b[3]) / 2, "A": math.sqrt(a[0] * b[0]),
                "B": math.sqrt(a[1] * b[1]) * chi.get(frozenset((i, j)), 1.0),
                "R": (inner + outer) / 2, "D": (outer - inner) / 2,
            }  # fmt: skip

        unknown = {frozenset(("C", "Ge"))}
        triples = [
            t for t in itertools.product(own, repeat=3) if not {frozenset(t[:2]), frozenset(t[::2])} & unknown
        ]
        return cls.from_entries({t: entry(*t) for t in triples}, skin)

    @classmethod
    def silicon_carbide(cls, skin: float = 0.5) -> "Tersoff":
        """Parameters of C, Si and SiC by Erhart and Albe.

        Source: P. Erhart, K. Albe, Phys. Rev. B 71, 035211 (2005), doi:10.1103/PhysRevB.71.035211, table I.
        """
        # D0, r0, S, beta, gamma, c, d, h, R, D
        own = {
            ("C", "C"): (6.00, 1.4276, 2.167, 2.0099, 0.11233, 181.910, 6.28433, 0.5556, 2.0, 0.15),
            ("C", "Si"): (4.36, 1.79, 1.847, 1.6991, 0.011877, 273987.0, 180.314, 0.68, 2.4, 0.20),
            ("Si", "Si"): (3.24, 2.232, 1.842, 1.4761, 0.114354, 2.00494, 0.81472, 0.259, 2.82, 0.14),
        }

        def entry(i: str, j: str, k: str) -> dict[str, Any]:
            d0, r0, s, beta, gamma, c, d, h, *_ = own[tuple(sorted((i, j)))]  # pyright: ignore
            reach, half = own[tuple(sorted((i, k)))][8:]  # pyright: ignore
            lam1, lam2 = beta * math.sqrt(2 * s), beta * math.sqrt(2 / s)
            return {
                "m": 1, "gamma": gamma, "lam3": 0, "c": c, "d": d, "cos0": -h, "n": 1, "beta": 1,
                "lam1": lam1, "lam2": lam2, "A": d0 / (s - 1) * math.exp(lam1 * r0),
                "B": s * d0 / (s - 1) * math.exp(lam2 * r0), "R": reach, "D": half,
            }  # fmt: skip

        return cls.from_entries({t: entry(*t) for t in itertools.product(("C", "Si"), repeat=3)}, skin)

    def atom_parameters(self, batch: Batch) -> Any:
        return types_of(self._numbers, batch.numbers)

    @property
    def _numbers(self) -> tuple[int, ...]:
        return tuple(atomic_number(e) for e in self.elements)

    def _of(
        self, name: str, a: Int[Array, "*#bonds"], b: Int[Array, "*#bonds"], c: Int[Array, "*#bonds"]
    ) -> Float[Array, "*#bonds"]:
        n = len(self.elements)
        table = self.parameters[name].reshape(-1)
        return table[0] if n == 1 else table[(a * n + b) * n + c]

    def _within(
        self,
        r: Float[Array, "*bonds"],
        a: Int[Array, "*#bonds"],
        b: Int[Array, "*#bonds"],
        c: Int[Array, "*#bonds"],
    ) -> Float[Array, "*bonds"]:
        reach, half = self._of("R", a, b, c), self._of("D", a, b, c)
        # With D = 0 it is a step.
        x = jnp.clip((r - reach) / jnp.where(half > 0, half, 1), -1, 1)
        x = jnp.where(half > 0, x, jnp.where(r < reach, -1, 1).astype(x.dtype))
        return (1 - jnp.sin(jnp.pi / 2 * x)) / 2

    def bond(
        self, r: Float[Array, "*bonds"], xi: Float[Array, "*bonds"], a: Any, b: Any
    ) -> Float[Array, "*bonds"]:
        def of(name: str) -> Float[Array, "*bonds"]:
            return self._of(name, a, b, b)

        # By logarithms: (beta xi)^n may be beyond the largest number.
        x = of("beta") * xi
        some, n = x > 0, of("n")
        order = jnp.exp(-_softplus(n * jnp.log(jnp.where(some, x, 1))) / (2 * n))
        attraction = jnp.where(some, order, 1) * of("B") * jnp.exp(-of("lam2") * r)
        return self._within(r, a, b, b) * (of("A") * jnp.exp(-of("lam1") * r) - attraction)

    def angle(
        self,
        rj: Float[Array, "*angles"],
        rk: Float[Array, "*angles"],
        cosine: Float[Array, "*angles"],
        a: Any,
        b: Any,
        c: Any,
    ) -> Float[Array, "*angles"]:
        def of(name: str) -> Float[Array, "*bonds"]:
            return self._of(name, a, b, c)

        c2, d2 = of("c") ** 2, of("d") ** 2
        g = of("gamma") * (1 + c2 / d2 - c2 / (d2 + (cosine - of("cos0")) ** 2))
        x = of("lam3") * (rj - rk)
        # Within e^±69 as in LAMMPS, and in float32 within what a sum of some of them leaves finite.
        most = min(69.0776, 0.65 * math.log(float(jnp.finfo(x.dtype).max)))
        power = jnp.clip(jnp.where(of("m") == 3, x * x * x, x), -most, most)
        return self._within(rk, a, b, c) * g * jnp.exp(power)

    def check(self, batch: Batch) -> None:
        check_elements(self, batch, "parameters", self._numbers)
        diagonal = np.einsum("ijj->ij", np.asarray(self.parameters["A"]))
        order = np.argsort(self._numbers)
        numbers = tuple(int(self._numbers[i]) for i in order)
        check_pairs(self, batch, "parameters", ByPair(jnp.asarray(diagonal[order][:, order]), numbers))


def _softplus(x: Float[Array, "*n"]) -> Float[Array, "*n"]:
    """log(1 + e^x), without an overflow."""
    return jnp.maximum(x, 0) + jnp.log1p(jnp.exp(-jnp.abs(x)))


def _check_bonds(path: Path, entries: Mapping[tuple[str, ...], Mapping[str, float]]) -> None:
    """Refuses a repulsion that differs between i-j and j-i: it has no order."""
    for i, j, k in entries:
        if j != k or (j, i, i) not in entries:
            continue
        for name in ("A", "lam1", "R", "D"):
            one, other = entries[i, j, j][name], entries[j, i, i][name]
            if abs(one - other) > 1e-9 * abs(one):
                raise ValueError(
                    f"{path.name}: {name} is {one!r} for {i}-{j}-{j}, but {other!r} for {j}-{i}-{i}, and "
                    "LAMMPS takes one or the other, by the numbers of the atoms; make them equal, or read "
                    "the file with average=True."
                )


__all__ = ["NAMES", "Tersoff"]
