"""Pair potentials and the loop over neighbors that they share.

A potential gives the energy of a pair as a function of the squared distance. The derivative comes from
forward differentiation, unless it is given in closed form. There are three kernels:

- on a CPU, a loop over the slots of the neighbor matrix, with one gather of each coordinate and no axis of
  length 3;
- on a CPU, for free systems of similar and small sizes: the systems are arranged side by side and all pairs
  are taken without a gather, in half the time;
- on an accelerator, the whole matrix at once.

They can be differentiated any number of times with respect to positions, cell and parameters, because the
loops have a rule that uses the matrix.
"""

from abc import abstractmethod
from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, ArrayLike, Bool, Float, Int, Shaped

from alchemi_jax.models.base import AbstractModel, Results, cast, need_list, per_volume, virial_by_system
from alchemi_jax.models.elements import ByElement, by_element, check_elements
from alchemi_jax.neighbors import FAR, NeighborList, extended_coordinates
from alchemi_jax.parameters import as_flag, number, optional, positive_length
from alchemi_jax.systems.batch import Batch
from alchemi_jax.systems.segments import number_in_system, row_index, sum_by_system


def _pair_terms(
    model: "AbstractPair", squared: Float[Array, "*pairs"], a: Any, b: Any
) -> tuple[Float[Array, "*pairs"], Float[Array, "*pairs"]]:
    """Energy of each pair and its derivative in the squared distance, zero beyond the cutoff."""
    inside = squared <= model.cutoff**2
    energy, slope = model.pair_terms(squared, a, b)
    return jnp.where(inside, energy, 0), jnp.where(inside, slope, 0)


def _terms(
    model: "AbstractPair", d: list, a: Any, b: Any, virial: bool
) -> tuple[Float[Array, "*pairs"], ...]:
    x, y, z = d
    energy, slope = _pair_terms(model, x * x + y * y + z * z, a, b)
    fx, fy, fz = slope * x, slope * y, slope * z
    out = (energy, fx, fy, fz)
    if virial:
        out += (fx * x, fy * y, fz * z, fy * z, fx * z, fx * y)
    return out


def _gather(values: Any, index: Int[Array, "..."]) -> Any:
    """Gathers without the checks of indices that NumPy's semantics need: they take a tenth of the loop's
    time."""
    return jax.tree.map(
        lambda v: v.at[index].get(mode="promise_in_bounds", wrap_negative_indices=False), values
    )


def _matrix(model, extended, parameters, neighbors: NeighborList, virial: bool) -> tuple:
    """All slots at once, [neighbors, atoms]."""
    n = neighbors.index.shape[1]
    d = [_gather(c, neighbors.index) - c[None, :n] for c in extended]
    own = jax.tree.map(lambda v: v[None, :n], parameters)
    terms = _terms(model, d, own, _gather(parameters, neighbors.index), virial)
    return tuple(t.sum(axis=0) for t in terms)


def _slots(model, extended, parameters, neighbors: NeighborList, virial: bool) -> tuple:
    """One slot after another, as many as are in use."""
    n = neighbors.index.shape[1]
    centre = [c[:n] for c in extended]
    own = jax.tree.map(lambda v: v[:n], parameters)

    def slot(k: Int[Array, ""] | int, sums: tuple) -> tuple:
        j = neighbors.index[k]
        d = [_gather(c, j) - c0 for c, c0 in zip(extended, centre, strict=True)]
        terms = _terms(model, d, own, _gather(parameters, j), virial)
        return tuple(s + t for s, t in zip(sums, terms, strict=True))

    zero = jnp.zeros(n, extended[0].dtype)
    return jax.lax.fori_loop(0, neighbors.used, slot, (zero,) * (10 if virial else 4))


FEWEST = 32
"""Systems that stand side by side. With fewer the vectors are short, nothing is gained, and LLVM joins
multiplications and additions in one program and not in another: sums would differ in their last bit."""


class _Rows(NamedTuple):
    """Systems side by side: the k-th atom of each is a row."""

    atom: Int[Array, "largest systems"]
    real: Bool[Array, "largest systems"]
    place: Int[Array, " atoms"]
    """Index of each atom in the flattened rows."""
    count: Int[Array, ""]
    """Number of rows with an atom."""


def _rows_of(batch: Batch, neighbors: NeighborList) -> _Rows | None:
    """The rows, if their pairs are not many more than those of the list. Shapes decide, not data."""
    places = batch.largest * batch.system_capacity
    few = places <= 1.25 * batch.atom_capacity and batch.largest <= 2 * neighbors.slots
    if neighbors.sizes.periodic or not few or batch.system_capacity < FEWEST:
        return None
    atom, real = row_index(batch)
    own = number_in_system(batch)
    system = jnp.minimum(batch.batch_idx, batch.system_capacity - 1)
    place = jnp.clip(own, 0, batch.largest - 1) * batch.system_capacity + system
    return _Rows(atom.T, real.T, place, batch.atoms_per_system.max())


def _side_by_side(model, extended, parameters, rows: _Rows, virial: bool) -> tuple:
    """All pairs of each system: one row after another against all rows. Results as from `_slots`."""
    coordinates, own = _gather((extended, parameters), rows.atom)
    number = jnp.arange(len(rows.atom), dtype=jnp.int32)[:, None]

    def row(k: Int[Array, ""] | int, sums: tuple) -> tuple:
        *other, there, b = jax.tree.map(
            lambda v: jax.lax.dynamic_index_in_dim(v, k, 0), (*coordinates, rows.real, own)
        )
        x, y, z = (c - c0 for c, c0 in zip(other, coordinates, strict=True))
        x = jnp.where(there & rows.real & (number != k), x, FAR)
        return tuple(s + t for s, t in zip(sums, _terms(model, [x, y, z], own, b, virial), strict=True))

    zero = jnp.zeros(rows.atom.shape, extended[0].dtype)
    sums = jax.lax.fori_loop(0, rows.count, row, (zero,) * (10 if virial else 4))
    return tuple(s.reshape(-1)[rows.place] for s in sums)


@eqx.filter_custom_jvp
def _accumulate(model, extended, parameters, neighbors, rows, *, virial: bool) -> tuple:
    """Sums over each atom's neighbors: energy, slope times x, y, z and, if asked for, the six
    products xx, yy, zz, yz, xz, xy of slope and coordinates."""
    arrays, static = eqx.partition((model, extended, parameters, neighbors, rows), eqx.is_array)

    def whole(a: Any) -> tuple:
        model, extended, parameters, neighbors, _ = eqx.combine(a, static)
        return _matrix(model, extended, parameters, neighbors, virial)

    def looped(a: Any) -> tuple:
        model, extended, parameters, neighbors, rows = eqx.combine(a, static)
        if rows is None:
            return _slots(model, extended, parameters, neighbors, virial)
        return _side_by_side(model, extended, parameters, rows, virial)

    return jax.lax.platform_dependent(arrays, cpu=looped, default=whole)


@_accumulate.def_jvp
def _accumulate_jvp(primals, tangents, *, virial: bool):
    def f(differentiable, rest):
        model, extended, parameters, neighbors, _ = eqx.combine(differentiable, rest)
        return _matrix(model, extended, parameters, neighbors, virial)

    has_tangent = jax.tree.map(lambda t: t is not None, tuple(tangents), is_leaf=lambda t: t is None)
    # A None in `tangents` is a leaf without tangent; partition the primals by that.
    moving = eqx.filter(tuple(primals), has_tangent)
    rest = eqx.filter(tuple(primals), has_tangent, inverse=True)
    return jax.jvp(lambda m: f(m, rest), (moving,), (tuple(tangents),))


class AbstractPair(AbstractModel):
    """A pair potential: write `pair_energy`, and `atom_parameters` if atoms differ.

    Forces and stress follow from it. The fields `cutoff` and `skin` (Å) are plain numbers, not leaves: they
    set the range of the neighbor list.
    """

    cutoff: eqx.AbstractVar[float]

    @abstractmethod
    def pair_energy(self, squared: Float[Array, "*pairs"], a: Any, b: Any) -> Float[Array, "*pairs"]:
        """Energy of pairs, eV.

        Args:
            squared: squared distances, Å².
        a, b: values of `atom_parameters` at the two atoms.
        """

    def pair_terms(
        self, squared: Float[Array, "*pairs"], a: Any, b: Any
    ) -> tuple[Float[Array, "*pairs"], Float[Array, "*pairs"]]:
        """Energy of pairs, eV, and its derivative with respect to the squared distance, eV/Å².

        By default `pair_energy` is differentiated. Override it where a closed form saves divisions.
        """
        one = jnp.ones_like(squared)
        return jax.jvp(lambda s: self.pair_energy(s, a, b), (squared,), (one,))

    def atom_parameters(self, batch: Batch) -> Any:
        """Arrays [atoms], gathered for both atoms of each pair; none by default."""
        return ()

    def energy(self, batch: Batch, neighbors: NeighborList | None) -> Float[Array, " systems"]:
        sums = self._sums(batch, neighbors, virial=False)
        return sum_by_system(batch, sums[0] / 2)

    def evaluate(self, batch: Batch, neighbors: NeighborList | None, *, stress: bool = False) -> Results:
        sums = self._sums(batch, neighbors, virial=stress)
        energy = sum_by_system(batch, sums[0] / 2)
        forces = 2 * jnp.stack(sums[1:4], axis=-1)
        if not stress:
            return Results(energy, forces, None)
        return Results(energy, forces, per_volume(batch, virial_by_system(batch, sums[4:])))

    def _sums(self, batch: Batch, neighbors: NeighborList | None, virial: bool) -> tuple:
        neighbors = need_list(self, neighbors)
        model = cast(self, batch.dtype)
        extended = extended_coordinates(batch, neighbors)
        own = model.atom_parameters(batch)

        def extend(v: Shaped[Array, "atoms *dims"]) -> Shaped[Array, "extended *dims"]:
            return jnp.concatenate([v, v[neighbors.source], v[:1]])

        rows = _rows_of(batch, neighbors)
        sums = _accumulate(model, extended, jax.tree.map(extend, own), neighbors, rows, virial=virial)
        return tuple(jnp.where(batch.atom_mask, s, 0) for s in sums)


class LennardJones(AbstractPair):
    """The 12-6 potential, u(r) = 4 epsilon ((sigma/r)^12 - (sigma/r)^6) for r <= cutoff.

    Args:
        epsilon: depth, eV. A number for all atoms, or per element: a dict of symbols or atomic numbers, or an
            array over atomic numbers 0 to 118. Different elements mix by the Lorentz-Berthelot rules,
            sqrt(e_i e_j) and (s_i + s_j)/2.
        sigma: the distance at which u is zero, Å; given like epsilon.
        cutoff: Å.
        shift: subtract u(cutoff) from each pair, so that the energy is continuous there (ASE's
            LennardJones does).
        skin: Å, added to the cutoff of the neighbor list.

    Raises:
        ValueError: for a cutoff that is not positive or an unknown element; from `check`, for an element of
            the batch without parameters.

    Source: J. E. Jones, Proc. R. Soc. A 106, 463 (1924), doi:10.1098/rspa.1924.0082.
    """

    epsilon: ByElement = eqx.field(converter=by_element("epsilon", "zero or positive"))
    sigma: ByElement = eqx.field(converter=by_element("sigma", "positive"))
    cutoff: float = eqx.field(static=True, converter=positive_length("cutoff"), default=8.5)
    shift: bool = eqx.field(static=True, converter=as_flag("shift"), default=False)
    skin: float = eqx.field(static=True, converter=positive_length("skin", zero=True), default=1.0)

    @classmethod
    def noble_gases(cls, cutoff: float = 10.0, shift: bool = True, skin: float = 1.0) -> "LennardJones":
        """Parameters of Ne, Ar, Kr and Xe, fitted to the second virial coefficients of the gases.

        Source: N. W. Ashcroft, N. D. Mermin, Solid State Physics (1976), table 20.2.
        """
        return cls(
            epsilon={"Ne": 0.0031, "Ar": 0.0104, "Kr": 0.0140, "Xe": 0.0200},
            sigma={"Ne": 2.74, "Ar": 3.40, "Kr": 3.65, "Xe": 3.98},
            cutoff=cutoff,
            shift=shift,
            skin=skin,
        )

    def atom_parameters(self, batch: Batch) -> Any:
        def of(table: ByElement, root: bool) -> Float[Array, " atoms"] | None:
            if table.ndim == 0:
                return None
            values = table[batch.numbers]
            return jnp.sqrt(values) if root else values / 2

        return of(self.epsilon, True), of(self.sigma, False)

    def pair_energy(self, squared: Float[Array, "*pairs"], a: Any, b: Any) -> Float[Array, "*pairs"]:
        return self.pair_terms(squared, a, b)[0]

    def pair_terms(
        self, squared: Float[Array, "*pairs"], a: Any, b: Any
    ) -> tuple[Float[Array, "*pairs"], Float[Array, "*pairs"]]:
        epsilon = self.epsilon if a[0] is None else a[0] * b[0]
        sigma = self.sigma if a[1] is None else a[1] + b[1]

        def terms(r2: ArrayLike) -> tuple[Float[Array, "..."], Float[Array, "..."]]:
            inverse = 1 / jnp.asarray(r2, squared.dtype)
            s2 = sigma * sigma * inverse
            s6 = s2 * s2 * s2
            return 4 * epsilon * (s6 * s6 - s6), 12 * epsilon * (s6 - 2 * s6 * s6) * inverse

        energy, slope = terms(squared)
        return energy - terms(self.cutoff**2)[0] if self.shift else energy, slope

    def check(self, batch: Batch) -> None:
        for name, table in (("epsilon", self.epsilon), ("sigma", self.sigma)):
            if table.ndim == 1:
                check_elements(self, batch, name, table)


class Morse(AbstractPair):
    """Morse's potential, u(r) = depth (exp(-2 width (r - r0)) - 2 exp(-width (r - r0))), r <= cutoff.

    Args:
        depth: eV.
        width: 1/Å; the force constant at the minimum is 2 depth width².
        r0: distance of the minimum, Å.
        cutoff: Å.
        onset: Å. If given, the energy is multiplied by a function that falls from one at the onset to zero at
            the cutoff (a quintic, twice continuously differentiable), as in ASE's MorsePotential, where rho0
            is width times r0.
        skin: Å, added to the cutoff of the neighbor list.

    Source: P. M. Morse, Phys. Rev. 34, 57 (1929), doi:10.1103/PhysRev.34.57.
    """

    depth: Float[Array, ""] = eqx.field(converter=number("depth", zero=True))
    width: Float[Array, ""] = eqx.field(converter=number("width"))
    r0: Float[Array, ""] = eqx.field(converter=number("r0", zero=True))
    cutoff: float = eqx.field(static=True, converter=positive_length("cutoff"), default=6.0)
    onset: float | None = eqx.field(
        static=True, converter=optional(positive_length("onset", zero=True)), default=None
    )
    skin: float = eqx.field(static=True, converter=positive_length("skin", zero=True), default=1.0)

    def __check_init__(self):
        if self.onset is not None and not 0 <= self.onset < self.cutoff:
            raise ValueError(f"onset must lie between 0 and the cutoff of {self.cutoff} Å, not {self.onset}.")

    def pair_energy(self, squared: Float[Array, "*pairs"], a: Any, b: Any) -> Float[Array, "*pairs"]:
        r = jnp.sqrt(squared)
        e = jnp.exp(self.width * (self.r0 - r))
        u = self.depth * e * (e - 2)
        if self.onset is None:
            return u
        s = jnp.clip((self.cutoff - r) / (self.cutoff - self.onset), 0, 1)
        return u * s * s * s * (10 - 15 * s + 6 * s * s)


__all__ = ["AbstractPair", "LennardJones", "Morse"]
