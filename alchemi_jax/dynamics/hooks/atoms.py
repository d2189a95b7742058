"""Hooks that fix or move atoms: FreezeAtomsHook and WrapPeriodicHook."""

from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np

from alchemi_jax.dynamics.stage import DynamicsStage
from alchemi_jax.hooks import HookContext, TracedHook
from alchemi_jax.neighbors.geometry import inverse, working_cell
from alchemi_jax.products import einsum
from alchemi_jax.systems.batch import Batch
from alchemi_jax.systems.levels import PerAtom
from alchemi_jax.systems.segments import to_atoms


def _as_atoms(value: Any) -> Any:
    """A function, or an array of bools or ints."""
    if callable(value):
        return value
    try:
        atoms = np.asarray(value) if not isinstance(value, jax.Array) else value
    except ValueError:
        atoms = np.zeros(0)
    if atoms.ndim != 1 or atoms.dtype.kind not in "biu" or not atoms.size:
        raise ValueError(
            "atoms of FreezeAtomsHook must be a mask over the atoms of the batch, their indices, or a "
            f"function of the batch, not {value!r}."
        )
    return jnp.asarray(atoms)


class FreezeAtomsHook(TracedHook):
    """Fixes atoms. Traced, at BEFORE_COMPUTE, in the first evaluation too.

    Writes `fixed` and `velocities`. Fixed atoms have no velocity and no force, a temperature does not count
    them, and they are still fixed after the run. Costs one pass over the atoms.

    Args:
        atoms: a mask over the atoms of the batch, their indices in it, or a function of the batch that
            gives a mask (traced): `lambda batch: batch.positions[:, 2] < 4`.

    Raises:
        ValueError: for indices that are not in the batch, or a mask of another length.
    """

    atoms: Any = eqx.field(converter=_as_atoms)
    frequency: int = 1
    stage: DynamicsStage = DynamicsStage.BEFORE_COMPUTE

    @property
    def needs_fixed_systems(self) -> bool:
        """A mask and indices mean atoms of this batch, so no system may leave its row."""
        return not callable(self.atoms)

    def check(self, batch: Batch) -> None:
        n = batch.atom_capacity
        if callable(self.atoms):
            return
        atoms = np.asarray(self.atoms)
        if atoms.dtype == bool:
            if atoms.ndim != 1 or len(atoms) not in (batch.num_atoms, n):
                raise ValueError(
                    f"atoms of FreezeAtomsHook is a mask of shape {list(atoms.shape)}, but the batch has "
                    f"{batch.num_atoms} atoms: give one value for each atom of the batch, or indices."
                )
            return
        outside = atoms.size and (atoms.min() < 0 or atoms.max() >= n)
        if outside or atoms.dtype.kind not in "iu":
            raise ValueError(f"FreezeAtomsHook takes indices from 0 to {n - 1}, got {atoms.tolist()}.")

    def init(self, batch: Batch) -> PerAtom:
        """Mask of the atoms to fix, [atoms]. It is made once."""
        n = batch.atom_capacity
        if callable(self.atoms):
            mask = jnp.asarray(self.atoms(batch))
            if mask.shape != (n,) or mask.dtype != bool:
                raise ValueError(f"FreezeAtomsHook needs a mask of {n} atoms, got {mask.dtype}{mask.shape}.")
        elif self.atoms.dtype == bool:
            mask = jnp.pad(self.atoms, (0, n - len(self.atoms)))
        else:
            mask = jnp.zeros(n, bool).at[self.atoms].set(True)
        return PerAtom(mask & batch.atom_mask)

    def __call__(self, ctx: HookContext, stage: Any) -> HookContext:
        frozen = ctx.memory.value
        velocities = jnp.where(frozen[:, None], 0, ctx.batch.velocities)
        return ctx.with_batch(fixed=ctx.batch.fixed | frozen, velocities=velocities)


class WrapPeriodicHook(TracedHook):
    """Moves atoms by lattice vectors into the cell, along periodic directions.

    Traced, at AFTER_POST_UPDATE. Atoms that are fixed along any axis are not moved. Reads `positions`,
    `cell`, `pbc`; writes `positions`. Energies and forces do not change. The neighbor list is built again
    when an atom was moved. Costs one pass over the atoms, and that list.
    """

    frequency: int = 1
    stage: DynamicsStage = DynamicsStage.AFTER_POST_UPDATE

    def __call__(self, ctx: HookContext, stage: Any) -> HookContext:
        batch = ctx.batch
        cell = jax.vmap(working_cell)(batch.cell, batch.pbc)
        fractional = einsum("na,nab->nb", batch.positions, to_atoms(batch, jax.vmap(inverse)(cell)))
        periodic = to_atoms(batch, batch.pbc) & jnp.all(batch.free_components, axis=1, keepdims=True)
        shift = jnp.where(periodic, jnp.floor(fractional), 0)
        moved = einsum("na,nab->nb", shift, to_atoms(batch, batch.cell))
        # Not a bit of an atom inside the cell changes.
        outside = jnp.any(shift != 0, axis=1, keepdims=True)
        return ctx.with_batch(positions=jnp.where(outside, batch.positions - moved, batch.positions))


__all__ = ["FreezeAtomsHook", "WrapPeriodicHook"]
