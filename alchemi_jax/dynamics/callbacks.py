"""Host hooks inside a compiled loop of the user's own: delivered through `io_callback`, in order."""

import dataclasses
from typing import TYPE_CHECKING, Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import io_callback

from alchemi_jax.dynamics.groups import Group, in_order
from alchemi_jax.dynamics.stage import DynamicsStage
from alchemi_jax.dynamics.state import StepCarry
from alchemi_jax.errors import name_of
from alchemi_jax.hooks import HookContext
from alchemi_jax.hooks.set import runs_on
from alchemi_jax.systems.levels import unsafe_replace
from alchemi_jax.systems.metadata import Metadata


if TYPE_CHECKING:
    from alchemi_jax.dynamics.engine import AbstractDynamics

#: By name: what they are is no part of JAX's public interface.
_REFUSED = {"BatchTracer": "vmap", "JVPTracer": "grad", "LinearizeTracer": "grad"}


def check_deliverable(engine: "AbstractDynamics", state: Any) -> None:
    """Host hooks have no meaning for many lanes at once, nor for a derivative.

    Raises:
        ValueError: naming the hooks and the alternative.
    """
    for leaf in jax.tree.leaves((engine, state)):
        transform = _REFUSED.get(type(leaf).__name__)
        if transform is not None:
            raise ValueError(refusal(engine, transform))


def refuse_transforms(engine: "AbstractDynamics", tree: Any) -> Any:
    """The same tree, which says what `check_deliverable` says when a transform comes from
    outside of a jit, where it cannot be seen while the loop is traced."""

    @jax.custom_batching.custom_vmap
    def same(arrays: Any) -> Any:
        return arrays

    @same.def_vmap
    def _(axis_size: int, in_batched: Any, arrays: Any) -> Any:
        raise ValueError(refusal(engine, "vmap"))

    @jax.custom_jvp
    def held(arrays: Any) -> Any:
        return same(arrays)

    @held.defjvp
    def _(primals: Any, tangents: Any) -> Any:
        raise ValueError(refusal(engine, "grad"))

    arrays, rest = eqx.partition(tree, eqx.is_array)
    return eqx.combine(held(arrays), rest)


def refusal(engine: "AbstractDynamics", transform: str) -> str:
    """What an engine with host hooks is told where they cannot be called."""
    names = ", ".join(name_of(held.hook) for group in engine.groups for held in group.hooks.host)
    return (
        f"the host hooks {names} cannot be called from a loop under {transform}: write a "
        "RecordingHook (its rows come back in the state), or take them off the engine."
    )


def call_from_device(engine: "AbstractDynamics", flow: StepCarry, stage: DynamicsStage) -> None:
    """Calls the host hooks of a stage from compiled code, where they are due."""
    for group in in_order(engine.groups, stage):
        hooks = [held.hook for held in group.hooks.host if runs_on(held.hook, stage)]
        if hooks:
            _call_group_from_device(engine, flow, stage, group, hooks)


def _call_group_from_device(
    engine: "AbstractDynamics", flow: StepCarry, stage: DynamicsStage, group: Group, hooks: list
) -> None:
    meta = flow.state.batch.meta
    ctx = engine._build_context(flow, stage, group)
    ctx = dataclasses.replace(ctx, batch=ctx.batch.replace(meta=None))
    arrays, rest = eqx.partition(refuse_transforms(engine, ctx), eqx.is_array)

    def on_host(arrays: Any) -> None:
        ctx = eqx.combine(jax.tree.map(np.asarray, arrays), rest)
        step = int(ctx.step_count)
        group.hooks.run_host(host_context(ctx, meta, step), stage, step)

    step = flow.state.step_count
    due = jnp.any(jnp.stack([step % hook.frequency == 0 for hook in hooks]))
    called = group.called(flow, stage)
    due = due if called is None else due & called
    jax.lax.cond(due, lambda: io_callback(on_host, None, arrays, ordered=True), lambda: None)


def host_context(ctx: HookContext, meta: Metadata | None, step: int) -> HookContext:
    """The context as host hooks see it: numpy arrays without padding."""
    batch = unsafe_replace(ctx.batch, meta=meta).take()
    n = batch.num_systems

    def mask(m: Any) -> Any:
        return None if m is None else np.asarray(m)[:n]

    return unsafe_replace(
        ctx,
        batch=batch,
        step_count=step,
        active_mask=mask(ctx.active_mask),
        converged_mask=mask(ctx.converged_mask),
    )
