"""Call the hooks of a stage inside a compiled step: traced hooks, rows of recording hooks, and, in a loop of
a user, host hooks.

The step of a workflow passes on a *carry*: an immutable object with `memory`, `records` and `step_count`, and
a method `update(**fields)` that returns a copy with some fields changed. A `Dispatcher` has the decisions of
a workflow; the base class calls each hook by its frequency and takes back the fields in `fields`.
"""

import dataclasses
from enum import Enum
from typing import TYPE_CHECKING, Any, Generic, Protocol, TypeVar

import jax
from jaxtyping import Array, Bool

from alchemi_jax.hooks import records
from alchemi_jax.hooks.calls import concerns_any, due_at, narrow
from alchemi_jax.hooks.context import HookContext
from alchemi_jax.hooks.groups import Group, in_order
from alchemi_jax.hooks.host_calls import call_from_device
from alchemi_jax.hooks.protocol import TracedHook, runs_on
from alchemi_jax.transforms import cond_changed


if TYPE_CHECKING:

    class Carry(Protocol):
        """The fields that dispatch needs of the object that a step passes on."""

        @property
        def memory(self) -> tuple[Any, ...]: ...
        @property
        def records(self) -> tuple[records.RecordBuffer, ...]: ...
        @property
        def step_count(self) -> Any: ...
        def update(self, **fields: Any) -> Any: ...

else:
    # Only for the type checker: a check at run time would evaluate all properties in each call.
    Carry = Any

_K = TypeVar("_K", bound="Carry")


class Dispatcher(Generic[_K]):
    """The decisions of a workflow about its hooks. Subclass it and override what differs.

    Attributes:
        groups: groups of hooks, from `make_groups`.
        fields: fields of the context that traced hooks may change.
        fixed: fields whose change by a traced hook is an error; changes of all others are dropped.
    """

    groups: tuple[Group, ...]
    fields: tuple[str, ...] = ("batch",)
    fixed: tuple[str, ...] = ()

    def context(self, carry: _K, stage: Enum, group: Group) -> HookContext:
        """The context for the hooks of a group at a stage."""
        raise NotImplementedError

    def condition(self, carry: _K, stage: Enum, group: Group) -> Bool[Array, ""] | None:
        """Whether the group is called at all; None: always."""
        return None

    def before(
        self, carry: _K, stage: Enum, group: Group, ctx: Any, number: int, hook: TracedHook
    ) -> tuple[Any, Bool[Array, ""] | None]:
        """The context that a traced hook gets, and whether it is due (None: yes).

        Args:
            number: index of the hook among all traced hooks of the workflow.
        """
        return ctx, due_at(hook, carry.step_count)

    def after(
        self, carry: _K, stage: Enum, group: Group, given: Any, changed: Any, number: int, hook: TracedHook
    ) -> Any:
        """The context to keep after a traced hook, from the context before the call and the one after it."""
        return changed

    def take_back(self, carry: _K, stage: Enum, values: dict[str, Any]) -> _K:
        """The carry with the fields that the traced hooks of a group changed."""
        raise NotImplementedError

    def observed(self, carry: _K) -> Bool[Array, ""] | None:
        """Whether recording and host hooks are called in this pass; None: yes."""
        return None

    def due_systems(self, carry: _K, hook: Any) -> Bool[Array, " systems"] | None:
        """The systems for which a recording or host hook is due; None: it follows the steps of the run."""
        return None


def dispatch(dispatcher: Dispatcher[_K], carry: _K, stage: Enum) -> _K:
    """The carry after the hooks of a stage: traced hooks, then rows for the recording ones."""
    groups = in_order(dispatcher.groups, stage)
    for group in groups:
        if group.hooks.any_traced(stage):
            carry = _run_traced(dispatcher, carry, stage, group)
    for group in groups:
        carry = _record(dispatcher, carry, stage, group)
    # The driver removes host hooks from the engine that it compiles, and calls them itself. They are present
    # only if a user calls step or loop.
    call_from_device(dispatcher, carry, stage)
    return carry


def _run_traced(dispatcher: Dispatcher[_K], carry: _K, stage: Enum, group: Group) -> _K:
    ctx = dispatcher.context(carry, stage, group)

    def call(values: dict[str, Any]) -> dict[str, Any]:
        values = dict(values)
        memories = values.pop("memories")
        new, memories = group.hooks.run_traced(
            dataclasses.replace(ctx, **values),
            stage,
            memories,
            dispatcher.fields,
            lambda ctx, i, hook: dispatcher.before(carry, stage, group, ctx, group.memory + i, hook),
            lambda old, new, i, hook: dispatcher.after(carry, stage, group, old, new, group.memory + i, hook),
            dispatcher.fixed,
        )
        return {name: getattr(new, name) for name in dispatcher.fields} | {"memories": memories}

    values = {name: getattr(ctx, name) for name in dispatcher.fields}
    values["memories"] = group.memories(carry.memory)
    condition = dispatcher.condition(carry, stage, group)
    values = call(values) if condition is None else cond_changed(condition, call, values)
    carry = carry.update(memory=group.put_memories(carry.memory, values.pop("memories")))
    return dispatcher.take_back(carry, stage, values)


def _record(dispatcher: Dispatcher[_K], carry: _K, stage: Enum, group: Group) -> _K:
    buffers = list(carry.records)
    for i, entry in enumerate(group.hooks.recording, group.records):
        # There are no buffers yet in the first evaluation by `init` inside a transform.
        if i >= len(buffers) or not runs_on(entry.hook, stage):
            continue
        ctx = dispatcher.context(carry, stage, group)
        systems = dispatcher.due_systems(carry, entry.hook)
        if systems is None:
            mine = due_at(entry.hook, carry.step_count)
        else:
            ctx = narrow(ctx, systems)
            mine = concerns_any(ctx)
        due = all_of(dispatcher.condition(carry, stage, group), dispatcher.observed(carry), mine)
        with jax.named_scope(type(entry.hook).__name__):
            buffers[i] = records.append(entry.hook, buffers[i], ctx, True if due is None else due)
    return carry.update(records=tuple(buffers)) if buffers else carry


def all_of(*conditions: Bool[Array, ""] | None) -> Bool[Array, ""] | None:
    """Whether all conditions are true; None is a condition that is always true."""
    out: Any = None
    for condition in conditions:
        if condition is not None:
            out = condition if out is None else out & condition
    return out


__all__ = ["Carry", "Dispatcher", "all_of", "dispatch"]
