"""FlaxModel: a potential whose energy is a flax module."""

from typing import Any

import equinox as eqx
import flax.linen as nn
import jax
from jaxtyping import Array, Float

from alchemi_jax.models.base import AbstractModel
from alchemi_jax.neighbors import NeighborList
from alchemi_jax.parameters import positive_length
from alchemi_jax.systems.batch import Batch


class FlaxModel(AbstractModel):
    """A `flax.linen` module with its variables, as a potential.

    Args:
        module: its `__call__(batch, neighbors)` gives the energy of each system, eV, [systems];
            `alchemi_jax.neighbors.pair_vectors` gives it the pairs.
        variables: from `module.init(key, batch, neighbors)` or from training. They are leaves: new values do
            not recompile, and gradients are taken with respect to them as to any field.
        cutoff: of the neighbor list, Å.
        skin: Å, added to the cutoff of the list.

    Forces and stress are gradients of the energy.
    """

    module: nn.Module = eqx.field(static=True)
    variables: Any = eqx.field(repr=False)
    cutoff: float = eqx.field(static=True, converter=positive_length("cutoff"), default=6.0)
    skin: float = eqx.field(static=True, converter=positive_length("skin", zero=True), default=1.0)

    def __check_init__(self):
        if not isinstance(self.module, nn.Module):
            raise TypeError(f"module must be a flax.linen.Module, not {self.module!r}.")

    def energy(self, batch: Batch, neighbors: NeighborList | None) -> Float[Array, " systems"]:
        energy = self.module.apply(self.variables, batch, neighbors)
        if not isinstance(energy, jax.Array):
            raise TypeError(f"{type(self.module).__name__} must return an array, the energies.")
        return energy


__all__ = ["FlaxModel"]
