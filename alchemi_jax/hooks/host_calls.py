"""Host hooks: the context that they see, and calls by `io_callback` from a compiled loop of the user's."""

from collections.abc import Iterable
from enum import Enum
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import io_callback

from alchemi_jax.errors import name_of
from alchemi_jax.hooks.context import HookContext
from alchemi_jax.hooks.groups import Group, in_order
from alchemi_jax.hooks.protocol import runs_on
from alchemi_jax.systems.levels import unsafe_replace
from alchemi_jax.systems.metadata import Metadata


#: By name: what they are is no part of JAX's public interface.
_REFUSED = {"BatchTracer": "vmap", "JVPTracer": "grad", "LinearizeTracer": "grad"}


def host_hooks(groups: Iterable[Group]) -> list[Any]:
    """All host hooks of some groups."""
    return [held.hook for group in groups for held in group.hooks.host]


def check_deliverable(groups: tuple[Group, ...], tree: Any) -> None:
    """Host hooks have no meaning for many lanes at once, nor for a derivative.

    Raises:
        ValueError: naming the hooks and the alternative.
    """
    for leaf in jax.tree.leaves(tree):
        transform = _REFUSED.get(type(leaf).__name__)
        if transform is not None:
            raise ValueError(refusal(groups, transform))


def refuse_transforms(groups: tuple[Group, ...], tree: Any) -> Any:
    """The same tree, which says what `check_deliverable` says when a transform comes from outside of a
    jit, where it cannot be seen while the loop is traced."""

    @jax.custom_batching.custom_vmap
    def same(arrays: Any) -> Any:
        return arrays

    @same.def_vmap
    def _(axis_size: int, in_batched: Any, arrays: Any) -> Any:
        raise ValueError(refusal(groups, "vmap"))

    @jax.custom_jvp
    def held(arrays: Any) -> Any:
        return same(arrays)

    @held.defjvp
    def _(primals: Any, tangents: Any) -> Any:
        raise ValueError(refusal(groups, "grad"))

    arrays, rest = eqx.partition(tree, eqx.is_array)
    return eqx.combine(held(arrays), rest)


def refusal(groups: tuple[Group, ...], transform: str) -> str:
    """The error where host hooks cannot be called."""
    names = ", ".join(map(name_of, host_hooks(groups)))
    return (
        f"the host hooks {names} cannot be called from a loop under {transform}: write a "
        "RecordingHook (its rows come back in the state), or take them off the engine."
    )


def call_from_device(dispatcher: Any, carry: Any, stage: Enum) -> None:
    """Calls the host hooks of a stage from compiled code, where they are due."""
    for group in in_order(dispatcher.groups, stage):
        hooks = [held.hook for held in group.hooks.host if runs_on(held.hook, stage)]
        if hooks:
            _call_group(dispatcher, carry, stage, group, hooks)


def _call_group(dispatcher: Any, carry: Any, stage: Enum, group: Group, hooks: list[Any]) -> None:
    ctx = dispatcher.context(carry, stage, group)
    meta = ctx.batch.meta
    arrays, rest = eqx.partition(refuse_transforms(dispatcher.groups, ctx), eqx.is_array)

    def on_host(arrays: Any) -> None:
        ctx = eqx.combine(jax.tree.map(np.asarray, arrays), rest)
        step = int(ctx.step_count)
        group.hooks.run_host(host_context(ctx, meta, step), stage, step)

    step = carry.step_count
    due = jnp.any(jnp.stack([step % hook.frequency == 0 for hook in hooks]))
    called = dispatcher.condition(carry, stage, group)
    observed = dispatcher.observed(carry)
    for condition in (called, observed):
        due = due if condition is None else due & condition
    jax.lax.cond(due, lambda: io_callback(on_host, None, arrays, ordered=True), lambda: None)


def host_context(ctx: HookContext, meta: Metadata, step: int) -> HookContext:
    """The context as host hooks see it, with a HostBatch under these names."""
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
