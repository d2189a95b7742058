"""Host hooks: their context, and calls by `io_callback` from a compiled loop of a user."""

from collections.abc import Iterable
from enum import Enum
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import io_callback

from alchemi_jax.errors import name_of
from alchemi_jax.hooks.calls import concerns_any, narrow
from alchemi_jax.hooks.context import HookContext
from alchemi_jax.hooks.groups import Group, in_order
from alchemi_jax.hooks.protocol import runs_on
from alchemi_jax.systems.levels import unsafe_replace
from alchemi_jax.systems.metadata import Metadata


#: Names of tracers: the classes are not in the public API of JAX.
_REFUSED = {"BatchTracer": "vmap", "JVPTracer": "grad", "LinearizeTracer": "grad"}


def host_hooks(groups: Iterable[Group]) -> list[Any]:
    """All host hooks of some groups."""
    return [entry.hook for group in groups for entry in group.hooks.host]


def check_deliverable(groups: tuple[Group, ...], tree: Any) -> None:
    """Refuse arrays that are traced by vmap or grad, under which host hooks have no meaning.

    Raises:
        ValueError: naming the hooks and the alternative.
    """
    for leaf in jax.tree.leaves(tree):
        transform = _REFUSED.get(type(leaf).__name__)
        if transform is not None:
            raise ValueError(refusal(groups, transform))


def refuse_transforms(groups: tuple[Group, ...], tree: Any) -> Any:
    """The same tree, with rules that raise the error of `check_deliverable` under vmap and grad.

    For transforms around a jit, which are not visible while the loop is traced.
    """

    @jax.custom_batching.custom_vmap
    def refuse_vmap(arrays: Any) -> Any:
        return arrays

    @refuse_vmap.def_vmap
    def _(axis_size: int, in_batched: Any, arrays: Any) -> Any:
        raise ValueError(refusal(groups, "vmap"))

    @jax.custom_jvp
    def refuse_grad(arrays: Any) -> Any:
        return refuse_vmap(arrays)

    @refuse_grad.defjvp
    def _(primals: Any, tangents: Any) -> Any:
        raise ValueError(refusal(groups, "grad"))

    arrays, rest = eqx.partition(tree, eqx.is_array)
    return eqx.combine(refuse_grad(arrays), rest)


def refusal(groups: tuple[Group, ...], transform: str) -> str:
    """The message of the error if host hooks cannot be called."""
    names = ", ".join(map(name_of, host_hooks(groups)))
    return (
        f"the host hooks {names} cannot be called from a loop under {transform}: write a "
        "RecordingHook (its rows come back in the state), or take them off the engine."
    )


def call_from_device(dispatcher: Any, carry: Any, stage: Enum) -> None:
    """Call the host hooks of a stage from compiled code, if they are due."""
    for group in in_order(dispatcher.groups, stage):
        hooks = [entry.hook for entry in group.hooks.host if runs_on(entry.hook, stage)]
        if hooks:
            _call_group(dispatcher, carry, stage, group, hooks)


def _call_group(dispatcher: Any, carry: Any, stage: Enum, group: Group, hooks: list[Any]) -> None:
    ctx = dispatcher.context(carry, stage, group)
    meta = ctx.batch.meta
    step = carry.step_count
    # For each hook whether it is due, or for which systems.
    dues = [dispatcher.due_systems(carry, hook) for hook in hooks]
    dues = [step % h.frequency == 0 if d is None else d for h, d in zip(hooks, dues, strict=True)]
    arrays, rest = eqx.partition(refuse_transforms(dispatcher.groups, (ctx, dues)), eqx.is_array)

    def on_host(arrays: Any) -> None:
        ctx, dues = eqx.combine(jax.tree.map(np.asarray, arrays), rest)
        step, known = int(ctx.step_count), dict(zip(map(id, hooks), dues, strict=True))
        # Hooks of other stages are not among them.
        group.hooks.run_host(host_context(ctx, meta, step), stage, step, lambda h: known.get(id(h), False))

    called = [d if d.ndim == 0 else concerns_any(narrow(ctx, d)) for d in dues]
    due = jnp.any(jnp.stack(called))
    called = dispatcher.condition(carry, stage, group)
    observed = dispatcher.observed(carry)
    for condition in (called, observed):
        due = due if condition is None else due & condition
    jax.lax.cond(due, lambda: io_callback(on_host, None, arrays, ordered=True), lambda: None)


def host_context(ctx: HookContext, meta: Metadata, step: int) -> HookContext:
    """The context for host hooks: with a HostBatch, and masks without padding."""
    host = ctx.batch.to_host(meta=meta)
    n = len(host)

    def mask(m: Any) -> Any:
        return None if m is None else np.asarray(m)[:n]

    return unsafe_replace(
        ctx,
        batch=host,
        step_count=step,
        active_mask=mask(ctx.active_mask),
        converged_mask=mask(ctx.converged_mask),
    )


__all__ = [
    "call_from_device",
    "check_deliverable",
    "host_context",
    "host_hooks",
    "refusal",
    "refuse_transforms",
]
