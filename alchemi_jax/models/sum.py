"""SumModel: several potentials at once, over one neighbor list."""

import dataclasses

from jaxtyping import Array, Float

from alchemi_jax.models.base import AbstractModel, Results
from alchemi_jax.neighbors import NeighborList
from alchemi_jax.systems.batch import Batch


class SumModel(AbstractModel):
    """The sum of potentials, `a + b`: energies, forces and stress add up.

    All share one neighbor list, that of the part which reaches furthest; each sees it with its own
    cutoff. So a part of short reach loops over more neighbors than it would alone.

    Args:
        parts: the models; sums among them are taken apart.

    Raises:
        ValueError: for no parts at all; from `check`, what the parts raise.
        TypeError: for a part that is no model.
    """

    parts: tuple[AbstractModel, ...]

    def __post_init__(self):
        flat: list[AbstractModel] = []
        for part in self.parts:
            if not isinstance(part, AbstractModel):
                raise TypeError(f"A sum of models takes models, not a {type(part).__name__}.")
            flat += part.parts if isinstance(part, SumModel) else (part,)
        if not flat:
            raise ValueError("A SumModel needs at least one part.")
        self.parts = tuple(flat)

    @property
    def _furthest(self) -> AbstractModel | None:
        near = [p for p in self.parts if p.cutoff is not None]
        return max(near, key=lambda p: p.cutoff or 0, default=None)

    @property
    def cutoff(self) -> float | None:  # pyright: ignore[reportIncompatibleVariableOverride]
        """Å, the largest of the parts; None if none has one."""
        part = self._furthest
        return None if part is None else part.cutoff

    @property
    def skin(self) -> float:  # pyright: ignore[reportIncompatibleVariableOverride]
        """Å, that of the part which reaches furthest."""
        part = self._furthest
        return AbstractModel.skin if part is None else part.skin

    def energy(self, batch: Batch, neighbors: NeighborList | None) -> Float[Array, " systems"]:
        first, *rest = (p.energy(batch, _seen_by(p, neighbors)) for p in self.parts)
        return sum(rest, start=first)

    def evaluate(self, batch: Batch, neighbors: NeighborList | None, *, stress: bool = False) -> Results:
        first, *rest = (p.evaluate(batch, _seen_by(p, neighbors), stress=stress) for p in self.parts)
        energy, forces, total = first.energy, first.forces, first.stress
        for r in rest:
            energy, forces = energy + r.energy, forces + r.forces
            if total is not None and r.stress is not None:
                total = total + r.stress
        return Results(energy, forces, total)

    def check(self, batch: Batch) -> None:
        for part in self.parts:
            part.check(batch)

    def __repr__(self) -> str:
        return " + ".join(map(repr, self.parts))


def _seen_by(part: AbstractModel, neighbors: NeighborList | None) -> NeighborList | None:
    """The list as a list of the part's own cutoff, with the rest as skin."""
    if part.cutoff is None or neighbors is None or part.cutoff == neighbors.cutoff:
        return neighbors if part.cutoff is not None else None
    skin = neighbors.cutoff + neighbors.skin - part.cutoff
    return dataclasses.replace(neighbors, cutoff=part.cutoff, skin=skin)
