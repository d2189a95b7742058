"""HarmonicModel: every atom in its own harmonic well, for tests and for learning."""

import equinox as eqx
import jax.numpy as jnp
from jaxtyping import Array, Float

from alchemi_jax.models.base import AbstractModel
from alchemi_jax.neighbors import NeighborList
from alchemi_jax.parameters import as_parameter
from alchemi_jax.systems.batch import Batch
from alchemi_jax.systems.segments import sum_by_system


class HarmonicModel(AbstractModel):
    """E = (k/2) sum |r - center|² over the atoms of each system.

    Args:
        k: force constant, eV/Å²: a number, or one per system.
        center: Å, [3], or the name of a per-atom extra of the batch, [atoms, 3].
    """

    k: Array = eqx.field(converter=as_parameter, default=1.0)
    center: Array | str = eqx.field(
        converter=lambda c: c if isinstance(c, str) else as_parameter(c),
        default=(0.0, 0.0, 0.0),
    )
    cutoff: None = eqx.field(static=True, default=None)

    def energy(self, batch: Batch, neighbors: NeighborList | None) -> Float[Array, " systems"]:
        center = batch[self.center] if isinstance(self.center, str) else self.center
        d = batch.positions - center.astype(batch.dtype).reshape(-1, 3)
        return self.k.astype(batch.dtype) / 2 * sum_by_system(batch, jnp.sum(d * d, axis=-1))
