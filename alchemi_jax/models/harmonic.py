"""HarmonicModel: every atom in its own harmonic well, for tests and for learning."""

import equinox as eqx
import jax.numpy as jnp
from jaxtyping import Array, Float

from alchemi_jax.models.base import AbstractModel
from alchemi_jax.neighbors import NeighborList
from alchemi_jax.parameters import ExtraName, Parameter, finite
from alchemi_jax.systems.batch import Batch
from alchemi_jax.systems.segments import sum_by_system


def _padded(values: Float[Array, "*n"], rows: int) -> Float[Array, "*m"]:
    """Values of each system or atom with rows for padding; what is one for all stays as it is."""
    if values.ndim == 0 or values.shape[0] in (1, rows):
        return values
    return jnp.pad(values, ((0, rows - values.shape[0]), *((0, 0),) * (values.ndim - 1)))


class HarmonicModel(AbstractModel):
    """A harmonic well for each atom, for tests: E = (k/2) sum |r - center|² over the atoms of each system.

    Args:
        k: force constant, eV/Å²: a number, or one per system.
        center: center of the wells, Å: [3] or [atoms, 3], or the name of a per-atom extra of the batch,
            [atoms, 3].
    """

    k: Parameter = eqx.field(converter=finite("k"), default=1.0)
    center: Float[Array, "*atoms 3"] | str = eqx.field(
        converter=lambda c: ExtraName(c) if isinstance(c, str) else finite("center")(c),
        default=(0.0, 0.0, 0.0),
    )
    cutoff: None = eqx.field(static=True, default=None)

    def check(self, batch: Batch) -> None:
        if self.k.ndim and self.k.shape[0] not in (1, batch.num_systems, batch.system_capacity):
            raise ValueError(
                f"HarmonicModel: k has {self.k.shape[0]} values, one per system, but the batch has "
                f"{batch.num_systems} systems."
            )
        if isinstance(self.center, str):
            if batch.level(self.center) != "atom" or batch[self.center].shape[1:] != (3,):
                raise ValueError(f"HarmonicModel: center {self.center!r} must be an extra [atoms, 3].")
        elif self.center.size != 3:
            rows = self.center.size // 3
            if rows not in (batch.num_atoms, batch.atom_capacity):
                raise ValueError(
                    f"HarmonicModel: center has {rows} rows, but the batch has {batch.num_atoms} atoms: "
                    "give one center [3], or one per atom."
                )

    def energy(self, batch: Batch, neighbors: NeighborList | None) -> Float[Array, " systems"]:
        center = batch[self.center] if isinstance(self.center, str) else self.center
        center = _padded(center.astype(batch.dtype).reshape(-1, 3), batch.atom_capacity)
        k = _padded(self.k.astype(batch.dtype), batch.system_capacity)
        d = batch.positions - center
        return k / 2 * sum_by_system(batch, jnp.sum(d * d, axis=-1))


__all__ = ["HarmonicModel"]
