"""The pure loop: steps of an engine as one traced function, for transforms and for loops of users."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Int

from alchemi_jax.dynamics.check import NO_LIMIT, check_arrays, count_steps
from alchemi_jax.dynamics.protocol import Engine
from alchemi_jax.dynamics.stage import DynamicsStage
from alchemi_jax.dynamics.state import DynamicsState
from alchemi_jax.dynamics.step import step
from alchemi_jax.errors import name_of
from alchemi_jax.hooks import records
from alchemi_jax.hooks.host_calls import check_deliverable, host_hooks, refuse_transforms
from alchemi_jax.hooks.protocol import flag, runs_on
from alchemi_jax.transforms import forwards_only, is_reversed, is_traced


def loop(engine: Engine, state: DynamicsState, n_steps: Any, with_fresh: bool = False) -> DynamicsState:
    """See `AbstractDynamics.loop`.

    Args:
        with_fresh: whether systems may be fresh; these are evaluated first.
    """
    if host_hooks(engine.groups):
        check_deliverable(engine.groups, (engine, state))
        engine, state = refuse_transforms(engine.groups, (engine, state))
    check_arrays(engine, "loop", state)
    backwards = (
        f"{name_of(engine)}.loop stops when all systems are finished, so it has no derivative backwards "
        "(jax.grad, jax.vjp): use rollout, which takes the same steps. jax.jvp and jax.jacfwd go through "
        "loop."
    )
    if is_reversed((engine, state)):
        raise ValueError(backwards)
    n = steps_of_budget(engine) if n_steps is None else count_steps(engine, "loop", n_steps)
    if n is None:
        raise ValueError(f"{name_of(engine)}.loop needs n_steps, here or in the engine.")
    state = make_room_for_rows(engine, state, n)
    stop = state.step_count + jnp.minimum(jnp.asarray(n, jnp.int32), NO_LIMIT - state.step_count)
    after = jax.lax.while_loop(
        lambda s: should_continue(engine, s, stop),
        lambda s: step(engine, s, with_fresh),
        state,
    )
    return forwards_only(nan_on_overflow(after), backwards)


def steps_of_budget(engine: Engine) -> Any:
    """Steps of the loop in which every system can use up its budget; None: no limit."""
    most = engine.max_steps
    # In a pipeline who has converged before the first step waits in it, and then moves on.
    return most if most is None or engine.n_stages == 1 else most + 1


def should_continue(
    engine: Engine,
    state: DynamicsState,
    stop: Any,
    stop_on_convergence: Any = False,
    min_active: Any = 0,
    drains: bool = False,
) -> Bool[Array, ""]:
    """Whether to take another step.

    Args:
        stop: number of completed steps after which there is none.
        stop_on_convergence: whether to stop after a step in which a system converged.
        min_active: stop when no more than this many systems are unfinished.
        drains: whether the caller drains record buffers. Then there is no step if a buffer lacks room for its
            rows. Otherwise a full buffer is an overflow like any other.
    """
    proceed = (state.step_count < stop) & (unfinished(engine, state) > min_active)
    proceed &= ~(stop_on_convergence & jnp.any(state.newly_converged))
    # Fresh systems are evaluated even if no step is to follow.
    proceed |= jnp.any(state.fresh & engine.active(state.batch))
    if drains:
        for buffer, rows in zip(state.records, rows_per_step(engine), strict=True):
            proceed &= ~buffer.full(rows)
    return proceed & ~jnp.asarray(state.overflow)


def unfinished(engine: Engine, state: DynamicsState) -> Int[Array, ""]:
    """Number of systems for which there is something left to do."""
    return (engine.active(state.batch) | state.converged_at_start).sum(dtype=jnp.int32)


def make_room_for_rows(engine: Engine, state: DynamicsState, n: Any) -> DynamicsState:
    """The state with buffers for all rows that n steps record."""
    recording = [entry.hook for group in engine.groups for entry in group.hooks.recording]
    if not recording or not state.records:
        return state
    if is_traced(n):
        raise ValueError("loop with recording hooks needs a concrete n_steps: it fixes shapes.")
    buffers = []
    for buffer, hook, rows in zip(state.records, recording, rows_per_step(engine), strict=True):
        # If the number of rows that wait is not known, there may be an overflow, which is reported.
        # A constant of a jit that is traced just now is no tracer, and yet gives one.
        with jax.ensure_compile_time_eval():
            waiting = 0 if is_traced(buffer.count) else int(np.max(np.asarray(buffer.count)))
        most = int(np.max(n))
        # No more than one row for each step.
        more = rows * (min(most, _phases(engine, state, hook) * (most // hook.frequency + 1)) + 2)
        buffers.append(records.grow(buffer, waiting + more))
    return state.replace(records=tuple(buffers))


def _phases(engine: Engine, state: DynamicsState, hook: Any) -> int:
    """In how many steps of each `hook.frequency` a recording hook is due: more than one if it follows the
    steps of systems that have taken different numbers of them."""
    if not flag(hook, "own_steps"):
        return 1
    # Systems that are finished with the first part of a pipeline before they move wait for one step.
    waiting = 1 if engine.n_stages == 1 else 2
    batch = state.batch
    if is_traced((batch.steps_taken, batch.status)):
        return waiting
    with jax.ensure_compile_time_eval():
        active = np.asarray(engine.active(batch))
    taken = np.asarray(batch.steps_taken)[active] % hook.frequency
    return waiting * max(len(np.unique(taken)), 1)


def rows_per_step(engine: Engine) -> list[int]:
    """The largest number of rows of each recording hook in a step: one per stage on which it runs."""
    hooks = [entry.hook for group in engine.groups for entry in group.hooks.recording]
    return [sum(runs_on(hook, stage) for stage in DynamicsStage) for hook in hooks]


def nan_on_overflow(state: DynamicsState) -> DynamicsState:
    """The state, with energies and forces of NaN if a capacity was too small."""
    batch, nan = state.batch, jnp.where(state.overflow, jnp.nan, 0)
    return state.replace(
        batch=batch.replace(
            energy=batch.energy + nan.astype(batch.dtype),
            forces=batch.forces + nan.astype(batch.dtype),
        )
    )


__all__ = [
    "loop",
    "make_room_for_rows",
    "nan_on_overflow",
    "rows_per_step",
    "should_continue",
    "steps_of_budget",
    "unfinished",
]
