"""The last record of a run: hooks with `final` show the state that was reached."""

import dataclasses
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np

from alchemi_jax.dynamics.protocol import Engine
from alchemi_jax.dynamics.stage import DynamicsStage
from alchemi_jax.dynamics.state import DynamicsState
from alchemi_jax.dynamics.step import make_carry
from alchemi_jax.errors import name_of
from alchemi_jax.hooks.host_calls import host_context
from alchemi_jax.hooks.lifecycle import note_errors
from alchemi_jax.hooks.protocol import flag
from alchemi_jax.systems.batch import Batch
from alchemi_jax.systems.levels import unsafe_replace
from alchemi_jax.transforms import RUNS_ONCE


#: The types of equinox do not declare the options.
_filter_jit: Any = eqx.filter_jit


@_filter_jit(compiler_options=RUNS_ONCE)
def _record(hook: Any, ctx: Any) -> Any:
    return hook.hook.record(ctx)


def record_final(engine: Engine, state: DynamicsState, batch: Batch) -> None:
    """Call the hooks that record the last state, once, for all systems.

    A hook leaves out the systems that it has shown in this state already.

    Args:
        batch: the systems of the state, with names and outcomes.
    """
    if not any(flag(hook, "final") for group in engine.groups for hook in group.hooks):
        return
    # The step is over, so what a hook sees at its stage is the state itself.
    shown = unsafe_replace(state, batch=batch)
    carry = make_carry(shown, jnp.asarray(batch.system_mask), None, jnp.ones((), bool))
    carry = dataclasses.replace(carry, code=jnp.minimum(carry.code, engine.n_stages - 1))
    step = int(state.step_count)
    for group in engine.groups:
        ctx = engine._build_context(carry, DynamicsStage.BEFORE_STEP, group)
        if group.codes is not None:
            ctx = dataclasses.replace(ctx, active_mask=jnp.asarray(batch.system_mask))
        for entry in group.hooks.recording:
            if not flag(entry.hook, "final"):
                continue
            with note_errors(entry.hook, f"recording the last state, after step {step}"):
                # Nothing is moved any more, so that steps are counted as they are.
                none = jnp.zeros_like(batch.system_mask)
                row = _record(entry, dataclasses.replace(ctx, active_mask=none))
                entry.hook.write_final(jax.tree.map(lambda x: np.asarray(x)[None], row))
        for entry in group.hooks.host:
            if flag(entry.hook, "final"):
                seen = host_context(unsafe_replace(ctx, step_count=step), batch.meta, step)
                with note_errors(entry.hook, f"showing the last state, after step {step}"):
                    entry.hook.call_final(seen)


def check_final(engine: Engine, where: str) -> None:
    """Check that no hook waits for the end of a run that has none of its own.

    Raises:
        ValueError: naming the hook.
    """
    for group in engine.groups:
        for hook in group.hooks:
            if flag(hook, "final"):
                raise ValueError(
                    f"{name_of(hook)} has final=True, but {where}: leave it out, their last states are in "
                    "what the run returns."
                )


__all__ = ["check_final", "record_final"]
