"""Calling traced hooks: when one is due, what it may change, and whether what comes back fits."""

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
from alchemi_jax.systems.levels import Level, check_levels
from alchemi_jax.transforms import cond_changed


_C = TypeVar("_C", bound=HookContext)


def make_memory(hook: TracedHook, batch: Batch) -> Any:
    """The memory of a hook before the first step.

    Raises:
        UserCodeError: naming the hook, for what is no pytree of arrays, or has not the rows that it declares.
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
    hook: TracedHook, ctx: _C, stage: Enum, fields: tuple[str, ...], due: Bool[Array, ""] | None
) -> _C:
    """The context after a traced hook: of what it returns, some fields and the memory; all else as before.

    Args:
        fields: those that the hook may change.
        due: whether it is called; None: always.

    Raises:
        UserCodeError: naming the hook, so that a mistake is not found in a while_loop.
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
        who = name_of(hook)
        return {
            name: check_same_structure(who, name, getattr(new, name), old, function)
            for name, old in values.items()
        }

    after = call(before) if due is None else cond_changed(due, call, before)
    return dataclasses.replace(ctx, **after)


def due_at(hook: Any, step_count: Any) -> Bool[Array, ""] | None:
    """Whether a hook's frequency says that it is called in this step; None: in every step."""
    return None if hook.frequency == 1 else jnp.asarray(step_count % hook.frequency == 0)


#: What a workflow may do around each call: context, number of the hook, hook -> the context that the hook
#: gets and whether it is due; and, with the context after the call, what of it is kept.
Before = Callable[[Any, int, TracedHook], tuple[Any, Bool[Array, ""] | None]]
After = Callable[[Any, Any, int, TracedHook], Any]
