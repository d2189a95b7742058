"""FIRE: the fast inertial relaxation engine."""

import dataclasses
from typing import Any, ClassVar

import equinox as eqx
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from alchemi_jax.dynamics.engine import AbstractDynamics
from alchemi_jax.dynamics.optimizers.coordinates import (
    Vector,
    dots,
    shortening_factor,
    squared_sum,
    weighted_sum,
)
from alchemi_jax.dynamics.updates import by_system
from alchemi_jax.hooks import HookSet
from alchemi_jax.models.base import AbstractModel
from alchemi_jax.parameters import Parameter, as_count, positive
from alchemi_jax.systems.batch import Batch
from alchemi_jax.systems.levels import per_atom, per_system
from alchemi_jax.transforms import root
from alchemi_jax.units import ACCELERATION, ASE_TIME


class FIREState(eqx.Module):
    """FIRE's own velocities (Å/fs, for masses of 1 amu; `batch.velocities` are left alone), its time step
    (fs), the mixing parameter, and the number of steps downhill in a row (-1 before the first step)."""

    velocities: Float[Array, "atoms 3"] = per_atom()
    dt: Float[Array, " systems"] = per_system()
    alpha: Float[Array, " systems"] = per_system()
    downhill: Int[Array, " systems"] = per_system()


def new_state(batch: Batch, dt: Any, alpha: Any) -> FIREState:
    """The state before the first step, at rest."""
    return FIREState(
        velocities=jnp.zeros_like(batch.positions),
        dt=by_system(batch, dt),
        alpha=by_system(batch, alpha),
        downhill=jnp.full(batch.energy.shape, -1, jnp.int32),
    )


class FIRE(AbstractDynamics):
    """Relaxation of the positions by FIRE, each system with its own time step.

    With force f, velocity v and P = f·v over the atoms of a system, in each step

    - P > 0: v <- (1 - alpha) v + alpha f |v|/|f|; after more than n_min such steps in a row also
      dt <- min(f_inc dt, dt_max), alpha <- f_alpha alpha;
    - else: v <- 0, dt <- f_dec dt, alpha <- its initial value;
    - then v <- v + dt f/m, r <- r + dt v, where a step longer than max_step is shortened to it.

    All masses are 1 amu. This is ASE's FIRE with its numbers: dt of 0.1 is 1.018 fs here, dt_max of 1 is
    10.18 fs. Fixed atoms do not move.

    Args:
        model: gives energies and forces.
        dt: time step at the start, fs.
        n_steps: budget of steps per system.
        hooks: a `ConvergenceHook` among them ends the run of a system when it has converged.
        dt_max: largest time step, fs. n_min, f_inc, f_dec, alpha, f_alpha: as above.
        max_step: largest length of the step of one system, norm over all its coordinates, Å.
        rescue: a `Rescue`, which lets a failing system try again with shorter steps; None: it fails at once.

    All but n_min and n_steps are numbers, or one per system.

    Source: Bitzek et al., Phys. Rev. Lett. 97, 170201 (2006), doi:10.1103/PhysRevLett.97.170201.
    """

    model: AbstractModel
    dt: Parameter = eqx.field(converter=positive("dt"), default=0.1 * ASE_TIME)
    n_steps: Int[Array, ""] | None = eqx.field(converter=as_count("n_steps"), default=None)
    hooks: HookSet = eqx.field(converter=HookSet, default=())
    dt_max: Parameter = eqx.field(converter=positive("dt_max"), default=ASE_TIME, kw_only=True)
    n_min: Int[Array, ""] = eqx.field(converter=as_count("n_min"), default=5, kw_only=True)
    f_inc: Parameter = eqx.field(converter=positive("f_inc"), default=1.1, kw_only=True)
    f_dec: Parameter = eqx.field(converter=positive("f_dec"), default=0.5, kw_only=True)
    alpha: Parameter = eqx.field(converter=positive("alpha", zero=True), default=0.1, kw_only=True)
    f_alpha: Parameter = eqx.field(converter=positive("f_alpha"), default=0.99, kw_only=True)
    max_step: Parameter = eqx.field(converter=positive("max_step"), default=0.2, kw_only=True)

    has_velocities: ClassVar[bool] = False
    step_lengths: ClassVar[tuple[str, ...]] = ("dt", "dt_max", "max_step")

    def init_state(self, batch: Batch) -> FIREState:
        return new_state(batch, self.dt, self.alpha)

    def pre_update(self, batch: Batch, state: FIREState) -> tuple[Batch, FIREState]:
        force, velocity = Vector(batch.forces, None), Vector(state.velocities, None)
        state, _, move = self._take_step(batch, state, force, velocity)
        return batch.replace(positions=batch.positions + move.atoms), state

    def shorten_state(self, state: FIREState, factor: Float[Array, " systems"]) -> FIREState:
        return dataclasses.replace(state, dt=state.dt * factor)

    def _take_step(
        self, batch: Batch, state: FIREState, force: Vector, velocity: Vector
    ) -> tuple[FIREState, Vector, Vector]:
        """State, velocity and step, in the coordinates of the vectors."""
        power, ff, vv = dots(batch, (force, velocity), (force, force), (velocity, velocity))
        first = state.downhill < 0
        onward = power > 0

        # v <- keep v + pull f, with both factors zero where the velocity is reset.
        speed_over_force = root(vv / jnp.where(ff > 0, ff, 1))
        keep = jnp.where(onward, 1 - state.alpha, 0)
        pull = jnp.where(onward, state.alpha * speed_over_force, 0)

        sure = onward & (state.downhill > self.n_min)
        longer = jnp.minimum(state.dt * by_system(batch, self.f_inc), by_system(batch, self.dt_max))
        shorter = jnp.where(first, state.dt, state.dt * by_system(batch, self.f_dec))
        dt = jnp.where(sure, longer, jnp.where(onward, state.dt, shorter))
        less = state.alpha * by_system(batch, self.f_alpha)
        alpha = jnp.where(onward, state.alpha, by_system(batch, self.alpha))
        alpha = jnp.where(sure, less, alpha)
        downhill = jnp.where(onward, state.downhill + 1, 0)

        pull = pull + dt * ACCELERATION
        moved = dt * dt * squared_sum(keep, pull, vv, power, ff)
        velocity = weighted_sum(batch, (keep, velocity), (pull, force))
        move = weighted_sum(batch, (dt * shortening_factor(batch, moved, self.max_step), velocity))
        return FIREState(velocity.atoms, dt, alpha, downhill), velocity, move


__all__ = ["FIRE", "FIREState", "new_state"]
