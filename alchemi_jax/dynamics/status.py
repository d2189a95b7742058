"""The end of a step: systems that converged, were stopped, or used up their budget of steps advance."""

import functools
import operator
from typing import Any

import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from alchemi_jax.dynamics.protocol import Engine
from alchemi_jax.dynamics.restore import shortened
from alchemi_jax.dynamics.state import StepCarry
from alchemi_jax.dynamics.updates import by_system
from alchemi_jax.hooks.groups import Group
from alchemi_jax.hooks.protocol import flag
from alchemi_jax.systems.levels import Data
from alchemi_jax.systems.outcome import Outcome


def advance_status(engine: Engine, carry: StepCarry) -> StepCarry:
    """Count steps and time; advance status and outcome of systems that converged, stopped or expired."""
    state, batch, code = carry.state, carry.state.batch, carry.code
    announced = state.converged_at_start & carry.is_step
    stopped = carry.evaluated & (batch.outcome == Outcome.STOPPED)
    arrived = carry.evaluated & ~stopped & (batch.status > code)
    newly = arrived & carry.active
    moved = carry.active.astype(jnp.int32)
    steps_taken, stage_steps = batch.steps_taken + moved, batch.stage_steps + moved
    status, converged = batch.status, batch.converged | arrived
    for number, part in enumerate(engine.parts):
        if part.n_steps is None:
            continue
        expired = carry.active & ~arrived & (code == number) & (stage_steps >= part.n_steps)
        status = status + expired.astype(status.dtype)
        if engine.n_stages > 1 and waits_for_convergence(engine, number):
            # `converged` refers to the last relaxation of a system.
            converged = converged & ~expired
    if engine.n_stages > 1 and engine.n_steps is not None:
        used_up = carry.active & (steps_taken >= engine.n_steps)
        status = jnp.where(used_up, engine.exit_status, status)
    status = jnp.minimum(jnp.where(stopped, engine.exit_status, status), engine.exit_status)
    left = carry.evaluated & (status != code)
    finished = left & (status == engine.exit_status) & (batch.outcome == Outcome.RUNNING)
    end = jnp.where(converged, jnp.int32(Outcome.CONVERGED), jnp.int32(Outcome.OUT_OF_STEPS))
    time, time_error = _advance_time(engine, carry)
    batch = batch.replace(
        status=status,
        outcome=jnp.where(finished, end, batch.outcome),
        steps_taken=steps_taken,
        stage_steps=jnp.where(left & (status < engine.exit_status), 0, stage_steps),
        converged=converged,
        time=time,
    )
    changed: dict[str, Any] = {}
    if carry.fresh is not None:
        changed["fresh"] = jnp.zeros_like(state.fresh)
    return carry.update(
        batch=batch,
        newly_converged=newly | announced,
        converged_at_start=(state.converged_at_start & ~announced) | (arrived & ~carry.active),
        entering=state.entering | (left & (status < engine.exit_status)),
        came_from=jnp.where(left, code, state.came_from),
        time_error=time_error,
        **changed,
    )


def _advance_time(
    engine: Engine, carry: StepCarry
) -> tuple[Float[Array, " systems"], Float[Array, " systems"]]:
    """Time of each system after the step and its rounding error, fs, by Kahan's summation.

    A plain sum in float32 would no longer grow after 10^7 steps.
    """
    state, batch = carry.state, carry.state.batch
    # A system that is rescued counts the step, and no time.
    moving = carry.active if state.rescue is None else carry.active & state.moved
    own = state.integrator if engine.n_stages > 1 else (state.integrator,)
    dt = None
    for number, (part, algorithm) in enumerate(zip(shortened(engine, state).parts, own, strict=True)):
        step = part.time_step(batch, algorithm)
        if step is not None:
            mine = jnp.where(moving & (carry.code == number), by_system(batch, step), 0)
            dt = mine if dt is None else dt + mine
    if dt is None:
        return batch.time, state.time_error
    added = dt - state.time_error
    time = batch.time + added
    error = (time - batch.time) - added
    return jnp.where(moving, time, batch.time), jnp.where(moving, error, state.time_error)


def within(group: Group, mask: Bool[Data, " systems"], code: Int[Data, " systems"]) -> Bool[Data, " systems"]:
    """The systems of a mask that are in one of the parts of the pipeline that a group belongs to.

    Numbers of the host (numpy) stay there.
    """
    if group.codes is None:
        return mask
    return mask & functools.reduce(operator.or_, [code == number for number in group.codes])


def waits_for_convergence(engine: Engine, number: int) -> bool:
    """Whether a hook judges convergence in a part of the pipeline."""
    return any(
        flag(hook, "judges_convergence")
        for group in engine.groups
        if group.codes is None or number in group.codes
        for hook in group.hooks.traced
    )


__all__ = ["advance_status", "waits_for_convergence", "within"]
