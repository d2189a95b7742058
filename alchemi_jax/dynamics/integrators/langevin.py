"""NVTLangevin: constant temperature by friction and noise."""

from typing import ClassVar

import equinox as eqx
import jax.numpy as jnp
from jaxtyping import Array, Int, PRNGKeyArray

from alchemi_jax.dynamics.engine import AbstractDynamics
from alchemi_jax.dynamics.updates import at_atoms, drift, kick, normal_noise, per_system_value, target
from alchemi_jax.dynamics.velocities import initialize_velocities, to_atoms_speed
from alchemi_jax.hooks import HookSet
from alchemi_jax.models.base import AbstractModel
from alchemi_jax.parameters import Parameter, as_count, positive
from alchemi_jax.systems.batch import Batch
from alchemi_jax.transforms import root


class NVTLangevin(AbstractDynamics):
    """Constant temperature by Langevin dynamics, in the splitting BAOAB.

    - B: v <- v + dt f / 2m
    - A: r <- r + dt v / 2
    - O: v <- c v + sqrt((1 - c²) k_B T/m) xi, with c = exp(-friction dt) and xi standard normal
    - A, then new forces, then B.

    Positions are sampled to higher order in dt than velocities: in a harmonic well their variance is k_B T/k
    at any dt. The center of mass moves, so temperatures count 3N degrees of freedom. With friction 0 this is
    `NVE`, bit for bit. The noise of a system depends only on the key of the run, its system_id and its steps.

    Args:
        model: gives energies and forces.
        dt: time step, fs.
        temperature: K.
        friction: 1/fs, zero or positive.
        n_steps: budget of steps per system.
        hooks: hooks of any kind; `TemperatureScheduleHook` and `ReplicaExchangeHook` set other temperatures.
        rescue: a `Rescue`, which lets a failing system try again with shorter steps; None: it fails at once.

    dt, temperature and friction are numbers, or one per system.

    Source: Leimkuhler, Matthews, J. Chem. Phys. 138, 174102 (2013), doi:10.1063/1.4802990, "BAOAB".
    """

    model: AbstractModel
    dt: Parameter = eqx.field(converter=positive("dt"))
    temperature: Parameter = eqx.field(converter=positive("temperature", zero=True))
    friction: Parameter = eqx.field(converter=positive("friction", zero=True), default=0.01)
    n_steps: Int[Array, ""] | None = eqx.field(converter=as_count("n_steps"), default=None)
    hooks: HookSet = eqx.field(converter=HookSet, default=())

    follows_targets: ClassVar[frozenset[str]] = frozenset({"temperature"})

    def admit(self, batch: Batch, key: PRNGKeyArray) -> Batch:
        return initialize_velocities(batch, self.temperature, key)

    def pre_update(self, batch: Batch, state: None, key: PRNGKeyArray) -> tuple[Batch, None]:
        batch = kick(batch, self.dt / 2)
        before = batch.velocities
        rate = per_system_value(batch, self.friction) * per_system_value(batch, self.dt)
        temperature = target(batch, batch.target_temperature, self.temperature)
        noise = normal_noise(batch, key) * to_atoms_speed(batch, temperature)
        width = at_atoms(batch, root(-jnp.expm1(-2 * rate)))
        after = at_atoms(batch, jnp.exp(-rate)) * before + width * noise
        after = jnp.where(batch.free_components, after, 0)
        # Both halves of the drift at once. Without friction `after` is `before`, and this is exactly dt v.
        batch = drift(batch.replace(velocities=before + after), self.dt / 2)
        return batch.replace(velocities=after), state

    def post_update(self, batch: Batch, state: None) -> tuple[Batch, None]:
        return kick(batch, self.dt / 2), state


__all__ = ["NVTLangevin"]
