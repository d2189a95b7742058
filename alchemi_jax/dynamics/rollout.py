"""Rollout: a fixed number of steps as a scan, for reverse-mode derivatives.

A `while_loop` has no reverse derivative, because the number of steps is not known; a scan has one.
Checkpointing limits its memory: only some states are stored, and the steps between them are computed again in
the backward pass (Griewank, Walther, ACM Trans. Math. Softw. 26, 19 (2000), doi:10.1145/347837.347846). Two
levels suffice here, since a state is small compared with the intermediate values of a step.
"""

from __future__ import annotations

import functools
import math
from typing import Any

import jax
import jax.numpy as jnp

from alchemi_jax.dynamics.check import NO_LIMIT, check_arrays, count_steps
from alchemi_jax.dynamics.loop import make_room_for_rows, nan_on_overflow, should_continue
from alchemi_jax.dynamics.protocol import Engine
from alchemi_jax.dynamics.state import DynamicsState
from alchemi_jax.dynamics.step import step as take_step
from alchemi_jax.errors import name_of
from alchemi_jax.hooks.host_calls import host_hooks, refusal
from alchemi_jax.transforms import is_traced


def rollout(engine: Engine, state: DynamicsState, n_steps: Any, checkpoint: Any) -> DynamicsState:
    """See `AbstractDynamics.rollout`."""
    if host_hooks(engine.groups):
        raise ValueError(refusal(engine.groups, "rollout"))
    check_arrays(engine, "rollout", state)
    n = count_steps(engine, "rollout", n_steps)
    if is_traced(n):
        raise ValueError(f"{name_of(engine)}.rollout: n_steps is traced; it must be a plain int.")
    every = _segment(engine, n, checkpoint)
    state = make_room_for_rows(engine, state, n)
    stop = state.step_count + jnp.minimum(n, NO_LIMIT - state.step_count)

    def step(state: DynamicsState, _: None) -> tuple[DynamicsState, None]:
        # Like the loop: no more steps when all systems are finished.
        on = should_continue(engine, state, stop)
        return jax.lax.cond(on, lambda s: take_step(engine, s, False), lambda s: s, state), None

    # In a scan the barrier of `prevent_cse` is not needed.
    remat = functools.partial(jax.checkpoint, prevent_cse=False)
    one_step = step if every is None else remat(step)

    def steps(state: DynamicsState, count: int) -> DynamicsState:
        return jax.lax.scan(one_step, state, length=count)[0]

    if every is None or every in (1, n):
        return nan_on_overflow(steps(state, n))

    @remat
    def segment(state: DynamicsState, _: None) -> tuple[DynamicsState, None]:
        return steps(state, every), None

    segments, rest = divmod(n, every)
    state, _ = jax.lax.scan(segment, state, length=segments)
    return nan_on_overflow(steps(state, rest) if rest else state)


def _segment(engine: Engine, n: int, checkpoint: Any) -> int | None:
    """Number of steps between stored states; None: all intermediate values are stored."""
    if checkpoint is None:
        return None
    if checkpoint == "sqrt":
        return max(math.isqrt(n), 1)
    if isinstance(checkpoint, str):
        raise ValueError(
            f"{name_of(engine)}.rollout: checkpoint must be 'sqrt', a positive int or None, "
            f"not {checkpoint!r}."
        )
    every = count_steps(engine, "rollout", checkpoint, "checkpoint")
    if not every:
        raise ValueError(f"{name_of(engine)}.rollout: checkpoint must be a positive int, not 0.")
    return min(every, max(n, 1))


__all__ = ["rollout"]
