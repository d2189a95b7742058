"""StillingerWeber: pairs and angles, for silicon and other tetrahedral materials."""

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import equinox as eqx
import jax.numpy as jnp
import numpy as np
from ase.data import chemical_symbols
from jaxtyping import Array, Float

from alchemi_jax.models.elements import atomic_number, check_elements, types_of
from alchemi_jax.models.files import Elements, Lines, energy_unit, read_entries
from alchemi_jax.models.moments import AbstractMoments, Bonds
from alchemi_jax.parameters import between, number, positive_length
from alchemi_jax.systems.batch import Batch
from alchemi_jax.transforms import is_traced


#: In the order of LAMMPS's files, where they follow three elements.
NAMES = ("epsilon", "sigma", "a", "lam", "gamma", "cos0", "A", "B", "p", "q", "tol")
#: Those that depend on three elements.
_TRIPLES = ("epsilon", "lam", "cos0")

#: A number, or one for each pair or triple of elements.
ByPair = Float[Array, ""] | Float[Array, "*runs elements elements"]
ByTriple = Float[Array, ""] | Float[Array, "*runs elements elements elements"]


def _elements(value: Any) -> str | tuple[str, ...]:
    if not isinstance(value, list | tuple):
        return chemical_symbols[atomic_number(value)]
    symbols = tuple(chemical_symbols[atomic_number(e)] for e in value)
    if len(set(symbols)) != len(symbols) or not symbols:
        raise ValueError(f"element of StillingerWeber must be a symbol or several, not {value!r}.")
    return symbols


class StillingerWeber(AbstractMoments):
    """The Stillinger-Weber potential: pairs and angles with the range a sigma.

        E = sum_{i<j} A epsilon [B (sigma/r)^p - (sigma/r)^q] e^{sigma/(r - a sigma)}
          + sum_i sum_{j<k} lam epsilon (cos theta_jik - cos0)²
            e^{gamma sigma/(r_ij - a sigma)} e^{gamma sigma/(r_ik - a sigma)}

    Both vanish smoothly at a sigma, with all derivatives. The defaults are those of silicon; `water` is
    another set, and `read` takes files of LAMMPS, also of several elements. Then, as in LAMMPS, epsilon, lam
    and cos0 of an angle depend on three elements, those of atoms i, j and k. All other parameters, and the
    epsilon of pairs (i, j, j), depend on the two elements of a bond.

    Args:
        epsilon: eV.
        sigma: Å.
        lam: strength of the angles.
        gamma, A, B, p, q, a, cos0: dimensionless.
        element: symbol of the only element that the parameters are for, or several symbols. With several,
            epsilon, lam and cos0 are arrays [elements, elements, elements], the others [elements, elements].
        cutoff: of the neighbor list, Å; by default a sigma, and never less.
        skin: Å, added to the cutoff of the neighbor list.

    Raises:
        ValueError: from `check`, for another element in the batch, or if a sigma is beyond the cutoff.

    Source: F. H. Stillinger, T. A. Weber, Phys. Rev. B 31, 5262 (1985), doi:10.1103/PhysRevB.31.5262.
    """

    epsilon: ByTriple = eqx.field(converter=number("epsilon", zero=True), default=2.1683)
    sigma: ByPair = eqx.field(converter=number("sigma"), default=2.0951)
    lam: ByTriple = eqx.field(converter=number("lam", zero=True), default=21.0)
    gamma: ByPair = eqx.field(converter=number("gamma", zero=True), default=1.20)
    A: ByPair = eqx.field(converter=number("A", zero=True), default=7.049556277)
    B: ByPair = eqx.field(converter=number("B", zero=True), default=0.6022245584)
    p: ByPair = eqx.field(converter=number("p", zero=True), default=4.0)
    q: ByPair = eqx.field(converter=number("q", zero=True), default=0.0)
    a: ByPair = eqx.field(converter=number("a"), default=1.80)
    cos0: ByTriple = eqx.field(converter=between("cos0", -1.0, 1.0), default=-1 / 3)
    element: str | tuple[str, ...] = eqx.field(static=True, default="Si")
    cutoff: float = eqx.field(
        static=True,
        converter=positive_length("cutoff"),
        default=None,  # pyright: ignore[reportArgumentType]
    )
    skin: float = eqx.field(static=True, converter=positive_length("skin", zero=True), default=0.5)

    def __post_init__(self):
        self.element = _elements(self.element)
        if self.cutoff is None:
            if is_traced((self.a, self.sigma)):
                raise ValueError(
                    "StillingerWeber needs a cutoff, the largest a sigma, where they are traced."
                )
            for name in ("a", "sigma"):
                # Converters come later.
                number(name)(getattr(self, name))
            self.cutoff = self._reach

    def __check_init__(self):
        n = len(self.elements)
        if n == 1:
            return
        for name in NAMES[:-1]:
            shape = (n, n, n) if name in _TRIPLES else (n, n)
            if getattr(self, name).shape[-len(shape) :] != shape:
                raise ValueError(
                    f"StillingerWeber: {name} of {n} elements must be an array {list(shape)}, not "
                    f"{list(getattr(self, name).shape)}."
                )

    @property
    def elements(self) -> tuple[str, ...]:
        """Symbols of the elements that have parameters."""
        return (self.element,) if isinstance(self.element, str) else self.element

    @property
    def _numbers(self) -> tuple[int, ...]:
        return tuple(atomic_number(e) for e in self.elements)

    @property
    def _reach(self) -> float:
        """The largest a sigma, Å."""
        return float(np.max(np.asarray(self.a, float) * np.asarray(self.sigma, float)))

    @classmethod
    def read(
        cls, path: str | os.PathLike, elements: Elements = None, skin: float = 0.5, average: bool = False
    ) -> "StillingerWeber":
        """Reads a file of LAMMPS's `sw` style, in its units `metal` or `real`.

        Args:
            path: path of the file.
            elements: those to take from it, as symbols, or as a dict from symbols to names of the file; by
                default all.
            skin: Å.
            average: whether parameters may differ between the two orders of a pair (i-j, j-i) or of an angle
                (i-j-k, i-k-j); then their mean is taken. LAMMPS takes one of them, depending on the order of
                the atoms.

        Raises:
            ValueError: naming the file and the line, for values that are missing or not numbers; for elements
                and triples of elements that it does not have; for a `tol` other than zero; for parameters
                that differ between the two orders of a pair or an angle.
        """
        path = Path(path)
        if not path.name.lower().endswith(".sw") and ".sw." in path.name.lower():
            raise ValueError(f"{path.name} is not of LAMMPS's style sw, which StillingerWeber reads.")
        entries = read_entries(path, NAMES, elements)
        unit = energy_unit(Lines(path))
        symbols = tuple(dict.fromkeys(e for key in entries for e in key))
        values = {name: np.zeros((len(symbols),) * 3) for name in NAMES}
        for place in np.ndindex((len(symbols),) * 3):
            key = (symbols[place[0]], symbols[place[1]], symbols[place[2]])
            if key not in entries:
                raise ValueError(f"{path.name} has no entry {'-'.join(key)}.")
            for name in NAMES:
                values[name][place] = entries[key][name]
        values["epsilon"] *= unit
        if values["tol"].any():
            raise ValueError(
                f"{path.name} has a tol of {values['tol'][values['tol'] != 0][0]:g}, with which LAMMPS cuts "
                "the tails of pairs and angles; set it to 0, so that they end smoothly at a sigma."
            )
        if not average:
            _check_orders(path, symbols, values)
        given = {}
        for name in NAMES[:-1]:
            given[name] = values[name] if name in _TRIPLES else np.einsum("ijj->ij", values[name])
        cutoff = float(np.max(given["a"] * given["sigma"]))
        if len(symbols) == 1:
            given = {name: v.item() for name, v in given.items()}
        else:
            given = {name: jnp.asarray(v) for name, v in given.items()}
        try:
            element = symbols[0] if len(symbols) == 1 else symbols
            return cls(**given, element=element, cutoff=cutoff, skin=skin)
        except ValueError as error:
            raise ValueError(f"{path.name}: {error}") from None

    @classmethod
    def water(cls, skin: float = 0.5) -> "StillingerWeber":
        """The mW model, in which a water molecule is one atom: give the batch oxygen atoms of 18.015 amu.

        Source: V. Molinero, E. B. Moore, J. Phys. Chem. B 113, 4008 (2009), doi:10.1021/jp805227c.
        """
        # 6.189 kcal/mol.
        return cls(epsilon=0.268381, sigma=2.3925, lam=23.15, element="O", skin=skin)

    @property
    def n_kinds(self) -> int:
        return len(self.elements)

    def kinds(self, batch: Batch) -> Any:
        return types_of(self._numbers, batch.numbers)

    def _of(self, name: str, *kinds: Any) -> Float[Array, "*#bonds"]:
        """A parameter for two or three elements."""
        table = getattr(self, name)
        if self.n_kinds == 1:
            return table
        place = kinds[0]
        for kind in kinds[1:]:
            place = place * self.n_kinds + kind
        return table.reshape(-1)[place]

    def bonds(self, r: Float[Array, "*bonds"], a: Any, b: Any) -> Bonds:
        sigma = self._of("sigma", a, b)
        # Divisions are dear in double precision: two are enough.
        gap = r - self._of("a", a, b) * sigma
        inside = gap < 0
        r, gap = jnp.where(inside, r, 1), jnp.where(inside, gap, -1)
        inverse, inner = 1 / r, 1 / gap
        # Powers by a logarithm that they share.
        p, q, power = self._of("p", a, b), self._of("q", a, b), jnp.log(sigma * inverse)
        steep, flat = self._of("B", a, b) * jnp.exp(p * power), jnp.exp(q * power)
        decay = sigma * inner
        scale = self._of("epsilon", a, b, b) * self._of("A", a, b) * jnp.exp(decay)
        slope = scale * ((q * flat - p * steep) * inverse - (steep - flat) * decay * inner)
        gamma = self._of("gamma", a, b)
        weight = jnp.exp(gamma * decay)
        found = (scale * (steep - flat), slope, weight, -gamma * decay * inner * weight)
        return Bonds(*(jnp.where(inside, v, 0) for v in found))

    def angle_parameters(self, a: Any, b: int, c: int) -> tuple[Any, Any]:
        strength = self._of("epsilon", a, b, c) * self._of("lam", a, b, c)
        return strength, self._of("cos0", a, b, c)

    def __repr__(self) -> str:
        if self.n_kinds == 1:
            return super().__repr__()
        return f"StillingerWeber(element={self.element}, cutoff={self.cutoff}, skin={self.skin})"

    def check(self, batch: Batch) -> None:
        check_elements(self, batch, "parameters", self._numbers)
        if self._reach > self.cutoff * (1 + 1e-6):
            raise ValueError(
                f"StillingerWeber: a sigma, {self._reach:.4f} Å, is beyond the cutoff "
                f"of {self.cutoff:.4f} Å; give a cutoff that is as long."
            )


def _check_orders(path: Path, symbols: tuple[str, ...], values: Mapping[str, np.ndarray]) -> None:
    """Refuses parameters that differ between the two orders of a pair or an angle."""
    strength = values["epsilon"] * values["lam"]
    angles = {"epsilon times lam": strength, "cos0": values["cos0"]}
    pairs = {
        name: np.einsum("ijj->ij", values[name]) for name in ("epsilon", "sigma", "a", "A", "B", "p", "q")
    }
    for name, found in (angles | pairs).items():
        turned = found.swapaxes(-1, -2)
        wrong = np.argwhere(np.abs(found - turned) > 1e-9 * np.abs(found))
        if len(wrong):
            one = [symbols[k] for k in wrong[0]]
            other = [*one[:-2], one[-1], one[-2]]
            raise ValueError(
                f"{path.name}: {name} is {found[tuple(wrong[0])]:.9g} for {'-'.join(one)}, but "
                f"{turned[tuple(wrong[0])]:.9g} for {'-'.join(other)}, which are the same "
                f"{'angle' if name in angles else 'pair'}, and LAMMPS takes one or the other, as it comes "
                "upon the atoms; make them equal, or read the file with average=True."
            )


__all__ = ["StillingerWeber"]
