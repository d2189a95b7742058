"""FIRE2: FIRE that takes half a step back after it moved uphill."""

import dataclasses
from typing import ClassVar

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
from alchemi_jax.dynamics.optimizers.fire import FIREState, new_state
from alchemi_jax.dynamics.updates import by_system
from alchemi_jax.hooks import HookSet
from alchemi_jax.models.base import AbstractModel
from alchemi_jax.parameters import Parameter, as_count, positive
from alchemi_jax.systems.batch import Batch
from alchemi_jax.transforms import root
from alchemi_jax.units import ACCELERATION, ASE_TIME


class FIRE2(AbstractDynamics):
    """Relaxation of the positions by FIRE 2.0, each system with its own time step.

    With force f, velocity v and P = f·v over the atoms of a system, in each step

    - P > 0: after more than n_min such steps in a row dt <- min(f_inc dt, dt_max), alpha <- f_alpha alpha;
      then v <- v + dt f/m, v <- (1 - alpha) v + alpha f |v|/|f|, r <- r + dt v, where a step longer than
      max_step is shortened to it;
    - else: dt <- max(f_dec dt, dt_min), alpha <- its initial value, r <- r - dt v/2, v <- 0. The next step
      is taken as if P > 0, with the forces at the new positions.

    All masses are 1 amu. This is ASE's FIRE2 with its numbers: dt of 0.1 is 1.018 fs here, dt_max of 1 is
    10.18 fs; ASE evaluates the forces twice in a step with P <= 0; here these are two steps. Fixed atoms do
    not move.

    Args:
        model: gives energies and forces.
        dt: time step at the start, fs.
        n_steps: budget of steps per system.
        hooks: a `ConvergenceHook` among them ends the run of a system when it has converged.
        dt_max, dt_min: bounds of the time step, fs. n_min, f_inc, f_dec, alpha, f_alpha: as above.
        max_step: largest length of the step of one system, norm over all its coordinates, Å.
        rescue: a `Rescue`, which lets a failing system try again with shorter steps; None: it fails at once.

    All but n_min and n_steps are numbers, or one per system.

    Source: Guénolé et al., Comput. Mater. Sci. 175, 109584 (2020), doi:10.1016/j.commatsci.2020.109584.
    """

    model: AbstractModel
    dt: Parameter = eqx.field(converter=positive("dt"), default=0.1 * ASE_TIME)
    n_steps: Int[Array, ""] | None = eqx.field(converter=as_count("n_steps"), default=None)
    hooks: HookSet = eqx.field(converter=HookSet, default=())
    dt_max: Parameter = eqx.field(converter=positive("dt_max"), default=ASE_TIME, kw_only=True)
    dt_min: Parameter = eqx.field(converter=positive("dt_min"), default=2e-3 * ASE_TIME, kw_only=True)
    n_min: Int[Array, ""] = eqx.field(converter=as_count("n_min"), default=20, kw_only=True)
    f_inc: Parameter = eqx.field(converter=positive("f_inc"), default=1.1, kw_only=True)
    f_dec: Parameter = eqx.field(converter=positive("f_dec"), default=0.5, kw_only=True)
    alpha: Parameter = eqx.field(converter=positive("alpha", zero=True), default=0.25, kw_only=True)
    f_alpha: Parameter = eqx.field(converter=positive("f_alpha"), default=0.99, kw_only=True)
    max_step: Parameter = eqx.field(converter=positive("max_step"), default=0.2, kw_only=True)

    has_velocities: ClassVar[bool] = False
    step_lengths: ClassVar[tuple[str, ...]] = ("dt", "dt_max", "dt_min", "max_step")

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
        # At rest (in the first step and after a step back) the power is zero and says nothing.
        back = (power <= 0) & (state.downhill >= 0)
        downhill = jnp.where(back, -1, state.downhill + 1)
        sure = downhill > self.n_min

        longer = jnp.minimum(state.dt * by_system(batch, self.f_inc), by_system(batch, self.dt_max))
        shorter = jnp.maximum(state.dt * by_system(batch, self.f_dec), by_system(batch, self.dt_min))
        dt = jnp.where(back, shorter, jnp.where(sure, longer, state.dt))
        alpha = jnp.where(sure, state.alpha * by_system(batch, self.f_alpha), state.alpha)
        alpha = jnp.where(back, by_system(batch, self.alpha), alpha)

        # v + c f, then mixed with f: keep v + pull f.
        c = dt * ACCELERATION
        speed = root(jnp.maximum(squared_sum(1, c, vv, power, ff), 0))
        keep = 1 - alpha
        pull = keep * c + alpha * speed / jnp.sqrt(jnp.where(ff > 0, ff, 1))
        moved = dt * dt * squared_sum(keep, pull, vv, power, ff)
        step = dt * shortening_factor(batch, moved, self.max_step)
        onward = weighted_sum(batch, (keep, velocity), (pull, force))
        move = weighted_sum(
            batch, (jnp.where(back, 0, step), onward), (jnp.where(back, -dt / 2, 0), velocity)
        )
        onward = weighted_sum(batch, (jnp.where(back, 0, 1).astype(batch.dtype), onward))
        return FIREState(onward.atoms, dt, alpha, downhill), onward, move


__all__ = ["FIRE2"]
