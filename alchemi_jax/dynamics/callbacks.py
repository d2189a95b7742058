"""Host hooks inside a compiled loop of the user's own: delivered through `io_callback`, in order."""

import dataclasses
from typing import TYPE_CHECKING, Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import io_callback

from alchemi_jax.dynamics.stage import DynamicsStage
from alchemi_jax.dynamics.state import Flow
from alchemi_jax.hooks import HookContext
from alchemi_jax.hooks.registry import name_of, runs_on
from alchemi_jax.meta import Metadata


if TYPE_CHECKING:
    from alchemi_jax.dynamics.base import AbstractDynamics

#: By name: what they are is no part of JAX's public interface.
_REFUSED = {"BatchTracer": "vmap", "JVPTracer": "grad", "LinearizeTracer": "grad"}


def refuse_where_undeliverable(engine: "AbstractDynamics", state: Any) -> None:
    """Host hooks have no meaning for many lanes at once, nor for a derivative.

    Raises:
        ValueError: naming the hooks and the alternative.
    """
    for leaf in jax.tree.leaves((engine, state)):
        transform = _REFUSED.get(type(leaf).__name__)
        if transform is not None:
            names = ", ".join(name_of(held.hook) for held in engine.hooks.host)
            raise ValueError(
                f"the host hooks {names} cannot be called from a loop under {transform}: write a "
                "RecordingHook (its rows come back in the state), or take them off the engine."
            )


def deliver(engine: "AbstractDynamics", flow: Flow, stage: DynamicsStage) -> None:
    """Calls the host hooks of a stage from compiled code, where they are due."""
    hooks = [held.hook for held in engine.hooks.host if runs_on(held.hook, stage)]
    if not hooks:
        return
    meta = flow.state.batch.meta
    ctx = engine._build_context(flow, stage)
    ctx = dataclasses.replace(ctx, batch=ctx.batch.replace(meta=None))
    arrays, rest = eqx.partition(ctx, eqx.is_array)

    def on_host(arrays: Any) -> None:
        ctx = eqx.combine(jax.tree.map(np.asarray, arrays), rest)
        step = int(ctx.step_count)
        engine.hooks.run_host(on_the_host(ctx, meta, step), stage, step)

    step = flow.state.step_count
    due = jnp.any(jnp.stack([step % hook.frequency == 0 for hook in hooks]))
    if stage is DynamicsStage.ON_CONVERGE:
        due = due & jnp.any(flow.state.newly_converged)
    jax.lax.cond(due, lambda: io_callback(on_host, None, arrays, ordered=True), lambda: None)


def on_the_host(ctx: HookContext, meta: Metadata | None, step: int) -> HookContext:
    """The context as host hooks see it: numpy arrays without padding."""
    batch = ctx.batch.replace(meta=meta).take()
    n = batch.num_systems

    def mask(m: Any) -> Any:
        return None if m is None else np.asarray(m)[:n]

    return dataclasses.replace(
        ctx,
        batch=batch,
        step_count=step,
        active_mask=mask(ctx.active_mask),
        converged_mask=mask(ctx.converged_mask),
    )
