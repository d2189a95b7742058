"""FIREVariableCell and FIRE2VariableCell: positions and cell together."""

import dataclasses
from typing import Any, ClassVar

import equinox as eqx
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float

from alchemi_jax.dynamics.check import check_fixed_components
from alchemi_jax.dynamics.engine import AbstractDynamics
from alchemi_jax.dynamics.optimizers.coordinates import (
    CellPart,
    Vector,
    as_mask,
    deform,
    generalized_forces,
    new_cell_part,
    stress_to_relax,
)
from alchemi_jax.dynamics.optimizers.fire import FIRE, FIREState
from alchemi_jax.dynamics.optimizers.fire2 import FIRE2
from alchemi_jax.dynamics.updates import target
from alchemi_jax.parameters import Parameter, finite
from alchemi_jax.systems.batch import Batch
from alchemi_jax.systems.observables import volume
from alchemi_jax.units import GPA


class AbstractVariableCell(AbstractDynamics):
    """Relaxation of the cell for an optimizer that has `_take_step`."""

    scalar_pressure: Parameter = eqx.field(converter=finite("scalar_pressure"), default=0.0, kw_only=True)
    mask: tuple = eqx.field(static=True, converter=as_mask, default=(True,) * 6, kw_only=True)
    hydrostatic: bool = eqx.field(static=True, default=False, kw_only=True)

    needs_stress: ClassVar[bool] = True
    follows_targets: ClassVar[frozenset[str]] = frozenset({"pressure"})

    def check(self, batch: Batch) -> None:
        pbc = np.asarray(batch.pbc)[: batch.num_systems].all(axis=-1)
        if not pbc.all():
            raise ValueError(
                f"{batch.name_of(int(np.argmin(pbc)))} is not periodic in all directions: "
                f"{type(self).__name__} has no cell to relax. Relax it in a fixed cell, without --cell or "
                "relax_cell=True."
            )
        shears = not self.hydrostatic and any(self.mask[i][j] for i in range(3) for j in range(3) if i != j)
        check_fixed_components(type(self).__name__, shears, batch)

    def init_state(self, batch: Batch) -> Any:
        return super().init_state(batch), new_cell_part(batch)

    def pre_update(self, batch: Batch, state: tuple[FIREState, CellPart]) -> tuple[Batch, Any]:
        own, cell = state
        force = generalized_forces(batch, cell, self.unbalanced_stress(batch), self.mask)
        velocity = Vector(own.velocities, cell.velocity)
        own, velocity, move = self._take_step(batch, own, force, velocity)
        batch, cell = deform(batch, cell, move)
        return batch, (own, dataclasses.replace(cell, velocity=velocity.cell))

    def shorten_state(self, state: Any, factor: Float[Array, " systems"]) -> Any:
        return super().shorten_state(state[0], factor), state[1]

    def total_energy(self, batch: Batch, state: Any) -> Float[Array, " systems"]:
        """Potential and kinetic energy and P V."""
        return super().total_energy(batch, state) + GPA * self._outer(batch) * volume(batch)

    def unbalanced_stress(self, batch: Batch) -> Float[Array, "systems 3 3"]:
        """Stress + P in the components that relax, [systems, 3, 3], eV/Å³."""
        return stress_to_relax(batch, self._outer(batch), self.mask, self.hydrostatic)

    def relaxes_cell(self, batch: Batch) -> Bool[Array, " systems"]:
        return jnp.ones(batch.energy.shape, bool)

    def _outer(self, batch: Batch) -> Float[Array, " systems"]:
        return target(batch, batch.target_pressure, self.scalar_pressure)

    def _take_step(
        self, batch: Batch, state: Any, force: Vector, velocity: Vector
    ) -> tuple[Any, Vector, Vector]:
        take_step = super()._take_step  # pyright: ignore[reportAttributeAccessIssue]
        return take_step(batch, state, force, velocity)


class FIREVariableCell(AbstractVariableCell, FIRE):
    """Relaxation of positions and cell by `FIRE`, to the lowest enthalpy E + P V.

    The coordinates are (z, n U). With h_0 the cell at the start, F = exp(U) and n the number of atoms, the
    cell is h = h_0 F^T and the positions are r = z F^T. The force on them is (f F, -d(E + P V)/dU / n).
    Norms, powers and max_step count these coordinates together. This is ASE's FIRE on its FrechetCellFilter.
    Fixed atoms keep their place relative to the cell.

    Args:
        model: gives energies, forces and stress.
        dt, n_steps, hooks, rescue, dt_max, n_min, f_inc, f_dec, alpha, f_alpha, max_step: as for `FIRE`.
            `ConvergenceHook()` without criteria judges forces and stress here.
        scalar_pressure: P, GPa, a number or one per system; `PressureScheduleHook` sets others.
        mask: which components of U may change: six values (xx, yy, zz, yz, xz, xy) or [3, 3].
        hydrostatic: whether only the volume changes.

    Raises:
        ValueError: from `init`, naming a system that is not periodic in all directions.

    Source: Bitzek et al., Phys. Rev. Lett. 97, 170201 (2006), doi:10.1103/PhysRevLett.97.170201; coordinates:
    `ase.filters.FrechetCellFilter`.
    """


class FIRE2VariableCell(AbstractVariableCell, FIRE2):
    """Relaxation of positions and cell by `FIRE2`, to the lowest enthalpy E + P V.

    Coordinates as in `FIREVariableCell`; this is ASE's FIRE2 on its FrechetCellFilter.

    Args:
        model: gives energies, forces and stress.
        dt, n_steps, hooks, rescue, dt_max, dt_min, n_min, f_inc, f_dec, alpha, f_alpha, max_step: as for
            `FIRE2`.
        scalar_pressure, mask, hydrostatic: as for `FIREVariableCell`.

    Raises:
        ValueError: from `init`, naming a system that is not periodic in all directions.

    Source: Guénolé et al., Comput. Mater. Sci. 175, 109584 (2020), doi:10.1016/j.commatsci.2020.109584;
    coordinates: `ase.filters.FrechetCellFilter`.
    """


__all__ = ["AbstractVariableCell", "FIRE2VariableCell", "FIREVariableCell"]
