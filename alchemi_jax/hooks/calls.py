"""Call traced hooks: when one is due, what it may change, and checks of what it returns."""

import dataclasses
from collections.abc import Callable
from enum import Enum
from typing import Any, TypeVar

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool

from alchemi_jax.errors import (
    UserCodeError,
    check_same_structure,
    description,
    is_array,
    location,
    name_of,
    user_errors,
)
from alchemi_jax.hooks.context import HookContext
from alchemi_jax.hooks.protocol import TracedHook
from alchemi_jax.systems.batch import Batch
from alchemi_jax.systems.levels import Level, check_levels, unsafe_replace
from alchemi_jax.transforms import cond_changed


_C = TypeVar("_C", bound=HookContext)


def make_memory(hook: TracedHook, batch: Batch) -> Any:
    """The memory of a hook before the first step.

    Raises:
        UserCodeError: naming the hook, if the memory is not a pytree of arrays, or lacks the rows that it
            declares.
    """
    with user_errors(f"{name_of(hook)}.init", "hook"):
        memory = hook.init(batch)
    at = location(type(hook).init)
    for path, leaf in jax.tree_util.tree_leaves_with_path(memory):
        if not is_array(leaf):
            raise UserCodeError(
                f"{name_of(hook)}.init made memory{jax.tree_util.keystr(path)} {description(leaf)}: "
                f"a memory is a pytree of arrays{at}."
            )
    memory = jax.tree.map(jnp.asarray, memory)
    rows: dict[Level, int] = {"atom": batch.atom_capacity, "system": batch.system_capacity}
    check_levels(f"{name_of(hook)}.init", memory, rows, at)
    return memory


def call_traced(
    hook: TracedHook,
    ctx: _C,
    stage: Enum,
    fields: tuple[str, ...],
    due: Bool[Array, ""] | None,
    fixed: tuple[str, ...] = (),
) -> _C:
    """The context after a traced hook, with the memory and some fields of the context that it returned.

    Args:
        fields: the fields that the hook may change.
        due: whether the hook is called; None: always.
        fixed: fields whose change is an error; changes of all others are dropped.

    Raises:
        UserCodeError: naming the hook, in place of an error of the while_loop around it.
    """
    before = {name: getattr(ctx, name) for name in (*fields, "memory")}

    def call(values: dict[str, Any]) -> dict[str, Any]:
        with user_errors(f"{name_of(hook)} at {stage.name}", "hook"):
            new = hook(dataclasses.replace(ctx, **values), stage)
        function = type(hook).__call__
        if not isinstance(new, HookContext):
            raise UserCodeError(
                f"{name_of(hook)} returned {description(new)} at {stage.name}: a traced hook returns the "
                f"context, for example ctx.with_batch(forces=...){location(function)}."
            )
        hook_name = name_of(hook)
        for name in fixed:
            _check_unchanged(hook, stage, name, getattr(new, name), getattr(ctx, name), fields)
        return {
            name: check_same_structure(hook_name, name, getattr(new, name), old, function)
            for name, old in values.items()
        }

    after = call(before) if due is None else cond_changed(due, call, before)
    return dataclasses.replace(ctx, **after)


def _check_unchanged(
    hook: TracedHook, stage: Enum, name: str, new: Any, old: Any, fields: tuple[str, ...]
) -> None:
    """Raises UserCodeError if a field has another leaf; which it has is known while tracing."""
    if new is old:
        return
    news, olds = jax.tree.leaves(new), jax.tree.leaves(old)
    if len(news) == len(olds) and all(a is b for a, b in zip(news, olds, strict=True)):
        return
    may = " and ".join(fields) or "nothing but its memory"
    raise UserCodeError(
        f"{name_of(hook)} changed {name} at {stage.name}, where a traced hook may change {may}"
        f"{location(type(hook).__call__)}."
    )


def due_at(hook: Any, step_count: Any) -> Bool[Array, ""] | None:
    """Whether a hook is called in this step, by its frequency; None: in every step."""
    return None if hook.frequency == 1 else jnp.asarray(step_count % hook.frequency == 0)


def narrow(ctx: _C, systems: Any) -> _C:
    """The context of a call that concerns only some systems: `systems` is a mask over them, padded or not."""
    masks = {name: getattr(ctx, name) for name in ("active_mask", "converged_mask")}
    narrowed = {name: m & systems[: len(m)] for name, m in masks.items() if m is not None}
    return unsafe_replace(ctx, **narrowed)


def concerns_any(ctx: HookContext) -> Bool[Array, ""]:
    """Whether the call concerns any system: one that converged, at ON_CONVERGE, otherwise one that moves."""
    mask = ctx.active_mask if ctx.converged_mask is None else ctx.converged_mask
    return jnp.any(mask)


#: Functions of a workflow around each call. Before: (context, number of the hook, hook) -> the context for
#: the hook, and whether it is due. After: (context before, context after, number, hook) -> context to keep.
Before = Callable[[Any, int, TracedHook], tuple[Any, Bool[Array, ""] | None]]
After = Callable[[Any, Any, int, TracedHook], Any]


#: due(hook) -> whether a host hook is called, or [systems], for which of them.
Due = Callable[[Any], Any]


__all__ = ["After", "Before", "Due", "call_traced", "concerns_any", "due_at", "make_memory", "narrow"]
