"""NPH and NPT: constant pressure by a moving cell."""

from typing import Any, ClassVar

import equinox as eqx
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, PRNGKeyArray

from alchemi_jax.dynamics.check import check_fixed_components
from alchemi_jax.dynamics.engine import AbstractDynamics
from alchemi_jax.dynamics.integrators import barostat as cells
from alchemi_jax.dynamics.integrators.barostat import Barostat
from alchemi_jax.dynamics.integrators.chain import (
    Chain,
    advance_chain,
    chain_energy,
    inertia,
    new_chain,
    scale_chain,
)
from alchemi_jax.dynamics.updates import at_atoms, by_system, target
from alchemi_jax.dynamics.velocities import initialize_velocities
from alchemi_jax.hooks import HookSet
from alchemi_jax.models.base import AbstractModel
from alchemi_jax.parameters import Parameter, as_count, finite, one_of, positive
from alchemi_jax.systems.batch import Batch
from alchemi_jax.systems.observables import kinetic_energy, volume
from alchemi_jax.units import GPA, KB


class NPH(AbstractDynamics):
    """Constant pressure and enthalpy: the difference of internal and external pressure moves the cell.

    With g the rate of strain of the cell h, symmetric, N degrees of freedom and kinetic energy K,

    - dr/dt = v + g r,  dh/dt = g h
    - dv/dt = f/m - (g + tr(g)/N) v
    - W dg/dt = sum of m v v - V stress - P V + 2K/N, the last two times the unit matrix

    with W = (N + 3) k_B T tau²/3 and tau = `barostat_time`. Of g, "isotropic" keeps one third of the trace on
    the diagonal, "anisotropic" the diagonal, "flexible" everything. A step is half a step of g, half a step
    of v, a step of r and h, new forces, half a step of v and half a step of g, each solved exactly.
    E + K + P V + W tr(g²)/2 is conserved.

    N is counted when a system begins, by `observables.degrees_of_freedom`. Fixed atoms keep their place
    relative to the cell.

    Args:
        model: gives energies, forces and stress.
        dt: time step, fs.
        pressure: P, GPa, of either sign.
        temperature: K; sets W, and the velocities of a system that enters from a relaxation in a pipeline.
        barostat_time: tau, fs.
        n_steps: budget of steps per system.
        hooks: hooks of any kind; `PressureScheduleHook` sets other pressures.
        cell: "isotropic", "anisotropic" or "flexible".
        rescue: a `Rescue`, which lets a failing system try again with shorter steps; None: it fails at once.

    dt, pressure, temperature and barostat_time are numbers, or one per system.

    Raises:
        ValueError: from `init`, naming a system that is not periodic in all directions.

    Source: Martyna, Tobias, Klein, J. Chem. Phys. 101, 4177 (1994), doi:10.1063/1.467468; splitting:
    Tuckerman et al., J. Phys. A 39, 5629 (2006), doi:10.1088/0305-4470/39/19/S18.
    """

    model: AbstractModel
    dt: Parameter = eqx.field(converter=positive("dt"))
    pressure: Parameter = eqx.field(converter=finite("pressure"), default=0.0)
    temperature: Parameter = eqx.field(converter=positive("temperature"), default=300.0)
    barostat_time: Parameter = eqx.field(converter=positive("barostat_time"), default=1000.0)
    n_steps: Int[Array, ""] | None = eqx.field(converter=as_count("n_steps"), default=None)
    hooks: HookSet = eqx.field(converter=HookSet, default=())
    cell: str = eqx.field(
        static=True, converter=one_of("cell", tuple(cells.SHAPES)), default="isotropic", kw_only=True
    )

    needs_stress: ClassVar[bool] = True
    follows_targets: ClassVar[frozenset[str]] = frozenset({"pressure"})

    def check(self, batch: Batch) -> None:
        cells.check_periodic(type(self).__name__, batch)
        check_fixed_components(type(self).__name__, self.cell == "flexible", batch)

    def admit(self, batch: Batch, key: PRNGKeyArray) -> Batch:
        return initialize_velocities(batch, self.temperature, key)

    def init_state(self, batch: Batch) -> Barostat:
        return cells.new_barostat(batch)

    def pre_update(self, batch: Batch, state: Barostat) -> tuple[Batch, Barostat]:
        return _before(self, batch, state)

    def post_update(self, batch: Batch, state: Barostat) -> tuple[Batch, Barostat]:
        return _after(self, batch, state)

    def total_energy(self, batch: Batch, state: Barostat) -> Float[Array, " systems"]:
        mass = cells.barostat_mass(batch, state, self.temperature, self.barostat_time)
        of_cell = cells.barostat_energy(batch, state, mass, self.pressure)
        return batch.energy + kinetic_energy(batch) + of_cell


class NPT(AbstractDynamics):
    """Constant pressure and temperature: the moving cell of `NPH` with Nosé-Hoover chains.

    One chain of three links, as in `NVTNoseHoover`, acts on the atoms. The cell has 1, 3 or 6 degrees of
    freedom ("isotropic", "anisotropic", "flexible"), and each component of g has its own chain, of inertia
    k_B T tau² with tau = `barostat_time`. A single chain would control only the sum of their energies, and
    the modes of a crystal's cell exchange heat so slowly that each would keep its share. A step is half a
    step of all chains, a step of `NPH`, and half a step of all chains. What `NPH` conserves is conserved
    together with the energies of the chains.

    The ensemble is exp(-(E + P V)/k_B T), over positions (relative to the center of mass if that is at rest)
    and dV, dh_xx dh_yy dh_zz or det(h)^(-2) dh. The components of g are those along x, y and z, so the
    trajectory of a flexible cell depends on its orientation; averages do not.

    Args:
        model: gives energies, forces and stress.
        dt: time step, fs.
        temperature: K.  A hook may set another one; the masses of chains and cell do not change with it.
        pressure: GPa, of either sign.
        thermostat_time: period of the chain on the atoms, fs.
        barostat_time: tau, period of the barostat, fs.
        n_steps: budget of steps per system.
        hooks: hooks of any kind; `TemperatureScheduleHook`, `PressureScheduleHook` and `ReplicaExchangeHook`
            set other targets.
        cell: "isotropic", "anisotropic" or "flexible".
        rescue: a `Rescue`, which lets a failing system try again with shorter steps; None: it fails at once.

    dt, temperature, pressure and the times are numbers, or one per system.

    Raises:
        ValueError: from `init`, naming a system that is not periodic in all directions.

    Source: Martyna, Tobias, Klein, J. Chem. Phys. 101, 4177 (1994), doi:10.1063/1.467468; splitting:
    Tuckerman et al., J. Phys. A 39, 5629 (2006), doi:10.1088/0305-4470/39/19/S18; a chain for each degree of
    freedom: Tobias, Martyna, Klein, J. Phys. Chem. 97, 12959 (1993), doi:10.1021/j100151a052.
    """

    model: AbstractModel
    dt: Parameter = eqx.field(converter=positive("dt"))
    temperature: Parameter = eqx.field(converter=positive("temperature"))
    pressure: Parameter = eqx.field(converter=finite("pressure"), default=0.0)
    thermostat_time: Parameter = eqx.field(converter=positive("thermostat_time"), default=100.0)
    barostat_time: Parameter = eqx.field(converter=positive("barostat_time"), default=1000.0)
    n_steps: Int[Array, ""] | None = eqx.field(converter=as_count("n_steps"), default=None)
    hooks: HookSet = eqx.field(converter=HookSet, default=())
    cell: str = eqx.field(
        static=True, converter=one_of("cell", tuple(cells.SHAPES)), default="isotropic", kw_only=True
    )

    needs_stress: ClassVar[bool] = True
    follows_targets: ClassVar[frozenset[str]] = frozenset({"temperature", "pressure"})

    def check(self, batch: Batch) -> None:
        cells.check_periodic(type(self).__name__, batch)
        check_fixed_components(type(self).__name__, self.cell == "flexible", batch)

    def admit(self, batch: Batch, key: PRNGKeyArray) -> Batch:
        return initialize_velocities(batch, self.temperature, key)

    def init_state(self, batch: Batch) -> tuple[Barostat, Chain, Chain]:
        barostat = cells.new_barostat(batch)
        of_cell = jnp.ones((batch.system_capacity, cells.count_parts(self.cell)), batch.dtype)
        return barostat, new_chain(batch, 3, barostat.count), new_chain(batch, 3, of_cell)

    def pre_update(self, batch: Batch, state: tuple) -> tuple[Batch, tuple]:
        batch, (barostat, *chains) = self._thermostats(batch, state)
        batch, barostat = _before(self, batch, barostat)
        return batch, (barostat, *chains)

    def post_update(self, batch: Batch, state: tuple) -> tuple[Batch, tuple]:
        barostat, *chains = state
        batch, barostat = _after(self, batch, barostat)
        return self._thermostats(batch, (barostat, *chains))

    def total_energy(self, batch: Batch, state: tuple) -> Float[Array, " systems"]:
        barostat, of_atoms, of_cell = state
        mass, atoms, cell = self._masses(batch, state)
        extra = cells.barostat_energy(batch, barostat, mass, self.pressure)
        extra = extra + chain_energy(of_atoms, atoms) + chain_energy(of_cell, cell)
        return batch.energy + kinetic_energy(batch) + extra

    def ensemble_energy(self, batch: Batch) -> Float[Array, " systems"]:
        outer = GPA * target(batch, batch.target_pressure, self.pressure)
        return batch.energy + outer * volume(batch)

    def scale_momenta(self, state: tuple, factor: Float[Array, " systems"]) -> tuple:
        barostat, *chains = state
        rate = barostat.rate * factor[:, None, None]
        return Barostat(rate, barostat.count), *(scale_chain(chain, factor) for chain in chains)

    def _masses(
        self, batch: Batch, state: tuple
    ) -> tuple[Float[Array, " systems"], Float[Array, "systems links"], Float[Array, "systems parts links"]]:
        barostat, of_atoms, of_cell = state
        return (
            cells.barostat_mass(batch, barostat, self.temperature, self.barostat_time),
            inertia(batch, of_atoms, self.temperature, self.thermostat_time),
            inertia(batch, of_cell, self.temperature, self.barostat_time),
        )

    def _thermostats(self, batch: Batch, state: tuple) -> tuple[Batch, tuple]:
        """Half a step of all chains."""
        barostat, of_atoms, of_cell = state
        mass, atoms, cell = self._masses(batch, state)
        kt = KB * target(batch, batch.target_temperature, self.temperature)
        dt = by_system(batch, self.dt / 2)
        double = cells.twice_kinetic_of_parts(barostat, mass, self.cell)
        slower, of_cell = advance_chain(of_cell, cell, double, kt, dt)
        scale, of_atoms = advance_chain(of_atoms, atoms, 2 * kinetic_energy(batch), kt, dt)
        barostat = cells.scale_rate(barostat, slower, self.cell)
        batch = batch.replace(velocities=batch.velocities * at_atoms(batch, scale))
        return batch, (barostat, of_atoms, of_cell)


def _before(engine: Any, batch: Batch, barostat: Barostat) -> tuple[Batch, Barostat]:
    dt = by_system(batch, engine.dt)
    barostat = _push_cell(engine, batch, barostat, dt / 2)
    return cells.drift(cells.kick(batch, barostat, dt / 2), barostat, dt), barostat


def _after(engine: Any, batch: Batch, barostat: Barostat) -> tuple[Batch, Barostat]:
    dt = by_system(batch, engine.dt)
    batch = cells.kick(batch, barostat, dt / 2)
    return batch, _push_cell(engine, batch, barostat, dt / 2)


def _push_cell(engine: Any, batch: Batch, barostat: Barostat, dt: Float[Array, " systems"]) -> Barostat:
    mass = cells.barostat_mass(batch, barostat, engine.temperature, engine.barostat_time)
    return cells.push_cell(batch, barostat, mass, engine.pressure, engine.cell, dt)


__all__ = ["NPH", "NPT"]
