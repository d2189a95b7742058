"""CommitteeModel: several models of one structure at once, their mean and how far they differ."""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from alchemi_jax.errors import description, name_of
from alchemi_jax.models.base import AbstractModel, Results, mask_atoms, results_of
from alchemi_jax.neighbors import NeighborList, Requirements
from alchemi_jax.systems.batch import Batch
from alchemi_jax.systems.levels import Level
from alchemi_jax.transforms import root


#: Further results of a committee.
SPREADS: dict[str, Level] = {"energy_spread": "system", "forces_spread": "atom"}


class CommitteeModel(AbstractModel):
    """Models that differ in the values of their parameters: `CommitteeModel.of([first, second, third])`.

    Energy, forces, stress and further results are means over the members. With E_m and F_m the energy and
    forces of member m, and <> the mean over members, the results also have, under these names:

        energy_spread [systems], eV per atom:  sqrt(<(E_m - <E>)²>) / N
        forces_spread [atoms], eV/Å:           sqrt(<|F_m - <F>|²>)

    The latter is the norm of the standard deviations of the three components. Both are divided by the number
    of members, not by one less. `UncertaintyHook` stops systems in which one of them is too large.

    The members share one neighbor list and are evaluated together, by `vmap`: a committee takes the memory of
    all of its members.

    Attributes:
        members: one model whose arrays have a leading axis [members].

    Raises:
        TypeError: if `members` is not a model.
        ValueError: if the model has no arrays, or they differ in the length of the leading axis.
    """

    members: AbstractModel

    @classmethod
    def of(cls, models: Sequence[AbstractModel]) -> "CommitteeModel":
        """The committee of models of one class that differ only in the values of arrays.

        Raises:
            TypeError: if one of them is not a model.
            ValueError: for an empty list; naming the field in which one differs from the first.
        """
        models = list(models)
        if not models:
            raise ValueError("models of a CommitteeModel must be at least one.")
        first = models[0]
        for k, model in enumerate(models):
            if not isinstance(model, AbstractModel):
                raise TypeError(f"models of a CommitteeModel must be models, not {description(model)}.")
            different = _difference(first, model)
            if different:
                raise ValueError(
                    "models of a CommitteeModel may differ only in the values of their arrays, but "
                    f"{different[0]} is {different[1]} in the first and {different[2]} in number {k + 1}."
                )

        def stack(*leaves: Any) -> Any:
            return jnp.stack(leaves) if _is_number_array(leaves[0]) else leaves[0]

        members = jax.tree.map(stack, *models)
        return cls(members=members)  # pyright: ignore[reportCallIssue]

    def __check_init__(self):
        if not isinstance(self.members, AbstractModel):
            raise TypeError(
                f"members of a CommitteeModel must be a model with stacked arrays, not "
                f"{description(self.members)}: use CommitteeModel.of([...])."
            )
        shapes = [jnp.shape(x) for x in jax.tree.leaves(self.members) if eqx.is_array(x)]
        lengths = {shape[0] if shape else 0 for shape in shapes}
        if len(lengths) != 1 or 0 in lengths:
            found = f"arrays of shapes {', '.join(map(str, shapes[:4]))}" if shapes else "no arrays"
            raise ValueError(
                "members of a CommitteeModel must have arrays with a leading axis, the members, of the same "
                f"length in all, but {name_of(self.members)} has {found}: use CommitteeModel.of([...])."
            )
        taken = sorted(set(SPREADS) & set(self.members.extra_results))
        if taken:
            raise ValueError(f"members of a CommitteeModel have a result {taken[0]!r} of their own.")

    @property
    def size(self) -> int:
        """Number of members."""
        return next(x.shape[0] for x in jax.tree.leaves(self.members) if eqx.is_array(x))

    def member(self, index: int) -> AbstractModel:
        """The member with an index, from 0.

        Raises:
            IndexError: if there is no such member.
        """
        if not 0 <= index < self.size:
            raise IndexError(f"member {index} of a CommitteeModel with {self.size}.")
        return jax.tree.map(lambda x: x[index] if eqx.is_array(x) else x, self.members)

    @property
    def cutoff(self) -> float | None:  # pyright: ignore[reportIncompatibleVariableOverride]
        """The cutoff of the members, Å."""
        return self.members.cutoff

    @property
    def skin(self) -> float:  # pyright: ignore[reportIncompatibleVariableOverride]
        """The skin of the members, Å."""
        return self.members.skin

    @property
    def extra_results(self) -> Mapping[str, Level]:  # pyright: ignore[reportIncompatibleVariableOverride]
        """The extra results of the members, and the two spreads."""
        return {**self.members.extra_results, **SPREADS}

    @property
    def requirements(self) -> Requirements:
        """The requirements of the members."""
        return self.members.requirements

    def _map(self, function: Any) -> Any:
        """What a function gives for each member, with a leading axis."""
        arrays, rest = eqx.partition(self.members, eqx.is_array)
        return jax.vmap(lambda one: function(eqx.combine(one, rest)))(arrays)

    def energy(self, batch: Batch, neighbors: NeighborList | None) -> Float[Array, " systems"]:
        return self._map(lambda model: model.energy(batch, neighbors)).mean(axis=0)

    def evaluate(self, batch: Batch, neighbors: NeighborList | None, *, stress: bool = False) -> Results:
        found = self._map(lambda model: results_of(model, batch, neighbors, stress=stress))
        mean = jax.tree.map(lambda x: x.mean(axis=0), found)
        atoms = jnp.maximum(batch.atoms_per_system, 1).astype(mean.energy.dtype)
        energies, forces = found.energy - mean.energy[None], found.forces - mean.forces[None]
        of_atoms = mask_atoms(batch, jnp.mean(forces * forces, axis=0)).sum(axis=-1)
        spreads = {
            "energy_spread": root(jnp.mean(energies * energies, axis=0)) / atoms,
            "forces_spread": root(of_atoms),
        }
        return dataclasses.replace(mean, extras={**mean.extras, **spreads})

    def check(self, batch: Batch) -> None:
        for index in range(self.size):
            self.member(index).check(batch)

    def __repr__(self) -> str:
        # The arrays of a member in one line.
        return f"CommitteeModel({self.size} members, {' '.join(repr(self.members).split())})"


def _is_number_array(x: Any) -> bool:
    return eqx.is_array(x) or isinstance(x, np.ndarray)


def _difference(a: Any, b: Any, path: str = "") -> tuple[str, str, str] | None:
    """The first field in which models differ by more than the values of arrays, and what it is in each."""
    name = path or "the class"
    if type(a) is not type(b) and not (_is_number_array(a) and _is_number_array(b)):
        return name, f"a {type(a).__name__}", f"a {type(b).__name__}"
    if _is_number_array(a):
        same = a.shape == b.shape and a.dtype == b.dtype
        return None if same else (name, description(a), description(b))
    if isinstance(a, eqx.Module):
        # Static fields first: they say why the arrays of two models are of different shapes.
        fields = sorted(dataclasses.fields(a), key=lambda f: not f.metadata.get("static", False))
        pairs = [(f.name, getattr(a, f.name, None), getattr(b, f.name, None)) for f in fields]
        found = (_difference(x, y, f"{path}.{key}".lstrip(".")) for key, x, y in pairs)
        return next(filter(None, found), None)
    if isinstance(a, dict | list | tuple):
        keys = [list(x) if isinstance(x, dict) else list(range(len(x))) for x in (a, b)]
        if keys[0] != keys[1]:
            return name, f"of {keys[0]}", f"of {keys[1]}"
        return next(filter(None, (_difference(a[k], b[k], f"{path}[{k!r}]") for k in keys[0])), None)
    trees = jax.tree.structure(a), jax.tree.structure(b)
    if jax.tree_util.all_leaves([a]):
        return None if a is b or bool(a == b) else (name, repr(a), repr(b))
    if trees[0] != trees[1]:
        return name, f"a {type(a).__name__}", "one of another structure"
    pairs = zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True)
    return next(filter(None, (_difference(x, y, path) for x, y in pairs)), None)


__all__ = ["SPREADS", "CommitteeModel"]
