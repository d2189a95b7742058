"""NVTBussi: constant temperature by stochastic rescaling of the velocities."""

from typing import ClassVar

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, PRNGKeyArray

from alchemi_jax.dynamics.engine import AbstractDynamics
from alchemi_jax.dynamics.updates import at_atoms, by_system, drift, kick, system_keys, target
from alchemi_jax.dynamics.velocities import initialize_velocities
from alchemi_jax.hooks import HookSet
from alchemi_jax.models.base import AbstractModel
from alchemi_jax.parameters import Parameter, as_count, positive
from alchemi_jax.systems.batch import Batch
from alchemi_jax.systems.levels import per_system
from alchemi_jax.systems.observables import degrees_of_freedom, kinetic_energy
from alchemi_jax.transforms import root
from alchemi_jax.units import KB


class BussiState(eqx.Module):
    """Energy that the thermostat has taken up, eV, and number of degrees of freedom that it acts on."""

    heat: Float[Array, " systems"] = per_system()
    count: Float[Array, " systems"] = per_system()


class NVTBussi(AbstractDynamics):
    """Constant temperature by stochastic velocity rescaling.

    After a step of velocity Verlet all velocities of a system are multiplied by alpha,

    alpha² = c + (1 - c) s (R² + S) + 2 R sqrt(c (1 - c) s),  s = k_B T / 2K,

    with c = exp(-dt/tau), tau = `thermostat_time`, K the kinetic energy, R standard normal and S a sum of
    N - 1 squares of standard normal numbers; alpha has the sign of R + sqrt(c/((1 - c) s)). The kinetic
    energy of N degrees of freedom relaxes to its canonical distribution within tau, and the dynamics are
    disturbed little. E + K minus the energy added by the rescalings is conserved. A system at rest stays at
    rest.

    N is counted when a system begins, by `observables.degrees_of_freedom`, which leaves out the center of
    mass if it is at rest. The noise of a system depends only on the key of the run, its system_id and its
    steps.

    Args:
        model: gives energies and forces.
        dt: time step, fs.
        temperature: K.
        thermostat_time: tau, fs.
        n_steps: budget of steps per system.
        hooks: hooks of any kind; `TemperatureScheduleHook` and `ReplicaExchangeHook` set other temperatures.
        rescue: a `Rescue`, which lets a failing system try again with shorter steps; None: it fails at once.

    dt, temperature and thermostat_time are numbers, or one per system.

    Source: Bussi, Donadio, Parrinello, J. Chem. Phys. 126, 014101 (2007), doi:10.1063/1.2408420.
    """

    model: AbstractModel
    dt: Parameter = eqx.field(converter=positive("dt"))
    temperature: Parameter = eqx.field(converter=positive("temperature", zero=True))
    thermostat_time: Parameter = eqx.field(converter=positive("thermostat_time"), default=100.0)
    n_steps: Int[Array, ""] | None = eqx.field(converter=as_count("n_steps"), default=None)
    hooks: HookSet = eqx.field(converter=HookSet, default=())

    follows_targets: ClassVar[frozenset[str]] = frozenset({"temperature"})

    def admit(self, batch: Batch, key: PRNGKeyArray) -> Batch:
        return initialize_velocities(batch, self.temperature, key)

    def init_state(self, batch: Batch) -> BussiState:
        return BussiState(jnp.zeros_like(batch.energy), degrees_of_freedom(batch).astype(batch.dtype))

    def pre_update(self, batch: Batch, state: BussiState) -> tuple[Batch, BussiState]:
        return drift(kick(batch, self.dt / 2), self.dt), state

    def post_update(self, batch: Batch, state: BussiState, key: PRNGKeyArray) -> tuple[Batch, BussiState]:
        batch = kick(batch, self.dt / 2)
        before = kinetic_energy(batch)
        kt = KB * target(batch, batch.target_temperature, self.temperature)
        rate = by_system(batch, self.dt) / by_system(batch, self.thermostat_time)
        keep, new = jnp.exp(-rate), -jnp.expm1(-rate)
        one, others = _noise(batch, key, state.count)
        # alpha = 0 for a system at rest.
        ratio = kt / jnp.where(before > 0, 2 * before, jnp.inf)
        cross = root(keep * new * ratio)
        square = keep + new * ratio * (one**2 + others) + 2 * one * cross
        sign = jnp.where(one * root(new * ratio) + root(keep) >= 0, 1, -1)
        alpha = (sign * root(jnp.maximum(square, 0))).astype(batch.dtype)
        batch = batch.replace(velocities=batch.velocities * at_atoms(batch, alpha))
        return batch, BussiState(state.heat + (1 - alpha**2) * before, state.count)

    def total_energy(self, batch: Batch, state: BussiState) -> Float[Array, " systems"]:
        return batch.energy + kinetic_energy(batch) + state.heat


def _noise(
    batch: Batch, key: PRNGKeyArray, count: Float[Array, " systems"]
) -> tuple[Float[Array, " systems"], Float[Array, " systems"]]:
    """R and S of each system, [systems]."""

    def draw(key: PRNGKeyArray, others: Float[Array, ""]) -> tuple[Float[Array, ""], Float[Array, ""]]:
        a, b = jax.random.split(key)
        # A sum of n squares is twice a gamma variate of shape n/2.
        squares = 2 * jax.random.gamma(b, jnp.maximum(others, 1) / 2, dtype=batch.dtype)
        return jax.random.normal(a, dtype=batch.dtype), jnp.where(others > 0, squares, 0)

    return jax.vmap(draw)(system_keys(batch, key), count - 1)


__all__ = ["BussiState", "NVTBussi"]
