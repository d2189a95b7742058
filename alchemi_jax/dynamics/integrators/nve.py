"""NVE: constant energy."""

import equinox as eqx
from jaxtyping import Array, Int, PRNGKeyArray

from alchemi_jax.dynamics.engine import AbstractDynamics
from alchemi_jax.dynamics.updates import drift, kick
from alchemi_jax.dynamics.velocities import initialize_velocities
from alchemi_jax.hooks import HookSet
from alchemi_jax.models.base import AbstractModel
from alchemi_jax.parameters import Parameter, as_count, positive
from alchemi_jax.systems.batch import Batch


class NVE(AbstractDynamics):
    """Constant energy, by velocity Verlet: half kick, drift, forces, half kick.

    v <- v + dt f / 2m,  r <- r + dt v,  f <- f(r),  v <- v + dt f / 2m.

    Args:
        model: gives energies and forces.
        dt: time step, fs; a number or one per system.
        n_steps: budget of steps per system.
        hooks: hooks of any kind.
        temperature: temperature of the velocities that a system gets when it enters from a relaxation in a
            pipeline, K. None: it keeps its own velocities.
        rescue: a `Rescue`, which lets a failing system try again with shorter steps; None: it fails at once.

    Source: Swope et al., J. Chem. Phys. 76, 637 (1982), doi:10.1063/1.442716.
    """

    model: AbstractModel
    dt: Parameter = eqx.field(converter=positive("dt"))
    n_steps: Int[Array, ""] | None = eqx.field(converter=as_count("n_steps"), default=None)
    hooks: HookSet = eqx.field(converter=HookSet, default=())
    temperature: Parameter | None = eqx.field(
        converter=lambda t: None if t is None else positive("temperature", zero=True)(t),
        default=None,
        kw_only=True,
    )

    def admit(self, batch: Batch, key: PRNGKeyArray) -> Batch:
        return batch if self.temperature is None else initialize_velocities(batch, self.temperature, key)

    def pre_update(self, batch: Batch, state: None) -> tuple[Batch, None]:
        return drift(kick(batch, self.dt / 2), self.dt), state

    def post_update(self, batch: Batch, state: None) -> tuple[Batch, None]:
        return kick(batch, self.dt / 2), state


__all__ = ["NVE"]
