"""The last record of a run: hooks with `final` show the state that was reached."""

import dataclasses
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Bool

from alchemi_jax.dynamics.protocol import Engine
from alchemi_jax.dynamics.segments import LOOP_OPTIONS
from alchemi_jax.dynamics.stage import DynamicsStage
from alchemi_jax.dynamics.state import DynamicsState
from alchemi_jax.dynamics.step import make_carry
from alchemi_jax.hooks.host_calls import host_context
from alchemi_jax.hooks.lifecycle import note_errors
from alchemi_jax.hooks.protocol import flag
from alchemi_jax.systems.batch import Batch
from alchemi_jax.systems.levels import unsafe_replace


#: The types of equinox do not declare the options.
_filter_jit: Any = eqx.filter_jit


# As the loop is compiled: a row has the same digits, whichever of the two made it.
@_filter_jit(compiler_options=LOOP_OPTIONS)
def _record(hook: Any, ctx: Any) -> Any:
    return hook.hook.record(ctx)


def has_final(engine: Engine) -> bool:
    """Whether a hook records the last state."""
    return any(flag(hook, "final") for group in engine.groups for hook in group.hooks)


def record_final(
    engine: Engine,
    state: DynamicsState,
    batch: Batch,
    systems: Bool[np.ndarray, " systems"] | None = None,
) -> None:
    """Call the hooks that record the last state, for all systems, or for those that end now.

    A hook leaves out the systems that it has shown in this state already.

    Args:
        batch: the systems of the state, with names and outcomes.
        systems: those that take no further step in a run of which others go on.
    """
    if not has_final(engine):
        return
    # The step is over, so what a hook sees at its stage is the state itself.
    shown = unsafe_replace(state, batch=batch)
    carry = make_carry(shown, jnp.asarray(batch.system_mask), None, jnp.ones((), bool))
    carry = dataclasses.replace(carry, code=jnp.minimum(carry.code, engine.n_stages - 1))
    step = int(state.step_count)
    chosen = np.array(batch.system_mask)
    if systems is not None:
        chosen[: len(systems)] &= systems
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
                entry.hook.write_final(jax.tree.map(lambda x: np.asarray(x)[None], row), chosen)
        for entry in group.hooks.host:
            if flag(entry.hook, "final"):
                seen = host_context(unsafe_replace(ctx, step_count=step), batch.meta, step)
                mask = chosen[: len(seen.batch)]
                active = None if seen.active_mask is None else seen.active_mask[mask]
                seen = unsafe_replace(seen, batch=seen.batch.take(mask), active_mask=active)
                with note_errors(entry.hook, f"showing the last state, after step {step}"):
                    entry.hook.call_final(seen)


__all__ = ["has_final", "record_final"]
