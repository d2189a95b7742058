"""Who moves on: systems that fail, converge, or use up their budget of steps."""

import dataclasses
from typing import TYPE_CHECKING

import jax.numpy as jnp
from jaxtyping import Array, Bool

from alchemi_jax.dynamics import start
from alchemi_jax.dynamics.state import StepCarry
from alchemi_jax.systems.levels import select
from alchemi_jax.systems.segments import to_atoms


if TYPE_CHECKING:
    from alchemi_jax.dynamics.engine import AbstractDynamics


def revert_failed(engine: "AbstractDynamics", flow: StepCarry, bad: Bool[Array, " systems"]) -> StepCarry:
    """Failed systems, and those that the step does not move, are what they were when it began."""
    state = flow.state
    good = flow.active & ~bad
    atoms = to_atoms(state.batch, good)
    batch = select(atoms, good, state.batch, flow.start)
    flow = flow.put(
        batch=batch.replace(
            failed=batch.failed | bad, status=jnp.where(bad, engine.exit_status, batch.status)
        ),
        integrator=select(atoms, good, state.integrator, flow.start_integrator),
        failed_at=jnp.where(bad, state.step_count, state.failed_at),
        moved=good,
    )
    return dataclasses.replace(flow, active=good)


def advance_status(engine: "AbstractDynamics", flow: StepCarry) -> StepCarry:
    """Steps are counted; whose budget is used up moves on, like one that converged."""
    if any(hook.may_fail for group in engine.groups for hook in group.hooks.traced):
        flow = revert_failed(engine, flow, flow.active & flow.state.batch.failed)
    batch, stage = flow.state.batch, flow.start.status
    newly = flow.active & (batch.status > stage)
    steps_taken = batch.steps_taken + flow.active
    stage_steps = batch.stage_steps + flow.active
    status, converged = batch.status, batch.converged | newly
    for code, part in enumerate(engine.parts):
        if part.n_steps is None:
            continue
        here = flow.active & ~newly if engine.n_stages == 1 else flow.active & ~newly & (stage == code)
        expired = here & (stage_steps >= part.n_steps)
        status = status + expired
        if part is not engine and start.waits_for_convergence(engine, code):
            # What counts is the last relaxation that a system went through.
            converged = converged & ~expired
    if engine.n_stages > 1 and engine.n_steps is not None:
        status = jnp.where(flow.active & (steps_taken >= engine.n_steps), engine.exit_status, status)
    status = jnp.minimum(status, engine.exit_status)
    left = flow.active & (status != stage)
    batch = batch.replace(
        status=status,
        steps_taken=steps_taken,
        stage_steps=jnp.where(left & (status < engine.exit_status), 0, stage_steps),
        converged=converged,
    )
    came_from = jnp.where(left, stage, flow.state.came_from)
    return flow.put(batch=batch, newly_converged=newly, came_from=came_from)
