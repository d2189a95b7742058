"""LBFGS: the limited-memory quasi-Newton method."""

from collections.abc import Callable
from typing import ClassVar, TypeVar

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from alchemi_jax.dynamics.engine import AbstractDynamics
from alchemi_jax.dynamics.optimizers.coordinates import cut_by_atom
from alchemi_jax.dynamics.updates import at_atoms, by_system
from alchemi_jax.hooks import HookSet
from alchemi_jax.models.base import AbstractModel
from alchemi_jax.parameters import Parameter, as_count, natural, positive
from alchemi_jax.systems.batch import Batch
from alchemi_jax.systems.levels import per_atom, per_system
from alchemi_jax.systems.segments import sum_by_system, to_atoms


class LBFGSState(eqx.Module):
    """The last steps s (Å) and changes of the gradient y (eV/Å), newest first, with 1/(s·y) of each, zero
    where there is none yet; and the forces and the displacement of the last step."""

    s: Float[Array, "atoms memory 3"] = per_atom()
    y: Float[Array, "atoms memory 3"] = per_atom()
    rho: Float[Array, "systems memory"] = per_system()
    forces: Float[Array, "atoms 3"] = per_atom()
    step: Float[Array, "atoms 3"] = per_atom()
    begun: Bool[Array, " systems"] = per_system()


class LBFGS(AbstractDynamics):
    """Relaxation of the positions by L-BFGS, each system with its own history.

    The step is damping H f. The two-loop recursion makes the inverse Hessian H from 1/curvature, the last
    `memory` steps s and the changes y of the gradient. The step of a system is scaled down so that no atom
    moves further than max_step. This is ASE's LBFGS (its alpha is curvature) with one difference: a step
    with s·y <= 0, along which the energy is not convex, does not enter the history, so the next step always
    goes downhill. Fixed atoms do not move.

    Args:
        model: gives energies and forces.
        n_steps: budget of steps per system.
        hooks: a `ConvergenceHook` among them ends the run of a system when it has converged.
        memory: number of steps that are kept; it sets array shapes. ASE keeps 100. That saves steps in
            relaxations of more than about 30 steps, but with a cheap potential a step takes three to five
            times as long (`python -m benchmarks.lbfgs`): use 100 where the model takes most of the time.
        curvature: eV/Å², the Hessian at the start.
        damping: factor on the step.
        max_step: largest distance that an atom moves in a step, Å.
        rescue: a `Rescue`, which lets a failing system try again with shorter steps; None: it fails at once.

    curvature, damping and max_step are numbers, or one per system.

    Source: Liu, Nocedal, Math. Program. 45, 503 (1989), doi:10.1007/BF01589116.
    """

    model: AbstractModel
    n_steps: Int[Array, ""] | None = eqx.field(converter=as_count("n_steps"), default=None)
    hooks: HookSet = eqx.field(converter=HookSet, default=())
    memory: int = eqx.field(static=True, converter=natural("memory"), default=20, kw_only=True)
    curvature: Parameter = eqx.field(converter=positive("curvature"), default=70.0, kw_only=True)
    damping: Parameter = eqx.field(converter=positive("damping"), default=1.0, kw_only=True)
    max_step: Parameter = eqx.field(converter=positive("max_step"), default=0.2, kw_only=True)

    has_velocities: ClassVar[bool] = False
    step_lengths: ClassVar[tuple[str, ...]] = ("max_step",)

    def init_state(self, batch: Batch) -> LBFGSState:
        history = jnp.zeros((batch.atom_capacity, self.memory, 3), batch.dtype)
        none = jnp.zeros_like(batch.positions)
        rho = jnp.zeros((batch.system_capacity, self.memory), batch.dtype)
        return LBFGSState(history, history, rho, none, none, jnp.zeros(batch.system_capacity, bool))

    def pre_update(self, batch: Batch, state: LBFGSState) -> tuple[Batch, LBFGSState]:
        state = _push_history(batch, state)
        step = _newton(batch, state, 1 / by_system(batch, self.curvature))
        step = at_atoms(batch, self.damping) * cut_by_atom(batch, step, self.max_step)
        known = jnp.ones_like(state.begun)
        state = LBFGSState(state.s, state.y, state.rho, batch.forces, step, known)
        return batch.replace(positions=batch.positions + step), state


def _push_history(batch: Batch, state: LBFGSState) -> LBFGSState:
    """The state with the last step added to the history, where the energy is convex along it."""
    s, y = state.step, state.forces - batch.forces
    sy, yy = (sum_by_system(batch, jnp.stack([_dot(s, y), _dot(y, y)], axis=-1))[:, k] for k in (0, 1))
    good = state.begun & (sy > jnp.finfo(batch.dtype).tiny) & (yy > 0)
    at = to_atoms(batch, good)[:, None, None]

    def push(
        new: Float[Array, "n *dims"], old: Float[Array, "n memory *dims"], where: Bool[Array, "n *ones"]
    ) -> Float[Array, "n memory *dims"]:
        return jnp.where(where, jnp.concatenate([new[:, None], old[:, :-1]], axis=1), old)

    rho = push(1 / jnp.where(good, sy, 1), state.rho, good[:, None])
    return LBFGSState(push(s, state.s, at), push(y, state.y, at), rho, state.forces, state.step, state.begun)


def _newton(batch: Batch, state: LBFGSState, start: Float[Array, " systems"]) -> Float[Array, "atoms 3"]:
    """H f, [atoms, 3], by the two-loop recursion; `start` is 1/curvature, [systems]."""
    memory = state.rho.shape[1]

    def product(a: Float[Array, "atoms 3"], b: Float[Array, "atoms 3"]) -> Float[Array, " systems"]:
        return sum_by_system(batch, _dot(a, b))

    def newer(
        k: Int[Array, ""] | int, carry: tuple[Float[Array, "atoms 3"], Float[Array, "systems memory"]]
    ) -> tuple[Float[Array, "atoms 3"], Float[Array, "systems memory"]]:
        q, weights = carry
        weight = state.rho[:, k] * product(state.s[:, k], q)
        return q - to_atoms(batch, weight)[:, None] * state.y[:, k], weights.at[:, k].set(weight)

    def older(k: Int[Array, ""], q: Float[Array, "atoms 3"]) -> Float[Array, "atoms 3"]:
        beta = state.rho[:, k] * product(state.y[:, k], q)
        return q + to_atoms(batch, weights[:, k] - beta)[:, None] * state.s[:, k]

    used = jnp.max(jnp.sum(state.rho != 0, axis=1, dtype=jnp.int32))
    q, weights = _over_used(memory, used, newer, (batch.forces, jnp.zeros_like(state.rho)))
    return _over_used(memory, used, older, to_atoms(batch, start)[:, None] * q, oldest_first=True)


_T = TypeVar("_T")
_BLOCK = 25


def _over_used(
    memory: int,
    used: Int[Array, ""],
    step: Callable[[Int[Array, ""], _T], _T],
    carry: _T,
    oldest_first: bool = False,
) -> _T:
    """A loop over the history, in blocks: those in which no system has an entry yet are left out.

    The bounds are static, so that there are derivatives backwards. An entry that is not there adds zero.
    """
    size = next(d for d in range(min(memory, _BLOCK), 0, -1) if memory % d == 0)
    blocks = memory // size

    def block(b: Int[Array, ""], carry: _T) -> _T:
        first = (blocks - 1 - b if oldest_first else b) * size

        def entry(i: Int[Array, ""], carry: _T) -> _T:
            return step(first + (size - 1 - i if oldest_first else i), carry)

        def run(carry: _T) -> _T:
            return jax.lax.fori_loop(0, size, entry, carry)

        return run(carry) if blocks == 1 else jax.lax.cond(first < used, run, lambda c: c, carry)

    return block(jnp.int32(0), carry) if blocks == 1 else jax.lax.fori_loop(0, blocks, block, carry)


def _dot(a: Float[Array, "atoms 3"], b: Float[Array, "atoms 3"]) -> Float[Array, " atoms"]:
    return a[:, 0] * b[:, 0] + a[:, 1] * b[:, 1] + a[:, 2] * b[:, 2]


__all__ = ["LBFGS", "LBFGSState"]
