"""NVTNoseHoover: constant temperature by a chain of thermostats, without noise."""

from typing import ClassVar

import equinox as eqx
from jaxtyping import Array, Float, Int, PRNGKeyArray

from alchemi_jax.dynamics.engine import AbstractDynamics
from alchemi_jax.dynamics.integrators.chain import (
    Chain,
    advance_chain,
    chain_energy,
    inertia,
    new_chain,
    scale_chain,
)
from alchemi_jax.dynamics.updates import at_atoms, by_system, drift, kick, target
from alchemi_jax.dynamics.velocities import initialize_velocities
from alchemi_jax.hooks import HookSet
from alchemi_jax.models.base import AbstractModel
from alchemi_jax.parameters import Parameter, as_count, positive
from alchemi_jax.systems.batch import Batch
from alchemi_jax.systems.observables import degrees_of_freedom, kinetic_energy
from alchemi_jax.units import KB


class NVTNoseHoover(AbstractDynamics):
    """Constant temperature by a Nosé-Hoover chain of three links.

    With N degrees of freedom and kinetic energy K the equations of motion of atoms and links are

    - dv/dt = f/m - xi_1 v
    - Q_1 dxi_1/dt = 2K - N k_B T - Q_1 xi_1 xi_2
    - Q_k dxi_k/dt = Q_(k-1) xi_(k-1)² - k_B T - Q_k xi_k xi_(k+1); the last link has no such term

    with Q_1 = N k_B T tau², the others k_B T tau², and tau = `thermostat_time`. A step is half a step of the
    chain (three steps with the weights of Suzuki and Yoshida), velocity Verlet, and half a step of the chain.
    E + K + sum of Q_k xi_k²/2 + heat is conserved; heat is the integral of k_B T (N xi_1 + xi_2 + xi_3).

    N is counted when a system begins, by `observables.degrees_of_freedom`, which leaves out the center of
    mass if it is at rest. If an external field is going to move it, give it a velocity at the start. A chain
    is not ergodic in a single harmonic well; use `NVTLangevin` or `NVTBussi` there.

    Args:
        model: gives energies and forces.
        dt: time step, fs.
        temperature: K.  A hook may set another one; Q does not change with it.
        thermostat_time: tau, fs; about the period of the slower vibrations of the system.
        n_steps: budget of steps per system.
        hooks: hooks of any kind; `TemperatureScheduleHook` sets other temperatures.
        rescue: a `Rescue`, which lets a failing system try again with shorter steps; None: it fails at once.

    dt, temperature and thermostat_time are numbers, or one per system.

    Source: Martyna, Klein, Tuckerman, J. Chem. Phys. 97, 2635 (1992), doi:10.1063/1.463940; splitting:
    Martyna et al., Mol. Phys. 87, 1117 (1996), doi:10.1080/00268979600100761.
    """

    model: AbstractModel
    dt: Parameter = eqx.field(converter=positive("dt"))
    temperature: Parameter = eqx.field(converter=positive("temperature"))
    thermostat_time: Parameter = eqx.field(converter=positive("thermostat_time"), default=100.0)
    n_steps: Int[Array, ""] | None = eqx.field(converter=as_count("n_steps"), default=None)
    hooks: HookSet = eqx.field(converter=HookSet, default=())

    follows_targets: ClassVar[frozenset[str]] = frozenset({"temperature"})

    def admit(self, batch: Batch, key: PRNGKeyArray) -> Batch:
        return initialize_velocities(batch, self.temperature, key)

    def init_state(self, batch: Batch) -> Chain:
        return new_chain(batch, 3, degrees_of_freedom(batch))

    def pre_update(self, batch: Batch, state: Chain) -> tuple[Batch, Chain]:
        batch, state = self._thermostat(batch, state)
        return drift(kick(batch, self.dt / 2), self.dt), state

    def post_update(self, batch: Batch, state: Chain) -> tuple[Batch, Chain]:
        return self._thermostat(kick(batch, self.dt / 2), state)

    def total_energy(self, batch: Batch, state: Chain) -> Float[Array, " systems"]:
        return batch.energy + kinetic_energy(batch) + chain_energy(state, self._inertia(batch, state))

    def scale_momenta(self, state: Chain, factor: Float[Array, " systems"]) -> Chain:
        return scale_chain(state, factor)

    def _inertia(self, batch: Batch, state: Chain) -> Float[Array, "systems links"]:
        return inertia(batch, state, self.temperature, self.thermostat_time)

    def _thermostat(self, batch: Batch, state: Chain) -> tuple[Batch, Chain]:
        kt = KB * target(batch, batch.target_temperature, self.temperature)
        double, dt = 2 * kinetic_energy(batch), by_system(batch, self.dt / 2)
        scale, state = advance_chain(state, self._inertia(batch, state), double, kt, dt)
        return batch.replace(velocities=batch.velocities * at_atoms(batch, scale)), state


__all__ = ["NVTNoseHoover"]
