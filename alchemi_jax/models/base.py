"""AbstractModel: energies, forces and stress of a batch; SumModel: the sum of several models."""

import dataclasses
import inspect
from abc import abstractmethod
from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any, ClassVar

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Shaped

from alchemi_jax.errors import UserCodeError, description, is_array, location, name_of, user_errors
from alchemi_jax.neighbors import EdgeList, NeighborList, Requirements
from alchemi_jax.parameters import Described
from alchemi_jax.products import einsum
from alchemi_jax.systems.batch import Batch
from alchemi_jax.systems.levels import Level, unsafe_replace
from alchemi_jax.systems.observables import volume
from alchemi_jax.systems.segments import sum_by_system, to_atoms


class Results(eqx.Module):
    """Results of a model.

    Attributes:
        energy: [systems], eV.
        forces: [atoms, 3], eV/Å.
        stress: [systems, 3, 3], eV/Å³, positive under tension; None if it was not asked for.
        extras: further results by name, as the model's `extra_results` declare: arrays per atom or system.
    """

    energy: Float[Array, " systems"]
    forces: Float[Array, "atoms 3"]
    stress: Float[Array, "systems 3 3"] | None
    extras: dict[str, Shaped[Array, "..."]] = eqx.field(default_factory=dict)


class AbstractModel(Described):
    """A potential. Write `energy(batch, neighbors)`; forces and stress are its gradient.

    A model with a `cutoff` (Å) gets a neighbor list of this cutoff plus a `skin` (Å), which the engine keeps
    up to date. A model without a cutoff (None) gets None. Override `requirements` to ask for edges,
    `evaluate` where forces are known in closed form, and `check` to refuse batches that it cannot treat.
    """

    cutoff: eqx.AbstractVar[float | None]
    skin = 1.0
    #: Names of further results, one number per "atom" or per "system", such as {"magmoms": "atom"}: engines
    #: keep them as extras of the batch, where hooks and sinks find them.
    extra_results: ClassVar[Mapping[str, Level]] = MappingProxyType({})
    #: Those of them that are sizes: a training refuses labels below zero, which they could never reach.
    never_negative: ClassVar[tuple[str, ...]] = ()
    #: Fields that a training leaves as they are, unless it names them: such as statistics of the data.
    untrained: ClassVar[tuple[str, ...]] = ()

    def __init_subclass__(cls, **kwargs: Any):
        super().__init_subclass__(**kwargs)
        # Lengths that determine shapes: static, also where a model declares a plain `cutoff: float = 5.0`.
        for name in ("cutoff", "skin", "inner_cutoff", "long_cutoff"):
            value = cls.__dict__.get(name, dataclasses.MISSING)
            plain = value is dataclasses.MISSING or isinstance(value, int | float | None)
            if plain and _declares_number(cls, name):
                setattr(cls, name, eqx.field(static=True, default=value))

    @property
    def requirements(self) -> Requirements:
        """What the model needs of a neighbor list: its cutoff and skin, and no edges."""
        return Requirements(self.cutoff, self.skin)

    @abstractmethod
    def energy(self, batch: Batch, neighbors: NeighborList | None) -> Float[Array, " systems"]:
        """Energy of each system, eV, [systems]; differentiable in positions and cell."""

    def evaluate(self, batch: Batch, neighbors: NeighborList | None, *, stress: bool = False) -> Results:
        """Energy (eV), forces -dE/dr (eV/Å) and, with `stress`, the stress (1/V) dE/dstrain (eV/Å³)."""
        if not stress:

            def total(
                positions: Float[Array, "atoms 3"],
            ) -> tuple[Float[Array, ""], Float[Array, " systems"]]:
                return _total(batch, _energy(self, batch.replace(positions=positions), neighbors))

            slope, energy = jax.grad(total, has_aux=True)(batch.positions)
            return Results(energy, mask_atoms(batch, -slope), None)
        energy, slope, virial = strained_gradient(batch, lambda b: _energy(self, b, neighbors))
        return Results(energy, mask_atoms(batch, -slope), per_volume(batch, virial))

    def check(self, batch: Batch) -> None:
        """Check that the model can treat a batch. Called once, on the host, before the first step.

        Raises:
            ValueError: naming the system, if it cannot.
        """

    def source_of(self, method: str) -> Any:
        """The function of the user that a method calls; error messages name its file and line."""
        return getattr(type(self), method)

    def __add__(self, other: "AbstractModel") -> "AbstractModel":
        """The sum of two potentials, a `SumModel`."""
        if not isinstance(other, AbstractModel):
            return NotImplemented
        return SumModel(parts=(self, other))  # pyright: ignore[reportCallIssue]


def _declares_number(cls: type, name: str) -> bool:
    """Whether a class has an annotation like `cutoff: float`."""
    declared = inspect.get_annotations(cls).get(name)
    return declared in (float, int, float | None, "float", "int", "float | None")


class SumModel(AbstractModel):
    """The sum of potentials, `a + b`: energies, forces and stress add up.

    All share one neighbor list, that of the part with the largest cutoff, and each part uses its own cutoff.
    So a part with a short cutoff loops over more neighbors than it would alone.

    Args:
        parts: the models; sums among them are flattened.

    Raises:
        ValueError: without parts; from `check`, what the parts raise.
        TypeError: for a part that is not a model.
    """

    parts: tuple[AbstractModel, ...]

    def __post_init__(self):
        flat: list[AbstractModel] = []
        for part in self.parts:
            if not isinstance(part, AbstractModel):
                raise TypeError(f"A sum of models takes models, not a {type(part).__name__}.")
            flat += part.parts if isinstance(part, SumModel) else (part,)
        if not flat:
            raise ValueError("parts of a SumModel must be at least one model.")
        self.parts = tuple(flat)
        names = [name for part in flat for name in part.extra_results]
        if len(set(names)) < len(names):
            twice = next(name for name in names if names.count(name) > 1)
            raise ValueError(f"two parts of a SumModel have the result {twice!r}, and they cannot be added.")

    @property
    def extra_results(self) -> Mapping[str, Level]:  # pyright: ignore[reportIncompatibleVariableOverride]
        """The extra results of all parts."""
        return {name: level for part in self.parts for name, level in part.extra_results.items()}

    @property
    def never_negative(self) -> tuple[str, ...]:  # pyright: ignore[reportIncompatibleVariableOverride]
        """The results of all parts that cannot be negative."""
        return tuple(name for part in self.parts for name in part.never_negative)

    @property
    def _longest(self) -> AbstractModel | None:
        near = [p for p in self.parts if p.cutoff is not None]
        return max(near, key=lambda p: p.cutoff or 0, default=None)

    @property
    def cutoff(self) -> float | None:  # pyright: ignore[reportIncompatibleVariableOverride]
        """The largest cutoff of the parts, Å; None if no part has one."""
        part = self._longest
        return None if part is None else part.cutoff

    @property
    def skin(self) -> float:  # pyright: ignore[reportIncompatibleVariableOverride]
        """The skin of the part with the largest cutoff, Å."""
        part = self._longest
        return AbstractModel.skin if part is None else part.skin

    @property
    def requirements(self) -> Requirements:
        """The requirements of all parts together."""
        return Requirements.join((part.requirements for part in self.parts), self.skin)

    def energy(self, batch: Batch, neighbors: NeighborList | None) -> Float[Array, " systems"]:
        first, *rest = (p.energy(batch, _list_for(p, neighbors)) for p in self.parts)
        return sum(rest, start=first)

    def evaluate(self, batch: Batch, neighbors: NeighborList | None, *, stress: bool = False) -> Results:
        first, *rest = (p.evaluate(batch, _list_for(p, neighbors), stress=stress) for p in self.parts)
        energy, forces, total = first.energy, first.forces, first.stress
        extras = first.extras
        for r in rest:
            energy, forces = energy + r.energy, forces + r.forces
            extras = {**extras, **r.extras}
            if total is not None and r.stress is not None:
                total = total + r.stress
        return Results(energy, forces, total, extras)

    def check(self, batch: Batch) -> None:
        for part in self.parts:
            part.check(batch)

    def __repr__(self) -> str:
        return " + ".join(map(repr, self.parts))


def _list_for(part: AbstractModel, neighbors: NeighborList | None) -> NeighborList | None:
    """The list with the cutoff of the part; the rest of its reach is skin."""
    if part.cutoff is None or neighbors is None or part.cutoff == neighbors.cutoff:
        return neighbors if part.cutoff is not None else None
    skin = neighbors.cutoff + neighbors.skin - part.cutoff
    return dataclasses.replace(neighbors, cutoff=part.cutoff, skin=skin)


def _energy(model: AbstractModel, batch: Batch, neighbors: NeighborList | None) -> Float[Array, " systems"]:
    """`model.energy`, checked to be one number per system."""
    with user_errors(f"{name_of(model)}.energy", "model"):
        energy = model.energy(batch, neighbors)
    _check(model, "energy", energy, batch, model.source_of("energy"))
    return jnp.asarray(energy)


#: What each result is, for the error message.
_MEANING = {
    "energy": "one number per system, for instance by segments.sum_by_system",
    "forces": "one row per atom",
    "stress": "one matrix per system",
}


def _check(model: Any, name: str, found: Any, batch: Batch, function: Any) -> None:
    like = batch[name]
    real = is_array(found) and jnp.issubdtype(jnp.asarray(found).dtype, jnp.floating)
    if not real or jnp.shape(found) != like.shape:
        raise UserCodeError(
            f"{name_of(model)} returned {name} as {description(found)}; it must be {description(like)}, "
            f"{_MEANING[name]}{location(function)}."
        )


def _total(
    batch: Batch, energy: Float[Array, " systems"]
) -> tuple[Float[Array, ""], Float[Array, " systems"]]:
    energy = jnp.where(batch.system_mask, energy, 0)
    return energy.sum(), energy


def strained_gradient(
    batch: Batch, energy: Callable[[Batch], Float[Array, " systems"]]
) -> tuple[Float[Array, " systems"], Float[Array, "atoms 3"], Float[Array, "systems 3 3"]]:
    """An energy of the batch, its gradient with respect to positions, and to a strain of positions and cell.

    The strain acts on both, r -> r (1 + strain), and is made symmetric.
    Returns [systems] eV, [atoms, 3] eV/Å, [systems, 3, 3] eV.
    """

    def total(
        positions: Float[Array, "atoms 3"], strain: Float[Array, "systems 3 3"]
    ) -> tuple[Float[Array, ""], Float[Array, " systems"]]:
        f = jnp.eye(3, dtype=batch.dtype)[None] + (strain + strain.swapaxes(1, 2)) / 2
        strained = batch.replace(
            positions=einsum("na,nab->nb", positions, to_atoms(batch, f)),
            cell=einsum("sab,sbc->sac", batch.cell, f),
        )
        return _total(batch, energy(strained))

    gradient = jax.grad(total, argnums=(0, 1), has_aux=True)
    (slope, virial), found = gradient(batch.positions, jnp.zeros_like(batch.cell))
    return found, slope, virial


def mask_atoms(batch: Batch, forces: Float[Array, "atoms 3"]) -> Float[Array, "atoms 3"]:
    """Forces on atoms, zero in padding."""
    return jnp.where(batch.atom_mask[:, None], forces, 0)


def per_volume(batch: Batch, virial: Float[Array, "systems 3 3"]) -> Float[Array, "systems 3 3"]:
    """Stress from dE/dstrain; NaN where the system is not periodic in all directions."""
    size = volume(batch)
    periodic = size > 0
    stress = virial / jnp.where(periodic, size, 1)[:, None, None]
    missing = jnp.where(batch.system_mask, jnp.nan, 0).astype(batch.dtype)
    return jnp.where(periodic[:, None, None], stress, missing[:, None, None])


def virial_by_system(batch: Batch, sums: tuple[Float[Array, " atoms"], ...]) -> Float[Array, "systems 3 3"]:
    """dE/dstrain, eV, from per-atom sums xx, yy, zz, yz, xz, xy."""
    s = sum_by_system(batch, jnp.stack(sums, axis=-1))
    xx, yy, zz, yz, xz, xy = (s[:, k] for k in range(6))
    return jnp.stack([xx, xy, xz, xy, yy, yz, xz, yz, zz], axis=-1).reshape(-1, 3, 3)


def need_list(model: AbstractModel, neighbors: NeighborList | None) -> NeighborList:
    """The list, which this model cannot do without.

    Raises:
        ValueError: naming the model, if there is none.
    """
    if neighbors is None:
        raise ValueError(f"{name_of(model)} needs a neighbor list, got None.")
    return neighbors


def need_edges(model: AbstractModel, neighbors: NeighborList | None) -> EdgeList:
    """The edges of the list, which this model cannot do without.

    Raises:
        ValueError: naming the model, if there are none.
    """
    edges = None if neighbors is None else neighbors.edges
    if edges is None:
        raise ValueError(
            f"{name_of(model)} needs a list with edges: neighbors.allocate(batch, model.requirements)."
        )
    return edges


def results_of(
    model: AbstractModel, batch: Batch, neighbors: NeighborList | None, *, stress: bool
) -> Results:
    """`model.evaluate`, checked to give results of the right shapes.

    Raises:
        UserCodeError: naming the model and the result.
    """
    function = model.source_of("evaluate")
    with user_errors(f"{name_of(model)}.evaluate", "model"):
        results = model.evaluate(batch, neighbors, stress=stress)
    if not isinstance(results, Results):
        raise UserCodeError(
            f"{name_of(model)}.evaluate returned {description(results)}; it must return "
            f"Results(energy, forces, stress){location(function)}."
        )
    for name in ("energy", "forces", "stress") if stress else ("energy", "forces"):
        _check(model, name, getattr(results, name), batch, function)
    _check_extras(model, results.extras, batch, function)
    return results


def _check_extras(model: AbstractModel, extras: Any, batch: Batch, function: Any) -> None:
    declared = model.extra_results
    if not isinstance(extras, dict) or set(extras) != set(declared):
        found = sorted(extras) if isinstance(extras, dict) else description(extras)
        raise UserCodeError(
            f"{name_of(model)} returned extras {found}; its extra_results declare {sorted(declared)}"
            f"{location(function)}."
        )
    for name, level in declared.items():
        like = _extra_like(batch, level)
        if not is_array(extras[name]) or jnp.shape(extras[name]) != like.shape:
            raise UserCodeError(
                f"{name_of(model)} returned {name} as {description(extras[name])}; it must be "
                f"{description(like)}, one number per {level}{location(function)}."
            )


def _extra_like(batch: Batch, level: Level) -> Float[Array, " rows"]:
    return batch.masses if level == "atom" else batch.energy


def with_extra_results(batch: Batch, model: AbstractModel) -> Batch:
    """The batch with room for the further results of a model: extras that are NaN until it is evaluated."""
    if not model.extra_results:
        return batch
    extras = {"atom": dict(batch.atom_extras), "system": dict(batch.system_extras)}
    for name, level in model.extra_results.items():
        extras[level][name] = jnp.full_like(_extra_like(batch, level), jnp.nan)
    return unsafe_replace(batch, atom_extras=extras["atom"], system_extras=extras["system"])


def cast(model: Any, dtype: Any) -> Any:
    """The model with its floating-point parameters in the dtype of the run."""
    return jax.tree.map(
        lambda x: x.astype(dtype) if eqx.is_inexact_array(x) else x,
        model,
        is_leaf=lambda x: x is None,
    )


__all__ = [
    "AbstractModel",
    "Results",
    "SumModel",
    "cast",
    "mask_atoms",
    "need_edges",
    "need_list",
    "per_volume",
    "results_of",
    "strained_gradient",
    "virial_by_system",
    "with_extra_results",
]
