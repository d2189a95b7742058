"""The last state of each system, for hooks that record before steps and would not see it."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Bool

from alchemi_jax.dynamics.driver import Run, code_of_last_step
from alchemi_jax.dynamics.stage import DynamicsStage
from alchemi_jax.dynamics.state import StepCarry
from alchemi_jax.errors import name_of, user_errors
from alchemi_jax.hooks.groups import in_order
from alchemi_jax.hooks.host_calls import host_context
from alchemi_jax.hooks.lifecycle import note_errors
from alchemi_jax.hooks.protocol import flag
from alchemi_jax.systems.levels import unsafe_replace


def observe_last(run: Run, systems: Bool[np.ndarray, " systems"] | None = None) -> None:
    """Call hooks with `final` for systems (by default all) that have taken their last step of the run.

    Rows that wait on the device must have been written before.
    """
    if not any(flag(hook, "final") for group in run.groups for hook in group.hooks):
        return
    state, step, stage = run.state, run.report.step, DynamicsStage.BEFORE_STEP
    mask = np.asarray(state.batch.atoms_per_system) > 0
    if systems is not None:
        mask[: len(systems)] &= systems
    code: Any = code_of_last_step(run.engine, state)
    carry = StepCarry(state, state.batch, None, code, jnp.asarray(mask), None, jnp.ones((), bool))
    for group in in_order(run.groups, stage):
        ctx = unsafe_replace(run.engine._build_context(carry, stage, group), step_count=step)
        for entry in group.hooks.recording:
            if flag(entry.hook, "final"):
                when = f"recording the last states after step {step}"
                with user_errors(f"{name_of(entry.hook)}.record", "hook"), note_errors(entry.hook, when):
                    row = entry.hook.record(ctx)
                    entry.hook.write(jax.tree.map(lambda x: np.asarray(x)[None], row))
        hosts = [entry.hook for entry in group.hooks.host if flag(entry.hook, "final")]
        if hosts:
            seen = host_context(ctx, run.meta, step)
            for hook in hosts:
                with note_errors(hook, f"writing the last states after step {step}"):
                    hook.finish(seen)
